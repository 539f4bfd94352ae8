"""What a report is made of, and the views of it that several sections share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from quantailor.present.words import grounds, plural
from quantailor.records import Curve, Grounds, Sensitivity, Strategy, SwapCell, TensorInfo, Verdict, WeightError

COMMON_BITS = 4.5
"""Tensors are compared at the type nearest to this many bits per weight."""

_ROLE_ORDER = (
    *("token_embd", "attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "attn"),
    *("ffn_gate", "ffn_up", "ffn_down", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn", "output"),
)


@dataclass(frozen=True, slots=True)
class ImatrixFacts:
    """The importance matrix that quantizers and weight errors were given."""

    fingerprint: str
    texts: tuple[str, ...] = ()
    """Names of the texts it was computed on."""
    n_chunks: int = 0


@dataclass(frozen=True, slots=True)
class LabelledStrategy:
    """A strategy under the name that the reader knows it by, such as its file's."""

    label: str
    strategy: Strategy


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything that one model's report shows; any part may be empty, and its section then says what to run."""

    model_name: str
    architecture: str
    fingerprint: str
    n_parameters: int
    base_size_bytes: int
    imatrix: ImatrixFacts | None = None
    calibration_name: str = ""
    """The text that probes ran on."""
    n_ctx: int = 0
    """Tokens per chunk of that text."""
    n_chunks: int = 0
    """Chunks of it that were probed."""
    floor_kld_nats: float | None = None
    """KLD of the unmodified model through the same pipeline; None while it is not measured."""
    tensors: Sequence[TensorInfo] = ()
    """The quantizable ones."""
    weight_errors: Sequence[WeightError] = ()
    sensitivities: Sequence[Sensitivity] = ()
    cells: Sequence[SwapCell] = ()
    """The exhaustive sweep of tensor x type."""
    curve: Curve | None = None
    verdicts: Sequence[Verdict] = ()
    strategies: Sequence[LabelledStrategy] = ()
    activation_blocks: Mapping[str, int] = field(default_factory=dict)
    """Type name -> `QType.activation_block`. Where given, a tensor's damage includes the noise of the type's kernel."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """What the footer names: {"Quantailor": "0.2.0", "llama-cpp-python": "0.3.36"}."""
    grounds: Grounds | None = None
    """What damages and predictions stand on."""
    no_prediction: str | None = None
    """Why it is too early to predict a KLD; None where it is not."""
    is_compensated: bool = False
    """Whether weight errors, damages and predictions are of compensated rounding."""
    covariances: str = ""
    """The beginning of the fingerprint of the input covariances that errors were measured with; "" without."""


def role_order(role: str) -> tuple[int, str]:
    """Sort key that puts roles in the order of the computation."""
    fitting = [known for known in _ROLE_ORDER if role.startswith(known)]
    return (_ROLE_ORDER.index(max(fitting, key=len)) if fitting else len(_ROLE_ORDER), role)


def roles_of(tensors: Iterable[TensorInfo]) -> list[str]:
    """The roles of these tensors, each once, in order."""
    return sorted({tensor.role for tensor in tensors}, key=role_order)


def layers_of(tensors: Iterable[TensorInfo]) -> list[int]:
    """The block numbers of these tensors, each once, in order."""
    return sorted({tensor.layer for tensor in tensors if tensor.layer is not None})


def measured(weight_errors: Iterable[WeightError]) -> list[WeightError]:
    """The cells that have figures."""
    return [error for error in weight_errors if error.unavailable is None]


def bits_by_type(*models: ReportData) -> dict[str, float]:
    """Type name -> bits per weight, as measured, lowest first."""
    bits = {error.type_name: error.bits_per_weight for data in models for error in measured(data.weight_errors)}
    return dict(sorted(bits.items(), key=lambda item: (item[1], item[0])))


def common_type(*models: ReportData) -> str | None:
    """The type nearest to `COMMON_BITS` among those that most tensors have; None where nothing is measured.

    Of equally near types a K-quant goes first, then the alphabet.
    """
    bits = bits_by_type(*models)
    counts = Counter(error.type_name for data in models for error in measured(data.weight_errors) if error.error is not None)
    most = max(counts.values(), default=0)
    candidates = [name for name, number in counts.items() if number == most]
    return min(candidates, key=lambda name: (abs(bits[name] - COMMON_BITS), not name.endswith("_K"), name), default=None)


def most_sensitive(data: ReportData) -> list[Sensitivity]:
    """The tensors whose alpha was told from the floor, largest first."""
    found = [sensitivity for sensitivity in data.sensitivities if sensitivity.status == "measured"]
    return sorted(found, key=lambda sensitivity: (-sensitivity.alpha.value, sensitivity.tensor))


def probe_basis(data: ReportData) -> str:
    """Text, chunks and floor of the probes, as one phrase."""
    if data.grounds is not None:
        return f"{grounds(data.grounds)}; chunks of {data.n_ctx:,} tokens, over which standard errors are"
    where = f" of {data.calibration_name}" if data.calibration_name else ""
    chunks = f"{plural(data.n_chunks, 'chunk')} of {data.n_ctx:,} tokens{where}"
    return f"probes on {chunks}; standard errors are over chunks"


def error_basis(data: ReportData) -> str:
    """Who quantized, with which importance matrix and which input covariances, as one phrase."""
    whose = "of compensated rounding" if data.is_compensated else "from ggml's quantizers"
    matrix = "without an importance matrix" if data.imatrix is None else f"with importance matrix {data.imatrix.fingerprint[:12]}"
    return f"weight errors {whose} {matrix}" + (f" and input covariances {data.covariances[:12]}" if data.covariances else "")
