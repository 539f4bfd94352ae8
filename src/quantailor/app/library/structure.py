"""A model's tensors, configuration and metadata as people look at them; the weights themselves are never read.

Tensors of a known project come from the store, so that they can be looked at when the model's files are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from quantailor.app.jobs import Told
from quantailor.app.library.projects import ProjectReport
from quantailor.errors import ModelError, StoreError, TensorNotFoundError
from quantailor.ggml import library
from quantailor.jobs import Listener, resolve
from quantailor.models.contents import contents
from quantailor.models.identity import Identity, identify
from quantailor.models.opening import open_model
from quantailor.models.source import ModelSource
from quantailor.qtypes import IMATRIX_EXEMPT, QType, availability, fallback, needs_imatrix, never_quantized
from quantailor.records import MetadataValue, TensorInfo
from quantailor.session import Condition, OpenedModel, Workspace, condition, require_intact
from quantailor.session.loading import LoadRefusal


@dataclass(frozen=True, slots=True)
class TensorReport:
    """One tensor and the types it could take."""

    name: str
    role: str
    layer: int | None
    shape: tuple[int, ...]
    type_name: str
    size_bytes: int
    available_types: tuple[str, ...]
    unavailable_types: Mapping[str, str]
    """Type name -> why not."""


@dataclass(frozen=True, slots=True)
class ModelReport:
    """The structure of a model."""

    name: str
    location: str
    fingerprint: str
    architecture: str
    n_parameters: int
    tensor_bytes: int
    bits_per_weight: float
    is_quantized: bool
    other_contents: str | None
    """What the file holds where that is no language model, in words, with what to do; None for a model."""
    defect: str | None
    """Why it is refused, in words, with what to do: NaN, a tensor that is missing or that its base would lose; None for a sound model."""
    unrunnable: str | None
    """Why llama.cpp cannot run a sound model, in words, with what to do: it can be measured and built; None where it can."""
    lost: str | None
    """Which rows of a checkpoint its base does not hold, in words, with what to do; None where it holds all."""
    zeros: str | None
    """Which matrices and norms are zero, in words, with what to do; None where none are."""
    config_files: tuple[str, ...]
    metadata: Mapping[str, MetadataValue]
    tensors: tuple[TensorReport, ...]

    @property
    def reservations(self) -> tuple[str, ...]:
        """What stands against using it, in sentences."""
        return Condition(self.defect, self.unrunnable, self.lost, self.zeros).sentences


MAX_TEXT_BYTES = 256 << 10
"""What of a configuration file is shown at most."""
SHORT_VALUE = 160
"""Characters of a metadata value in a table."""
LONG_VALUE = 20_000
SHOWN_ITEMS = 6
"""Elements of an array that stand for all."""
TEXT_SUFFIXES = (".json", ".jinja", ".txt", ".md", ".yaml", ".yml")
_NAMES = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")


@dataclass(frozen=True, slots=True)
class TensorRow(TensorInfo):
    """One tensor in a table of all."""

    n_types: int
    """How many types it can take, its own included."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a tensor cannot take some types."""

    reason: str
    types: tuple[str, ...]
    instead: Mapping[str, str]
    """Type -> what llama.cpp would write when that type is asked for."""


@dataclass(frozen=True, slots=True)
class TensorTypes:
    """One tensor with the types it can take."""

    tensor: TensorInfo
    share: float
    """Of the bytes of all tensors, 0 to 1."""
    types: tuple[str, ...]
    """From most to fewest bits."""
    imatrix_types: tuple[str, ...]
    """Those of them that need an importance matrix."""
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True, slots=True)
class TensorShare:
    """A tensor's part of a model's bytes."""

    name: str
    size_bytes: int
    share: float


@dataclass(frozen=True, slots=True)
class LargestTensors:
    """The largest tensors of a model, and what they hold together."""

    tensors: tuple[TensorShare, ...]
    """The largest first."""
    n_tensors: int
    """Of the whole model."""
    size_bytes: int
    total_bytes: int
    share: float
    """0 to 1."""


@dataclass(frozen=True, slots=True)
class ConfigurationFile:
    """A readable file beside the weights."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ConfigurationText:
    """What such a file says."""

    name: str
    size_bytes: int
    text: str
    is_whole: bool
    """Whether `text` is all of it."""


@dataclass(frozen=True, slots=True)
class MetadataRow:
    """One GGUF metadata entry as text."""

    key: str
    type_name: str
    """"uint32", "string", "array of string"."""
    value: str
    """Short enough for a table."""
    long_value: str | None
    """More of a text that `value` cuts off; None where `value` says all, and for arrays."""


# Tensors


def tensor_rows(workspace: Workspace, fingerprint: str, architecture: str) -> tuple[TensorRow, ...]:
    """All tensors of a known model in file order."""
    qtypes = library.types()
    return tuple(
        TensorRow(tensor.name, tensor.shape, tensor.type_name, tensor.size_bytes, len(_available(tensor, architecture, qtypes)))
        for tensor in workspace.store.tensors(fingerprint)
    )


def tensor_types(workspace: Workspace, project: ProjectReport, name: str) -> TensorTypes:
    """One tensor, the types it can take with an importance matrix, and why not the others. Raises TensorNotFoundError."""
    tensors = workspace.store.tensors(project.fingerprint)
    tensor = next((tensor for tensor in tensors if tensor.name == name), None)
    if tensor is None:
        raise TensorNotFoundError(f"{project.name} has no tensor {name[:120]}", remedy="`quantailor inspect` lists them")
    qtypes = library.types()
    types = _available(tensor, project.architecture, qtypes)
    return TensorTypes(
        tensor=tensor,
        share=tensor.size_bytes / sum(other.size_bytes for other in tensors),
        types=tuple(sorted(types, key=lambda type_name: -qtypes[type_name].bits_per_weight)),
        imatrix_types=tuple(type_name for type_name in types if type_name != tensor.type_name and needs_imatrix(name, qtypes[type_name])),
        refusals=tuple(_refusals(tensor, project.architecture, qtypes)),
    )


def largest_tensors(tensors: Sequence[TensorInfo | TensorReport], n: int) -> LargestTensors:
    """The `n` largest of these tensors (all, where there are fewer), and their share of all bytes."""
    total = sum(tensor.size_bytes for tensor in tensors)
    largest = sorted(tensors, key=lambda tensor: -tensor.size_bytes)[: max(0, n)]
    size = sum(tensor.size_bytes for tensor in largest)
    shares = tuple(TensorShare(tensor.name, tensor.size_bytes, tensor.size_bytes / max(1, total)) for tensor in largest)
    return LargestTensors(shares, len(tensors), size, total, size / max(1, total))


def _availability(tensor: TensorInfo, architecture: str, qtypes: Mapping[str, QType]) -> dict[str, str | None]:
    """Every type -> why it cannot be taken with a usual importance matrix, which holds neither embeddings nor output; None where it can."""
    return availability(tensor, architecture=architecture, has_imatrix=tensor.name not in IMATRIX_EXEMPT, qtypes=qtypes)


def _available(tensor: TensorInfo, architecture: str, qtypes: Mapping[str, QType]) -> list[str]:
    """The types that it can take with a usual importance matrix."""
    reasons = _availability(tensor, architecture, qtypes)
    return [type_name for type_name, reason in reasons.items() if reason is None] or [tensor.type_name]


def _refusals(tensor: TensorInfo, architecture: str, qtypes: Mapping[str, QType]) -> Iterator[Refusal]:
    reason = never_quantized(tensor, architecture)
    if reason is not None:
        others = tuple(name for name in qtypes if name != tensor.type_name)
        yield Refusal(f"It stays {tensor.type_name}: {reason}.", others, {})
        return
    available = _available(tensor, architecture, qtypes)
    unheld = tuple(name for name, qtype in qtypes.items() if name not in available and qtype.divides(tensor.n_cols))
    if unheld:
        yield Refusal("They need importances, which an importance matrix seldom holds for this tensor.", unheld, {})
    available += unheld
    for block_size in sorted({qtype.block_size for qtype in qtypes.values()}, reverse=True):
        names = tuple(name for name, qtype in qtypes.items() if qtype.block_size == block_size and name not in available)
        if names:
            written = {name: fallback(qtypes[name], tensor.n_cols, qtypes) for name in names}
            instead = {name: qtype.name for name, qtype in written.items() if qtype is not None}
            wide = f"Its rows are {tensor.n_cols} weights wide, not a multiple of {block_size}"
            what = f"{wide}: these types pack {block_size} weights in a block."
            yield Refusal(what, names, instead)


# Configuration


def configuration_files(model: Path) -> tuple[ConfigurationFile, ...]:
    """The text files of a Hugging Face directory, the configuration first; none for a GGUF file."""
    if not model.is_dir():
        return ()
    names = sorted(path.name for path in model.iterdir() if path.suffix.lower() in TEXT_SUFFIXES and _is_inside(path, model))
    ordered = sorted(names, key=lambda name: _NAMES.index(name) if name in _NAMES else len(_NAMES))
    return tuple(ConfigurationFile(name, (model / name).stat().st_size) for name in ordered)


def configuration_text(model: Path, file_name: str, *, max_bytes: int = MAX_TEXT_BYTES) -> ConfigurationText:
    """The beginning of one of a directory's text files.

    Raises ModelError for a name that is not one of `configuration_files`, and for a file that cannot be read.
    """
    found = next((file for file in configuration_files(model) if file.name == file_name), None)
    if found is None:
        raise ModelError(f"{model} has no configuration file {file_name[:120]!r}", remedy=_which(model))
    try:
        with (model / found.name).open("rb") as stream:
            data = stream.read(max_bytes)
    except OSError as error:
        raise ModelError(f"cannot read {model / found.name}: {error.strerror or error}") from error
    return ConfigurationText(found.name, found.size_bytes, _readable(data.decode("utf-8", "replace")), len(data) == found.size_bytes)


def _readable(text: str) -> str:
    """Without characters that would steer a terminal."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text.replace("\r\n", "\n"))


def _which(model: Path) -> str:
    names = ", ".join(file.name for file in configuration_files(model))
    if names:
        return f"It has {names}"
    return "A GGUF file keeps its configuration in its metadata: see `quantailor inspect`" if model.is_file() else "Check the path"


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether it is a file of that folder, or of the hub's cache that the folder is a snapshot of."""
    resolved, folder = path.resolve(), folder.resolve()
    homes = [folder, folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else [folder]
    return resolved.is_file() and any(resolved.is_relative_to(home) for home in homes)


def model_metadata(model: Path) -> tuple[MetadataRow, ...]:
    """The metadata of a GGUF file, or what a conversion of the directory would write. Raises ModelError."""
    with closing(open_model(model)) as source:
        return tuple(metadata_row(key, value) for key, value in source.metadata.items())


def metadata_row(key: str, value: MetadataValue) -> MetadataRow:
    """One entry as text; long arrays and texts are cut."""
    if isinstance(value.value, tuple):
        items = [_plain(item) for item in value.value[:SHOWN_ITEMS]]
        shown = f"[{', '.join(item if len(item) <= 40 else item[:39] + '…' for item in items)}"
        rest = f", … {len(value.value):,} in all]" if len(value.value) > SHOWN_ITEMS else "]"
        return MetadataRow(key, f"array of {value.element_type}", shown + rest, None)
    text = _plain(value.value)
    if len(text) <= SHORT_VALUE and "\n" not in text:
        return MetadataRow(key, value.value_type, text, None)
    return MetadataRow(key, value.value_type, " ".join(text[: 2 * SHORT_VALUE].split())[:SHORT_VALUE] + " …", text[:LONG_VALUE])


def _plain(value: bool | int | float | str) -> str:
    """Bytes that are no UTF-8 become replacement characters; floats in their shortest form."""
    if isinstance(value, str):
        return _readable(value.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
    return f"{value:.7g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def inspect(model: str | Path, *, listener: Listener | None = None) -> ModelReport:
    """The structure of a GGUF file or a Hugging Face directory, and which model it is.

    The weights are read to tell it from all others, unless the user's home remembers these very files.

    Args:
        model: its path.
        listener: hears of progress where a large model has to be read.

    Raises ModelError where the model cannot be read.
    """
    with ExitStack() as opened:
        source = open_model(model)
        opened.callback(source.close)
        try:
            # Looking at a model makes no home.
            workspace = opened.enter_context(Workspace.open()) if resolve().database.exists() else None
        except StoreError:
            workspace = None
        begin = partial(Told, listener or (lambda _: None))
        if workspace is None or contents(source) is not None:
            return _report(source, identify(source, control=begin("identify")), require_intact)
        with workspace.watched(begin):
            return _report(source, workspace.identity(model), workspace.require_intact)


def _report(source: ModelSource, identity: Identity, require: Callable[[OpenedModel], LoadRefusal | None]) -> ModelReport:
    qtypes = library.types()
    found = contents(source)
    state = Condition() if found is not None else condition(require, OpenedModel(source, identity))
    n_parameters = sum(tensor.n_elements for tensor in source.tensors)
    tensor_bytes = sum(tensor.size_bytes for tensor in source.tensors)
    return ModelReport(
        name=source.name,
        location=source.location,
        fingerprint=identity.fingerprint,
        architecture=source.architecture,
        n_parameters=n_parameters,
        tensor_bytes=tensor_bytes,
        bits_per_weight=8 * tensor_bytes / max(1, n_parameters),
        is_quantized=bool(library.quantized_types(source.tensors)),
        other_contents=None if found is None else f"{found.what}, not a language model. {found.remedy}",
        defect=state.defect,
        unrunnable=state.unrunnable,
        lost=state.lost,
        zeros=state.zeros,
        config_files=source.config_files,
        metadata=dict(source.metadata),
        tensors=tuple(tensor_report(tensor, source.architecture, qtypes) for tensor in source.tensors),
    )


def tensor_report(tensor: TensorInfo, architecture: str, qtypes: Mapping[str, QType]) -> TensorReport:
    """A tensor with the types it can take with a usual importance matrix."""
    reasons = _availability(tensor, architecture, qtypes)
    return TensorReport(
        name=tensor.name,
        role=tensor.role,
        layer=tensor.layer,
        shape=tensor.shape,
        type_name=tensor.type_name,
        size_bytes=tensor.size_bytes,
        available_types=tuple(name for name, reason in reasons.items() if reason is None) or (tensor.type_name,),
        unavailable_types={name: reason for name, reason in reasons.items() if reason is not None},
    )
