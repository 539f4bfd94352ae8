"""Models of the hub in a job: the download is its first stage, and the work goes on with what is here then.

A branch is looked up once: the job remembers the commit that it was, and stays at it when it is resumed. Where the hub cannot
be asked, what the cache has of the revision is taken, as long as it is whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from quantailor.errors import (
    DownloadDamagedError,
    HubOfflineError,
    HubUnreachableError,
    ImatrixError,
    ModelError,
    OutputError,
    RepoFileNotFoundError,
    RepoNotFoundError,
    RevisionNotFoundError,
    UnsupportedModelError,
)
from quantailor.models.hub import (
    DOWNLOAD_PATIENCE_S,
    CachedRepo,
    Choice,
    HubSettings,
    Repo,
    RepoAtCommit,
    RepoFile,
    find_token,
    structure_of,
)
from quantailor.models.hub.cached import MAIN, cached_commit, keep_commit
from quantailor.models.hub.fetching import check_cached, check_room, fetch_all
from quantailor.models.hub.peeking import refuse_unconvertible, refuse_without_tower
from quantailor.models.hub.taking import check_header, choose_files, index_of
from quantailor.session import Workspace
from quantailor.steps.conversion.convert import UPSTREAM, ConvertStep, WholeStep
from quantailor.steps.options import REPO, HubModel
from quantailor.steps.stages import Stages
from quantailor.steps.step import ModelStep, Step, StepResult, WeightedStep


@dataclass(frozen=True, slots=True)
class DownloadResult(StepResult):
    """What was downloaded, and from where exactly."""

    repo_id: str
    revision: str
    """As it was asked for."""
    sha: str
    """The commit that it was."""
    kind: str
    path: str | None
    """What later commands take: a directory, or a GGUF file (the first of its shards)."""
    folder: str
    files: tuple[str, ...]
    imatrix_files: tuple[str, ...]
    size_bytes: int
    fetched_bytes: int
    """Of those files that were not there already."""
    license: str | None


STAGES = ("look up", "check what is there", "download")
"""What a job goes through before its own work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadStep(Step[DownloadResult], kind="download", result=DownloadResult):
    """Fetch a repository of the hub, as far as it is needed, into huggingface_hub's cache."""

    units: ClassVar[Mapping[str, str]] = {"download": "bytes"}

    repo_id: str
    revision: str | None = None
    token_file: str | None = None
    """The token's file, never the token."""
    gguf_file: str | None = None
    """This GGUF file (any of its shards) instead of what would be chosen."""
    imatrix_only: bool = False

    def run(self, workspace: Workspace, stages: Stages) -> DownloadResult:
        """Fetch what conversion or measuring needs; what is there already is checked, not fetched.

        Raises HubError, OutputError where the disk is too small, ModelError.
        """
        wanted = HubModel(repo_id=self.repo_id, revision=self.revision, token_file=self.token_file, gguf_file=self.gguf_file)
        return _fetch(workspace, wanted, stages, imatrix_only=self.imatrix_only)


Work = TypeVar("Work", bound=Step[StepResult])


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model of the hub that is on this machine."""

    path: Path
    """A directory, or a GGUF file (the first of its shards)."""
    origin: str
    """ORG/NAME@COMMIT."""
    imatrix_files: tuple[str, ...]


def with_model_here(workspace: Workspace, step: Work, stages: Stages) -> tuple[Work, str | None]:
    """The step with a path in place of its repository, which is downloaded as far as needed; and ORG/NAME@COMMIT.

    A step that names a path comes back as it is, with None.

    Raises:
        HubError: the hub refuses or is not there.
        OutputError: the disk is too small.
        UnsupportedModelError: llama.cpp is to run the model, and it is not a GGUF file.
        ImatrixError: its importance matrix is wanted, and it has none or several.
    """
    if not isinstance(step, ModelStep) or step.hub is None:
        return step, None
    wanted = step.hub
    wants_imatrix = isinstance(step, WeightedStep) and step.imatrix == REPO

    def check(repo: RepoAtCommit, choice: Choice) -> None:
        if choice.kind == "safetensors" and step.runs_model:
            raise UnsupportedModelError(
                f"{repo.repo_id} holds safetensors, and llama.cpp runs GGUF files",
                remedy=f"Run `quantailor convert {repo.repo_id} -o base.gguf` first and give base.gguf",
            )
        if wants_imatrix:
            shipped_imatrix(repo.repo_id, [file.name for file in choice.imatrices])
        check_room(repo, choice.files)
        converted = step if isinstance(step, ConvertStep | WholeStep) else None
        refuse_unconvertible(repo, choice, converter=converted is not None and converted.conversion.way == UPSTREAM)
        if converted is not None and converted.wants_projector:
            refuse_without_tower(repo, choice)

    try:
        found = _fetch(workspace, wanted, stages, check=check)
    except (RepoNotFoundError, HubUnreachableError, HubOfflineError) as error:
        raise type(error)(f"{wanted.repo_id} is not here, and {error.message}", remedy=error.remedy, link=error.link) from error
    changes: dict[str, Any] = {step.model_option: found.path, "hub": None}
    if wants_imatrix:
        changes["imatrix"] = shipped_imatrix(wanted.repo_id, found.imatrix_files)
    return dataclasses.replace(step, **changes), f"{found.repo_id}@{found.sha}"


def shipped_imatrix(repo_id: str, paths: Sequence[str]) -> str:
    """The one importance matrix among a repository's files. Raises ImatrixError."""
    if len(paths) == 1:
        return paths[0]
    found = f"ships {len(paths)} importance matrices: {', '.join(Path(path).name for path in paths)}" if paths else "ships none"
    remedy = "Give one of them: --imatrix FILE" if paths else "Have one computed, or give a file"
    raise ImatrixError(f"the importance matrix of {repo_id} was asked for, and it {found}", remedy=remedy)


def cached_model(wanted: HubModel) -> LocalModel:
    """A model that was downloaded before, at the commit that its revision was then; the hub is not asked.

    Raises ModelError where the cache does not have it whole.
    """
    settings = HubSettings.read()
    sha = cached_commit(wanted.repo_id, wanted.revision, settings)
    if sha is not None:
        repo = CachedRepo(wanted.repo_id, sha, settings)
        try:
            found = _downloaded(repo, wanted, choose_files(repo, wanted.gguf_file), 0)
        except RepoFileNotFoundError:
            found = None
        if found is not None and found.path is not None:
            return LocalModel(Path(found.path), f"{wanted.repo_id}@{sha}", found.imatrix_files)
    revision = f" --revision {wanted.revision}" if wanted.revision else ""
    raise ModelError(
        f"{wanted.repo_id} is not here, neither as a path nor in the Hugging Face cache",
        remedy=f"Check the path, or run `quantailor download {wanted.repo_id}{revision}` first",
    )


# The download


def _fetch(
    workspace: Workspace,
    wanted: HubModel,
    stages: Stages,
    *,
    imatrix_only: bool = False,
    check: Callable[[RepoAtCommit, Choice], None] | None = None,
) -> DownloadResult:
    """`check` may raise before weights are fetched."""
    jobs, job_id = workspace.store.jobs, stages.job_id
    was_pinned = jobs.get(job_id).hub_commit is not None
    repo = _repo(workspace, wanted, stages)
    try:
        index = index_of(repo, wanted.gguf_file, imatrix_only)
        fetched = 0 if index is None else _fetch_files(workspace, repo, [index], stages)
        choice = choose_files(repo, wanted.gguf_file, imatrix_only)
        if check is not None:
            check(repo, choice)
        if not choice.by_name:
            check_header(choice, structure_of(repo, choice))
        fetched += _fetch_files(workspace, repo, choice.files, stages, *STAGES[1:])
    except RepoFileNotFoundError as error:
        raise _not_whole(repo, error) from error
    if not was_pinned and not imatrix_only:
        with contextlib.suppress(OutputError):
            keep_commit(repo, wanted.revision)
    found = _downloaded(repo, wanted, choice, fetched)
    _refuse_other_files(repo, jobs.get(job_id).hub_path, found.path)
    jobs.pin(job_id, repo.sha, found.path)
    return found


def _repo(workspace: Workspace, wanted: HubModel, stages: Stages) -> RepoAtCommit:
    """The repository at the job's commit, which is remembered."""
    control, settings = stages.begin(STAGES[0]), HubSettings.read()
    job_id = stages.job_id
    pinned = workspace.store.jobs.get(job_id).hub_commit
    revision = pinned or wanted.revision
    repo: RepoAtCommit
    try:
        repo = Repo(
            wanted.repo_id,
            revision=revision,
            token=find_token(None if wanted.token_file is None else Path(wanted.token_file)),
            settings=settings,
            patience_s=DOWNLOAD_PATIENCE_S,
            control=control,
            on_wait=lambda error, seconds: stages.note(f"{error.message}; trying again in {seconds:.0f} s"),
        )
    except RevisionNotFoundError as error:
        if pinned is None:
            raise
        remedy = f"Begin anew: `quantailor jobs cancel {job_id}`, then the same command"
        raise RevisionNotFoundError(f"{error.message}, where job {job_id} began", remedy=remedy, link=error.link) from error
    except (HubOfflineError, HubUnreachableError) as error:
        sha = cached_commit(wanted.repo_id, revision, settings)
        if sha is None:
            raise
        stages.note(f"{error.message}: taking what the cache has")
        repo = CachedRepo(wanted.repo_id, sha, settings, why=error)
    stages.note(f"{repo.repo_id} {'stays' if pinned else 'is'} at the commit {repo.sha}")
    workspace.store.jobs.pin(job_id, repo.sha, None)
    return repo


def _fetch_files(
    workspace: Workspace, repo: RepoAtCommit, files: Sequence[RepoFile], stages: Stages, checking: str | None = None, fetching: str = ""
) -> int:
    """Bytes that came over the network; as stages of their own where these are named."""
    control = stages.begin(checking) if checking else stages.control
    if isinstance(repo, Repo):
        missing = check_cached(repo, files, control)
        check_room(repo, missing)
        for file in missing:  # what a kill leaves of them is ours to remove
            workspace.store.record_location("download", f"{repo.repo_id}:{file.etag}", repo.blob(file))
        return fetch_all(repo, missing, stages.begin(fetching) if fetching else control)
    damaged = check_cached(repo, [file for file in files if file.etag], control)
    if damaged:
        raise DownloadDamagedError(
            f"{damaged[0].name} of {repo.repo_id} is damaged in the cache", remedy="Run it again where the hub can be reached"
        )
    return 0


def _downloaded(repo: RepoAtCommit, wanted: HubModel, choice: Choice, fetched: int) -> DownloadResult:
    model = {"gguf": str(repo.snapshot(choice.weights[0])) if choice.weights else None, "safetensors": str(repo.folder), "imatrix": None}
    return DownloadResult(
        repo_id=repo.repo_id,
        revision=wanted.revision or MAIN,
        sha=repo.sha,
        kind=choice.kind,
        path=model[choice.kind],
        folder=str(repo.folder),
        files=tuple(file.name for file in choice.files),
        imatrix_files=tuple(str(repo.snapshot(file)) for file in choice.imatrices),
        size_bytes=sum(file.size_bytes for file in choice.files),
        fetched_bytes=fetched,
        license=repo.info.license if isinstance(repo, Repo) else None,
    )


def _refuse_other_files(repo: RepoAtCommit, before: str | None, now: str | None) -> None:
    """Raise the reason why the hub was not asked where the cache would have a job go on with another file than it began with."""
    if isinstance(repo, CachedRepo) and repo.why is not None and before is not None and before != now:
        raise type(repo.why)(f"{repo.why.message}; {before} is no longer in the cache", remedy=repo.why.remedy, link=repo.why.link)


def _not_whole(repo: RepoAtCommit, error: RepoFileNotFoundError) -> Exception:
    """The same error, or why the hub was not asked where only the cache was looked at."""
    if not isinstance(repo, CachedRepo) or repo.why is None:
        return error
    message = f"{repo.why.message}; the cache has {repo.repo_id} only in part: {error.message}"
    return type(repo.why)(message, remedy="Run it again where the hub can be reached, without HF_HUB_OFFLINE", link=repo.why.link)
