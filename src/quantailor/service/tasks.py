"""What a user can ask for, as plain records that travel to a job and back through JSON.

A job stores its task, so that resuming it in another process, or next week, does exactly the same work.
Paths are absolute by then: the worker may stand in another directory.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypedDict

from pydantic import TypeAdapter, ValidationError

from quantailor.errors import JobError

AUTO = "auto"
NONE = "none"
REPO = "repo"
"""The importance matrix that the model's repository ships."""
DEFAULT_N_CTX = 512
DEFAULT_REFERENCES = ("Q8_0", "Q6_K", "Q4_K_M")
DEFAULT_PROBE_TYPES = ("IQ1_S", "IQ2_XXS", "Q2_K", "IQ3_XXS", "Q4_K", "Q6_K", "Q8_0")
DEFAULT_PROBE_CHUNKS = 16
DEFAULT_SWEEP_CHUNKS = 8
DEFAULT_MIXES = 24
DEFAULT_MIX_CHUNKS = 48
DEFAULT_ANCHORS = 3
Method = Literal["optimal", "knee", "greedy", "bins"]
Grouping = Literal["tensor", "role-depth", "role"]
BasisWish = Literal["auto", "probes", "ranking"]
Way = Literal["auto", "native", "llama.cpp"]
"""Which conversion: ours, or llama.cpp's own converter."""
Level = Literal["quick", "balanced", "thorough", "exhaustive"]
LEVELS: tuple[Level, ...] = ("quick", "balanced", "thorough", "exhaustive")
COMPUTE = "compute"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """A model on the hub, given in place of a path: the first stage of the job downloads it."""

    repo_id: str
    revision: str | None = None
    token_file: str | None = None
    """The token's file, never the token."""
    gguf_file: str | None = None
    """This GGUF file (any of its shards) instead of what would be chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadTask:
    """Fetch a repository of the hub, as far as it is needed, into huggingface_hub's cache."""

    repo_id: str
    revision: str | None = None
    token_file: str | None = None
    """The token's file, never the token."""
    gguf_file: str | None = None
    """This GGUF file (any of its shards) instead of what would be chosen."""
    imatrix_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertTask:
    """Write the 16-bit base of a Hugging Face directory."""

    model: str
    output: str
    overwrite: bool = False
    converter: str | None = None
    """llama.cpp's convert_hf_to_gguf.py, or the folder that holds it; None finds it by itself."""
    way: Way = "auto"
    """"auto" takes llama.cpp's converter where our own conversion does not know the model."""
    trust_remote_code: bool = False
    """Let llama.cpp's converter run code that the directory brings."""
    hub: HubModel | None = None
    """Where `model` is ORG/NAME of a repository."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImatrixTask:
    """Compute an importance matrix; `text` None means the calibration text that ships with Quantailor."""

    base: str
    text: str | None = None
    chunks: int | None = None
    n_ctx: int = DEFAULT_N_CTX
    process_output: bool = False
    output: str | None = None
    overwrite: bool = False
    n_gpu_layers: int = 0
    n_threads: int | None = None
    hub: HubModel | None = None
    """Where `base` is ORG/NAME of a repository."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureTask:
    """Measure what each type costs in each tensor. Empty `types` or `tensors` mean all."""

    base: str
    types: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    exhaustive: bool = False
    imatrix: str = AUTO
    """"auto" (the newest that the store has for this model, if any), "none", or a file."""
    allow_requantize: bool = False
    n_threads: int | None = None
    hub: HubModel | None = None
    """Where `base` is ORG/NAME of a repository."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeTask:
    """Measure how much each tensor's error matters to the model; `text` None means the calibration text that ships."""

    base: str
    text: str | None = None
    chunks: int = DEFAULT_PROBE_CHUNKS
    """At most so many; fewer where the target error is reached before."""
    types: tuple[str, ...] = DEFAULT_PROBE_TYPES
    group: Grouping = "tensor"
    weighing: int = 0
    """Random halves of all tensors to probe together, for tensors that drown alone; 0 for none."""
    target_error: float = 0.05
    """Relative standard error of alpha at which probing stops, for nine tensors in ten."""
    mixes: int = DEFAULT_MIXES
    """Random whole mixes measured in memory, on which the prediction is fitted."""
    mix_chunks: int = DEFAULT_MIX_CHUNKS
    """Chunks for whole mixes and anchors; more than for probes, because all predictions rest on them."""
    anchors: int = DEFAULT_ANCHORS
    """Whole mixes built as files, the first all Q8_0."""
    n_ctx: int = DEFAULT_N_CTX
    imatrix: str = AUTO
    n_gpu_layers: int = 0
    n_threads: int | None = None
    hub: HubModel | None = None
    """Where `base` is ORG/NAME of a repository."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepTask:
    """Every tensor through every type, all others as they are. Empty `types` or `tensors` mean all."""

    base: str
    text: str | None = None
    chunks: int = DEFAULT_SWEEP_CHUNKS
    types: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    only_uncertain: bool = False
    """Skip cells that the probes predict closely enough."""
    n_ctx: int = DEFAULT_N_CTX
    imatrix: str = AUTO
    n_gpu_layers: int = 0
    n_threads: int | None = None
    hub: HubModel | None = None
    """Where `base` is ORG/NAME of a repository."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyTask:
    """Everything that measuring needs, in one job: base, importance matrix, weight errors, probes, sweep."""

    model: str
    level: Level = "balanced"
    types: tuple[str, ...] = ()
    """Candidate types; empty means all usual ones."""
    text: str | None = None
    """None means the calibration text that ships with Quantailor."""
    imatrix: str = AUTO
    """"auto" (what the store has, where it is as good as the level asks for, else computed), "compute", "none", or a file."""
    output: str | None = None
    """Where the base of a Hugging Face directory goes; None is a place in the home."""
    allow_requantize: bool = False
    n_gpu_layers: int = 0
    n_threads: int | None = None
    converter: str | None = None
    """llama.cpp's convert_hf_to_gguf.py, or the folder that holds it; None finds it by itself."""
    way: Way = "auto"
    """"auto" takes llama.cpp's converter where our own conversion does not know the model."""
    trust_remote_code: bool = False
    """Let llama.cpp's converter run code that the directory brings."""
    hub: HubModel | None = None
    """Where `model` is ORG/NAME of a repository."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineTask:
    """Improve a strategy with measurements around it, at the same size."""

    base: str
    strategy: str
    output: str
    text: str | None = None
    chunks: int = DEFAULT_PROBE_CHUNKS
    relinearize: bool = True
    """Probe again with all other tensors at their chosen types, and solve once more."""
    swaps: int = 0
    """Exchanges of bytes between tensors to try, judged by their true KLD; 0 for none."""
    overwrite: bool = False
    n_ctx: int = DEFAULT_N_CTX
    n_gpu_layers: int = 0
    n_threads: int | None = None
    hub: HubModel | None = None
    """Where `base` is ORG/NAME of a repository."""


class Conversion(TypedDict):
    """The part of a task that says how a directory is converted."""

    converter: str | None
    way: Way
    trust_remote_code: bool


class Target(TypedDict):
    """The part of PlanOptions that says how large; at most one is not None."""

    size_bytes: int | None
    bits_per_weight: float | None
    like: str | None
    kld_nats: float | None


class Rule(TypedDict):
    """The part of PlanOptions that says how to choose."""

    method: Method
    parameters: Mapping[str, float | str]
    bins: tuple[str, ...]


class Limits(TypedDict):
    """The part of PlanOptions that holds in every rule."""

    pins: tuple[str, ...]
    allow: tuple[str, ...]
    minimum: tuple[str, ...]
    maximum: tuple[str, ...]
    ties: tuple[str, ...]
    budgets: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """How types are chosen. At most one target: size, bits per weight, "as large as this preset", or a predicted KLD."""

    method: Method = "optimal"
    size_bytes: int | None = None
    bits_per_weight: float | None = None
    like: str | None = None
    kld_nats: float | None = None
    """The smallest file whose predicted KLD is at most this; needs probes."""
    basis: BasisWish = "auto"
    """"auto" takes probes where there are any."""
    parameters: Mapping[str, float | str] = field(default_factory=dict)
    """The method's own options, e.g. {"test": "relative", "threshold": 0.5} for knees."""
    bins: tuple[str, ...] = ()
    """"10=Q6_K": the top 10 % by importance get at least Q6_K."""
    pins: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    minimum: tuple[str, ...] = ()
    maximum: tuple[str, ...] = ()
    ties: tuple[str, ...] = ()
    budgets: tuple[str, ...] = ()
    """"blk.*=2GiB": the bytes of the tensors that match must fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildTask:
    """Write the file that a strategy describes."""

    base: str
    strategy: str
    output: str
    imatrix: str = AUTO
    """"auto" (the one the strategy was made with), "none", or a file."""
    split_max_bytes: int | None = None
    overwrite: bool = False
    allow_requantize: bool = False
    n_threads: int | None = None
    hub: HubModel | None = None
    """Where `base` is ORG/NAME of a repository."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyTask:
    """Measure a file against its base and against presets; `text` None means the held-out text we ship."""

    file: str
    base: str
    against: tuple[str, ...] = DEFAULT_REFERENCES
    text: str | None = None
    chunks: int | None = None
    n_ctx: int = DEFAULT_N_CTX
    imatrix: str = AUTO
    output: str | None = None
    """Where the verdict's files go: this path plus .json, .csv, .png and .svg."""
    n_gpu_layers: int = 0
    n_threads: int | None = None
    hub: HubModel | None = None
    """Where `base` is ORG/NAME of a repository."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeTask:
    """The whole way from a model to a verdict, in one directory."""

    model: str
    output: str
    plan: PlanOptions = PlanOptions()
    types: tuple[str, ...] = ()
    exhaustive: bool = False
    text: str | None = None
    probe_chunks: int = DEFAULT_PROBE_CHUNKS
    group: Grouping | None = None
    """None probes every tensor of a small model or on a GPU, else roles in quarters of the depth."""
    imatrix: str = COMPUTE
    """"compute", "auto" (one that the store has, else computed), "none", or a file."""
    imatrix_chunks: int | None = None
    verify: bool = True
    """Without it, and where nothing else runs the model, a checkpoint needs no base."""
    verify_text: str | None = None
    chunks: int | None = None
    against: tuple[str, ...] = DEFAULT_REFERENCES
    allow_requantize: bool = False
    n_gpu_layers: int = 0
    n_threads: int | None = None
    converter: str | None = None
    """llama.cpp's convert_hf_to_gguf.py, or the folder that holds it; None finds it by itself."""
    way: Way = "auto"
    """"auto" takes llama.cpp's converter where our own conversion does not know the model."""
    trust_remote_code: bool = False
    """Let llama.cpp's converter run code that the directory brings."""
    hub: HubModel | None = None
    """Where `model` is ORG/NAME of a repository."""


Task = (
    DownloadTask
    | ConvertTask
    | ImatrixTask
    | MeasureTask
    | ProbeTask
    | SweepTask
    | StudyTask
    | RefineTask
    | BuildTask
    | VerifyTask
    | MakeTask
)

KINDS: Mapping[str, type[Task]] = {
    "download": DownloadTask,
    "convert": ConvertTask,
    "imatrix": ImatrixTask,
    "measure": MeasureTask,
    "probe": ProbeTask,
    "sweep": SweepTask,
    "study": StudyTask,
    "refine": RefineTask,
    "build": BuildTask,
    "verify": VerifyTask,
    "make": MakeTask,
}


def kind_of(task: Task) -> str:
    """The task's name in the job table."""
    return next(kind for kind, cls in KINDS.items() if isinstance(task, cls))


def to_json(task: Task) -> str:
    """The same text for equal tasks."""
    return json.dumps(dataclasses.asdict(task), sort_keys=True)


def from_json(kind: str, text: str) -> Task:
    """The task of a stored job. Raises JobError where a newer or damaged store holds something else."""
    try:
        return TypeAdapter[Task](KINDS[kind]).validate_json(text)
    except (KeyError, ValidationError) as error:
        raise JobError(f"this version cannot read the job's task ({kind})", remedy="Update Quantailor or remove the job") from error


def absolute(path: str | Path) -> str:
    """A path that means the same in every working directory."""
    return str(Path(path).expanduser().absolute())
