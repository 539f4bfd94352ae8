"""Parts of the Build screen: the check of a built file, the list of built files, and the difference of two strategies."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from nicegui import run, ui

from quantailor.app.choosing.comparing import DiffSide, StrategyDiff
from quantailor.app.library.opening import EntryKind
from quantailor.app.library.projects import ProjectReport, open_project
from quantailor.app.products.builds import BuiltFile, check_built, compare_with, list_builds
from quantailor.app.products.checking import BuildCheck
from quantailor.app.products.verdicts import headline, list_verdicts, preset_names
from quantailor.control import NullControl
from quantailor.gui.context import context, workspace
from quantailor.gui.frame import address
from quantailor.gui.picker import pick
from quantailor.gui.widgets import TableCell, box, card, chip, copy, icon_button, note, primary, quiet, scrolling_table, table, text, told
from quantailor.present import words
from quantailor.present.words import PREDICTED_SPEED, figure, generation_speed, kld, percent, plural, size, size_change
from quantailor.records import Strategy

STRATEGY_KINDS: tuple[EntryKind, ...] = ("text", "file", "gguf")
"""What may hold a strategy."""
MAX_DIFFERENCES = 20
_TICK = 0.3


class _Progress(NullControl):
    """A control that remembers how far the checksum is, and never stops it."""

    share = 0.0

    def advance(self, done: float, total: float, message: str = "") -> None:  # noqa: ARG002
        """Remember the share."""
        self.share = done / total if total else 1.0


class CheckCard:
    """A built file against its strategy; hidden until `show`."""

    def __init__(self, project: ProjectReport, base: Path) -> None:
        self._project, self._base = project, base
        self._element = ui.element("section").classes("qt-card").props('aria-label="Built file" aria-live="polite"')
        self._progress = _Progress()
        self.hide()

    def hide(self) -> None:
        """Show nothing."""
        self._element.set_visibility(False)

    async def show(self, item: BuiltFile) -> None:
        """Check the file, telling how far the checksum is, and show what was found."""
        self._progress = _Progress()
        self._element.set_visibility(True)
        self._element.clear()
        with self._element:
            text(Path(item.path).name, "qt-card-title", tag="h2")
            doing = text("Reading the file for its checksum…", "qt-muted")
            timer = ui.timer(_TICK, lambda: doing.set_text(f"Reading the file for its checksum… {percent(self._progress.share, 0)}"))
        try:
            check = partial(check_built, workspace(), self._base, Path(item.path), control=self._progress)
            found = await run.io_bound(check)
        finally:
            timer.deactivate()
            doing.delete()
        if found is not None:
            with self._element:
                self._show(item, found)

    def _show(self, item: BuiltFile, found: BuildCheck) -> None:
        types = "Every tensor has the type that the strategy says" if not found.differences else _differences(found)
        is_exact = found.expected_size_bytes in (None, found.size_bytes)
        with box("qt-build-checks"):
            _line(not found.differences, f"{types} ({plural(found.n_tensors, 'tensor')}).")
            _line(is_exact, _size_words(found))
            for part in found.parts:
                with box("qt-row"):
                    text("SHA-256", "qt-small qt-muted")
                    text(part.sha256, "qt-mono qt-ellipsis qt-grow")
                    icon_button("content_copy", f"Copy the checksum of {Path(part.path).name}", partial(copy, part.sha256))
            with box("qt-row"):
                text("File", "qt-small qt-muted")
                text(item.path, "qt-mono qt-ellipsis qt-grow")
                icon_button("content_copy", "Copy the path", partial(copy, item.path))
        with box("qt-row"):
            primary("Verify", lambda: to_verify(self._project, item), icon="balance")
            quiet("Show in Structure", told(partial(to_structure, item)), icon="grid_on")
            quiet("Hide", self.hide)


def _line(is_good: bool, words: str) -> None:
    with box("qt-row"):
        ui.icon("check_circle" if is_good else "error").classes("qt-good" if is_good else "qt-bad").props('aria-hidden="true"')
        text(words)


def _differences(found: BuildCheck) -> str:
    first = found.differences[0]
    differ = "tensor differs" if len(found.differences) == 1 else "tensors differ"
    return f"{len(found.differences)} {differ} from the strategy, the first {first.tensor}: {first.found}, not {first.expected}"


def _size_words(found: BuildCheck) -> str:
    if found.expected_size_bytes is None:
        return f"{found.size_bytes:,} bytes; another program wrote the header."
    same = found.expected_size_bytes == found.size_bytes
    return f"{found.size_bytes:,} bytes, " + ("exactly as predicted." if same else f"not the {found.expected_size_bytes:,} predicted.")


def to_verify(project: ProjectReport, item: BuiltFile) -> None:
    """Go to Verify with this file chosen."""
    ui.navigate.to(f"{address(project, 'verify')}?{urlencode({'built': item.path})}")


async def to_structure(item: BuiltFile) -> None:
    """Go to the Structure screen of the built file itself."""
    opened = await run.io_bound(open_project, workspace(), Path(item.path))
    if opened is not None:
        ui.navigate.to(address(opened, "structure"))


class BuiltList:
    """The project's built files that are there; `on_check` hears of one to check."""

    def __init__(self, project: ProjectReport, on_check: Callable[[BuiltFile], Coroutine[Any, Any, None]]) -> None:
        self._project, self._on_check = project, on_check
        self.items: list[BuiltFile] = []
        with card("Built files"):
            self._body = ui.element("div")

    async def refresh(self) -> None:
        """Read the list again."""
        self.items = await run.io_bound(list_builds, workspace(), self._project.fingerprint) or []
        found = await run.io_bound(list_verdicts, workspace(), self._project.fingerprint) or []
        verdicts = {item.fingerprint: headline(item.verdict) for item in found}
        self._body.clear()
        with self._body:
            if not self.items:
                text("None yet. What you build is listed here, with its verdicts.", "qt-muted")
                return
            self._table(verdicts)

    def _table(self, verdicts: dict[str, str]) -> None:
        columns = {"File": False, "Size": True, "bpw": True, "Predicted KLD": True, "Verdict": False, "Actions": False}
        table(columns, [self._row(item, verdicts) for item in self.items], caption="Built files").classes("qt-built")

    def _row(self, item: BuiltFile, verdicts: dict[str, str]) -> tuple[TableCell, ...]:
        kld = "not predicted" if item.predicted_kld_nats is None else figure(item.predicted_kld_nats)
        name, n_bytes, verdict, actions = (
            partial(show, item) for show in (self._name, _size_cell, partial(self._verdict, verdicts), self._actions)
        )
        return name, n_bytes, f"{item.bits_per_weight:.2f}", kld, verdict, actions

    def _name(self, item: BuiltFile) -> None:
        path = Path(item.path)
        with box("qt-built-name"):
            text(path.name, "qt-mono qt-ellipsis").props["title"] = item.path
            parts = f"{len(item.paths)} parts in " if len(item.paths) > 1 else ""
            rounding = f"{words.rounding(is_compensated=True)}, " if item.is_compensated else ""
            text(f"{rounding}{parts}{path.parent}", "qt-small qt-muted qt-ellipsis")

    def _verdict(self, verdicts: dict[str, str], item: BuiltFile) -> None:
        if item.verdicts:
            target = f"{address(self._project, 'verify')}?verdict={item.verdicts[0][:16]}"
            ui.link(verdicts.get(item.verdicts[0], "verdict"), target).classes("qt-link")
        else:
            text("not measured", "qt-muted")

    def _actions(self, item: BuiltFile) -> None:
        name = Path(item.path).name
        with box("qt-row qt-tight"):
            icon_button("fact_check", f"Check {name}", told(partial(self._on_check, item)))
            icon_button("balance", f"Verify {name}", partial(to_verify, self._project, item))
            icon_button("grid_on", f"Show {name} in Structure", told(partial(to_structure, item)))


def _size_cell(item: BuiltFile) -> None:
    text(size(item.size_bytes), "qt-num").props(f'title="{item.size_bytes:,} bytes"')


class DiffCard:
    """The strategy beside a preset, another strategy or a file; `strategy_of` gives the strategy of a choice's key."""

    def __init__(self, base: Path, strategy_of: Callable[[str], Strategy]) -> None:
        self._base, self._strategy_of = base, strategy_of
        self._strategy: Strategy | None = None
        self._label = ""
        with card("What differs"):
            with box("qt-row"):
                self._select = (
                    ui.select({}, label="Compare with", on_change=told(self._compare)).props("outlined dense").classes("qt-diff-select")
                )
                quiet("Compare with a file", told(self._pick), icon="folder_open")
                self._busy = ui.spinner(size="sm").classes("qt-muted")
            self._body = ui.element("div").classes("qt-stack qt-diff")
        self._busy.set_visibility(False)

    def set_strategy(self, strategy: Strategy, label: str, others: dict[str, str], closest: str) -> None:
        """Show the difference of this strategy and of what was chosen, at first the closest preset."""
        self._strategy, self._label = strategy, label
        chosen = self._select.value or f"preset:{closest}"
        presets = {f"preset:{name}": f"llama.cpp's {name}" for name in preset_names()}
        files = {key: name for key, name in self._select.options.items() if key.startswith("path:")}  # type: ignore[union-attr]
        options = {**presets, **others, **files}
        self._select.set_options(options)
        if self._select.value == chosen:
            ui.timer(0.01, told(self._compare), once=True)
        elif chosen in options:
            self._select.set_value(chosen)

    async def _pick(self) -> None:
        found = await pick("A strategy, or a GGUF file of this model", STRATEGY_KINDS)
        if found:
            path = context().allowed(found)
            self._select.set_options({**self._select.options, f"path:{path}": path.name}, value=f"path:{path}")  # type: ignore[dict-item]

    async def _compare(self) -> None:
        if self._strategy is None or not self._select.value:
            return
        self._busy.set_visibility(True)
        try:
            found = await run.io_bound(self._difference, str(self._select.value))
        finally:
            self._busy.set_visibility(False)
        self._body.clear()
        if found is not None:
            with self._body:
                _show_difference(found)

    def _difference(self, key: str) -> StrategyDiff | None:
        if self._strategy is None:
            return None
        kind, _, name = key.partition(":")
        if kind in ("preset", "path"):
            return compare_with(workspace(), self._base, self._strategy, name, label=self._label)
        label = str(self._select.options[key])  # type: ignore[call-overload]
        return compare_with(workspace(), self._base, self._strategy, self._strategy_of(key), label=self._label, other_label=label)


def _show_difference(found: StrategyDiff) -> None:
    columns = {"Types of": False, "Size": True, "Bytes": True, "Bits per weight": True, "Predicted KLD (95 %)": True}
    sides: list[tuple[str, ...]] = [_side(found.a), _side(found.b)]
    if found.a.speed is not None or found.b.speed is not None:
        columns[PREDICTED_SPEED.capitalize()] = True
        sides = [(*cells, generation_speed(side.speed)) for cells, side in zip(sides, (found.a, found.b), strict=True)]
    table(columns, sides, caption="Both sides")
    if not found.tensors:
        note("No tensor differs: both give every tensor the same type.")
        return
    with box("qt-grid qt-diff-tables"):
        roles = [(row.role, f"{row.n_changed} of {row.n_tensors}", size_change(row.size_a_bytes - row.size_b_bytes)) for row in found.roles]
        scrolling_table({"Role": False, "Changed": True, "Larger by": True}, roles, caption="Difference by role")
        ranked = sorted(found.tensors, key=lambda row: -abs(row.bytes_more))
        tensors = [
            (partial(text, row.tensor, "qt-mono"), partial(chip, row.type_a), partial(chip, row.type_b), size_change(row.bytes_more))
            for row in ranked[:MAX_DIFFERENCES]
        ]
        with box(""):
            columns = {"Tensor": False, "Here": False, "There": False, "Larger by": True}
            scrolling_table(columns, tensors, caption="Tensors that differ")
            if len(ranked) > MAX_DIFFERENCES:
                text(f"and {len(ranked) - MAX_DIFFERENCES} smaller changes", "qt-small qt-muted")


def _side(side: DiffSide) -> tuple[str, ...]:
    exact = (f"{side.size_bytes:,}", f"{side.bits_per_weight:.3f}", kld(side.kld_nats, side.kld_interval_nats, side.no_prediction))
    return (side.label, size(side.size_bytes), *exact)
