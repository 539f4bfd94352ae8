"""From what a user typed or picked to a model: paths, repositories, folders, and what stands on the disk."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from quantailor.app.library.hub import DiskNeed, PeekReport
from quantailor.app.library.projects import ProjectReport
from quantailor.app.measuring.cost import job_cost
from quantailor.costs.machine import free_disk_bytes
from quantailor.errors import ModelError
from quantailor.models.gguf_file import GGUFSource
from quantailor.models.hub import HubSettings
from quantailor.models.json_files import read_json_if_there
from quantailor.models.upstream import speaks_of_tower
from quantailor.pipeline import StudyStep
from quantailor.present.cards import stated
from quantailor.session import OpenedModel, Workspace, condition
from quantailor.steps.conversion.convert import ConvertStep

EntryKind = Literal["folder", "huggingface", "gguf", "imatrix", "text", "file"]
MAX_ENTRIES = 2000
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_PAGE = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<repo>[\w.-]+/[\w.-]+)(?:/(?:tree|blob)/(?P<revision>[\w.-]+).*)?/?"
)
_ORDER: tuple[EntryKind, ...] = ("gguf", "huggingface", "folder", "imatrix", "text", "file")
_TEXTS = (".txt", ".md", ".raw", ".text", ".csv", ".json", ".jsonl", ".yaml", ".yml")
_WORDS = {
    "convert": "the 16-bit base",
    "imatrix": "the importance matrix",
    "calibrate": "the importance matrix and the covariances of all inputs",
    "measure": "weight errors",
    "probes": "cached answers of the base",
    "mixes": "cached answers of the base; one quantized file, deleted afterwards",
    "sweep": "scores",
}


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository of the hub."""

    repo_id: str
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file that a model consists of."""

    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ModelOverview:
    """A project's model as it lies on the disk."""

    kind: Literal["gguf", "huggingface", "gone"]
    """Of the place that it came from; "gone" where no file of it is left."""
    license: str | None
    """`general.license`."""
    n_tensors: int
    types: tuple[tuple[str, int], ...]
    """(stored type, tensors of it), the most frequent first."""
    n_layers: int
    files: tuple[ModelFile, ...]
    """Of the place that it came from: weights, configuration and tokenizer."""
    base: ModelFile | None
    """Its 16-bit base, where that is a file of its own."""
    projectors: tuple[ModelFile, ...]
    """Its vision tower or audio encoder, where a conversion of this home wrote one."""
    suggested_base: str | None
    """Where a conversion would go; None where there is a base."""


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """What the next steps write, against what is free."""

    needs: tuple[DiskNeed, ...]
    free_bytes: int | None
    folder: str
    shortfalls: tuple[str, ...]
    """Why they cannot start, one sentence each; empty where they can."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Something in a folder."""

    name: str
    path: str
    kind: EntryKind
    size_bytes: int | None
    """None for folders."""


def names_tower(folder: str) -> bool:
    """Whether config.json of a directory describes a vision tower or an audio encoder; no where it cannot be read."""
    try:
        return speaks_of_tower(read_json_if_there(Path(folder) / "config.json"), ())
    except ModelError:
        return False


def understand(text: str) -> Path | Repository:
    """What was typed: a path that exists, else a repository (ORG/NAME, or the address of its page).

    Raises ModelError where it is neither.
    """
    typed = text.strip().strip("\"'")
    if not typed:
        raise ModelError("nothing was given", remedy="Give a GGUF file, a Hugging Face directory or ORG/NAME")
    path = _existing(typed)
    if path is not None:
        return path
    page = _HUB_PAGE.fullmatch(typed)
    if page is not None:
        return Repository(page["repo"], page["revision"])
    if _REPO_ID.fullmatch(typed):
        return Repository(typed)
    raise ModelError(f"there is nothing at {typed[:200]}, and it is not ORG/NAME", remedy="Check the spelling, or browse for it")


def _existing(typed: str) -> Path | None:
    try:
        path = Path(typed).expanduser()
        return path.absolute() if path.exists() else None
    except (OSError, RuntimeError, ValueError):
        return None


def model_overview(workspace: Workspace, project: ProjectReport) -> ModelOverview:
    """The files of a project's model and what its header says. Raises ModelError where a file is damaged."""
    tensors = workspace.store.tensors(project.fingerprint)
    types = tuple(Counter(tensor.type_name for tensor in tensors).most_common())
    gone = ModelOverview("gone", None, len(tensors), types, len({tensor.layer for tensor in tensors} - {None}), (), None, (), None)
    if project.source is None:
        return gone
    with workspace.model(project.source) as model:
        # What lies there now may be another model.
        return _described(workspace, project, model, gone) if model.fingerprint == project.fingerprint else gone


def _described(workspace: Workspace, project: ProjectReport, model: OpenedModel, gone: ModelOverview) -> ModelOverview:
    base = None if project.base is None else Path(project.base)
    files = (*model.source.files, *(model.path / name for name in model.source.config_files))
    place = StudyStep(model=str(model.path)).base_place(workspace, model) if base is None else None
    return replace(
        gone,
        kind="gguf" if isinstance(model.source, GGUFSource) else "huggingface",
        license=", ".join(stated(model.source.metadata, "general.license")) or None,
        files=tuple(ModelFile(str(path), path.stat().st_size) for path in files),
        base=None if base is None or base == model.path else ModelFile(str(base), base.stat().st_size),
        projectors=tuple(ModelFile(str(path), path.stat().st_size) for path in _projectors(workspace, model.path)),
        suggested_base=None if place is None else str(place),
    )


def _projectors(workspace: Workspace, folder: Path) -> list[Path]:
    """What conversions of a directory wrote of its tower, the latest first."""
    jobs = (job for job in workspace.store.jobs.all() if job.kind == ConvertStep.kind and job.state == "done")
    paths = [Path(str(job.arguments["mmproj"])) for job in jobs if job.arguments.get("mmproj") and job.arguments["model"] == str(folder)]
    return [path for path in dict.fromkeys(paths) if path.is_file()]


def model_reservations(workspace: Workspace, project: ProjectReport) -> tuple[str, ...]:
    """What stands against using a project's model, in sentences; none for a sound one, and where it is gone. Raises ModelError."""
    if project.source is None:
        return ()
    with workspace.model(project.source) as model:
        return condition(workspace.require_intact, model).sentences if model.fingerprint == project.fingerprint else ()


def disk_plan(workspace: Workspace, project: ProjectReport) -> DiskPlan:
    """What measuring this model at the level "balanced", and what comes before it, writes to the home.

    Raises ModelError, and InferenceError where llama.cpp cannot read its vocabulary.
    """
    if project.source is None:
        raise ModelError(f"no file of {project.name} is left", remedy="Open it again from where it is now")
    task = StudyStep(model=project.base or project.source, level="balanced", allow_requantize=True)
    cost = job_cost(workspace, task)
    needs = tuple(DiskNeed(stage.stage, stage.disk_bytes, _WORDS.get(stage.stage, "")) for stage in cost.stages)
    folder = workspace.home.path
    return DiskPlan(needs, free_disk_bytes(folder), str(folder), cost.shortfalls)


def downloaded_model(report: PeekReport) -> Path | None:
    """Where a repository's model lies once it is downloaded; None while a file is missing, and where there is none to take."""
    if report.download_bytes or report.kind not in ("gguf", "safetensors"):
        return None
    folder = HubSettings.read().repo_folder(report.repo_id) / "snapshots" / report.sha
    path = folder / report.gguf_files[0] if report.gguf_files else folder
    return path if path.exists() else None


def hub_cache() -> Path:
    """The folder that downloads go to."""
    return HubSettings.read().cache_folder


# Folders


def list_folder(folder: Path) -> tuple[Entry, ...]:
    """What is in a folder: GGUF files first, then Hugging Face directories, folders and other files; hidden ones last.

    At most `MAX_ENTRIES`. Raises ModelError where it cannot be read.
    """
    try:
        found = [entry for path in folder.iterdir() if (entry := _entry(path)) is not None]
    except OSError as error:
        raise ModelError(f"cannot read {folder}: {error.strerror or error}", remedy="Choose another folder") from error
    return tuple(sorted(found, key=_place)[:MAX_ENTRIES])


def _place(entry: Entry) -> tuple[bool, int, str]:
    return entry.name.startswith("."), _ORDER.index(entry.kind), entry.name.lower()


def _entry(path: Path) -> Entry | None:
    """None for what cannot be looked at: broken links, devices, names that are no text."""
    try:
        path.name.encode()
        if path.is_dir():
            return Entry(path.name, str(path), "huggingface" if is_huggingface(path) else "folder", None)
        return Entry(path.name, str(path), _file_kind(path), path.stat().st_size) if path.is_file() else None
    except (OSError, ValueError):
        return None


def is_huggingface(folder: Path) -> bool:
    """Whether a folder looks like a model: a config.json with weights beside it."""
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _file_kind(path: Path) -> EntryKind:
    suffix, name = path.suffix.lower(), path.name.lower()
    if suffix in (".dat", ".imatrix") or (suffix == ".gguf" and "imatrix" in name):
        return "imatrix"
    if suffix == ".gguf":
        return "gguf"
    return "text" if suffix in _TEXTS else "file"
