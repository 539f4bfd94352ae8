"""A real server in a process of its own, and a real headless Chromium before it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from selenium import webdriver
from selenium.common.exceptions import JavascriptException, StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

START_SECONDS = 60.0
WAIT_SECONDS = 40.0
_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)")
_SWITCHES = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
]
_WAITING = re.compile(r"^(\w+ing\b.*)?…$", re.MULTILINE)
"""How pages say that something is still to come."""
Found = TypeVar("Found")


class Server:
    """`quantailor gui` on a home; `lines` are what it printed."""

    def __init__(self, home: Path, *arguments: str, cwd: Path | None = None) -> None:
        self.home = home
        port = () if "--port" in arguments else ("--port", "0")
        command = [sys.executable, "-m", "quantailor", "gui", "--no-browser", "--home", str(home), *port, *arguments]
        self._start(command, cwd)
        if not self._answering():
            self._start(command, cwd)
            assert self._answering(), "".join(self.lines)

    def _start(self, command: Sequence[str], cwd: Path | None) -> None:
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "NICEGUI_"))}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd, env=plain)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.port, self.token = self._address()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as printed:
            self.lines.extend(iter(printed.readline, ""))

    def _address(self) -> tuple[int, str]:
        def printed() -> tuple[int, str] | None:
            match = _ADDRESS.search("".join(self.lines))
            assert self.process.poll() is None or match, "".join(self.lines)
            return (int(match[1]), match[2]) if match else None

        return wait_for(printed, "the server prints its address", seconds=START_SECONDS)

    def _answering(self) -> bool:
        """Wait for it; false where another process took the free port before the server did."""
        import httpx

        def answers() -> bool:
            try:
                return httpx.get(self.url("/static/quantailor.css"), timeout=5).status_code == 401
            except httpx.TransportError:
                if ended := self.process.poll() is not None:
                    self._reader.join(5)
                assert not ended or "address already in use" in "".join(self.lines), "".join(self.lines)
                return ended

        wait_for(answers, "the server answers", seconds=START_SECONDS)
        return self.process.poll() is None

    def url(self, path: str = "/") -> str:
        """An address without the token."""
        return f"http://127.0.0.1:{self.port}{path}"

    @property
    def entry(self) -> str:
        """The address it printed."""
        return f"{self.url()}?token={self.token}"

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Ask it to end; kill it where it does not."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()


@contextmanager
def serving(home: Path, *arguments: str) -> Iterator[Server]:
    """A server for the length of a test."""
    server = Server(home, *arguments)
    try:
        yield server
    finally:
        server.stop()


class Browser:
    """Chromium with the few verbs that tests need."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def enter(self, server: Server, path: str = "/", *, theme: str = "light") -> None:
        """Go in with the token, and on to a page."""
        self.driver.get("about:blank")
        self.errors()
        # The token opens any address: to draw the first page only to leave it takes a second each time.
        self.driver.get(server.entry if path == "/" else f"{server.url('/static/quantailor.css')}?token={server.token}")
        self.driver.add_cookie({"name": "quantailor_theme", "value": theme, "path": "/", "sameSite": "Strict"})
        self.go(server, path)

    def go(self, server: Server, path: str) -> None:
        """Open a page and wait until it is connected."""
        self.driver.get(server.url(path))
        self.ready()

    def ready(self) -> None:
        """Wait until the page is built and its websocket is up."""
        self.until(
            lambda: self.js("return !!(window.socket && window.socket.connected && document.querySelector('.qt-main'))"),
            "the page is connected",
        )

    def settle(self, *, seconds: float = 0.6) -> None:
        """Wait until the page says no more that it is "Reading ...", and has said the same for a while."""
        seen, since = "", time.monotonic()

        def is_still() -> bool:
            nonlocal seen, since
            now = str(self.js("return document.querySelector('main')?.innerText || ''"))
            if now != seen or not now or _WAITING.search(now):
                seen, since = now, time.monotonic()
            return time.monotonic() - since > seconds

        self.until(is_still, "the page has come to rest", seconds=2 * WAIT_SECONDS)

    def waits_no_more(self) -> None:
        """Wait until the page says no more that it is "Reading ..."."""
        self.until(lambda: not _WAITING.search(self.js("return document.querySelector('main')?.innerText || '…'")), "everything is read")

    def size(self, width: int, height: int) -> None:
        """Make the page's viewport that large."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        )

    def js(self, script: str, *arguments: object) -> Any:
        """Run JavaScript and return its value."""
        return self.driver.execute_script(script, *arguments)

    def find(self, css: str, *, seconds: float = WAIT_SECONDS) -> WebElement:
        """The first element that a selector matches, waited for."""
        return self.until(lambda: next(iter(self.all(css)), None), f"{css} is there", seconds=seconds)

    def all(self, css: str) -> list[WebElement]:
        """All elements that a selector matches now."""
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def button(self, label: str) -> WebElement:
        """A visible button by its text or its accessible name, waited for."""
        wanted = f"//button[(normalize-space(.)='{label}' or @aria-label='{label}' or .//*[normalize-space(text())='{label}'])]"

        def shown() -> WebElement | None:
            try:
                found = self.driver.find_elements(By.XPATH, wanted)
                return next((item for item in found if item.is_displayed()), None)
            except StaleElementReferenceException:
                return None

        return self.until(shown, f"there is a button {label!r}")

    def click(self, label: str) -> None:
        """Click a button by its text or its accessible name."""

        def clicked() -> bool:
            try:
                button = self.button(label)
                if enabled := button.is_enabled():
                    button.click()
                return enabled
            except StaleElementReferenceException:  # the page drew it anew meanwhile
                return False

        self.until(clicked, f"the button {label!r} works")

    def dialog_closes(self) -> None:
        """Wait until no dialog is open; one may still be fading out."""
        caught = "return [...document.querySelectorAll('.q-dialog__backdrop')].some((it) => getComputedStyle(it).pointerEvents !== 'none')"
        self.until(lambda: not self.js(caught), "the dialog closes")

    def text(self, css: str = "body") -> str:
        """What a user reads there, also where the page draws it anew meanwhile."""
        while True:
            try:
                return self.find(css).text
            except StaleElementReferenceException:
                continue

    def sees(self, words: str, *, seconds: float = WAIT_SECONDS) -> None:
        """Wait until the page says something."""

        def said() -> bool:
            try:
                return words in self.js("return document.body.innerText")
            except JavascriptException:
                return False

        try:
            self.until(said, f"the page says {words!r}", seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; it says: {self.js('return document.body.innerText')[:3000]}") from None

    def until(self, condition: Callable[[], Found | None], what: str, *, seconds: float = WAIT_SECONDS) -> Found:
        """Wait for a condition and return its value."""
        return wait_for(condition, what, seconds=seconds)

    def shot(self, path: Path) -> None:
        """Save what is shown."""
        self.driver.save_screenshot(str(path))

    def errors(self) -> list[str]:
        """What the browser's console has complained of since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]  # type: ignore[no-untyped-call]


def wait_for(condition: Callable[[], Found | None], what: str, *, seconds: float) -> Found:
    """Wait for a condition and return its value."""
    end = time.monotonic() + seconds
    while True:
        if found := condition():
            return found
        assert time.monotonic() < end, f"waited {seconds:g} s in vain: {what}"
        time.sleep(0.05)


@contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    """A fresh Chromium; skips the test where there is none."""
    chromium, driver_path = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not chromium or not driver_path:
        if os.environ.get("QUANTAILOR_TEST_BROWSER") == "required":
            pytest.fail("chromium and chromedriver are missing")
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for switch in (*_SWITCHES, f"--user-data-dir={profile}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(service=Service(driver_path), options=options)
    try:
        yield Browser(driver)
    finally:
        driver.quit()
