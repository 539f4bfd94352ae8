"""Versions of the draft side by side, what was done to it, and strategy files: load, save, download."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlencode

from nicegui import events, run, ui

from quantailor.app.choosing.drafts import Draft
from quantailor.app.choosing.planner import Planner, PlannerTensor
from quantailor.app.choosing.versions import Version, versions
from quantailor.app.library.projects import ProjectReport
from quantailor.app.steps import save_strategy, strategy_text
from quantailor.errors import StrategyError
from quantailor.gui.context import context, workspace
from quantailor.gui.elements.thumbnail import Thumbnail
from quantailor.gui.frame import address
from quantailor.gui.widgets import box, icon_button, named, primary, quiet, text, told
from quantailor.present.words import kld, plural, size

MAX_UPLOAD = 64 * 2**20
N_STEPS = 8
"""So many of the latest changes are listed."""


class FilesDialog:
    """`open` shows it; `on_text` hears the text and the name of a strategy file that was given, `on_compare` a version's name."""

    def __init__(
        self,
        project: ProjectReport,
        desk: Planner,
        draft: Callable[[], Draft],
        *,
        on_text: Callable[[str, str], Any],
        on_compare: Callable[[str], Any],
    ) -> None:
        self._project, self._desk, self._draft, self._on_text, self._on_compare = project, desk, draft, on_text, on_compare
        with named(ui.dialog(), "Versions and files") as self._dialog, ui.card().classes("qt-dialog qt-dialog-wide"):
            text("Versions", "qt-title", tag="h2")
            self._versions = ui.element("div").classes("qt-versions")
            with box("qt-row"):
                self._name = ui.input("Save a version as").props("outlined dense").classes("qt-grow")
                primary("Save version", told(self._save_version))
            self._history = ui.element("div").classes("qt-stack qt-history")
            text("Strategy file", "qt-title", tag="h2")
            with box("qt-row"):
                self._path = ui.input("Save on the server as", placeholder="strategy.yaml").props("outlined dense").classes("qt-grow")
                quiet("Save", told(self._save_file))
            # Quasar's own field has no name for screen readers: a button of ours opens it.
            upload = ui.upload(auto_upload=True, max_file_size=MAX_UPLOAD, on_upload=told(self._upload))
            upload.props('accept=".yaml,.yml,.json"').style("display: none")
            with box("qt-row qt-wrap"):
                quiet("Download YAML", told(partial(self._download, "yaml")), icon="download")
                quiet("Download JSON", told(partial(self._download, "json")), icon="download")
                load = quiet("Load a YAML or JSON file", icon="upload")
                load.on("click", js_handler=f"() => getElement({upload.id}).pickFiles()")
            with box("qt-row qt-end-row"):
                quiet("Close", self._dialog.close)

    async def open(self) -> None:
        """Show the dialog."""
        await self._list()
        self._dialog.open()

    async def _list(self) -> None:
        found = await run.io_bound(versions, workspace(), self._desk) or []
        tensors = self._desk.tensors
        self._versions.clear()
        with self._versions:
            for version in found:
                self._show_version(version, tensors)
        self._show_history()

    def _show_version(self, version: Version, tensors: Sequence[PlannerTensor]) -> None:
        name, predicted = version.info.name, version.prediction
        here = name == self._draft().name
        with box("qt-version qt-version-here" if here else "qt-version", tag="section") as section:
            named(section, f"Version {name}")
            Thumbnail(tensors, version.types, title=f"Types of {name} by layer and role")
            with box("qt-row"):
                target = f"{address(self._project, 'choose')}?{urlencode({'draft': name})}"
                ui.link(name, target).classes("qt-grow qt-link").props('aria-current="true"' if here else "")
                if not here:
                    icon_button("difference", f"Compare with {name}", told(partial(self._compare, name)))
                    icon_button("delete", f"Delete the version {name}", told(partial(self._forget, name)))
            if predicted is None:
                text("one of its types is not measured", "qt-small qt-muted")
            else:
                text(size(predicted.file_size_bytes), "qt-version-size")
                value = kld(predicted.kld_nats, predicted.kld_interval_nats, predicted.no_prediction)
                text(value if predicted.kld_nats is None else f"KLD {value} nats", "qt-small")
            when = "open here" if here else version.info.changed.replace("T", " ")[:16]
            text(", ".join([when, *([f"{version.info.n_pinned} pinned"] if version.info.n_pinned else [])]), "qt-small qt-muted")

    def _show_history(self) -> None:
        done = self._draft().history
        self._history.clear()
        with self._history:
            if done:
                text("What was changed in this one, latest first:", "qt-small qt-muted")
            for label in done[:N_STEPS]:
                text(label, "qt-small")
            if len(done) > N_STEPS:
                text(f"and {plural(len(done) - N_STEPS, 'change')} earlier; Undo takes them back one by one", "qt-small qt-muted")

    async def _compare(self, name: str) -> None:
        self._dialog.close()
        await self._on_compare(name)

    async def _save_version(self) -> None:
        name = str(self._name.value or "").strip()
        if not name or not all(letter.isalnum() or letter in " ._-" for letter in name):
            raise StrategyError(f"{name!r} cannot name a version", remedy="Use letters, digits, blanks, dots and dashes")
        await run.io_bound(lambda: self._draft().save(workspace(), self._project.fingerprint, name=name))
        self._name.set_value("")
        await self._list()
        ui.notify(f"Saved as {name}")

    async def _forget(self, name: str) -> None:
        await run.io_bound(workspace().store.forget_draft, self._project.fingerprint, name)
        await self._list()

    async def _download(self, file_format: str) -> None:
        content = await run.io_bound(self._text, file_format)
        ui.download.content(content or "", f"{self._project.name.replace(' ', '-')}.{file_format}")

    def _text(self, file_format: str) -> str:
        return strategy_text(self._desk.whole(self._draft().strategy(self._desk)), format="json" if file_format == "json" else "yaml")

    async def _save_file(self) -> None:
        if not self._path.value:
            raise StrategyError("no file name is given", remedy="Write for example strategy.yaml")
        path = context().allowed(self._path.value)
        await run.io_bound(lambda: save_strategy(self._desk.whole(self._draft().strategy(self._desk)), path))
        ui.notify(f"Saved {path}")

    async def _upload(self, event: events.UploadEventArguments) -> None:
        event.sender.reset()  # type: ignore[attr-defined]
        content = await event.file.read()
        try:
            given = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            remedy = "Give the YAML or JSON file that Choose saved"
            raise StrategyError(f"{event.file.name} is not UTF-8 text", remedy=remedy) from None
        await self._on_text(given, event.file.name)
        self._dialog.close()
