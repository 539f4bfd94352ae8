"""What the services answer that share, compare and check: frozen records like those of `results`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from quantailor.records import Estimate


@dataclass(frozen=True, slots=True)
class ExportReport:
    """A strategy for another quantizer: a text, and the command that uses it."""

    format: str
    """"llama-quantize", "ik" or "yaml"."""
    text: str
    """The content of `text_path`."""
    text_path: str
    text_written: bool
    arguments: tuple[str, ...]
    """The command, word by word; empty for "yaml"."""
    line: str
    """The same, quoted for a shell."""
    own_lines: tuple[str, ...]
    """Our own commands that build the same file, quoted for a shell."""
    base_type: str
    """The preset in the command; it decides no tensor, only `general.file_type`. Empty for "yaml"."""
    notes: tuple[str, ...]
    """What a reader of the line must know, sentence by sentence."""


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


@dataclass(frozen=True, slots=True)
class CardResult:
    """A model card."""

    path: str | None
    text: str
    verdict: str | None
    """The sentence of the verdict that the card shows; None where the file was not measured."""
    suggested_name: str
    """A name that the hub's file list shows with its type."""
    name_is_listed: bool
    """Whether the file's own name is such a name."""


@dataclass(frozen=True, slots=True)
class ExpertTensor:
    """All experts' matrices of one role in one layer."""

    tensor: str
    role: str
    size_bytes: int
    importance: tuple[float, ...]
    """Each expert's share of the sum of squared inputs of this tensor."""
    alpha: Estimate | None
    """Nats per unit of weighted error; None where it was not probed."""
    alpha_status: str
    """"measured", "drowned" (then alpha is an upper bound), "not in the graph" or "not probed"."""


@dataclass(frozen=True, slots=True)
class ExpertLayer:
    """How one layer's router spreads the calibration tokens."""

    layer: int
    n_routed: int
    """Tokens times experts per token."""
    shares: tuple[float, ...]
    """Each expert's share of them."""
    importance: tuple[float, ...]
    """Each expert's share of the sum of squared inputs over the layer's expert tensors."""
    normalized_entropy: float
    """Of the shares: 1 where all experts are used alike, 0 where one takes all."""
    unseen: tuple[int, ...]
    """Experts that no calibration token reached."""
    tensors: tuple[ExpertTensor, ...]


@dataclass(frozen=True, slots=True)
class ExpertsReport:
    """The experts of a mixture, layer by layer."""

    model_name: str
    n_experts: int
    n_used: int
    """Experts that each token is routed to; 0 where the model does not say."""
    imatrix_fingerprint: str
    datasets: tuple[str, ...]
    n_tokens: int
    """Of the calibration text."""
    probed: bool
    layers: tuple[ExpertLayer, ...]


@dataclass(frozen=True, slots=True)
class TypeDifference:
    """A tensor whose type is not the expected one; None where a side lacks the tensor."""

    tensor: str
    expected: str | None
    found: str | None


@dataclass(frozen=True, slots=True)
class CheckedPart:
    """One file of a model."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class BuildCheck:
    """Whether a file is what its strategy says."""

    ok: bool
    differences: tuple[TypeDifference, ...]
    n_tensors: int
    size_bytes: int
    """Of all parts."""
    expected_size_bytes: int | None
    """To the byte; None where another program wrote the header, whose size is its own matter."""
    tensor_bytes: int
    expected_tensor_bytes: int
    carries_strategy: Literal["this one", "another", "none"]
    """What the file's own metadata say of its strategy."""
    parts: tuple[CheckedPart, ...]
