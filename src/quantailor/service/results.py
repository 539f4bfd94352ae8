"""What the service answers: frozen records, the same for the command line, `--json` and the GUI to come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantailor.records import Curve, Estimate, MetadataValue, Prediction, Sensitivity, SwapCell, TensorChoice, Verdict


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
    config_files: tuple[str, ...]
    metadata: Mapping[str, MetadataValue]
    tensors: tuple[TensorReport, ...]


@dataclass(frozen=True, slots=True)
class ConvertResult:
    path: str
    fingerprint: str
    size_bytes: int
    n_tensors: int


@dataclass(frozen=True, slots=True)
class ImatrixTensorReport:
    """Statistics of one tensor's inputs over the calibration text."""

    tensor: str
    sum_of_squares: float
    minimum: float
    maximum: float
    mean: float
    standard_deviation: float
    active_share: float
    normalized_entropy: float
    n_experts: int
    n_unseen_experts: int


@dataclass(frozen=True, slots=True)
class ImatrixReport:
    """An importance matrix of the store."""

    fingerprint: str
    model_fingerprint: str
    path: str
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int
    n_tensors: int
    missing_tensors: tuple[str, ...]
    """Quantizable tensors that it does not hold: low-bit types are unavailable there."""
    statistics: tuple[ImatrixTensorReport, ...] = ()


@dataclass(frozen=True, slots=True)
class CellReport:
    """One measured cell, as tables show it."""

    tensor: str
    type_name: str
    bits_per_weight: float
    relative_mse: float | None
    relative_mse_se: float
    weighted_mse: float | None
    weighted_mse_se: float
    rmse: float | None
    max_abs_error: float | None
    sampled: bool
    unavailable: str | None


@dataclass(frozen=True, slots=True)
class MeasureResult:
    """What the store holds for a model after measuring."""

    model_fingerprint: str
    imatrix_fingerprint: str | None
    settings: str
    n_tensors: int
    n_types: int
    n_cells: int
    n_unavailable: int
    n_already_measured: int
    unseen_experts: Mapping[str, int]
    """Tensor -> experts that no calibration token reached."""
    cells: tuple[CellReport, ...] = ()


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """How much each tensor's error matters, and how well whole mixes are predicted from it."""

    model_fingerprint: str
    imatrix_fingerprint: str | None
    corpus_name: str
    n_ctx: int
    n_chunks: int
    base_kernels: str
    """"finer": mixes are compared with the base resting in F16; "as stored": with the base as its file has it."""
    floor_nats: float
    stored_nats: float | None
    """KLD between the base as stored and the finer one."""
    n_scored_before: int
    """(mix, chunk) pairs that the store had already."""
    n_scored: int
    sensitivities: tuple[Sensitivity, ...]
    curve: Curve


@dataclass(frozen=True, slots=True)
class SweepCellReport:
    """One tensor at one type, all others as they are."""

    tensor: str
    type_name: str
    bits_per_weight: float
    size_bytes: int
    measured: SwapCell | None
    """None where the cell was skipped because the probes predict it closely enough."""
    predicted_nats: float | None
    """What alpha and noise say, where the tensor was probed."""


@dataclass(frozen=True, slots=True)
class SweepResult:
    """Every tensor through every type."""

    model_fingerprint: str
    imatrix_fingerprint: str | None
    corpus_name: str
    n_ctx: int
    n_chunks: int
    n_cells: int
    n_already_measured: int
    n_skipped: int
    cells: tuple[SweepCellReport, ...]


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one tensor adds to a strategy's sum of damages, nats."""

    tensor: str
    type_name: str
    damage: Estimate
    share: float


@dataclass(frozen=True, slots=True)
class PredictResult:
    """A strategy's KLD before it is built."""

    strategy: str
    prediction: Prediction
    kld_interval_80_nats: tuple[float, float] | None
    contributions: tuple[Contribution, ...]
    """The largest first."""
    n_mixes: int
    n_anchors: int


@dataclass(frozen=True, slots=True)
class ReportResult:
    """What was written about a model, and how much there was to tell."""

    model_name: str
    paths: tuple[str, ...]
    n_tensors: int
    n_probed: int
    n_cells: int
    n_mixes: int
    n_verdicts: int


@dataclass(frozen=True, slots=True)
class ProfileReport:
    """A role at a depth in two models: its share of the model's sensitivity and of its weights, 0 to 1."""

    role: str
    depth: str
    share_a: Estimate
    share_b: Estimate
    parameter_share_a: float
    parameter_share_b: float


@dataclass(frozen=True, slots=True)
class CompareResult:
    """The sensitivity profiles of two models."""

    models: tuple[str, str]
    paths: tuple[str, ...]
    profiles: tuple[ProfileReport, ...]


@dataclass(frozen=True, slots=True)
class RefineResult:
    """A strategy improved with measurements around it, and what that gained on the texts' chunks."""

    path: str
    prediction: Prediction
    n_chunks: int
    kld_before: Estimate
    kld_after: Estimate
    ln_kld_ratio: Estimate
    """ln(after / before), paired by chunk."""
    n_changed: int
    n_swaps_tried: int
    n_swaps_kept: int
    type_counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class PlanResult:
    """A strategy that was chosen, and where it was saved."""

    path: str | None
    method: str
    basis: str
    prediction: Prediction
    type_counts: Mapping[str, int]
    tensors: tuple[TensorChoice, ...]
    preset_size_bytes: int | None = None
    """The size of the preset's own file where `--like` asked for it."""


@dataclass(frozen=True, slots=True)
class BuildReport:
    """A file that was written."""

    paths: tuple[str, ...]
    size_bytes: int
    bits_per_weight: float
    predicted_size_bytes: int


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """A verdict and its files."""

    verdict: Verdict
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MakeResult:
    """Everything `make` left in its directory."""

    base: str
    imatrix: str
    strategy: str
    build: BuildReport
    plan: PlanResult
    verify: VerifyResult


@dataclass(frozen=True, slots=True)
class JobReport:
    """One job as users see it."""

    id: int
    kind: str
    state: str
    title: str
    progress: float
    """0 to 1."""
    message: str
    created: str
    """UTC, ISO 8601."""
    error: str | None = None
    eta_seconds: tuple[float, float] | None = None
    log: tuple[str, ...] = ()


TaskResult = (
    ConvertResult | ImatrixReport | MeasureResult | ProbeResult | SweepResult | RefineResult | BuildReport | VerifyResult | MakeResult
)
