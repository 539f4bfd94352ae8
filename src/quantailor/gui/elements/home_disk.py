"""What the home holds, behind a button beside the disk bar, and the removal of what can be computed or fetched again."""

from __future__ import annotations

from functools import partial

from nicegui import run, ui

from quantailor.app.library.cleaning import CLEANED, NOT_ASKED, REMOVABLE, CleanReport, KeptKind, clean
from quantailor.gui.context import workspace
from quantailor.gui.widgets import box, heading, named, note, primary, quiet, table, text, told
from quantailor.present.words import plural, size


def home_disk() -> None:
    """A button that lists what the home holds by kind."""
    quiet("Free disk space …", told(_ask), icon="cleaning_services")


async def _ask() -> None:
    found = await run.io_bound(clean, workspace())
    if found is not None:  # None where the server is closing
        _Asked(found)


class _Asked:
    """The dialog: what there is, further kinds to tick, and what goes."""

    def __init__(self, found: CleanReport) -> None:
        self._found, self._more = found, dict[KeptKind, ui.checkbox]()
        with named(ui.dialog(value=True), "Free disk space") as self._dialog, ui.card().classes("qt-ask qt-disk-dialog"):
            heading("Free disk space", 2, "qt-empty-title")
            outside = f", and {size(found.outside_bytes)} lie in caches outside of it" if found.outside_bytes else ""
            text(f"{found.home} holds {size(found.size_bytes - found.outside_bytes)}{outside}.", "qt-muted")
            table({"Kind": False, "Size": True, "": False}, _rows(found), caption="What the home holds")
            if busy := next((item.stays for item in found.items if item.stays and item.stays.startswith("job ")), None):
                note(f"Nothing can be removed now: {busy}.", "warn")
            for kind, n_bytes in _on_request(found).items() if busy is None else ():
                name = f"Also remove {kind} ({size(n_bytes)})"
                self._more[kind] = named(ui.checkbox(name, on_change=self._show).props("dense"), name)
            with box("qt-row qt-end-row"):
                quiet("Close", self._dialog.close)
                self._remove = primary("", told(self._act))
        self._show()

    def _chosen(self) -> list[KeptKind]:
        return [kind for kind, each in self._more.items() if each.value]

    def _show(self) -> None:
        on_request = _on_request(self._found)
        n_bytes = self._found.removable_bytes + sum(on_request[kind] for kind in self._chosen())
        self._remove.set_text(f"Remove {size(n_bytes)}")
        self._remove.set_visibility(n_bytes > 0)

    async def _act(self) -> None:
        done = await run.io_bound(partial(clean, kinds=[*CLEANED, *self._chosen()], remove=True), workspace())
        self._dialog.close()
        if done is not None:
            ui.notify(f"{size(done.removable_bytes)} removed" if done.removed else "Nothing was removed: a job is running")


def _on_request(found: CleanReport) -> dict[KeptKind, int]:
    """Bytes of the kinds that go only where they are named."""
    asked = [item for item in found.items if item.stays is not None and item.stays.startswith(NOT_ASKED)]
    kinds = [kind for kind in REMOVABLE if any(item.kind == kind for item in asked)]
    return {kind: sum(item.size_bytes for item in asked if item.kind == kind) for kind in kinds}


def _rows(found: CleanReport) -> list[tuple[str, str, str]]:
    kinds = dict.fromkeys((item.kind, item.stays) for item in found.items)
    rows: list[tuple[str, str, str]] = []
    for kind, stays in kinds:
        items = [item for item in found.items if (item.kind, item.stays) == (kind, stays)]
        again = items[0].again
        what = f"on request; {again}" if stays and stays.startswith(NOT_ASKED) else stays or f"can be removed; {again}"
        rows.append((f"{kind}, {plural(len(items), 'thing')}", size(sum(item.size_bytes for item in items)), what))
    return rows
