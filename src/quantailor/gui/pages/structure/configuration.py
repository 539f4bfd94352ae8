"""The second half of Structure: metadata as a table that can be searched, and a directory's text files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nicegui import events, run, ui

from quantailor.app.library.projects import ProjectReport
from quantailor.app.library.structure import ConfigurationFile, MetadataRow, configuration_files, configuration_text, model_metadata
from quantailor.errors import QuantailorError
from quantailor.gui.widgets import box, card, error_note, named, note, text, told
from quantailor.present.words import size


class Configuration:
    """What the model's files say of it; read when it is first shown."""

    def __init__(self, project: ProjectReport) -> None:
        self._project = project
        self._is_shown = False
        self._element = ui.element("div").classes("qt-stack")

    async def show(self) -> None:
        """Fill it, once."""
        if self._is_shown:
            return
        self._is_shown = True
        source = self._project.source
        with self._element:
            if source is None:
                note("The model's files are gone. Open it again from where it is now to read its configuration.", "warn")
                return
            try:
                metadata = await run.io_bound(model_metadata, Path(source))
                files = await run.io_bound(configuration_files, Path(source))
            except QuantailorError as error:
                error_note(error)
                return
            if files:
                _files(Path(source), files)
            if metadata is not None:
                _metadata(metadata, is_directory=bool(files))


def _files(folder: Path, files: tuple[ConfigurationFile, ...]) -> None:
    with card("Configuration files"), box("qt-m-config"):
        options = {file.name: f"{file.name} ({size(file.size_bytes)})" for file in files}
        chosen = ui.radio(options, value=files[0].name).props('aria-label="File" dense').classes("qt-m-config-files")
        with box("qt-stack qt-m-tight"):
            told_size = text("", "qt-small qt-muted")
            shown = text("", "qt-code qt-m-config-text", tag="pre").props('tabindex="0" role="region" aria-label="The file\'s text"')

        async def read() -> None:
            found = await run.io_bound(configuration_text, folder, str(chosen.value))
            if found is not None:
                shown.set_text(found.text)
                cut = "" if found.is_whole else f", the first {size(len(found.text.encode()))} are shown"
                told_size.set_text(f"{folder / found.name}: {size(found.size_bytes)}{cut}")

        chosen.on_value_change(told(read))
        ui.timer(0, told(read), once=True)


def _metadata(rows: tuple[MetadataRow, ...], *, is_directory: bool) -> None:
    title = "GGUF metadata that a conversion writes" if is_directory else "GGUF metadata"
    with card(title), box("qt-stack qt-m-tight"):
        with box("qt-row"):
            field = ui.input("Search keys and values").props("dense outlined clearable").classes("qt-grow")
            number = text("", "qt-small qt-muted").props('role="status"')
        with named(ui.element("table").classes("qt-table qt-metadata"), title):
            with ui.element("thead"), ui.element("tr"):
                for name in ("key", "type", "value"):
                    text(name, tag="th").props('scope="col"')
            with ui.element("tbody"):
                shown = [(row, _row(row)) for row in rows]

        def search(words: str) -> None:
            fits = [words in f"{row.key} {row.long_value or row.value}".lower() for row, _ in shown]
            for (_, element), fit in zip(shown, fits, strict=True):
                element.set_visibility(fit)
            number.set_text(f"{sum(fits)} of {len(fits)} entries")

        def changed(event: events.ValueChangeEventArguments[Any]) -> None:
            search((event.value or "").strip().lower())

        field.on_value_change(changed)
        search("")


def _row(row: MetadataRow) -> ui.element:
    with ui.element("tr") as element:
        text(row.key, "qt-mono", tag="td")
        text(row.type_name, "qt-muted qt-small", tag="td")
        with ui.element("td").classes("qt-mono qt-m-break"):
            if row.long_value is None:
                text(row.value)
            else:
                with ui.element("details"):
                    text(row.value, tag="summary")
                    text(row.long_value, "qt-code", tag="pre").props('tabindex="0"')
    return element
