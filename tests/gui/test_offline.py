"""Zero external requests: every screen asks its own server for everything."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

import pytest
from browser import Browser, Server
from studied import SCREENS, screen_path

pytestmark = pytest.mark.slow


def _asked(browser: Browser) -> list[str]:
    """Every address that the browser has asked for, websockets included, since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in browser.driver.get_log("performance")]  # type: ignore[no-untyped-call]
    sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return sent + [event["params"]["url"] for event in events if event["method"] == "Network.webSocketCreated"]


@pytest.mark.parametrize("screen", SCREENS)
def test_every_request_goes_to_the_server_itself(chromium: Browser, studied_server: Server, screen: str) -> None:
    path = screen_path(studied_server.home, screen)
    chromium.driver.get("about:blank")  # else the last test's page goes on asking its own server
    _asked(chromium)
    chromium.enter(studied_server, path)
    chromium.settle()
    addresses = [urlsplit(address) for address in _asked(chromium)]
    outside = [
        address for address in addresses if address.scheme not in ("data", "blob") and address.netloc != f"127.0.0.1:{studied_server.port}"
    ]
    assert outside == []
    assert {"http", "ws"} <= {address.scheme for address in addresses}
    assert any(address.path == path for address in addresses)
    assert chromium.errors() == []


def test_a_request_elsewhere_would_be_seen_and_is_refused(chromium: Browser, studied_server: Server) -> None:
    chromium.enter(studied_server)
    _asked(chromium)
    chromium.driver.execute_async_script(
        "const done = arguments[0]; const image = new Image(); image.onload = image.onerror = () => done(); image.src = 'http://127.0.0.2:9/x.png';"
    )
    chromium.until(lambda: any("Content Security Policy" in message for message in chromium.errors()), "the page's policy refuses it")
