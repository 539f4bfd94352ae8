"""Model: open a repository, a directory or a file, and what is known of one that was opened."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

from nicegui import run, ui

from quantailor.app.library import projects
from quantailor.app.library.opening import ModelFile, ModelOverview, Repository, disk_plan, model_overview, understand
from quantailor.app.library.projects import KeptCalibration, ProjectReport, open_project
from quantailor.app.steps import UNQUANTIZED, conversion_offer
from quantailor.errors import QuantailorError
from quantailor.gui import meanings
from quantailor.gui.context import context, show_address, workspace
from quantailor.gui.elements.disk_bar import disk_bar
from quantailor.gui.elements.home_disk import home_disk
from quantailor.gui.frame import address, frame, next_step, opened, results_of
from quantailor.gui.pages.model.conversion import conversion_form, offered_conversion
from quantailor.gui.pages.model.hub import HubCard
from quantailor.gui.pages.unsound import warn_of_reservations
from quantailor.gui.picker import MODEL, pick
from quantailor.gui.widgets import Stat, box, card, chip, error_note, heading, note, primary, quiet, table, text, told
from quantailor.present.words import count, plural, size

EXAMPLES = (
    ("A GGUF file", "A 16-bit base. Any shard of a split one opens them all.", "/models/Llama-3.2-1B-BF16.gguf"),
    ("A Hugging Face directory", "config.json with safetensors beside it; it is converted when it is needed.", "~/models/Llama-3.2-1B"),
    ("A repository", "Looked at before anything is downloaded: size, licence, access, disk.", "meta-llama/Llama-3.2-1B"),
)
LICENSE_LINKS = {"apache-2.0": "Apache 2.0", "mit": "MIT"}


# Opening


async def opening() -> None:
    """One box for whatever the user has; `?model=` and `?revision=` keep what was asked for."""
    asked = ui.context.client.request.query_params
    with frame("model", "Open a model"):
        page = _Opening(asked.get("model", ""), asked.get("revision", ""), asked.get("file", ""))
        if page.field.value:
            ui.timer(0, told(page.look), once=True)


class _Opening:
    def __init__(self, model: str, revision: str, gguf_file: str) -> None:
        self._revision, self._gguf_file = revision, gguf_file
        with box("qt-stack"):
            with card(), box("qt-row"):
                self.field = ui.input("Repository, directory or GGUF file", value=model)
                self.field.props("outlined autofocus").classes("qt-grow qt-mono").on("keydown.enter", told(self._asked))
                quiet("Browse", told(self._browse), icon="folder_open")
                self._open = primary("Open", told(self._asked))
            with box("qt-stack") as self._found:
                _examples()

    async def _asked(self) -> None:
        self._revision = self._gguf_file = ""
        await self.look()

    async def _browse(self) -> None:
        path = await pick("Open a model", MODEL, start=self.field.value or None)
        if path is not None:
            self.field.value = str(path)
            await self._asked()

    async def look(self) -> None:
        """Show what the box names."""
        self._open.props("loading")
        self._found.clear()
        try:
            await self._look()
        except QuantailorError as error:
            with self._found:
                error_note(error)
        finally:
            self._open.props(remove="loading")

    async def _look(self) -> None:
        wanted = await run.io_bound(understand, self.field.value or "")
        if isinstance(wanted, Repository):
            revision = wanted.revision or self._revision or None
            show_address(_open_address(wanted.repo_id, revision, self._gguf_file))
            with self._found:
                await HubCard(wanted.repo_id, revision, self._gguf_file or None).look()
        elif wanted is not None:
            await self._open_path(context().allowed(wanted))

    async def _open_path(self, path: Path) -> None:
        offer = await run.io_bound(conversion_offer, workspace(), path)
        if offer is not None:
            with self._found:
                offered_conversion(offer, lambda: ui.navigate.to(_open_address(offer.folder, None, "")))
            return
        project = await run.io_bound(open_project, workspace(), path)
        if project is not None:
            ui.navigate.to(address(project, "model"))


def _open_address(model: str, revision: str | None, gguf_file: str) -> str:
    parts = {"model": model, "revision": revision, "file": gguf_file}
    return f"/open?{urlencode({key: value for key, value in parts.items() if value})}"


def _examples() -> None:
    with box("qt-grid qt-m-examples"):
        for title, what, example in EXAMPLES:
            with card(title):
                text(what)
                text(example, "qt-mono qt-muted qt-m-example")


# A known model


async def known(fingerprint: str) -> None:
    """What a project's model is, where it lies, and what comes next."""
    found = await opened("model", partial(_read, fingerprint))
    if found is None:
        return
    project, overview, known = found
    with frame("model", "Model", project=project, subtitle=project.source or "its files are gone"), box("qt-stack"):
        _facts(project, overview)
        warn_of_reservations(project)
        with box("qt-grid qt-m-halves"):
            with box("qt-stack"):
                if overview.suggested_base is not None:
                    _convert(project, overview.suggested_base)
                _files(overview)
                _calibrations(known)
            with box("qt-stack"):
                _next(project)
                if overview.kind != "gone":
                    _disk(project)


def _read(fingerprint: str) -> tuple[ProjectReport, ModelOverview, list[KeptCalibration]]:
    project = projects.project(workspace(), fingerprint)
    return project, model_overview(workspace(), project), projects.calibrations(workspace(), project.fingerprint)


def _facts(project: ProjectReport, overview: ModelOverview) -> None:
    bits = 8 * project.size_bytes / max(1, project.n_parameters)
    with card(), box("qt-stack"):
        with box("qt-row qt-m-facts"):
            Stat("architecture", project.architecture)
            Stat("parameters", count(project.n_parameters))
            Stat("layers", str(overview.n_layers))
            Stat("tensors", f"{overview.n_tensors:,}")
            Stat("all tensors", size(project.size_bytes))
            Stat("bits per weight", f"{bits:.2f}", hint=meanings.BITS)
            Stat("licence", LICENSE_LINKS.get(overview.license or "", overview.license or "not stated"))
        with box("qt-row qt-wrap"):
            for type_name, number in overview.types:
                with box("qt-row qt-m-pair"):
                    chip(type_name)
                    text(plural(number, "tensor"), "qt-small qt-muted")
            if project.is_moe:
                text("a mixture of experts", "qt-small qt-muted")
    if overview.kind == "gone":
        note("None of this model's files is where it was. Open it again from where it is now; all results are kept.", "warn")
    elif project.is_quantized:
        _already_quantized([name for name, _ in overview.types if name not in UNQUANTIZED])


def _already_quantized(types: Sequence[str]) -> None:
    with box("qt-note qt-note-warn") as element:
        element.props('role="note"')
        text(f"These weights are quantized already ({', '.join(types)}): quantizing them again loses quality twice.")
        text("Open the 16-bit model instead. If there is none, Measure asks whether to go on anyway.", "qt-muted")


def _files(overview: ModelOverview) -> None:
    with card("Files"):
        if not overview.files:
            text("None is left.", "qt-muted")
            return
        _group(overview.files, "Files of the model")
        if overview.base is not None:
            heading("Its 16-bit base", 3, "qt-card-title qt-m-gap-above")
            _group((overview.base,), "The base")
        for projector in overview.projectors:
            heading("Its vision tower or audio encoder", 3, "qt-card-title qt-m-gap-above")
            _group((projector,), "The projector")
            text("llama-server and llama-mtmd-cli take it with --mmproj, beside the base or any file built from it.", "qt-small qt-muted")


def _calibrations(found: Sequence[KeptCalibration]) -> None:
    """What texts have told of the model's inputs."""
    if not found:
        return
    with card("Importance matrices and input covariances"):
        rows = [(_calibration_name(item), _seen(item), size(item.size_bytes)) for item in found]
        table({"What": False, "Text": False, "Size": True}, rows, caption="Importance matrices and input covariances")
        text(
            "Covariances let rounding be compensated: better codes in the same types. Measure uses those marked “in use”.",
            "qt-small qt-muted qt-below",
        )


def _calibration_name(item: KeptCalibration) -> str:
    name = item.kind[0].upper() + item.kind[1:]
    return f"{name}, in use" if item.is_own else name


def _seen(item: KeptCalibration) -> str:
    texts = ", ".join(Path(name).name for name in item.record.datasets)
    if item.record.origin == "imported":
        return f"imported, {texts}" if texts else "imported"
    return f"{plural(item.record.chunk_count, 'chunk')} of {texts or 'a text'}"


def _group(files: Sequence[ModelFile], caption: str) -> None:
    text(str(Path(files[0].path).parent), "qt-mono qt-small qt-muted qt-m-break")
    rows = [(Path(file.path).name, size(file.size_bytes)) for file in files]
    table({"File": False, "Size": True}, rows, caption=caption).classes("qt-m-files")


def _next(project: ProjectReport) -> None:
    following = next_step(project)
    with card("Next"), box("qt-stack"):
        with box("qt-stack qt-m-lines"):
            for line in _results(project):
                text(line)
        with box("qt-row qt-wrap"):
            primary(f"Continue: {following.label}", lambda: ui.navigate.to(address(project, following.key)), icon="arrow_forward")
            quiet("Look at its structure", lambda: ui.navigate.to(address(project, "structure")))


def _results(project: ProjectReport) -> list[str]:
    lines = []
    if project.n_cells:
        depth = "measured and probed" if project.is_probed else "measured, not probed: mixes are ranked without a predicted KLD"
        lines.append(f"{plural(project.n_cells, 'cell')} {depth}.")
    else:
        lines.append("Nothing is measured yet. Measuring finds what each type costs in every tensor.")
    if project.has_imatrix:
        lines.append(f"It has an importance matrix{' and the covariances of its inputs' if project.has_covariances else ''}.")
    there = results_of(project)
    return [*lines, f"{', '.join(there)}."] if there else lines


def _disk(project: ProjectReport) -> None:
    with card("Disk for measuring it (Balanced)") as section:
        waiting = text("Adding up what will be written …", "qt-muted")

        async def show() -> None:
            try:
                plan = await run.io_bound(disk_plan, workspace(), project)
            except QuantailorError as error:
                plan = None
                with section:
                    error_note(error)
            waiting.delete()
            if plan is not None:
                with section, box("qt-stack qt-m-tight"):
                    disk_bar(plan.needs, plan.free_bytes, plan.folder)
                    for sentence in plan.shortfalls:
                        note(f"Measuring {sentence}.", "bad")
                    home_disk()

        ui.timer(0.1, show, once=True)


def _convert(project: ProjectReport, suggested: str) -> None:
    source = project.source or ""
    with card("Convert to a base"), box("qt-stack"):
        text("This is a Hugging Face directory. llama.cpp works on GGUF: a 16-bit base is written once, and everything starts from it.")
        text("Measure does that by itself; do it here to choose the place.", "qt-muted")
        conversion_form(
            source, suggested, f"Convert to a base ({size(project.size_bytes)})", lambda: ui.navigate.to(address(project, "model"))
        )
