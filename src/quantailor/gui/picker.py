"""A dialog that picks a file or folder, and never leaves the folders that the server may use.

path = await pick("Choose a text", kinds=("text",))
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from nicegui import events, run, ui

from quantailor.app.library.opening import Entry, EntryKind, hub_cache, list_folder
from quantailor.errors import QuantailorError
from quantailor.gui.context import context
from quantailor.gui.widgets import box, heading, icon_button, named, primary, quiet, text, told
from quantailor.present.words import size

MODEL: tuple[EntryKind, ...] = ("gguf", "huggingface")
SHOWN = 300
"""Rows of one folder; the filter finds the others."""
_ICONS: dict[EntryKind, str] = {
    "folder": "folder",
    "huggingface": "folder_special",
    "gguf": "memory",
    "imatrix": "grid_on",
    "text": "description",
    "file": "insert_drive_file",
}
_WORDS: dict[EntryKind, str] = {
    "folder": "folder",
    "huggingface": "Hugging Face model",
    "gguf": "GGUF",
    "imatrix": "importance matrix",
    "text": "text",
    "file": "file",
}
_ARROWS = """(event) => {
    const rows = [...event.currentTarget.querySelectorAll('.qt-pick-row')];
    const at = rows.indexOf(document.activeElement);
    const next = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    rows[Math.max(0, Math.min(rows.length - 1, next))]?.focus();
}"""
_TO_ROWS = """(event) => {
    if (event.key !== 'ArrowDown') return;
    event.preventDefault();
    event.currentTarget.closest('.qt-pick').querySelector('.qt-pick-row')?.focus();
}"""


async def pick(title: str, kinds: Sequence[EntryKind] = MODEL, *, start: str | Path | None = None) -> Path | None:
    """Ask for a path in a dialog; None where the user leaves without one.

    Args:
        title: what is asked for.
        kinds: what may be picked: "gguf", "huggingface" (a directory with config.json and weights), "imatrix", "text",
            "folder" (any folder), "file" (any other file).
        start: a folder, or a file whose folder is shown first; else the last one that was used, else the user's own.
    """
    dialog = _Picker(title, kinds, _start(start))
    try:
        found = await dialog.element
        if found is not None:
            _last["folder"] = Path(found).parent
        return None if found is None else Path(found)
    finally:
        dialog.element.delete()


_last: dict[str, Path] = {}


def _start(wanted: str | Path | None) -> Path:
    near = [] if wanted is None else [Path(wanted), *Path(wanted).parents]
    for candidate in (*near, *_last.values(), Path.cwd(), Path.home()):
        try:
            place = context().allowed(candidate)
            if place.is_dir():
                return place
        except (QuantailorError, OSError, RuntimeError, ValueError):
            continue
    return context().roots[0]


def _short(path: Path) -> str:
    home = Path.home()
    return str(Path("~") / path.relative_to(home)) if path.is_relative_to(home) else str(path)


class _Picker:
    def __init__(self, title: str, kinds: Sequence[EntryKind], start: Path) -> None:
        self._kinds, self._folder, self._picked = tuple(kinds), start, ""
        self._entries: tuple[Entry, ...] = ()
        self._row_of: dict[str, ui.element] = {}
        self._all_files = self._hidden = False
        with named(ui.dialog(), title) as self.element, ui.card().classes("qt-pick"):
            heading(title, 2, "qt-title")
            with box("qt-row"):
                icon_button("arrow_upward", "The folder above", told(self._up))
                self._path = ui.input("Folder or file").props("dense outlined").classes("qt-grow qt-mono")
                self._path.on("keydown.enter", told(self._typed))
                quiet("Go", told(self._typed))
            with box("qt-row qt-wrap") as self._places:
                self._show_places()
            with box("qt-row"):
                self._filter = ui.input("Filter", on_change=lambda: self._show()).props("dense outlined clearable autofocus")
                self._filter.classes("qt-grow").on("keydown", js_handler=_TO_ROWS)
                ui.checkbox("All files", on_change=lambda event: self._flag("_all_files", event.value)).props("dense")
                ui.checkbox("Hidden", on_change=lambda event: self._flag("_hidden", event.value)).props("dense")
            with box("qt-pick-rows") as self._rows:
                self._rows.props('role="group" aria-label="Files and folders"').on("keydown", js_handler=_ARROWS)
            with box("qt-row qt-spread"):
                self._told = text("", "qt-small qt-muted qt-ellipsis qt-grow").props('aria-live="polite"')
                quiet("Cancel", self.element.close)
                self._choose = primary("Choose", told(self._submit))
        ui.timer(0, told(self._read), once=True)
        self.element.open()

    # Places

    def _show_places(self) -> None:
        for root in context().roots:
            quiet(_short(root), self._to(root)).props("dense").classes("qt-pick-place")
        cache = hub_cache()
        if cache.is_dir() and any(cache.resolve().is_relative_to(root) for root in context().roots):
            quiet("Hugging Face cache", self._to(cache)).props("dense").classes("qt-pick-place")

    def _to(self, folder: str | Path) -> Callable[[], Awaitable[None]]:
        async def go() -> None:
            await self._go(folder)

        return told(go)

    async def _go(self, folder: str | Path) -> None:
        self._folder = context().allowed(folder)
        self._filter.value = ""
        await self._read()

    async def _up(self) -> None:
        await self._go(self._folder.parent)

    async def _typed(self) -> None:
        path = context().allowed(self._path.value or "")
        if await run.io_bound(path.is_dir):
            await self._go(path)
        else:
            await self._go(path.parent)
            entry = next((entry for entry in self._entries if entry.name == path.name), None)
            self._mark(entry)

    async def _read(self) -> None:
        self._picked = ""
        entries = await run.io_bound(list_folder, self._folder)
        self._entries = entries or ()
        self._path.value = str(self._folder)
        self._show()

    # Rows

    def _flag(self, name: str, value: bool) -> None:
        setattr(self, name, value)
        self._show()

    def _wanted(self, entry: Entry) -> bool:
        words = (self._filter.value or "").lower()
        if words not in entry.name.lower() or (entry.name.startswith(".") and not self._hidden and not words.startswith(".")):
            return False
        return entry.kind in ("folder", "huggingface") or self._is_pickable(entry)

    def _is_pickable(self, entry: Entry) -> bool:
        if entry.kind == "huggingface" and "folder" in self._kinds:
            return True
        return entry.kind in self._kinds or (self._all_files and entry.kind not in ("folder", "huggingface"))

    def _show(self) -> None:
        shown = [entry for entry in self._entries if self._wanted(entry)]
        self._rows.clear()
        self._row_of.clear()
        with self._rows:
            for entry in shown[:SHOWN]:
                self._row(entry)
            if not shown:
                text("Nothing here fits. Look elsewhere, or show all files.", "qt-muted qt-pick-none")
        more = f", the first {SHOWN} are shown" if len(shown) > SHOWN else ""
        self._told.set_text(f"{len(shown)} of {len(self._entries)}{more}")
        self._mark(None)

    def _row(self, entry: Entry) -> None:
        with box("qt-row qt-pick-line"):
            with ui.element("button").classes("qt-pick-row").props('type="button"') as row:
                ui.icon(_ICONS[entry.kind]).props('aria-hidden="true"')
                text(entry.name, "qt-grow qt-ellipsis", tag="span")
                detail = _WORDS[entry.kind] if entry.size_bytes is None else f"{_WORDS[entry.kind]}, {size(entry.size_bytes)}"
                text(detail, "qt-small qt-muted", tag="span")
            self._row_of[entry.path] = row
            row.on("click", told(functools.partial(self._clicked, entry)))
            if entry.kind == "huggingface":
                icon_button("chevron_right", f"Look into {entry.name}", self._to(entry.path))

    async def _clicked(self, entry: Entry) -> None:
        if entry.kind == "folder" or not self._is_pickable(entry):
            await self._go(entry.path)
        elif self._picked == entry.path:
            await self._submit()
        else:
            self._mark(entry)

    def _mark(self, entry: Entry | None) -> None:
        self._picked = entry.path if entry is not None and self._is_pickable(entry) else ""
        for path, row in self._row_of.items():
            row.props(f'aria-pressed="{"true" if path == self._picked else "false"}"')
        here = self._folder_is_pickable()
        self._choose.set_text(f"Choose {entry.name}" if self._picked and entry else "Choose this folder" if here else "Choose")
        self._choose.set_enabled(bool(self._picked) or here)

    def _folder_is_pickable(self) -> bool:
        return "folder" in self._kinds

    async def _submit(self) -> None:
        path = self._picked or (str(self._folder) if self._folder_is_pickable() else "")
        if path:
            self.element.submit(str(context().allowed(path)))


def path_input(label: str, kinds: Sequence[EntryKind], *, value: str = "", title: str | None = None) -> ui.input:
    """A box for a path with a button that picks it; read `.value`."""
    with box("qt-row qt-grow"):
        field = ui.input(label, value=value).props("dense outlined").classes("qt-grow qt-mono")

        async def browse(_: events.ClickEventArguments) -> None:
            path = await pick(title or label, kinds, start=field.value or None)
            if path is not None:
                field.value = str(path)

        quiet("Browse", told(browse), icon="folder_open").props(f'aria-label="Browse for: {label}"')
    return field
