"""A model whose tensors are arrays in memory, and its weight errors, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantailor.analysis.importance.error_weights import ErrorWeights
from quantailor.analysis.rounding.rounding import Rounding
from quantailor.analysis.weight_errors.measure import MeasureSettings, measure_cells
from quantailor.control import QUIET, Control
from quantailor.errors import TensorNotFoundError
from quantailor.ggml import codec, library
from quantailor.models.source import ModelSource
from quantailor.numerics import Bytes, Floats
from quantailor.records import MetadataValue, TensorInfo, WeightError


@dataclass
class MemorySource:
    """A model held in memory: `MemorySource({"blk.0.attn_q.weight": array})`. Arrays are float32 or float16."""

    arrays: Mapping[str, npt.NDArray[np.floating]]
    architecture: str = "llama"
    name: str = "in memory"
    location: str = ":memory:"
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    config_files: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        return [self.tensor(name) for name in self.arrays]

    def tensor(self, name: str) -> TensorInfo:
        array = self._array(name)
        return TensorInfo(name, tuple(array.shape), "F16" if array.dtype == np.float16 else "F32", array.nbytes)

    def raw_rows(self, name: str, start: int, stop: int) -> Bytes:
        """Rows as they are stored, (stop - start, row_bytes)."""
        array = self._array(name)
        rows = np.ascontiguousarray(array.reshape(-1, array.shape[-1])[start:stop])
        return rows.view(np.uint8).reshape(len(rows), -1)

    def rows(self, name: str, start: int, stop: int) -> Floats:
        """Rows as weights, (stop - start, n_cols)."""
        info = self.tensor(name)
        return codec.dequantize(self.raw_rows(name, start, stop), library.types()[info.type_name], info.n_cols)

    def close(self) -> None:
        """Nothing to release."""

    def _array(self, name: str) -> npt.NDArray[np.floating]:
        try:
            return self.arrays[name]
        except KeyError:
            raise TensorNotFoundError(f"{self.location} has no tensor {name}") from None


def measure_model(
    source: ModelSource,
    names: Sequence[str],
    type_names: Sequence[str],
    *,
    weights_of: Callable[[TensorInfo], ErrorWeights] | None = None,
    rounding: Rounding | None = None,
    done: Callable[[str, str], bool] | None = None,
    settings: MeasureSettings | None = None,
    seed: str | None = None,
    n_threads: int | None = None,
    control: Control = QUIET,
) -> Iterator[WeightError]:
    """Yield the cells of `names` x `type_names` for which `done(tensor, type)` is not true, tensor by tensor.

    Cells that a tensor cannot have come with the reason in `unavailable`. A tensor counts as held by the
    importance matrix when `weights_of` gives weights for its quantizer, which are used unless `rounding` says
    how weights become codes. `seed` is the model's fingerprint, computed here unless given. Interrupting between
    cells loses at most one batch of types of one tensor.

    Raises:
        TensorNotFoundError, TypeUnavailableError: an unknown name.
        NonFiniteWeightError: a tensor holds NaN, Inf or huge weights; the message counts them.
        ImatrixError: weights that do not fit the tensor.
        Paused, Cancelled: from `control`.
    """
    wanted = [library.type_named(name).name for name in type_names]
    tensors = [source.tensor(name) for name in names]
    tasks = [(tensor, name) for tensor in tensors for name in wanted if done is None or not done(tensor.name, name)]
    yield from measure_cells(
        source, tasks, weights_of=weights_of, rounding=rounding, settings=settings, seed=seed, n_threads=n_threads, control=control
    )
