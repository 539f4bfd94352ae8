"""What the home holds, behind a button beside the disk bar, and the removal of what can be computed again."""

from __future__ import annotations

from functools import partial

from nicegui import run, ui

from quantailor.app.library.cleaning import CleanReport, clean
from quantailor.gui.context import workspace
from quantailor.gui.widgets import box, heading, named, note, primary, quiet, table, text, told
from quantailor.present.words import plural, size


def home_disk() -> None:
    """A button that lists what the home holds by kind."""
    quiet("Free disk space …", told(_ask), icon="cleaning_services")


async def _ask() -> None:
    found = await run.io_bound(clean, workspace())
    if found is None:  # the server is closing
        return
    with named(ui.dialog(value=True), "Free disk space") as dialog, ui.card().classes("qt-ask"):
        heading("Free disk space", 2, "qt-empty-title")
        text(f"{found.home} holds {size(found.size_bytes)}.", "qt-muted")
        table({"Kind": False, "Things": True, "Size": True, "": False}, _rows(found), caption="What the home holds")
        if busy := next((item.stays for item in found.items if item.stays and item.stays.startswith("job ")), None):
            note(f"Nothing can be removed now: {busy}.", "warn")
        with box("qt-row qt-end-row"):
            quiet("Close", dialog.close)
            if found.removable_bytes:
                primary(f"Remove {size(found.removable_bytes)}", told(partial(_remove, dialog)))


async def _remove(dialog: ui.dialog) -> None:
    done = await run.io_bound(partial(clean, remove=True), workspace())
    dialog.close()
    if done is not None:
        ui.notify(f"{size(done.removable_bytes)} removed" if done.removed else "Nothing was removed: a job is running")


def _rows(found: CleanReport) -> list[tuple[str, str, str, str]]:
    kinds = dict.fromkeys((item.kind, item.stays) for item in found.items)
    rows: list[tuple[str, str, str, str]] = []
    for kind, stays in kinds:
        items = [item for item in found.items if (item.kind, item.stays) == (kind, stays)]
        what = stays or f"can be removed; computed again from {items[0].again}"
        rows.append((kind, plural(len(items), "thing"), size(sum(item.size_bytes for item in items)), what))
    return rows
