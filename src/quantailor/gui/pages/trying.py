"""Try it: the base and a built file write after the same text, side by side, and the first token that differs is marked."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from functools import partial
from pathlib import Path

from nicegui import run, ui

from quantailor.app.library import projects
from quantailor.app.library.projects import ProjectReport
from quantailor.app.products.builds import BuiltFile, list_builds
from quantailor.app.products.trying import N_TOKENS, WrittenToken, answer, first_difference, serve_command
from quantailor.errors import InferenceError
from quantailor.gui.context import workspace
from quantailor.gui.frame import address, frame, opened
from quantailor.gui.pages.without_base import without_base
from quantailor.gui.widgets import box, card, copy_line, empty, primary, quiet, text, told
from quantailor.present.words import plural, size

EXAMPLE = "The old house at the end of the lane had"
LENGTHS = (40, N_TOKENS, 400)
"""Tokens to write at most."""


async def trying(fingerprint: str, built: str = "") -> None:
    """The screen of one project; `?built=` names the file."""
    project = await opened("try", partial(projects.project, workspace(), fingerprint))
    if project is None:
        return
    with frame("try", "Try it", project=project, subtitle="what the base and a built file write after the same text"):
        waiting = text("Reading the built files…", "qt-muted").props('role="status"')
        await ui.context.client.connected()
        builds = await run.io_bound(list_builds, workspace(), project.fingerprint) or []
        waiting.delete()
        if project.base is None:
            without_base(project, "built files can be read beside it")
        elif not builds:
            advice = "Build a file first. Here it writes beside its base, so that you can read what quantization does."
            empty("There is no built file to try", advice, action="Build", target=address(project, "build"))
        else:
            _Screen(project, Path(project.base), builds).build(built)


class _Side:
    """One file's answer: its tokens as they come."""

    def __init__(self, title: str) -> None:
        self.pieces: list[WrittenToken] = []
        with card(title, "qt-try-side"):
            self._text = ui.element("p").classes("qt-try-text")
        self._spans: list[ui.element] = []

    def clear(self) -> None:
        """Begin anew."""
        self.pieces, self._spans = [], []
        self._text.clear()

    def add(self, piece: WrittenToken) -> None:
        """Show one more token."""
        self.pieces.append(piece)
        with self._text:
            self._spans.append(text(piece.text, tag="span"))

    def mark(self, at: int) -> None:
        """Set the token at a place off from the others."""
        self._spans[at].classes("qt-try-differs")


class _Screen:
    def __init__(self, project: ProjectReport, base: Path, builds: list[BuiltFile]) -> None:
        self._project, self._base, self._builds = project, base, {each.path: each for each in builds}
        self._wanted = 0
        self._marked: int | None = None

    def build(self, built: str) -> None:
        """Lay the page out."""
        names = {path: f"{Path(path).name}, {size(each.size_bytes)}" for path, each in self._builds.items()}
        with box("qt-stack"):
            with card("What to write after", "qt-try-ask"):
                self._file = ui.select(names, label="Built file", value=built if built in names else next(iter(names)))
                self._file.props("outlined dense").on_value_change(told(self._show_command))
                self._prompt = ui.textarea("Text", value=EXAMPLE).props("outlined autogrow").classes("qt-grow")
                with box("qt-row qt-wrap"):
                    self._chat = ui.checkbox("Ask as in a chat, where the model has a chat template").props("dense")
                    self._length = ui.select({n: f"up to {n} tokens" for n in LENGTHS}, label="Length", value=N_TOKENS)
                    self._length.props("outlined dense").classes("qt-try-length")
                    self._go = primary("Write", told(self._write), icon="play_arrow")
                    self._stop = quiet("Stop", self._stopped, icon="stop")
                text(
                    "Both take the likeliest token every time, so any difference comes from the files, not from chance.",
                    "qt-small qt-muted",
                )
            self._said = text("", "qt-try-said").props('role="status"')
            with box("qt-try"):
                self._sides = (_Side("Base"), _Side("Built file"))
            with card("Serve it to chat programs"):
                self._command = ui.element("div").classes("qt-stack")
        self._stop.set_visibility(False)
        self._show_command()

    def _show_command(self) -> None:
        self._command.clear()
        with self._command:
            copy_line(serve_command(Path(self._file.value)))

    def _stopped(self) -> None:
        self._wanted += 1

    async def _write(self) -> None:
        words = str(self._prompt.value or "")
        if not words.strip():
            raise InferenceError("there is no text to continue", remedy="Write a few words")
        self._wanted += 1
        self._marked = None
        self._said.set_text("Loading both files …")
        for side in self._sides:
            side.clear()
        self._go.set_visibility(False)
        self._stop.set_visibility(True)
        paths = (self._base, Path(self._file.value))
        streams = [answer(path, words, n_most=int(self._length.value), as_chat=bool(self._chat.value)) for path in paths]
        try:
            outcomes = await asyncio.gather(
                *(self._read(side, stream, self._wanted) for side, stream in zip(self._sides, streams, strict=True)), return_exceptions=True
            )
        finally:
            self._go.set_visibility(True)
            self._stop.set_visibility(False)
        failure = next((each for each in outcomes if isinstance(each, BaseException)), None)
        if failure is not None:
            self._said.set_text("")
            raise failure
        self._say(is_over=True)

    async def _read(self, side: _Side, stream: Generator[WrittenToken], wanted: int) -> None:
        try:
            while self._wanted == wanted and (piece := await run.io_bound(next, stream, None)) is not None:
                side.add(piece)
                self._compare()
        finally:
            await run.io_bound(stream.close)

    def _compare(self) -> None:
        if self._marked is None:
            self._marked = first_difference(*(side.pieces for side in self._sides))
            if self._marked is not None:
                for side in self._sides:
                    side.mark(self._marked)
        self._say(is_over=False)

    def _say(self, *, is_over: bool) -> None:
        base, ours = (side.pieces for side in self._sides)
        if self._marked is not None:
            n = self._marked
            same = f"The first {n} tokens are the same; then" if n > 1 else "The first token is the same; then" if n else "At once"
            one, other = (token.text.strip() or repr(token.text) for token in (base[n], ours[n]))
            self._said.set_text(f"{same} the base writes “{one}”, the built file “{other}”.")
        elif is_over:
            what = "The same" if len(base) == len(ours) else "One stops earlier; until then they are the same"
            self._said.set_text(f"{what}: {plural(min(len(base), len(ours)), 'token')}.")
        else:
            self._said.set_text("Writing …")
