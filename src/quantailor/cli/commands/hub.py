"""The hub: a command that downloads, and how repositories are shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from quantailor.app.library import hub as hub_module
from quantailor.app.library.hub import PeekReport
from quantailor.app.steps import (
    AUTO,
    REPO,
    DownloadResult,
    DownloadStep,
    HubModel,
    PublishResult,
    PublishStep,
    absolute,
    cached_model,
    find_token,
    shipped_imatrix,
)
from quantailor.cli import options, show
from quantailor.cli.output import console, table
from quantailor.cli.root import command
from quantailor.cli.values import imatrix_choice, optional_path
from quantailor.errors import HubOfflineError, HubUnreachableError, RepoNotFoundError
from quantailor.present import words
from quantailor.present.words import plural

_GATES = {"no": "", "auto": ", gated", "manual": ", gated by its authors"}

Repository = Annotated[str, typer.Argument(metavar="ORG/NAME", help="A model's repository on the hub; or ORG/NAME@REVISION.")]


def here(model: Path, hub: HubModel | None, imatrix: str = AUTO) -> Here:
    """For what is no job: the path itself, or where the cache has the repository, as it was last downloaded. Raises ModelError."""
    if hub is None:
        return Here(model, imatrix_choice(imatrix), None)
    found = cached_model(hub)
    matrix = imatrix_choice(imatrix, of_repository=True)
    if matrix == REPO:
        matrix = shipped_imatrix(hub.repo_id, found.imatrix_files)
    return Here(found.path, matrix, found.origin)


@dataclass(frozen=True, slots=True)
class Here:
    """A model on this machine, and the importance matrix that was asked for."""

    path: Path
    imatrix: str
    origin: str | None
    """ORG/NAME@COMMIT where it came from the hub."""


def peek(wanted: HubModel, token_file: Path | None, *, types: bool, answer: options.Answer) -> None:
    """`quantailor inspect ORG/NAME`."""
    token = find_token(token_file)
    try:
        report = hub_module.peek(wanted.repo_id, revision=wanted.revision, token=token, gguf_file=wanted.gguf_file)
    except (RepoNotFoundError, HubUnreachableError, HubOfflineError) as error:
        raise type(error)(f"{wanted.repo_id} is not here, and {error.message}", remedy=error.remedy, link=error.link) from error
    answer.tell("inspect", report, lambda: peeked(report, all_types=types))


@command(epilog="Examples: quantailor download meta-llama/Llama-3.2-1B | quantailor download org/name-GGUF --imatrix-only")
def download(
    hub: options.Hub,
    run: options.Run,
    repository: Repository,
    imatrix_only: Annotated[bool, typer.Option("--imatrix-only", help="Only importance matrices.", rich_help_panel="Hub")] = False,
) -> None:
    """Fetch the files of a model that conversion needs into the Hugging Face cache; run it again to resume."""
    repo_id, at, named = repository.partition("@")
    if not options.REPO_ID.fullmatch(repo_id) or (at and not named):
        raise typer.BadParameter("give ORG/NAME, for example meta-llama/Llama-3.2-1B")
    if named and hub.revision:
        raise typer.BadParameter(f"give one revision: {repo_id}@REVISION, or --revision")
    if hub.gguf_file is not None and imatrix_only:
        raise typer.BadParameter("--gguf-file and --imatrix-only exclude each other")
    # A file that holds no token is refused before anything is stored.
    find_token(hub.token_file)
    task = DownloadStep(
        repo_id=repo_id,
        revision=named or hub.revision,
        token_file=optional_path(hub.token_file),
        gguf_file=hub.gguf_file,
        imatrix_only=imatrix_only,
    )
    run.execute(task)


@command(epilog="Example: quantailor publish out --repo ORG/NAME --dry-run")
def publish(
    run: options.Run,
    folder: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="The directory that `make` wrote, with its card.")],
    repo: Annotated[str, typer.Option("--repo", help="The repository, ORG/NAME; created if it does not exist.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a private repository.", rich_help_panel="Hub")] = False,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="A file with the access token, instead of HF_TOKEN or `hf auth login`.", rich_help_panel="Hub"),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files that the repository has with other contents.", rich_help_panel="Common")
    ] = False,
) -> None:
    """Upload a directory's files and card to the hub; run it again to resume. The base stays here."""
    task = PublishStep(folder=absolute(folder), repo_id=repo, private=private, token_file=optional_path(token_file), overwrite=force)
    if dry_run:
        found = task.rehearsed()
        run.tell("publish", found, lambda: published(found))
    else:
        run.execute(task)


def published(result: PublishResult) -> None:
    """The files of a repository, and what became of each."""
    out = console()
    rows = [(file.name, words.size(file.size_bytes), file.state) for file in result.files]
    out.print(table(result.url, {"file": "left", "size": "right", "state": "left"}, rows))
    for note in result.notes:
        out.print(f"note      {note}", markup=False)
    total = words.size(sum(file.size_bytes for file in result.files))
    out.print(f"{plural(len(rows), 'file')}, {total}" + ("; nothing was sent" if result.dry_run else f" at {result.url}"), markup=False)


def peeked(report: PeekReport, *, all_types: bool = False) -> None:
    """A repository before it is downloaded."""
    out = console()
    out.print(f"[bold]{report.repo_id}[/bold]  {show.plain(report.architecture)}, {words.count(report.n_parameters)} parameters")
    out.print(f"revision  {report.revision}, commit {report.sha}")
    out.print(
        f"licence   {show.plain(report.license or 'not stated')}{_GATES.get(report.gated, '')}{', private' if report.private else ''}"
    )
    if report.why_not_convertible:
        out.print(f"[yellow]{show.plain(report.why_not_convertible)}[/yellow]")
    if report.is_quantized:
        out.print("[yellow]This model is quantized already; quantizing it again loses quality twice.[/yellow]")
    _needs(report)
    _files(report)
    if report.tensors:
        out.print()
        show.configuration(out, report.metadata)
        out.print()
        show.tensors(out, report.tensors, all_types=all_types)


def _needs(report: PeekReport) -> None:
    out = console()
    cached = report.size_bytes - report.download_bytes
    out.print(f"download  {words.size(report.download_bytes)}" + (f", {words.size(cached)} are here already" if cached else ""))
    rows = [(need.step, words.size(need.size_bytes), need.what) for need in report.disk]
    out.print(f"disk      {words.size(report.free_bytes)} free at {report.cache_folder}", markup=False)
    short = sum(need.size_bytes for need in report.disk) - report.free_bytes
    if short > 0:
        out.print(f"[yellow]All steps on that disk would need {words.size(short)} more.[/yellow]")
    out.print()
    out.print(table("Disk needed, at most", {"step": "left", "size": "right", "for": "left"}, rows))


def _files(report: PeekReport) -> None:
    out = console()
    rows = [(file.name, words.size(file.size_bytes), "yes" if file.cached else "") for file in report.files if file.needed]
    others = len(report.files) - len(rows)
    out.print()
    out.print(table("Files to download", {"file": "left", "size": "right", "cached": "left"}, rows))
    if others:
        out.print(f"{others} other files are not needed")
    for name in report.imatrix_files:
        out.print(f"importance matrix: {show.plain(name)}")


def downloaded(result: DownloadResult) -> None:
    """Where a download is, and what to do with it."""
    out = console()
    out.print(f"{result.repo_id} at {result.sha}: {plural(len(result.files), 'file')}, {words.size(result.size_bytes)}, checksums verified")
    out.print(f"fetched   {words.size(result.fetched_bytes)}")
    if result.path:
        out.print(f"model     {result.path}", markup=False)
    for path in result.imatrix_files:
        out.print(f"imatrix   {path}", markup=False)


show.SHOW[DownloadResult] = downloaded
show.SHOW[PublishResult] = published
