"""A user without a browser: NiceGUI's simulation of one, before the pages as Python builds them, with the verbs of `browser.Browser`.

It runs no JavaScript and knows no style sheet: what only a browser decides (grids, charts, keyboard, drags) is `Browser`'s.
"""

from __future__ import annotations

import asyncio
import gc
import html
import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

# NiceGUI reads this when it is imported: its storage would else go to the working directory.
os.environ.setdefault("NICEGUI_STORAGE_PATH", str(Path(tempfile.gettempdir()) / "quantailor-tests-nicegui"))

import httpx
from browser import WAIT_SECONDS
from nicegui import Client, events, helpers, ui
from nicegui.elements.choice_element import ChoiceElement
from nicegui.elements.mixins.disableable_element import DisableableElement
from nicegui.elements.mixins.text_element import TextElement
from nicegui.elements.mixins.value_element import ValueElement
from nicegui.outbox import Message
from nicegui.testing import User, user_simulation

from quantailor.gui import server
from quantailor.session import Workspace

STEP_SECONDS = 0.02
Found = TypeVar("Found")
_REPLACED = re.compile(r'history\.(?:replace|push)State\(\{\}, "", (".*")\);')


class Visitor:
    """One tab. Pages live in an event loop that runs only while the visitor waits for something."""

    def __init__(self, user: User, loop: asyncio.AbstractEventLoop) -> None:
        self._user, self._loop = user, loop
        self._open_page = user.open
        user.open = self._open  # type: ignore[method-assign]  # links and `ui.navigate` lead here too
        self.scripts: list[str] = []
        """JavaScript that the pages sent."""
        self.address = ""
        """Path and query of the present page."""

    def tab(self) -> Visitor:
        """Another tab of the same user."""
        return Visitor(User(self._user.http_client), self._loop)

    def go(self, path: str) -> None:
        """Open a page."""
        self._loop.run_until_complete(self._open(path))
        self._loop.run_until_complete(asyncio.sleep(STEP_SECONDS))

    async def _open(self, path: str, *, clear_forward_history: bool = True) -> Client:
        client = await self._open_page(path, clear_forward_history=clear_forward_history)
        self.address = path
        emit = client.outbox._emit

        async def listening(message: Message) -> None:
            _, kind, data = message
            if kind == "run_javascript":
                self.scripts.append(data["code"])
                if replaced := _REPLACED.fullmatch(data["code"]):
                    self.address = json.loads(replaced[1])
            await emit(message)

        client.outbox._emit = listening  # type: ignore[method-assign]
        return client

    def fetch(self, path: str, *, accept: str) -> httpx.Response:
        """What the server answers to a request."""
        return self._loop.run_until_complete(self._user.http_client.get(path, headers={"accept": accept}))

    def reload(self) -> None:
        """Open the present page again."""
        self.go(self.address)

    def until(self, condition: Callable[[], Found | None], what: str, *, seconds: float = WAIT_SECONDS) -> Found:
        """Let the pages live until a condition holds, and return its value."""
        end = self._loop.time() + seconds
        while not (found := condition()):
            assert self._loop.time() < end, f"waited {seconds:g} s in vain: {what}; the page says: {self.text()[:3000]}"
            self._loop.run_until_complete(asyncio.sleep(STEP_SECONDS))
        return found

    def sees(self, words: str, *, seconds: float = WAIT_SECONDS) -> None:
        """Wait until the page, or a notification of this visit, says something."""
        self.until(lambda: words in self.text() or self._user.notify.contains(words), f"the page says {words!r}", seconds=seconds)

    def all(self, css: str = "", kind: type[ui.element] = ui.element) -> list[ui.element]:
        """The visible elements of a class of the style sheet (".qt-card"), in the order of the page."""
        wanted = set(css.split(".")[1:])
        return [item for item in _visible(self._user.current_layout) if isinstance(item, kind) and wanted <= set(item.classes)]

    @property
    def layout(self) -> ui.element:
        """The whole page, which hears what scripts emit."""
        return self._user.current_layout

    def find(self, css: str, *, seconds: float = WAIT_SECONDS) -> ui.element:
        """The first visible element of a class, waited for."""
        return self.until(lambda: next(iter(self.all(css)), None), f"{css} is there", seconds=seconds)

    def rows(self, css: str) -> list[ui.element]:
        """The rows in the body of a table of a class."""
        bodies = (item for item in self.find(css).descendants() if item.tag == "tbody")
        return [row for body in bodies for row in body.default_slot.children]

    def text(self, css: str = "") -> str:
        """What a user reads there, or on the whole page; a line an element."""
        return words_of(self.find(css) if css else self._user.current_layout)

    def button(self, label: str) -> ui.button:
        """A visible button by its text or its accessible name, waited for."""

        def shown() -> ui.button | None:
            buttons = (item for item in self.all(kind=ui.button) if isinstance(item, ui.button))
            return next((item for item in buttons if label in (item.text, item.props.get("aria-label"))), None)

        return self.until(shown, f"there is a button {label!r}")

    def click(self, label: str) -> None:
        """Click a button by its text or its accessible name, once it works."""
        self.until(lambda: self.button(label).enabled, f"the button {label!r} works")
        self.trigger(self.button(label), "click")

    def trigger(self, element: ui.element, event: str, argument: Any = None) -> None:
        """Let an element hear an event, as from the browser, and do what follows at once."""
        assert not isinstance(element, DisableableElement) or element.enabled, f"{element} is disabled"
        self.act(partial(self._hear, element, event, argument))

    def _hear(self, element: ui.element, event: str, argument: Any) -> None:
        for listener in list(element._event_listeners.values()):
            if listener.type == helpers.event_type_to_camel_case(event):
                heard = events.GenericEventArguments(sender=element, client=element.client, args=argument)
                events.handle_event(listener.handler, heard)
        if isinstance(element, ui.link) and event == "click":
            self._user.navigate.to(element.props["href"])

    def act(self, action: Callable[[], object]) -> None:
        """Do something with the page's elements where the pages live."""

        async def within() -> None:
            assert self._user.client is not None
            with self._user.client:
                action()
            await asyncio.sleep(STEP_SECONDS)

        self._loop.run_until_complete(within())

    def field(self, label: str) -> ValueElement[Any]:
        """A visible field by its label or accessible name, waited for."""

        def shown() -> ValueElement[Any] | None:
            fields = (item for item in self.all(kind=ValueElement) if isinstance(item, ValueElement))
            return next((item for item in fields if label in (item.props.get("label"), item.props.get("aria-label"))), None)

        return self.until(shown, f"there is a field {label!r}")

    def fill(self, label: str, value: object) -> None:
        """Give a field another value, as a user who types or picks it; text that Enter follows ends in a line break."""
        field = self.field(label)
        enters = isinstance(value, str) and value.endswith("\n")

        def typed() -> None:
            field.value = value.rstrip("\n") if isinstance(value, str) else value
            if not isinstance(field, ChoiceElement):  # theirs hears the number of the choice
                self._hear(field, "update:model-value", field.value)
            if enters:
                self._hear(field, "keydown.enter", None)

        self.act(typed)


@contextmanager
def visiting(home: Path, *allowed: Path) -> Iterator[Visitor]:
    """A visitor of a home's pages; `allowed` are the folders of `--allow`."""
    modules = dict(sys.modules)
    loop = asyncio.new_event_loop()
    simulation = user_simulation()
    with Workspace.open(home) as workspace:
        user = loop.run_until_complete(simulation.__aenter__())
        try:
            server.add_pages(workspace, allowed)
            # What pytest froze stays so: each visit collects garbage twice, and would look through all that was ever imported.
            with _no_errors(), patch.object(gc, "freeze"), patch.object(gc, "unfreeze"):
                yield Visitor(user, loop)
        finally:
            loop.run_until_complete(simulation.__aexit__(None, None, None))
            loop.run_until_complete(_ended(loop))
            loop.close()
            # The simulation unloads the pages' modules; other tests hold them.
            sys.modules.update(modules)


@contextmanager
def _no_errors() -> Iterator[None]:
    """Fail where NiceGUI logs an error, such as an exception in a handler of a page."""
    logged: list[str] = []
    listener = logging.Handler(logging.ERROR)
    listener.emit = lambda record: logged.append(listener.format(record))  # type: ignore[method-assign]
    logging.getLogger("nicegui").addHandler(listener)
    try:
        yield
    finally:
        logging.getLogger("nicegui").removeHandler(listener)
    assert logged == [], "\n".join(logged)


async def _ended(loop: asyncio.AbstractEventLoop) -> None:
    """Give up whatever still goes on in a loop."""
    left = asyncio.all_tasks(loop) - {asyncio.current_task(loop)}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    await loop.shutdown_default_executor()


def marks(page: Visitor) -> dict[str, str]:
    """What stands before each entry of the rail: a number, a tick, or an icon's name."""
    found = {}
    for link in page.all(".qt-step"):
        mark, label = link.default_slot.children
        found[words_of(label)] = str(mark.props.get("name")) if isinstance(mark, ui.icon) else words_of(mark)
    return found


def words_of(element: ui.element) -> str:
    """What a user reads in an element, a line an element."""
    return "\n".join(words for item in (element, *_visible(element)) for words in _own_words(item) if words)


def _own_words(element: ui.element) -> list[str]:
    words = [element.text] if isinstance(element, TextElement) else []
    words += [str(element.props[name]) for name in ("label", "placeholder") if element.props.get(name)]
    if inner := element.props.get("innerHTML"):
        words.append(html.unescape(re.sub(r"<[^>]*>", "", str(inner))))
    if isinstance(element, ValueElement) and isinstance(element.value, str | int | float) and not isinstance(element.value, bool):
        options = getattr(element, "options", None)
        words += [str(name) for name in (options.values() if isinstance(options, dict) else [element.value])]
    return words


def _visible(element: ui.element) -> Iterator[ui.element]:
    """What is in an element and can be seen, in the order of the page; closed dialogs, menus and tabs are not."""
    for slot in element.slots.values():
        for child in slot.children:
            is_closed = isinstance(child, ui.dialog | ui.menu) and not child.value
            if not child.visible or is_closed or isinstance(child, ui.tooltip):
                continue
            yield child
            if isinstance(child, ui.tab_panels):
                yield from (item for panel in child.default_slot.children if panel.props["name"] == child.value for item in _visible(panel))
            else:
                yield from _visible(child)
