"""Models on the Hugging Face hub, looked at before anything is downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantailor.app.library.structure import TensorReport, tensor_report
from quantailor.errors import AlreadyQuantizedError, RepoFileNotFoundError, UnsupportedModelError
from quantailor.ggml import library
from quantailor.models.hub import Choice, HubSettings, Repo, RepoFile, Structure, Token, find_token, structure_of
from quantailor.models.hub.fetching import free_bytes
from quantailor.models.hub.taking import check_header, choose_files
from quantailor.qtypes import QType
from quantailor.records import MetadataValue
from quantailor.steps.options import DEFAULT_N_CTX
from quantailor.steps.probe import DEFAULT_MIX_CHUNKS


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository."""

    name: str
    size_bytes: int
    cached: bool
    """Whether its content is on this machine already."""
    needed: bool
    """Whether a download takes it."""


@dataclass(frozen=True, slots=True)
class DiskNeed:
    """What one step writes, at most."""

    step: str
    size_bytes: int
    what: str


@dataclass(frozen=True, slots=True)
class PeekReport:
    """A repository of the hub before it is downloaded."""

    repo_id: str
    link: str
    """Its page."""
    revision: str
    """As it was asked for."""
    sha: str
    """The commit that this is."""
    kind: str
    """What a download takes: "safetensors", "gguf", "imatrix", or "unknown" where nothing fits."""
    architecture: str
    """GGUF's name where it is known, else transformers'."""
    n_parameters: int
    tensor_bytes: int
    """As GGUF, where our own conversion can take the model."""
    is_quantized: bool
    license: str | None
    gated: str
    """"no", "auto" (access at once when terms are accepted) or "manual" (the authors decide); this token has it."""
    private: bool
    is_convertible: bool
    """Whether it is GGUF already or our own conversion can take it."""
    why_not_convertible: str | None
    files: tuple[HubFile, ...]
    gguf_files: tuple[str, ...]
    """The GGUF file that a download takes, with all its shards."""
    imatrix_files: tuple[str, ...]
    size_bytes: int
    """Of all files needed."""
    download_bytes: int
    """Of those that are not cached."""
    base_bytes: int
    """The 16-bit base."""
    later_bytes: int
    """What probing, building and verifying write, at most."""
    disk: tuple[DiskNeed, ...]
    cache_folder: str
    free_bytes: int
    """On the cache's disk."""
    metadata: Mapping[str, MetadataValue]
    tensors: tuple[TensorReport, ...]
    """As they are stored, without types, where our own conversion cannot take the model."""


_LARGEST_REFERENCES = ("Q8_0", "Q6_K")
_LOGP_BYTES = 2
"""Of one token's probability in the base's cached answers."""


def peek(repo_id: str, *, revision: str | None = None, token: Token | None = None, gguf_file: str | None = None) -> PeekReport:
    """What a repository holds and what working with it takes; headers are read, weights are not.

    Args:
        repo_id: ORGANIZATION/NAME.
        revision: branch, tag or commit; the main branch by default.
        token: from `find_token`, which is also the default.
        gguf_file: look at this GGUF file instead of the one that a download would take.

    Raises:
        HubError: the hub refuses or is not there; `reason` and `link` say more.
        ModelError: a header is damaged.
    """
    repo = Repo(repo_id, revision=revision, token=find_token() if token is None else token, settings=HubSettings.read())
    try:
        choice = choose_files(repo, gguf_file)
        structure = structure_of(repo, choice)
        check_header(choice, structure)
    except (RepoFileNotFoundError, AlreadyQuantizedError, UnsupportedModelError) as error:
        if gguf_file is not None:
            raise
        return _report(repo, revision, None, Structure("unknown", converts=False, why_not=str(error)))
    return _report(repo, revision, choice, structure)


# Report


def _report(repo: Repo, revision: str | None, choice: Choice | None, structure: Structure) -> PeekReport:
    needed = choice.files if choice else ()
    missing = sum(file.size_bytes for file in needed if not repo.cached(file))
    n_parameters = sum(tensor.n_elements for tensor in structure.tensors) or repo.info.n_parameters or 0
    base_bytes = _base_bytes(choice, structure, n_parameters)
    disk = _disk_needs(missing, 0 if choice is None or choice.kind == "gguf" else base_bytes, n_parameters, structure.n_vocab)
    return PeekReport(
        repo_id=repo.repo_id,
        link=repo.asked.page,
        revision=revision or "main",
        sha=repo.sha,
        kind=choice.kind if choice else "unknown",
        architecture=structure.architecture,
        n_parameters=n_parameters,
        tensor_bytes=sum(tensor.size_bytes for tensor in structure.tensors),
        is_quantized=bool(library.quantized_types(structure.tensors)),
        license=repo.info.license,
        gated=repo.info.gated,
        private=repo.info.private,
        is_convertible=structure.converts,
        why_not_convertible=structure.why_not,
        files=_hub_files(repo, needed),
        gguf_files=tuple(file.name for file in choice.weights) if choice and choice.kind == "gguf" else (),
        imatrix_files=tuple(file.name for file in choice.imatrices) if choice else (),
        size_bytes=sum(file.size_bytes for file in needed),
        download_bytes=missing,
        base_bytes=base_bytes,
        later_bytes=sum(need.size_bytes for need in disk if need.step not in ("download", "convert")),
        disk=disk,
        cache_folder=str(repo.settings.cache_folder),
        free_bytes=free_bytes(repo.settings.cache_folder),
        metadata=dict(structure.metadata),
        tensors=_tensor_reports(structure),
    )


def _hub_files(repo: Repo, needed: Sequence[RepoFile]) -> tuple[HubFile, ...]:
    names = {file.name for file in needed}
    return tuple(HubFile(file.name, file.size_bytes, repo.cached(file), file.name in names) for file in repo.files)


def _base_bytes(choice: Choice | None, structure: Structure, n_parameters: int) -> int:
    """Bytes of the 16-bit base: the GGUF file itself, or what conversion writes."""
    if choice is None:
        return 0
    if choice.kind == "gguf":
        return sum(file.size_bytes for file in choice.weights)
    return sum(tensor.size_bytes for tensor in structure.tensors) if structure.converts else 2 * n_parameters


def _disk_needs(download_bytes: int, base_bytes: int, n_parameters: int, n_vocab: int | None) -> tuple[DiskNeed, ...]:
    if not n_parameters:
        return (DiskNeed("download", download_bytes, "into the Hugging Face cache"),)
    qtypes = library.types()
    largest = _preset_bytes("Q8_0", n_parameters, qtypes)
    references = sum(_preset_bytes(name, n_parameters, qtypes) for name in _LARGEST_REFERENCES)
    tokens = (DEFAULT_MIX_CHUNKS * DEFAULT_N_CTX) // 2
    answers = tokens * (n_vocab or 0) * _LOGP_BYTES
    return (
        DiskNeed("download", download_bytes, "into the Hugging Face cache"),
        DiskNeed("convert", base_bytes, "the 16-bit base"),
        DiskNeed("probe", largest + answers, "one file at a time, deleted afterwards, and the base's cached answers"),
        DiskNeed("build", largest, "the result, if it is as large as Q8_0"),
        DiskNeed("verify", references, f"two presets around its size, at most {' and '.join(_LARGEST_REFERENCES)}"),
    )


def _preset_bytes(name: str, n_parameters: int, qtypes: Mapping[str, QType]) -> int:
    return int(n_parameters * qtypes[name].bits_per_weight / 8)


def _tensor_reports(structure: Structure) -> tuple[TensorReport, ...]:
    qtypes = library.types()
    if structure.converts:
        return tuple(tensor_report(tensor, structure.architecture, qtypes) for tensor in structure.tensors)
    return tuple(
        TensorReport(tensor.name, "", None, tensor.shape, tensor.type_name, tensor.size_bytes, (), {}) for tensor in structure.tensors
    )
