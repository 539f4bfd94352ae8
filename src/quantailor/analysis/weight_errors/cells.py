"""Cells to measure, as work that can be done here or elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from quantailor.analysis.importance.imatrix import error_weights
from quantailor.analysis.rounding.rounding import Rounding
from quantailor.analysis.weight_errors.measure import MeasureSettings, expected_work, measure_cells
from quantailor.control import Control
from quantailor.models.opening import open_model
from quantailor.models.source import ModelSource
from quantailor.processes.crews import Bench, ModelFiles, Work
from quantailor.records import TensorInfo, WeightError

CellTask = tuple[TensorInfo, str]
"""A tensor at the type of that name."""


@dataclass(frozen=True, eq=False)
class CellWork(Work[CellTask, WeightError]):
    """The errors of a model's tensors at types."""

    model: ModelFiles
    rounding: Rounding
    settings: MeasureSettings
    n_threads: int | None = None
    source: ModelSource | None = None
    """The model where it is open already; it does not travel."""
    is_apart: ClassVar[bool] = False

    def __getstate__(self) -> Mapping[str, object]:
        return {**self.__dict__, "source": None}

    def bench(self) -> _CellBench:
        """Open the model. Raises ModelError where it cannot be read."""
        return _CellBench(self)

    def on_threads(self, n_threads: int) -> CellWork:
        """The same with so many threads, unless it says how many."""
        return replace(self, n_threads=self.n_threads or n_threads)

    def key(self, task: CellTask) -> tuple[str, str]:
        """The names of the tensor and the type."""
        return task[0].name, task[1]

    def key_of(self, item: WeightError) -> tuple[str, str]:
        """The same of a cell."""
        return item.tensor, item.type_name

    def group(self, task: CellTask) -> str:
        """A tensor's rows are read once for all types that are measured together."""
        return task[0].name

    def weight(self, task: CellTask) -> float:
        """Expected work in weights, as progress counts it."""
        return expected_work(task[0], 1, self.settings)

    def label(self, task: CellTask) -> str:
        """The tensor, as progress names it."""
        return task[0].name


class _CellBench(Bench[CellTask, WeightError]):
    """An open model."""

    def __init__(self, work: CellWork) -> None:
        self._work, self._source = work, work.source or open_model(work.model.path)

    def facts(self) -> object:
        return None

    def do(self, tasks: Sequence[CellTask], *, control: Control) -> Iterator[WeightError]:
        work = self._work
        return measure_cells(
            self._source,
            tasks,
            weights_of=lambda tensor: error_weights(work.rounding.imatrix, tensor),
            rounding=work.rounding,
            settings=work.settings,
            seed=work.model.fingerprint,
            n_threads=work.n_threads,
            control=control,
        )

    def close(self) -> None:
        if self._work.source is None:
            self._source.close()
