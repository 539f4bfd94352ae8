"""What the service answers: frozen records, the same for the command line, `--json` and the GUI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from quantailor.records import Curve, Estimate, MetadataValue, Prediction, Sensitivity, SwapCell, TensorChoice, Verdict


@dataclass(frozen=True, slots=True)
class OfModel:
    """What was found out about a model, or made of it."""

    origin: str | None = field(default=None, kw_only=True)
    """ORG/NAME@COMMIT where the model came from the hub."""


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


@dataclass(frozen=True, slots=True)
class DownloadResult:
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


@dataclass(frozen=True, slots=True)
class ConvertResult(OfModel):
    path: str
    fingerprint: str
    size_bytes: int
    n_tensors: int
    left_out: tuple[str, ...] = ()
    """Parts of the checkpoint that are no text model, such as a vision tower; unknown of llama.cpp's converter."""
    way: str = "native"
    """"native", or "llama.cpp" where its own converter ran."""
    why: str = ""
    """Which conversion that was and why, in words."""


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
class ImatrixReport(OfModel):
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
class MeasureResult(OfModel):
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
class ProbeResult(OfModel):
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
class SweepResult(OfModel):
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
class StudyResult(OfModel):
    """What one job measured of a model."""

    base: str
    """The GGUF that everything else starts from."""
    model_fingerprint: str
    level: str
    imatrix_fingerprint: str | None
    imatrix_chunks: int
    """Chunks that the importance matrix saw; 0 without one."""
    settings: str
    """How weight errors were measured."""
    n_tensors: int
    n_types: int
    n_cells: int
    n_unavailable: int
    basis: str
    """"ranking only" where nothing was probed, else "probes"."""
    n_probed: int
    """Tensors whose sensitivity was measured."""
    n_scored: int
    """(mix, chunk) pairs that the store has for these probes."""
    n_swept: int
    """Cells measured in the model by the sweep."""


@dataclass(frozen=True, slots=True)
class StageCost:
    """What one stage of a study will take."""

    stage: str
    seconds: tuple[float, float]
    """What is left of it, as a range; (0, 0) where all is there."""
    share_done: float
    """0 to 1, from what the store has."""
    disk_bytes: int
    """Still to be written, files that are deleted afterwards included."""
    memory_bytes: int
    """The most that it holds at once."""


@dataclass(frozen=True, slots=True)
class CostReport:
    """A study before it starts."""

    level: str
    stages: tuple[StageCost, ...]
    seconds: tuple[float, float]
    share_done: float
    """Of the time that all stages take together, 0 to 1."""
    disk_bytes: int
    memory_bytes: int
    basis: str
    """What the seconds rest on, in words."""
    shortfalls: tuple[str, ...]
    """Why it cannot start, one sentence each; empty where it can."""


@dataclass(frozen=True, slots=True)
class ProjectReport:
    """A model that is worked on, and what is known of it."""

    fingerprint: str
    name: str
    architecture: str
    n_parameters: int
    size_bytes: int
    """Of all tensors."""
    is_quantized: bool
    base: str | None
    """A GGUF file of it that exists."""
    source: str | None
    """Where it came from: a directory that exists, else the base."""
    has_imatrix: bool
    n_cells: int
    """Weight errors of its largest measurement."""
    level: str | None
    """The highest level of `study` whose kinds of results are there; None where nothing is measured."""
    is_probed: bool
    n_strategies: int
    n_builds: int
    """Built files that exist."""
    n_verdicts: int
    last_activity: str
    """UTC, ISO 8601."""
    active_jobs: tuple[int, ...]
    """Jobs of this model that wait, run, or stopped before their end; the latest first."""
    is_moe: bool = False
    """It has experts: tensors of several matrices."""


@dataclass(frozen=True, slots=True)
class RefineResult(OfModel):
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
class PlanResult(OfModel):
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
class BuildReport(OfModel):
    """A file that was written."""

    paths: tuple[str, ...]
    size_bytes: int
    bits_per_weight: float
    predicted_size_bytes: int


@dataclass(frozen=True, slots=True)
class VerifyResult(OfModel):
    """A verdict and its files."""

    verdict: Verdict
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MakeResult(OfModel):
    """Everything `make` left in its directory."""

    base: str | None
    """None where nothing ran the model: weights were measured and built from the checkpoint itself."""
    imatrix: str | None
    strategy: str
    build: BuildReport
    plan: PlanResult
    verify: VerifyResult | None


@dataclass(frozen=True, slots=True)
class JobReport(OfModel):
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
    """How long the present stage will still take."""
    log: tuple[str, ...] = ()
    elapsed_seconds: float | None = None
    """Of the latest attempt; None before the first."""
    rate: float | None = None
    """Units per second, of late."""
    unit: str = ""
    """What progress counts: "bytes", "chunks", "weights"; empty where it is no such thing."""
    stage: str = ""
    stage_number: int = 0
    """The stage that runs, from 1, where the work tells how many there are; else 0."""
    n_stages: int = 0


TaskResult = (
    DownloadResult
    | ConvertResult
    | ImatrixReport
    | MeasureResult
    | ProbeResult
    | SweepResult
    | StudyResult
    | RefineResult
    | BuildReport
    | VerifyResult
    | MakeResult
)
