"""The GUI below a path of another server: every address of its pages is below that path too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from browser import Browser, Server, serving
from commands import Workbench
from proxy import below

from quantailor.app.library.projects import list_projects
from quantailor.gui.server import ServeError, ServeOptions, serve
from quantailor.session import Workspace

PREFIX = "/tools/qt"


@pytest.fixture(scope="module")
def server(workbench: Workbench) -> Iterator[Server]:
    with serving(workbench.home, "--allow-host", "lab.example") as running:
        yield running


@pytest.fixture(scope="module")
def address(server: Server) -> Iterator[str]:
    with below(PREFIX, server.port) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def choose(workbench: Workbench) -> str:
    """The path of the Choose screen."""
    with Workspace.open(workbench.home) as workspace:
        return f"{PREFIX}/p/{list_projects(workspace)[0].fingerprint[:16]}/choose"


def check_addresses(address: str, token: str, choose: str) -> None:
    """Go in and look at every address of two pages."""
    with httpx.Client(base_url=address, follow_redirects=True) as visitor:
        entered = visitor.get(f"{PREFIX}/?token={token}")
        assert (entered.status_code, entered.url.path) == (200, f"{PREFIX}/")
        assert {cookie.path for cookie in visitor.cookies.jar} == {PREFIX}
        for page in (entered, visitor.get(choose)):
            found = re.findall(r'(?:src|href)="(/[^"]*)"', page.text)
            assert len(found) > 5
            assert [path for path in found if not path.startswith(f"{PREFIX}/")] == []
            for path in found:
                assert visitor.get(path).status_code == 200


@pytest.mark.slow
def test_every_address_of_a_page_is_below_the_prefix(server: Server, address: str, choose: str) -> None:
    check_addresses(address, server.token, choose)


@pytest.mark.slow
def test_a_proxy_that_says_nothing_is_told_of_by_an_option(workbench: Workbench, choose: str) -> None:
    with (
        serving(workbench.home, "--allow-host", "lab.example", "--root-path", f"{PREFIX}/") as server,
        below(PREFIX, server.port, is_silent=True) as port,
    ):
        check_addresses(f"http://127.0.0.1:{port}", server.token, choose)
        answer = httpx.get(f"http://127.0.0.1:{port}{PREFIX}/", headers={"Host": "lab.example"})
        assert answer.status_code == 401, "the host is known, the token is missing"
        assert httpx.get(f"http://127.0.0.1:{port}{PREFIX}/", headers={"Host": "other.example"}).status_code == 421


@pytest.mark.parametrize("path", ["tools", "http://lab.example/tools", "/a b", "/a//b"])
def test_a_path_that_is_none_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ServeError, match="is not a path of a server"):
        serve(ServeOptions(home=tmp_path, root_path=path))


@pytest.mark.slow
def test_choose_works_below_a_path(chromium: Browser, server: Server, address: str, choose: str) -> None:
    chromium.driver.get(f"{address}{PREFIX}/?token={server.token}")
    chromium.driver.get(f"{address}{choose}")
    chromium.ready()
    chromium.find(".qt-choose-grid .ag-row").click()
    assert chromium.js("return getComputedStyle(document.querySelector('.qt-app')).display") != "block", "the style sheet is there"
    chromium.until(lambda: "tensor=" in chromium.driver.current_url, "the address names the tensor")
    assert chromium.driver.current_url.startswith(f"{address}{choose}")
    chromium.driver.refresh()
    chromium.find(".qt-choose-grid .ag-row")


@pytest.mark.parametrize("name", ["", "lab example", "http://lab.example", "lab.example/path", "*", "lab.example:port"])
def test_a_name_that_is_no_host_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ServeError, match="is not the name of a host"):
        serve(ServeOptions(home=tmp_path, allow_hosts=(name,)))


def test_who_is_reached_through_a_proxy_needs_a_token_that_is_hard_to_guess(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=r"serving on 127\.0\.0\.1, lab\.example with a token of fewer than 8"):
        serve(ServeOptions(home=tmp_path, allow_hosts=("lab.example",), token="short"))  # noqa: S106
