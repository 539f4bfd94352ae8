"""A repository of the hub on the Model screen: its card, its download, and the way in where it is gated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nicegui import events, run, ui

from quantailor.app.library.hub import PeekReport, peek
from quantailor.app.library.opening import downloaded_model
from quantailor.app.library.projects import open_project
from quantailor.app.steps import DownloadStep, conversion_offer, find_token
from quantailor.errors import HubError, QuantailorError
from quantailor.gui.context import context, workspace
from quantailor.gui.elements.disk_bar import disk_bar
from quantailor.gui.frame import address
from quantailor.gui.jobs import start as start_job
from quantailor.gui.jobs.watch import watch_job
from quantailor.gui.pages.model.conversion import offered_conversion
from quantailor.gui.picker import pick
from quantailor.gui.widgets import Stat, box, card, copy_line, error_note, heading, note, primary, quiet, table, text, told
from quantailor.present.words import count, size

_GATES = {"auto": "gated, you have access", "manual": "gated by its authors, you have access"}
_TAKEN = {"safetensors": "safetensors", "gguf": "GGUF", "imatrix": "importance matrix", "unknown": "nothing that fits"}


@dataclass(frozen=True, slots=True)
class Way:
    """What to do after a refusal."""

    title: str
    steps: tuple[str, ...]
    link: str
    """What the button to the page says."""
    wants_token: bool = False


WAYS = {
    "not-requested": Way(
        "Its authors ask you to accept terms",
        ("Open the repository's page while you are logged in there.", "Read and accept the terms.", "Come back and look again."),
        "Open the repository's page",
    ),
    "pending": Way(
        "Your request waits for its authors",
        ("You have asked for access; they answer themselves, which can take days.", "Look at the state of your requests, and come back."),
        "See your requests",
    ),
    "rejected": Way(
        "The authors refused access",
        ("Nothing here can change that: ask them on the repository's page.", "Or take another model of its kind."),
        "Open the repository's page",
    ),
    "no-token": Way(
        "It is gated, and nobody is logged in here",
        ("Accept its terms on the repository's page.", "Give a token in one of the ways below.", "Look again."),
        "Open the repository's page",
        wants_token=True,
    ),
    "invalid-token": Way(
        "The hub does not know this token",
        ("It may have expired or been deleted: make a new one.", "Give it in one of the ways below.", "Look again."),
        "Open your tokens",
        wants_token=True,
    ),
    "token-permission": Way(
        "This token may not read gated repositories",
        ("Edit the token and allow it to read public gated repositories, or make another one.", "Look again."),
        "Open your tokens",
        wants_token=True,
    ),
    "not-found": Way(
        "There is no such repository, or it is private",
        ("Check the spelling: ORGANIZATION/NAME.", "If it is private, give a token that may read it."),
        "Open its page",
        wants_token=True,
    ),
}
"""By the error's `reason`."""


class HubCard:
    """Looks a repository up and shows what may be done with it. Build it where it shall stand, then await `look`."""

    def __init__(self, repo_id: str, revision: str | None, gguf_file: str | None) -> None:
        self._repo_id, self._revision, self._gguf_file = repo_id, revision, gguf_file
        self._token_file: Path | None = None
        with ui.element("div") as self._outer:
            self._element = ui.element("div").classes("qt-stack")

    async def look(self) -> None:
        """Ask the hub, and show its answer."""
        self._element.clear()
        with self._element:
            waiting = text(f"Asking the hub about {self._repo_id} …", "qt-muted").props('role="status"')
        try:
            report = await run.io_bound(self._peek)
        except QuantailorError as error:
            waiting.delete()
            with self._element:
                self._refused(error)
            return
        waiting.delete()
        if report is not None:
            with self._element:
                await self._show(report)

    def _peek(self) -> PeekReport:
        token = find_token(self._token_file)
        return peek(self._repo_id, revision=self._revision, token=token, gguf_file=self._gguf_file)

    # The card

    async def _show(self, report: PeekReport) -> None:
        path = await run.io_bound(downloaded_model, report)
        with card(), box("qt-stack"):
            with box("qt-row qt-spread"):
                heading(report.repo_id, 2, "qt-title")
                _outside("Its page", report.link)
            self._facts(report)
            if report.why_not_convertible:
                note(f"Not for our own conversion: {report.why_not_convertible}", "warn")
            if report.is_quantized:
                note("Its weights are quantized already: quantizing them again loses quality twice. Look for the 16-bit model.", "warn")
            watched = ui.element("div").classes("qt-stack")
            with watched:
                if path is not None:
                    self._downloaded(path)
                elif report.kind in ("safetensors", "gguf"):
                    self._offer(report, watched)
        with box("qt-grid qt-m-halves"):
            self._files(report)
            with card("Disk for this and the next steps"), box("qt-stack qt-m-tight"):
                disk_bar(report.disk, report.free_bytes, report.cache_folder)

    def _facts(self, report: PeekReport) -> None:
        with box("qt-row qt-m-facts"):
            Stat("architecture", report.architecture)
            Stat("parameters", count(report.n_parameters) if report.n_parameters else "unknown")
            Stat("to download", size(report.download_bytes))
            Stat("here already", size(report.size_bytes - report.download_bytes))
            Stat("licence", report.license or "not stated")
            Stat("access", "private" if report.private else "open" if report.gated == "no" else "granted")
        origin = find_token(self._token_file).origin
        commit = f"revision {report.revision} at {report.sha[:12]} · token: {origin}"
        text(" · ".join(part for part in (_GATES.get(report.gated, ""), commit) if part), "qt-small qt-muted")

    def _files(self, report: PeekReport) -> None:
        needed = [file for file in report.files if file.needed]
        with card(f"Files: {_TAKEN.get(report.kind, report.kind)}"):
            if needed:
                rows = [(file.name, size(file.size_bytes), "here" if file.cached else "to download") for file in needed]
                table({"File": False, "Size": True, "State": False}, rows, caption="Files that a download takes").classes("qt-m-files")
            others = [file for file in report.files if not file.needed]
            if others:
                text(f"{len(others)} other {'file is' if len(others) == 1 else 'files are'} not needed.", "qt-small qt-muted")
            choices = {file.name: f"{file.name} ({size(file.size_bytes)})" for file in report.files if _is_first_gguf(file.name)}
            if len(choices) > 1:
                self._other_file(choices, report.gguf_files[0] if report.gguf_files else None)

    def _other_file(self, choices: dict[str, str], chosen: str | None) -> None:
        async def change(event: events.ValueChangeEventArguments[str]) -> None:
            self._gguf_file = event.value
            await self.look()

        field = ui.select(choices, value=chosen if chosen in choices else None, label="Take this GGUF file", on_change=told(change))
        field.props("dense outlined options-dense").classes("qt-m-select")

    def _offer(self, report: PeekReport, watched: ui.element) -> None:
        async def start() -> None:
            token_file = None if self._token_file is None else str(self._token_file)
            step = DownloadStep(repo_id=self._repo_id, revision=self._revision, token_file=token_file, gguf_file=self._gguf_file)
            job = await run.io_bound(start_job, step)
            if job is not None:
                self._watch(job.id, watched)

        with box("qt-row"):
            primary(f"Download {size(report.download_bytes)}", told(start), icon="download")
            text(f"Only what is needed, into {report.cache_folder}; it can be paused, and continues where it was.", "qt-muted qt-small")

    def _watch(self, job: int, watched: ui.element) -> None:
        watched.clear()
        with watched:
            watch_job(job, self._look_soon, on_stop=lambda: self._again(watched))

    def _look_soon(self) -> None:
        """From a timer that `look` is going to delete."""
        with self._outer:
            ui.timer(0, told(self.look), once=True)

    def _again(self, watched: ui.element) -> None:
        with watched, box("qt-row"):
            quiet("Look again", told(self.look), icon="refresh")

    def _downloaded(self, path: Path) -> None:
        async def open_it() -> None:
            offer = await run.io_bound(conversion_offer, workspace(), path)
            if offer is not None:
                button.disable()
                with self._element:
                    offered_conversion(offer, self._look_soon)
                return
            project = await run.io_bound(open_project, workspace(), path)
            if project is not None:
                ui.navigate.to(address(project, "model"))

        with box("qt-row"):
            button = primary("Open the model", told(open_it), icon="arrow_forward")
            text(f"All of it is here: {path}", "qt-small qt-muted qt-mono qt-m-break")

    # Refusals

    def _refused(self, error: QuantailorError) -> None:
        way = WAYS.get(error.reason) if isinstance(error, HubError) else None
        if way is None:
            error_note(error)
            with box("qt-row"):
                quiet("Look again", told(self.look), icon="refresh")
            return
        link = error.link if isinstance(error, HubError) else None
        with card(), box("qt-stack") as element:
            element.props('role="alert"')
            heading(way.title, 2, "qt-title")
            text(_sentence(error.message))
            with ui.element("ol").classes("qt-m-steps"):
                for step in way.steps:
                    text(step, tag="li")
            with box("qt-row qt-wrap"):
                if link is not None:
                    _outside(way.link, link)
                quiet("Look again", told(self.look), icon="refresh")
        if way.wants_token:
            self._token_help()

    def _token_help(self) -> None:
        with card("How to give a token"), box("qt-stack"):
            text("Log in once on this machine; every program that uses the hub finds it, and so does this page, at once:")
            copy_line("hf auth login")
            text("Or set HF_TOKEN in the environment and start Quantailor again.")
            with box("qt-row qt-wrap"):
                text("Or choose a file that holds the token and nothing else. It is read when it is needed, and never shown or kept.")
                quiet("Choose a token file", told(self._choose_token), icon="key")
            chosen = "no file chosen" if self._token_file is None else f"file: {self._token_file}"
            text(f"Now: {chosen}", "qt-small qt-muted")

    async def _choose_token(self) -> None:
        path = await pick("Choose the token's file", ("file", "text"))
        if path is not None:
            self._token_file = context().allowed(path)
            await self.look()


def _sentence(message: str) -> str:
    """With a capital, unless it begins with a repository's name."""
    return f"{message}." if "/" in message.split(" ", 1)[0] else f"{message[:1].upper()}{message[1:]}."


def _is_first_gguf(name: str) -> bool:
    plain = name.lower()
    return plain.endswith(".gguf") and "imatrix" not in plain and "mmproj" not in plain and ("-of-" not in plain or "-00001-of-" in plain)


def _outside(label: str, link: str) -> None:
    """A link that leaves for the hub in another tab."""
    ui.link(label, link, new_tab=True).props('rel="noopener noreferrer"').classes("qt-outside")
