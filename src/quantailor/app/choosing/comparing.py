"""What the services answer that share, compare and check: frozen records like those of `results`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from quantailor.analysis.prediction import PredictedKld
from quantailor.errors import ImatrixError, StrategyError, StrategyMismatchError, TypeUnavailableError
from quantailor.evidence.damages import kld_of
from quantailor.evidence.knowledge import Knowledge, load_knowledge
from quantailor.evidence.measurements import measured
from quantailor.evidence.presets import types_of_preset
from quantailor.evidence.speeds import Speeds, known_speeds, predicted_speed
from quantailor.evidence.strategies import embedded_strategy, is_gguf, read_strategy, require_whole, rounding_of, strategy_imatrix
from quantailor.files import expanded
from quantailor.ggml import library
from quantailor.ggml.reference import preset_name
from quantailor.making import building
from quantailor.models.source import ModelSource
from quantailor.records import PredictedSpeed, RoundingWish, Strategy, TensorInfo
from quantailor.session import AUTO, NONE, OpenedModel, Workspace, quantizable_tensors


@dataclass(frozen=True, slots=True)
class DiffSide:
    """One of two compared choices of types."""

    label: str
    kind: Literal["strategy", "preset", "file"]
    size_bytes: int
    """Of the file: exact for strategies and presets, measured for files."""
    tensor_bytes: int
    bits_per_weight: float
    kld_nats: float | None
    """Predicted; None where `no_prediction` says why."""
    kld_interval_nats: tuple[float, float] | None
    """95 %."""
    no_prediction: str | None
    type_counts: Mapping[str, int]
    """Of the tensors whose type is a choice."""
    speed: PredictedSpeed | None = None
    """On this machine; None where a type was not timed."""


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """A tensor that has another type on the other side."""

    tensor: str
    role: str
    layer: int | None
    type_a: str
    type_b: str
    size_a_bytes: int
    size_b_bytes: int

    @property
    def bytes_more(self) -> int:
        """A's bytes less B's."""
        return self.size_a_bytes - self.size_b_bytes


@dataclass(frozen=True, slots=True)
class RoleDiff:
    """How many tensors of a role differ, and what that does to their bytes."""

    role: str
    n_tensors: int
    n_changed: int
    size_a_bytes: int
    size_b_bytes: int


@dataclass(frozen=True, slots=True)
class StrategyDiff:
    """Two choices of types for one model, side by side."""

    model_name: str
    a: DiffSide
    b: DiffSide
    tensors: tuple[TensorDiff, ...]
    """Those that differ, in the model's order."""
    roles: tuple[RoleDiff, ...]
    """Those with a difference."""


def compare_strategies(
    workspace: Workspace, base: Path, a: str | Path | Strategy, b: str | Path | Strategy, *, imatrix: str = AUTO
) -> StrategyDiff:
    """Which tensors differ, and what that means for size and predicted KLD.

    Args:
        workspace: measurements and probes of the model.
        base: the model.
        a: a strategy or its file, a GGUF file of this model, or the name of a llama.cpp preset.
        b: the other one.
        imatrix: what presets are made with: "auto" (the model's own), "none", or a file.

    Raises:
        StrategyError: one of them cannot be read, or is another model's.
        TypeUnavailableError: no file and no preset of that name.
    """
    with workspace.model(base, allow_requantize=True) as model:
        sides = [_choice(workspace, model, side, imatrix) for side in (a, b)]
        lookup = cache(lambda matrix, rounding: what_is_known(workspace, model, matrix, rounding))
        speeds = known_speeds(workspace, model.source)
        first, second = (_side(model, choice, lookup(choice.imatrix, choice.rounding), speeds) for choice in sides)
        one, other = sides[0].types, sides[1].types
        tensors = tuple(
            tensor_difference(each, one[each.name], other[each.name]) for each in model.source.tensors if one[each.name] != other[each.name]
        )
        return StrategyDiff(model.source.name, first, second, tensors, _by_role(model.source, tensors))


def preset_types_of(workspace: Workspace, base: Path, preset: str, *, imatrix: str = AUTO) -> Mapping[str, str]:
    """The type that llama.cpp's preset gives each tensor of a model, those included that keep theirs.

    `imatrix` is what the preset is made with, for some depend on it: "auto" (the model's own), "none", or a file.

    Raises:
        TypeUnavailableError: llama.cpp has no such preset.
    """
    with workspace.model(base, allow_requantize=True) as model:
        return types_of_preset(model, preset_name(preset), workspace.imatrices.choose(model, imatrix))


# What a side is


@dataclass(frozen=True)
class _Choice:
    """A type for every tensor, and where it comes from."""

    label: str
    kind: Literal["strategy", "preset", "file"]
    types: Mapping[str, str]
    size_bytes: int
    imatrix: str
    """Fingerprint of the importance matrix it is made with, or ""."""
    rounding: Literal["plain", "compensated"] = "plain"


def _choice(workspace: Workspace, model: OpenedModel, side: str | Path | Strategy, imatrix: str) -> _Choice:
    if isinstance(side, Strategy):
        return _strategy_choice(workspace, model, side, "strategy")
    text, path = str(side), expanded(side)
    if path.is_file():
        return _file_choice(workspace, model, path) if is_gguf(path) else _strategy_choice(workspace, model, read_strategy(path), path.name)
    try:
        preset = preset_name(text)
    except TypeUnavailableError as error:
        raise TypeUnavailableError(f"{text} is neither a file nor a preset of llama.cpp", remedy=error.remedy) from None
    matrix = workspace.imatrices.choose(model, imatrix)
    types = types_of_preset(model, preset, matrix)
    size = building.plain_layout(model.source, types, imatrix=matrix).size_bytes
    return _Choice(preset, "preset", types, size, "" if matrix is None else matrix.fingerprint)


def _strategy_choice(workspace: Workspace, model: OpenedModel, strategy: Strategy, label: str) -> _Choice:
    require_whole(strategy, model)
    matrix = strategy_imatrix(workspace, model, strategy, AUTO)
    size = building.predict(model.source, strategy, imatrix=matrix).file_size_bytes
    types = {tensor.name: strategy.types.get(tensor.name, tensor.type_name) for tensor in model.source.tensors}
    return _Choice(label, "strategy", types, size, "" if matrix is None else matrix.fingerprint, rounding_of(strategy))


def _file_choice(workspace: Workspace, model: OpenedModel, path: Path) -> _Choice:
    with workspace.source(path) as source:
        require_same_tensors(source, model.source)
        types = {tensor.name: tensor.type_name for tensor in source.tensors}
        size = sum(file.stat().st_size for file in source.files)
    embedded = embedded_strategy(workspace, path)
    rounding = "plain" if embedded is None else rounding_of(embedded)
    return _Choice(path.name, "file", types, size, file_imatrix(workspace, model, path), rounding)


def require_same_tensors(source: ModelSource, base: ModelSource) -> None:
    """Raise StrategyMismatchError where a file is not a quantization of the base, naming the first difference."""
    ours, theirs = ({tensor.name: tensor.shape for tensor in each.tensors} for each in (source, base))
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise StrategyMismatchError(
                f"{source.location} is not a file of {base.name}: {name} is {_shape(ours.get(name))}, not {_shape(theirs.get(name))}",
                remedy="Give the base it was made from",
            )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else " x ".join(map(str, shape))


def file_imatrix(workspace: Workspace, model: OpenedModel, path: Path) -> str:
    """The fingerprint of the importance matrix that a file was made with, as far as it tells and the store has it; else ""."""
    embedded = embedded_strategy(workspace, path)
    if embedded is not None:
        return str(embedded.inputs.get("imatrix") or "")
    with workspace.source(path) as source:
        stored = source.metadata.get("quantize.imatrix.file")
    name = "" if stored is None else Path(str(stored.value)).name
    keys = [record.fingerprint for record in workspace.store.imatrices(model.fingerprint)]
    return next((key for key in keys if name in (f"{key[:12]}.imatrix.gguf", workspace.imatrices.path(model.fingerprint, key).name)), "")


# Its size and its KLD


@dataclass(frozen=True)
class Known:
    """What probes say with one importance matrix, or why they say nothing."""

    knowledge: Knowledge | None
    reason: str = ""

    def kld(self, source: ModelSource, types: Mapping[str, str]) -> tuple[PredictedKld | None, str | None]:
        """The predicted KLD of a mix, nats, or the reason why there is none."""
        known = self.knowledge
        if known is None:
            return None, self.reason
        for tensor in quantizable_tensors(source):
            type_name = types[tensor.name]
            error = known.errors.get(tensor.name, {}).get(type_name)
            if error is None and type_name != tensor.type_name:
                return None, f"{tensor.name} has not been measured at {type_name}"
        return kld_of(known, known.mix(types))


def what_is_known(workspace: Workspace, model: OpenedModel, imatrix: str, rounding: RoundingWish = "plain") -> Known:
    """What there is to predict with, for files made with that importance matrix (its fingerprint, or "") and rounding, as of `measured`."""
    try:
        wanted = str(workspace.imatrices.path(model.fingerprint, imatrix)) if imatrix else NONE
        found = measured(workspace, model, wanted, rounding=rounding)
    except (StrategyError, ImatrixError) as error:
        return Known(None, error.message)
    known = load_knowledge(workspace, model, found.key, found.cells)
    return Known(known, "" if known else f"{model.source.name} has not been probed")


def _side(model: OpenedModel, choice: _Choice, known: Known, speeds: Speeds | None) -> DiffSide:
    qtypes, source = library.stored_types(), model.source
    tensor_bytes = sum(qtypes[choice.types[tensor.name]].tensor_bytes(tensor) for tensor in source.tensors)
    predicted, reason = known.kld(source, choice.types)
    counts = Counter(choice.types[tensor.name] for tensor in quantizable_tensors(source))
    return DiffSide(
        label=choice.label,
        kind=choice.kind,
        size_bytes=choice.size_bytes,
        tensor_bytes=tensor_bytes,
        bits_per_weight=8 * tensor_bytes / max(1, sum(tensor.n_elements for tensor in source.tensors)),
        kld_nats=None if predicted is None else predicted.kld_nats,
        kld_interval_nats=None if predicted is None else predicted.interval(0.95),
        no_prediction=reason,
        type_counts=dict(counts.most_common()),
        speed=predicted_speed(speeds, source, choice.types),
    )


# Differences


def tensor_difference(tensor: TensorInfo, a: str, b: str) -> TensorDiff:
    """What one type in place of another does to a tensor."""
    size_a, size_b = (library.types()[type_name].tensor_bytes(tensor) for type_name in (a, b))
    return TensorDiff(tensor.name, tensor.role, tensor.layer, a, b, size_a, size_b)


def _by_role(source: ModelSource, differences: Sequence[TensorDiff]) -> tuple[RoleDiff, ...]:
    counts = Counter(tensor.role for tensor in source.tensors)
    roles = dict.fromkeys(item.role for item in differences)
    return tuple(_role(role, counts[role], [item for item in differences if item.role == role]) for role in roles)


def _role(role: str, n_tensors: int, changed: Sequence[TensorDiff]) -> RoleDiff:
    size_a, size_b = sum(item.size_a_bytes for item in changed), sum(item.size_b_bytes for item in changed)
    return RoleDiff(role, n_tensors, len(changed), size_a, size_b)
