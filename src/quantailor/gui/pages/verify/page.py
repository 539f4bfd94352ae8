"""Verify: what a built file is worth, measured beside llama.cpp's presets, in a sentence, a graph, a table and a model card."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from nicegui import run, ui

from quantailor.app.jobs import JobReport
from quantailor.app.library import projects
from quantailor.app.library.projects import ProjectReport
from quantailor.app.products.builds import BuiltFile, list_builds
from quantailor.app.products.verdicts import StoredVerdict, headline, list_verdicts
from quantailor.errors import StoreError
from quantailor.gui.context import show_address, workspace
from quantailor.gui.frame import address, frame, opened, tick
from quantailor.gui.jobs.job_card import JobCard, unfinished
from quantailor.gui.pages.verify.form import VerifyForm
from quantailor.gui.pages.verify.model_card import CardCard
from quantailor.gui.pages.verify.verdict import VerdictCards
from quantailor.gui.pages.without_base import without_base
from quantailor.gui.widgets import box, empty, error_note, quiet, text, told

KEY_LENGTH = 16
"""Digits of a fingerprint in an address."""


async def verify(fingerprint: str, verdict: str = "", built: str = "") -> None:
    """The screen of one project; `?verdict=` selects one, `?built=` a file to measure."""
    project = await opened("verify", partial(projects.project, workspace(), fingerprint))
    if project is None:
        return
    with frame("verify", "Verify", project=project, subtitle="measured on text that no earlier step has seen"):
        # Files of large vocabularies take a moment to read: the page comes first.
        waiting = text("Reading the built files…", "qt-muted").props('role="status"')
        await ui.context.client.connected()
        verdicts = await run.io_bound(list_verdicts, workspace(), project.fingerprint) or []
        builds = await run.io_bound(list_builds, workspace(), project.fingerprint) or []
        waiting.delete()
        if project.base is None:
            without_base(project, "built files can be compared with it")
            return
        if not (verdicts or builds):
            advice = "Build a file first. Here it is measured beside llama.cpp's presets, to see whether it is better."
            empty("Nothing to verify yet", advice, action="Build", target=address(project, "build"))
            return
        screen = _Screen(project, Path(project.base), verdicts, builds)
        try:
            chosen = _chosen(verdicts, verdict)
        except StoreError as error:
            error_note(error)
            chosen = verdicts[0] if verdicts else None
        screen.build(chosen, built)


def _chosen(verdicts: list[StoredVerdict], wanted: str) -> StoredVerdict | None:
    """The one that the address names, else the latest. Raises StoreError."""
    if not wanted:
        return verdicts[0] if verdicts else None
    found = next((item for item in verdicts if item.fingerprint.startswith(wanted)), None)
    if found is None:
        raise StoreError(f"no verdict {wanted[:KEY_LENGTH]} of this model is known", remedy="Here is the latest instead")
    return found


class _Screen:
    def __init__(self, project: ProjectReport, base: Path, verdicts: list[StoredVerdict], builds: list[BuiltFile]) -> None:
        self._project, self._base, self._verdicts, self._builds = project, base, verdicts, builds

    def build(self, chosen: StoredVerdict | None, built: str) -> None:
        """Lay the page out."""
        with box("qt-stack"):
            with box("qt-row qt-spread"):
                self._history = ui.select(self._names(), label="Verdict", value=chosen.fingerprint if chosen else None)
                self._history.props("outlined dense").classes("qt-verdict-select")
                self._new = quiet("Measure a file", lambda: self._form.show(not self._form.is_shown), icon="add")
            self._job = JobCard("Verify", self._finished)
            self._form = VerifyForm(self._project, self._base, self._builds, built, on_start=self._started)
            self._cards = VerdictCards(self._project)
            self._card = CardCard(self._base, self._builds)
        self._history.on_value_change(told(self._selected))
        self._form.show(bool(built) or chosen is None)
        self._show(chosen)
        ui.timer(0.05, told(self._start), once=True)

    def _names(self) -> dict[str, str]:
        return {item.fingerprint: f"{item.ours.label}: {headline(item.verdict)}" for item in self._verdicts}

    async def _start(self) -> None:
        job = await run.io_bound(unfinished, self._project, "verify")
        if job is not None:
            self._job.watch(job)

    def _started(self, job: JobReport) -> None:
        self._form.show(False)
        self._job.watch(job)

    async def _finished(self, _: JobReport) -> None:
        self._verdicts = await run.io_bound(list_verdicts, workspace(), self._project.fingerprint) or []
        self._builds = await run.io_bound(list_builds, workspace(), self._project.fingerprint) or []
        self._card.builds = self._builds
        if self._verdicts:
            tick("verify")
        latest = self._verdicts[0].fingerprint if self._verdicts else None
        is_same = self._history.value == latest
        self._history.set_options(self._names(), value=latest)
        if is_same:
            self._selected()

    def _selected(self) -> None:
        chosen = next((item for item in self._verdicts if item.fingerprint == self._history.value), None)
        self._show(chosen)
        if chosen is not None:
            show_address(f"{address(self._project, 'verify')}?verdict={chosen.fingerprint[:KEY_LENGTH]}")

    def _show(self, chosen: StoredVerdict | None) -> None:
        self._history.set_visibility(bool(self._verdicts))
        self._new.set_visibility(bool(self._verdicts))
        self._cards.show(chosen, self._builds)
        ui.timer(0.05, told(partial(self._card.show, chosen)), once=True)
