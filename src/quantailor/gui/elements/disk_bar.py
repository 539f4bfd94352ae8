"""What the next steps write to the disk, against what is free there."""

from __future__ import annotations

from collections.abc import Sequence

from nicegui import ui

from quantailor.app.library.hub import DiskNeed
from quantailor.gui import theme
from quantailor.gui.widgets import box, note, table, text
from quantailor.present.words import size


def disk_bar(needs: Sequence[DiskNeed], free_bytes: int | None, folder: str) -> None:
    """A bar as long as the free space, with the needs as its parts, and the same as a table."""
    shown = [need for need in needs if need.size_bytes]
    total = sum(need.size_bytes for need in shown)
    if free_bytes is not None:
        _bar(shown, total, free_bytes)
    free = "unknown" if free_bytes is None else size(free_bytes)
    text(f"{size(total)} needed, {free} free at {folder}", "qt-small qt-muted")
    if free_bytes is not None and total > free_bytes:
        note(f"{size(total - free_bytes)} more would be needed for all of these steps: free that much, or choose another disk.", "bad")
    if shown:
        rows = [(need.step, size(need.size_bytes), need.what) for need in shown]
        table({"Step": False, "At most": True, "For": False}, rows, caption="Disk that each step needs")
    else:
        text("Everything is there already; nothing large will be written.", "qt-small qt-muted")


def _bar(needs: Sequence[DiskNeed], total: int, free_bytes: int) -> None:
    colours = theme.palette().series
    whole = max(total, free_bytes, 1)
    with box("qt-disk") as bar:
        bar.props(f'role="img" aria-label="{size(total)} needed of {size(free_bytes)} free"')
        for number, need in enumerate(needs):
            part = ui.element("div").classes("qt-disk-part")
            part.style(f"width: {100 * need.size_bytes / whole:.3f}%; background: {colours[number % len(colours)]}")
            with part:
                ui.tooltip(f"{need.step}: {size(need.size_bytes)}")
