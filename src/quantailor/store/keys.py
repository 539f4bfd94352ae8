"""What results are filed under, and the small records that only the store holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from quantailor.ggml import library
from quantailor.records import TensorInfo, Verdict
from quantailor.store.encoding import sha256

ROUNDED = " rounded, "
"""Between how weights were rounded and what else makes a measurement's key, in the same column."""
ENGINE = " on "
"""Between what else makes a key and the llama.cpp that gave the result, in the column that holds both."""

LocationKind = Literal["model", "imatrix", "strategy", "build", "conversion", "written", "text", "part", "sound", "output", "download"]


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A model that was opened at least once."""

    fingerprint: str
    name: str
    architecture: str
    n_tensors: int
    n_elements: int
    size_bytes: int
    """Bytes of all tensors, not of the file."""

    @classmethod
    def of(cls, fingerprint: str, name: str, architecture: str, tensors: Sequence[TensorInfo]) -> ModelRecord:
        """The record of a source with these tensors."""
        return cls(
            fingerprint,
            name,
            architecture,
            n_tensors=len(tensors),
            n_elements=sum(tensor.n_elements for tensor in tensors),
            size_bytes=sum(tensor.size_bytes for tensor in tensors),
        )


@dataclass(frozen=True, slots=True)
class ReferenceFile:
    """A file that is compared with others, which can be made again and need not be there."""

    model: str
    """The base's identity."""
    name: str
    """Of the file: everything that goes into it."""
    content: str
    """Its identity."""
    size_bytes: int
    bits_per_weight: float
    types: Mapping[str, str]
    """Tensor -> type."""


@dataclass(frozen=True, slots=True)
class MeasurementKey:
    """What cells are filed under, besides tensor and type. `imatrix` is "" where none was used."""

    model: str
    imatrix: str = ""
    settings: str = ""
    """`MeasureSettings.key`."""
    definition_version: int = 1
    engine: str = field(default_factory=lambda: library.engine())
    """Which llama.cpp it is, in every key."""
    rounding: str = ""
    """`Rounding.key`: how weights became codes, and the covariances that errors are measured with."""

    @property
    def row(self) -> dict[str, str | int]:
        """The columns that hold it."""
        row = _row(self, "settings")
        rounding = row.pop("rounding")
        return {**row, "settings": f"{rounding}{ROUNDED}{row['settings']}"} if rounding else row

    @classmethod
    def of_row(cls, model: str, imatrix: str, settings: str, definition_version: int) -> MeasurementKey:
        """The key that these columns hold."""
        *rounding, rest = settings.split(ROUNDED)
        plain, _, engine = rest.partition(ENGINE)
        return cls(model, imatrix, plain, definition_version, engine, *rounding)

    @property
    def swapped(self) -> str:
        """`Rounding.bytes_key` of the same rounding: what scores of such weights are filed under."""
        return self.rounding if self.rounding.startswith("compensated") else ""

    @property
    def covariances(self) -> str:
        """The beginning of the covariances' fingerprint; "" where `weighted_mse` is all that is known of an error."""
        return self.rounding.partition(":")[2]


@dataclass(frozen=True, slots=True)
class ImatrixKey:
    """What makes two computations of an importance matrix, or of covariances, the same."""

    model: str
    corpus: str
    """SHA-256 of the text."""
    n_ctx: int
    options: str = ""
    """Everything else that changes the result, as a short stable string."""
    engine: str = field(default_factory=lambda: library.engine())

    @property
    def row(self) -> dict[str, str | int]:
        """The columns that hold it."""
        return _row(self, "options")


@dataclass(frozen=True, slots=True)
class CalibrationRecord:
    """An importance matrix, or input covariances, that was computed or imported; the file itself is in the home."""

    model: str
    fingerprint: str
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int
    origin: Literal["computed", "imported"]


@dataclass(frozen=True, slots=True)
class ImatrixProgress:
    """An unfinished computation: `ImatrixState.to_bytes()` after `n_chunks_done` chunks."""

    n_chunks_done: int
    state: bytes


@dataclass(frozen=True, slots=True)
class ScoreKey:
    """What chunk scores are filed under, besides the chunk's index."""

    model: str
    corpus: str
    """SHA-256 of the text."""
    n_ctx: int
    candidate: str
    """"base", "null control" or something that identifies the file's content."""
    engine: str = field(default_factory=lambda: library.engine())

    @property
    def row(self) -> dict[str, str | int]:
        """The columns that hold it."""
        return _row(self, "candidate")


@dataclass(frozen=True, slots=True)
class EvalKey:
    """What answers of an evaluation are filed under, besides the item's number."""

    model: str
    evaluation: str
    """The evaluation, its version, and the SHA-256 of what is asked."""
    candidate: str
    """"base", "base's text" or something that identifies the file's content."""
    engine: str = field(default_factory=lambda: library.engine())

    @property
    def row(self) -> dict[str, str | int]:
        """The columns that hold it."""
        return _row(self, "candidate")


@dataclass(frozen=True, slots=True)
class TimingKey:
    """What timings are filed under, besides the name of what was timed."""

    structure: str
    """`analysis.speed.structure`."""
    kernels: str
    """`ggml.timing.kernels`: the processor and the llama.cpp."""
    n_threads: int
    n_gpu_layers: int
    definition_version: int


@dataclass(frozen=True, slots=True)
class SwapKey:
    """What scores of mixes are filed under, besides the mix and the chunk."""

    model: str
    imatrix: str
    """Fingerprint of the importance matrix the quantizers saw, or ""."""
    corpus: str
    """SHA-256 of the text."""
    n_ctx: int
    kernels: Literal["as built", "values", "file"]
    """Set in memory with the types' own kernels, or with values alone; or a file that was built and loaded as usual."""
    base_kernels: Literal["as stored", "finer"]
    """How the base runs whose log-probabilities they are compared with."""
    engine: str = field(default_factory=lambda: library.engine())
    rounding: str = ""
    """`Rounding.bytes_key` of what was swapped in."""
    rest: str = ""
    """The type of few bits that the base's weights rest in; "" where they are as fine as stored."""

    @property
    def run(self) -> str:
        """The key's short form."""
        parts = [self.model, self.imatrix, self.corpus, str(self.n_ctx), self.kernels, self.base_kernels]
        parts += [self.engine, *([self.rounding] if self.rounding else []), *([f"resting in {self.rest}"] if self.rest else [])]
        return sha256("\n".join(parts))[:24]


def _row(key: MeasurementKey | ImatrixKey | ScoreKey | EvalKey, column: str) -> dict[str, str | int]:
    row = asdict(key)
    engine = row.pop("engine")
    return {**row, column: f"{row[column]}{ENGINE}{engine}"}


@dataclass(frozen=True, slots=True)
class StrategyRecord:
    """A strategy as its file's text; `strategy.file.loads(document)` reads it."""

    fingerprint: str
    model: str
    method: str
    document: str

    @classmethod
    def of(cls, model: str, method: str, document: str) -> StrategyRecord:
        """A record under the SHA-256 of its text."""
        return cls(sha256(document), model, method, document)


@dataclass(frozen=True, slots=True)
class VerdictRecord:
    """A verdict under the SHA-256 of its content."""

    fingerprint: str
    verdict: Verdict
    strategy: str | None
    """Fingerprint of the strategy that was verified, where it is known."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where a file was seen; the key is that of `Store.record_location`."""

    key: str
    path: Path
    seen: float
    """Wall-clock seconds."""


@dataclass(frozen=True, slots=True)
class ResultCounts:
    """How much is known of a model."""

    n_strategies: int
    n_verdicts: int
    n_swept: int
    """(tensor, type) cells scored in memory, of the run that has the most."""
    n_mixes: int
    """Mixes of several tensors scored in memory, of the run that has the most; those that restate the base left out."""
