"""The error of every tensor at every type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from quantailor.analysis.weight_errors.cells import CellWork
from quantailor.analysis.weight_errors.measure import LARGE_OUTPUT_SES, OUTPUT_SES, MeasureSettings
from quantailor.analysis.weight_errors.weight_error import DEFINITION_VERSION
from quantailor.costs.model_size import is_large
from quantailor.evidence.measurements import chosen_tensors
from quantailor.evidence.roundings import measuring_rounding
from quantailor.ggml import library
from quantailor.processes.crews import ModelFiles
from quantailor.qtypes import IMATRIX_EXEMPT
from quantailor.records import WeightError
from quantailor.session import Workspace
from quantailor.steps.stages import Stages
from quantailor.steps.step import Screen, StepResult, WeightedStep
from quantailor.store import MeasurementKey


@dataclass(frozen=True, slots=True)
class MeasureResult(StepResult):
    """What the store holds for a model after measuring."""

    model_fingerprint: str
    imatrix_fingerprint: str | None
    settings: str
    rounding: str
    """"plain" or "compensated"."""
    covariances_fingerprint: str | None
    """Its beginning; None where none were at hand."""
    n_tensors: int
    n_types: int
    n_cells: int
    n_unavailable: int
    n_already_measured: int
    unseen_experts: Mapping[str, int]
    """Tensor -> experts that no calibration token reached."""
    without_importances: tuple[str, ...] = ()
    """Tensors for which the importance matrix has nothing that fits: all their columns count alike."""
    cells: tuple[WeightError, ...] = ()
    """Without quantiles and histograms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureStep(WeightedStep[MeasureResult], kind="measure", result=MeasureResult):
    """Measure what each type costs in each tensor; plain rounding unless told otherwise."""

    units: ClassVar[Mapping[str, str]] = {"measure": "weights"}
    measures: ClassVar[bool] = True
    screen: ClassVar[Screen | None] = "measure"

    base: str
    types: tuple[str, ...] = ()
    """Empty for all."""
    tensors: tuple[str, ...] = ()
    """Names, roles or patterns; empty for all."""
    exhaustive: bool = False
    allow_requantize: bool = False

    def check(self, workspace: Workspace) -> None:
        """The types. Raises TypeUnavailableError."""
        super(MeasureStep, self).check(workspace)
        known_types(self.types)

    def run(self, workspace: Workspace, stages: Stages) -> MeasureResult:
        """Measure every missing cell and store each as it comes."""
        type_names = known_types(self.types)
        with workspace.model(self.base, allow_requantize=self.allow_requantize) as model:
            settings = MeasureSettings(exhaustive=self.exhaustive, output_ses=LARGE_OUTPUT_SES if is_large(model.source) else OUTPUT_SES)
            for words in workspace.reservations(model):
                stages.warn(words)
            imatrix = workspace.imatrices.choose(model, self.imatrix, stages.warn)
            rounding = measuring_rounding(workspace, model, imatrix, self.rounding, self.covariances)
            tensors = [tensor.name for tensor in chosen_tensors(model.source, self.tensors)]
            lacking = tuple(name for name in tensors if imatrix is not None and name not in {*imatrix.entries, *IMATRIX_EXEMPT})
            fingerprint, how = imatrix.fingerprint if imatrix else "", settings.key_with(rounding.key)
            key = MeasurementKey(model.fingerprint, fingerprint, how, DEFINITION_VERSION, rounding=rounding.key)
            before = workspace.store.recorded_cells(key)
            files = ModelFiles(model.path, model.fingerprint, model.files)
            tasks = [(model.source.tensor(name), each) for name in tensors for each in type_names if (name, each) not in before]
            work = CellWork(files, rounding, settings, self.compute.n_threads, model.source)
            with stages.executor.on(work) as crew:
                for cell in crew.do(tasks, control=stages.begin("measure")):
                    workspace.store.record_cells(key, [cell])
            return replace(_measure_result(workspace, key, frozenset(tensors), type_names, before), without_importances=lacking)


def _measure_result(
    workspace: Workspace, key: MeasurementKey, names: Collection[str], type_names: Collection[str], before: Collection[tuple[str, str]]
) -> MeasureResult:
    cells = [cell for cell in workspace.store.cells(key, distributions=False) if cell.tensor in names and cell.type_name in type_names]
    return MeasureResult(
        model_fingerprint=key.model,
        imatrix_fingerprint=key.imatrix or None,
        settings=key.settings,
        rounding="compensated" if key.swapped else "plain",
        covariances_fingerprint=key.covariances or None,
        n_tensors=len(names),
        n_types=len(type_names),
        n_cells=len(cells),
        n_unavailable=sum(cell.unavailable is not None for cell in cells),
        n_already_measured=sum((cell.tensor, cell.type_name) in before for cell in cells),
        unseen_experts=dict(Counter({cell.tensor: cell.n_unseen_experts for cell in cells if cell.n_unseen_experts})),
        cells=tuple(cells),
    )


def known_types(names: Collection[str]) -> tuple[str, ...]:
    """The types asked for, as ggml spells them; all for none. Raises TypeUnavailableError for an unknown one."""
    return tuple(dict.fromkeys(library.type_named(name).name for name in names)) or tuple(library.types())
