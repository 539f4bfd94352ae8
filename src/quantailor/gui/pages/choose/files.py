"""Versions of the draft by name, and strategy files: load, save, download."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import urlencode

from nicegui import events, run, ui

from quantailor.app.choosing.drafts import Draft, forget_draft, list_drafts, save_strategy, strategy_text
from quantailor.app.choosing.planner import Planner
from quantailor.app.library.projects import ProjectReport
from quantailor.errors import StrategyError
from quantailor.gui.context import context, workspace
from quantailor.gui.frame import address
from quantailor.gui.widgets import box, icon_button, named, primary, quiet, text, told

MAX_UPLOAD = 64 * 2**20


class FilesDialog:
    """`open` shows it; `on_text` hears the text and the name of a strategy file that was given."""

    def __init__(self, project: ProjectReport, desk: Planner, draft: Callable[[], Draft], *, on_text: Callable[[str, str], Any]) -> None:
        self._project, self._desk, self._draft, self._on_text = project, desk, draft, on_text
        with named(ui.dialog(), "Versions and files") as self._dialog, ui.card().classes("qt-dialog"):
            text("Versions", "qt-title", tag="h2")
            self._versions = ui.element("div").classes("qt-stack qt-versions")
            with box("qt-row"):
                self._name = ui.input("Save a version as").props("outlined dense").classes("qt-grow")
                primary("Save version", told(self._save_version))
            text("Strategy file", "qt-title", tag="h2")
            with box("qt-row"):
                quiet("Download YAML", told(partial(self._download, "yaml")), icon="download")
                quiet("Download JSON", told(partial(self._download, "json")), icon="download")
            with box("qt-row"):
                self._path = ui.input("Save on the server as", placeholder="strategy.yaml").props("outlined dense").classes("qt-grow")
                quiet("Save", told(self._save_file))
            # Quasar's own field has no name for screen readers: a button of ours opens it.
            upload = ui.upload(auto_upload=True, max_file_size=MAX_UPLOAD, on_upload=told(self._upload))
            upload.props('accept=".yaml,.yml,.json"').style("display: none")
            load = quiet("Load a YAML or JSON file", icon="upload")
            load.on("click", js_handler=f"() => getElement({upload.id}).pickFiles()")
            quiet("Close", self._dialog.close)

    async def open(self) -> None:
        """Show the dialog."""
        await self._list()
        self._dialog.open()

    async def _list(self) -> None:
        drafts = await run.io_bound(list_drafts, workspace(), self._project.fingerprint) or []
        self._versions.clear()
        with self._versions:
            for item in drafts:
                with box("qt-row"):
                    here = item.name == self._draft().name
                    target = f"{address(self._project, 'choose')}?{urlencode({'draft': item.name})}"
                    ui.link(item.name, target).classes("qt-grow qt-link").props('aria-current="true"' if here else "")
                    text("open here" if here else item.changed.replace("T", " ")[:16], "qt-small qt-muted")
                    if not here:
                        icon_button("delete", f"Delete the version {item.name}", told(partial(self._forget, item.name)))

    async def _save_version(self) -> None:
        name = str(self._name.value or "").strip()
        if not name or not all(letter.isalnum() or letter in " ._-" for letter in name):
            raise StrategyError(f"{name!r} cannot name a version", remedy="Use letters, digits, blanks, dots and dashes")
        await run.io_bound(lambda: self._draft().save(workspace(), self._project.fingerprint, name=name))
        self._name.set_value("")
        await self._list()
        ui.notify(f"Saved as {name}")

    async def _forget(self, name: str) -> None:
        await run.io_bound(forget_draft, workspace(), self._project.fingerprint, name)
        await self._list()

    async def _download(self, file_format: str) -> None:
        content = await run.io_bound(self._text, file_format)
        ui.download.content(content or "", f"{self._project.name.replace(' ', '-')}.{file_format}")

    def _text(self, file_format: str) -> str:
        return strategy_text(self._desk.whole(self._draft().strategy(self._desk)), "json" if file_format == "json" else "yaml")

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
