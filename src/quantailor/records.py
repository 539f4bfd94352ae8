"""The plain records that travel between rooms. All are frozen; none knows a file, a database or ggml.

Shapes follow numpy: slowest dimension first, so a matrix is `(n_rows, n_cols)` and a layer's experts are
`(n_experts, n_rows, n_cols)`. (ggml's `ne` is the reverse.) Sizes are bytes, errors are in weight units
unless the name says otherwise.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

_BLOCK_NAME = re.compile(r"^blk\.(\d+)\.(.+?)(?:\.(?:weight|bias))?$")

Basis = Literal["ranking only", "probes"]
"""What a damage figure rests on: what is expected of weight errors (it ranks mixes), or measured probes (nats)."""

RoundingWish = Literal["auto", "plain", "compensated"]
"""How weights are to become codes: as ggml rounds them, with errors of one block made up for by the next, or as what is there says."""


def layer_of(tensor_name: str) -> int | None:
    """The block number in a GGUF tensor name, or None outside the blocks."""
    match = _BLOCK_NAME.match(tensor_name)
    return int(match.group(1)) if match else None


def role_of(tensor_name: str) -> str:
    """What a tensor does, without its block: `blk.3.attn_q.weight` -> `attn_q`, `output.weight` -> `output`."""
    match = _BLOCK_NAME.match(tensor_name)
    if match:
        return match.group(2)
    return re.sub(r"\.(weight|bias)$", "", tensor_name)


KERNELS = "kernels"
"""What the kernels of quantized types cost by rounding their inputs, whichever the part of the model."""


def part_of(tensor_name: str) -> str:
    """The part of a model whose errors meet in one way: "output", "embeddings" or "blocks"."""
    if layer_of(tensor_name) is not None:
        return "blocks"
    return "output" if tensor_name == "output.weight" else "embeddings"


@dataclass(frozen=True, slots=True)
class MetadataValue:
    """One GGUF metadata value: its type name as gguf-py spells it in lower case ("uint32", "string", "array")."""

    value_type: str
    value: bool | int | float | str | tuple[bool | int | float | str, ...]
    element_type: str | None = None
    """The type of an array's elements; None for a scalar."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a model as its source holds it."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    size_bytes: int

    @property
    def n_cols(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def n_rows(self) -> int:
        """Rows of all slices together."""
        return self.n_elements // self.n_cols if self.n_cols else 0

    @property
    def n_slices(self) -> int:
        """Matrices stacked in this tensor: the number of experts, or 1."""
        return math.prod(self.shape[:-2]) if len(self.shape) > 2 else 1

    @property
    def rows_per_slice(self) -> int:
        return self.n_rows // self.n_slices if self.n_slices else 0

    @property
    def role(self) -> str:
        return role_of(self.name)

    @property
    def layer(self) -> int | None:
        return layer_of(self.name)


def bits_per_weight(tensors: Sequence[TensorInfo]) -> float:
    """8 x bytes / weights of these tensors together; 0 where there are none."""
    return 8 * sum(tensor.size_bytes for tensor in tensors) / max(1, sum(tensor.n_elements for tensor in tensors))


@dataclass(frozen=True, slots=True)
class WeightError:
    """What one type does to one tensor; see METHODS 1 and `analysis.weight_errors.weight_error` for the definitions.

    A cell that cannot be measured has `unavailable` set and no figures. `n_rows_measured < n_rows_total`
    means sampled: then the `*_se` fields hold standard errors and `max_abs_error` is a lower bound.
    """

    tensor: str
    type_name: str
    size_bytes: int
    bits_per_weight: float
    n_rows_measured: int = 0
    n_rows_total: int = 0
    rmse: float | None = None
    max_abs_error: float | None = None
    relative_mse: float | None = None
    sqnr_db: float | None = None
    weighted_mse: float | None = None
    output_error: float | None = None
    output_mse: float | None = None
    """None where no input covariances were at hand."""
    rmse_se: float = 0.0
    relative_mse_se: float = 0.0
    weighted_mse_se: float = 0.0
    output_error_se: float = 0.0
    output_mse_se: float = 0.0
    error_quantiles: tuple[float, ...] = ()
    """p50, p90, p95, p99, p99.9 of abs(dW)."""
    error_quantiles_se: tuple[float, ...] = ()
    histogram: tuple[float, ...] = ()
    """64 bins of abs(dW), as shares of all weights; edges are `analysis.weight_errors.weight_error.HISTOGRAM_EDGES` x rms(W)."""
    n_unseen_experts: int = 0
    unavailable: str | None = None
    definition_version: int = 1

    @property
    def error(self) -> float | None:
        """What damages are reckoned from: `output_mse` where there is one, else `weighted_mse`."""
        return self.weighted_mse if self.output_mse is None else self.output_mse

    @property
    def error_se(self) -> float:
        """Standard error of `error`."""
        return self.weighted_mse_se if self.output_mse is None else self.output_mse_se

    @property
    def sampled(self) -> bool:
        return self.n_rows_measured < self.n_rows_total


@dataclass(frozen=True, slots=True)
class Mix:
    """Some tensors with the types they are to have; all others stay as they are."""

    id: str
    """"" for none, "NAME=TYPE" for a single tensor, else a hash: equal mixes have equal ids."""
    types: Mapping[str, str]

    @classmethod
    def of(cls, types: Mapping[str, str]) -> Mix:
        """A mix with its id; the order of the tensors does not count."""
        lines = sorted(f"{name}={type_name}" for name, type_name in types.items())
        if len(lines) > 1:
            digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
            return cls(f"mix:{digest[:32]}", dict(types))
        return cls("".join(lines), dict(types))


@dataclass(frozen=True, slots=True)
class Cell:
    """One type that a tensor may take, as the strategy room sees it."""

    type_name: str
    size_bytes: int
    bits_per_weight: float
    damage: float
    """What the objective adds up; without probes what is expected of the weight error, see METHODS 4."""
    relative_mse: float = 0.0
    weighted_mse: float = 0.0
    rmse: float = 0.0
    max_abs_error: float = 0.0
    output_mse: float | None = None

    @property
    def error(self) -> float:
        """What damages are reckoned from: `output_mse` where there is one, else `weighted_mse`."""
        return self.weighted_mse if self.output_mse is None else self.output_mse


@dataclass(frozen=True, slots=True)
class TensorCells:
    """A tensor with every type it may take; `cells` are in no particular order and never empty."""

    name: str
    n_elements: int
    cells: tuple[Cell, ...]
    importance: float = 0.0
    """Share of the model's damage that this tensor would do at one common type, 0 to 1; see METHODS 5."""

    @property
    def role(self) -> str:
        return role_of(self.name)

    @property
    def layer(self) -> int | None:
        return layer_of(self.name)

    def cell(self, type_name: str) -> Cell:
        """The cell of a type. Raises KeyError where the tensor has none."""
        for cell in self.cells:
            if cell.type_name == type_name:
                return cell
        raise KeyError(f"{self.name} has no cell for {type_name}")


@dataclass(frozen=True, slots=True)
class TensorChoice:
    """The type one tensor gets, and why."""

    name: str
    type_name: str
    reason: str
    damage: float = 0.0
    pinned: bool = False
    knee: str | None = None
    """This tensor's own knee, as a diagnostic."""
    price_range: tuple[float, float] | None = None
    """Prices (damage per byte) between which the optimum keeps this choice; the upper end may be infinite."""


@dataclass(frozen=True, slots=True)
class Grounds:
    """The evidence that a plan or a prediction stands on: probes and whole mixes of one model on one text (METHODS 4)."""

    name: str
    """What `--evidence` calls it."""
    text: str
    """The text's name."""
    n_ctx: int
    imatrix: str | None
    """Fingerprint of the importance matrix that the swapped weights were quantized with."""
    carried: bool
    """Whether alphas are carried over to another importance matrix or rounding than that."""
    n_probed: int
    """Tensors that were probed, by themselves or in a group."""
    n_tensors: int
    """Tensors that can be probed: all whose type is a choice, without those known to be outside the graph."""
    weight_share: float
    """Part of these tensors' weights that was probed, 0 to 1."""
    n_chunks: int
    """Of a probe; the median where they differ."""
    n_mixes: int
    """Whole mixes measured in memory."""
    n_files: int
    """Whole mixes built as files."""
    command: str
    """What would make it cover more, or predict more closely."""
    rounding: str = ""
    """How the swapped weights were rounded, "plain" or "compensated", where a plan's are rounded otherwise."""
    rest: str = ""
    """The type of few bits that the base rested in; "" where it was as fine as stored."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a strategy will give, before it is built."""

    file_size_bytes: int
    tensor_bytes: int
    bits_per_weight: float
    """8 x tensor bytes / weights, over all tensors of the file."""
    damage: float
    basis: Basis = "ranking only"
    kld_nats: float | None = None
    kld_interval_nats: tuple[float, float] | None = None
    no_prediction: str | None = None
    """Why probes predict no KLD; None where they do, and without probes."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """Which type each quantizable tensor gets, and everything needed to know where that came from."""

    model_fingerprint: str
    model_name: str
    architecture: str
    method: str
    """"optimal", "knee", "greedy", "bins", "preset" or "manual"."""
    tensors: tuple[TensorChoice, ...]
    target: Mapping[str, str | int | float] = field(default_factory=dict)
    """What was asked for, e.g. {"size_bytes": 4500000000} or {"bits_per_weight": 4.5} or {"like": "Q4_K_M"}."""
    parameters: Mapping[str, object] = field(default_factory=dict)
    """The method's own options and the constraints, as plain data."""
    inputs: Mapping[str, str | int | float | None] = field(default_factory=dict)
    """Where the figures came from: imatrix fingerprint, measurement mode, program version."""
    basis: Basis = "ranking only"
    prediction: Prediction | None = None

    @property
    def types(self) -> dict[str, str]:
        """Tensor name -> type name."""
        return {choice.name: choice.type_name for choice in self.tensors}


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its standard error (0 where nothing was estimated)."""

    value: float
    se: float = 0.0

    @property
    def relative_se(self) -> float:
        """The standard error as a share of the figure; 0 for a figure of 0."""
        return self.se / self.value if self.value > 0 else 0.0


@dataclass(frozen=True, slots=True)
class SwapCell:
    """What one tensor at one type does to the model with all others as they are, over some chunks."""

    tensor: str
    type_name: str
    n_chunks: int
    kld: Estimate
    """Mean KL(base || model), nats; the standard error is over chunks."""
    perplexity: Estimate
    ln_ppl_ratio: Estimate
    """ln(PPL / PPL_base), paired by chunk."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """How much the weight error of one tensor matters: KLD = alpha x error + noise of its kernel (METHODS 4)."""

    tensor: str
    status: Literal["measured", "drowned", "not in the graph", "not probed"]
    """"drowned": its probes cannot be distinguished from the floor, and `alpha` is an upper bound. The last two have no probes, and
    `alpha` is what the others' probes and the weights tell of them."""
    alpha: Estimate
    """Nats per unit of `WeightError.error`."""
    noise: Mapping[int, float] = field(default_factory=dict)
    """Nats that the kernel's rounding of inputs costs, by `QType.activation_block` (32 or 256)."""
    group: str = ""
    """The tensors that were probed together with it; "" for a probe of its own."""
    probes: tuple[str, ...] = ()
    """Types it was probed at."""


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One whole mix that was measured: what was predicted for it, and what it is."""

    mix: str
    kind: Literal["memory", "file"]
    bits_per_weight: float
    damage_nats: float
    """The sum S of its tensors' damages, scaled as the curve says."""
    measured: Estimate
    """Mean KLD over the chunks, nats; the standard error is over sections of the text."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """The same sum by part of the model (`part_of`), what kernels cost apart (`KERNELS`), not scaled."""
    spread: float = 0.0
    """How far that sum may be off, relative, by what is not known of its tensors."""


@dataclass(frozen=True, slots=True)
class Curve:
    """From the sum of damages S to the KLD of a file: gamma (S + kappa S^2) + c0, fitted to measured mixes (METHODS 4)."""

    gamma: float
    kappa: float
    c0_nats: float
    residual_sd: float
    """Standard deviation of ln(measured / predicted) about the curve, what fitting it took off added again."""
    degrees_of_freedom: int
    points: tuple[CurvePoint, ...] = ()
    scales: Mapping[str, float] = field(default_factory=dict)
    """What the damages of each part of the model are multiplied by before they are added up."""
    covariance: tuple[tuple[float, ...], ...] = ()
    """Of what was fitted: ln gamma, kappa, and the logarithms of `scales` in their order."""
    text_sd: float = 0.0
    """Standard error of what all points have in common, relative: they were measured on a few chunks of one text."""
    n_chunks: int = 0
    """So many of them."""
    c0_se: float = 0.0
    """Its standard error."""
    unseen: Estimate = Estimate(0.0)
    """ln of how much more rounding weights costs on text that it was not fitted to than on the text of the points."""


@dataclass(frozen=True, slots=True)
class ChunkScore:
    """One chunk's sums over its scored tokens; verdicts are made of these, so they are what is stored.

    `kld_*` and `top_agreement` compare with the base; for the base itself they are 0 and n_tokens.
    """

    index: int
    n_tokens: int
    nll_sum: float
    """Sum of -ln p(token), nats."""
    kld_sum: float
    """Sum of KL(base || model), nats."""
    top_agreement: int
    """Tokens whose most likely successor is the same in both."""
    dp_square_sum: float
    """Sum of (p_model(token) - p_base(token))^2."""
    klds: tuple[float, ...] = ()
    """Every scored token's KLD, nats, for quantiles."""


@dataclass(frozen=True, slots=True)
class FidelityStatistics:
    """Perplexity and KL divergence of one file against the base; standard errors are over chunks."""

    n_chunks: int
    n_tokens: int
    perplexity: Estimate
    ln_ppl_ratio: Estimate
    """ln(PPL / PPL_base), paired by chunk."""
    kld_mean: Estimate
    kld_median: float
    kld_p99: float
    kld_p999: float
    kld_max: float
    top_agreement: Estimate
    rms_dp: Estimate


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ours against one reference: ln(KLD_ours / KLD_reference) with a paired bootstrap interval over chunks."""

    reference: str
    ln_kld_ratio: float
    interval: tuple[float, float]
    size_ratio: float
    """Our bytes / the reference's bytes."""
    outcome: Literal["better", "no better", "worse"]
    file: str = ""
    """What is compared with the reference; "" is ours."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A file beside the presets' line: mean KLD over size, straight between neighbouring presets in the logarithms of both."""

    file: str
    presets: tuple[str, ...]
    """The two between which it lies, or the one of its size."""
    ln_kld_ratio: float
    """ln(its KLD / that of the line at its size)."""
    interval: tuple[float, float]
    """95 %, paired over chunks."""
    outcome: Literal["below", "on", "above"]


@dataclass(frozen=True, slots=True)
class Domain:
    """One text of a mix, apart from the others."""

    name: str
    n_chunks: int
    klds: tuple[Estimate, ...]
    """Mean KLD of every row of the verdict, in their order."""
    comparisons: tuple[Comparison, ...]
    """As the verdict's, over the chunks of this text."""


RowKind = Literal["base", "ours", "rival", "reference"]
"""What a file is in a verdict: the base, ours (several sizes of a ladder), somebody else's, or one that llama.cpp made for comparison."""

PLAIN_TWIN = "plain rounding"
"""The label of a reference of the very types of ours, rounded plainly; all others are llama.cpp's presets."""


@dataclass(frozen=True, slots=True)
class VerdictRow:
    """One file in a verdict."""

    label: str
    kind: RowKind
    size_bytes: int
    bits_per_weight: float
    statistics: FidelityStatistics
    content: str = ""
    """The identity of the file that was measured."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What verification found."""

    model_fingerprint: str
    corpus_name: str
    corpus_sha256: str
    n_ctx: int
    rows: tuple[VerdictRow, ...]
    comparisons: tuple[Comparison, ...]
    """Ours, the first where there are several, against every other file that is not ours."""
    floor_kld_nats: float
    """KLD of the unmodified base through the same pipeline."""
    sentence: str
    reservations: tuple[str, ...] = ()
    """What limits its worth: a text that was not held out, a base that is quantized itself. They end the sentence too."""
    pairs: tuple[Comparison, ...] = ()
    """Every two files, where more than one was judged."""
    standings: tuple[Standing, ...] = ()
    """Every file that was judged and lies between presets, where more than one was judged."""
    domains: tuple[Domain, ...] = ()
    """Each text apart, where the held-out text is a mix of several."""
