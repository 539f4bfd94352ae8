"""The sweep: every tensor through every type, all others as they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from quantailor.analysis.sensitivity import mean_kld
from quantailor.errors import StrategyError
from quantailor.ggml import library
from quantailor.records import Mix, TensorInfo
from quantailor.service import knowledge, tasks
from quantailor.service.knowledge import Knowledge
from quantailor.service.planning import UNUSUAL_TYPES, Measured
from quantailor.service.probing import measured_with, null_control
from quantailor.service.results import SweepCellReport, SweepResult
from quantailor.service.scoring import Scoring, scoring
from quantailor.service.stages import Stages
from quantailor.service.work import chosen_tensors, known_types
from quantailor.service.workspace import OpenedModel, Workspace

SAMPLE = 8
"""Tensors at which a type is tried before the rest is skipped."""
CERTAIN_SD = 0.15
"""A type whose sampled cells lie within this of what the probes say (standard deviation of the logarithm) is certain."""


@dataclass(frozen=True)
class _Cell:
    tensor: TensorInfo
    type_name: str

    @property
    def mix(self) -> Mix:
        return Mix.of({self.tensor.name: self.type_name})


def sweep(workspace: Workspace, task: tasks.SweepTask, stages: Stages) -> SweepResult:
    """Measure every missing cell, chunk by chunk; each score is stored as it comes."""
    with workspace.model(task.base) as model:
        imatrix = workspace.choose_imatrix(model, task.imatrix)
        found = measured_with(workspace, model, task, known_types(task.types) if task.types else (), stages)
        with scoring(workspace, model, imatrix, task) as at:
            cells = _cells(at, model, found, task)
            indexes = at.first(task.chunks)
            before = {mix for mix, rows in workspace.store.mix_scores(at.key).items() if set(indexes) <= {row.index for row in rows}}
            null_control(at, model, indexes, stages)
            chosen = _uncertain(at, model, found, cells, indexes, stages) if task.only_uncertain else cells
            at.run([cell.mix for cell in chosen], indexes, stages.begin("sweep"))
            return _result(at, model, found, cells, indexes, before)


def _cells(at: Scoring, model: OpenedModel, found: Measured, task: tasks.SweepTask) -> list[_Cell]:
    """Tensor by tensor, the quantized types it can take, small ones first."""
    qtypes = library.types()
    wanted = known_types(task.types) if task.types else tuple(name for name in qtypes if name not in UNUSUAL_TYPES)
    available = knowledge.errors_by_tensor(found.cells)
    tensors = [tensor for tensor in chosen_tensors(model.source, task.tensors) if tensor.name in at.scorer.weights]
    return [
        _Cell(tensor, name)
        for tensor in tensors
        for name in sorted(wanted, key=lambda name: qtypes[name].bits_per_weight)
        if name in available.get(tensor.name, ()) and qtypes[name].is_quantized
    ]


def _uncertain(
    at: Scoring, model: OpenedModel, found: Measured, cells: Sequence[_Cell], indexes: Sequence[int], stages: Stages
) -> list[_Cell]:
    """The cells whose outcome the probes do not tell: of types that a sample of tensors shows to differ from the prediction."""
    known = knowledge.load(at.workspace, model, at.key.imatrix, found.cells, key=at.key)
    if known is None:
        raise StrategyError(
            "there are no probes that could predict a cell", remedy="Run `quantailor probe` first, or leave out --only-uncertain"
        )
    by_type: dict[str, list[_Cell]] = {}
    for cell in cells:
        by_type.setdefault(cell.type_name, []).append(cell)
    control = stages.begin("sample of the sweep")
    chosen: list[_Cell] = []
    for rows in by_type.values():
        sample = rows[:: max(1, len(rows) // SAMPLE)]
        at.run([cell.mix for cell in sample], indexes, control)
        chosen += sample if _agrees(at, known, sample) else rows
    order = {(cell.tensor.name, cell.type_name): number for number, cell in enumerate(cells)}
    return sorted(chosen, key=lambda cell: order[cell.tensor.name, cell.type_name])


def _agrees(at: Scoring, known: Knowledge, sample: Sequence[_Cell]) -> bool:
    scores = at.workspace.store.mix_scores(at.key)
    ratios = []
    for cell in sample:
        predicted, value = _predicted(known, cell), mean_kld(scores[cell.mix.id]).value
        if predicted and value > 0:
            ratios.append(math.log(value / predicted))
    return len(ratios) > 2 and math.sqrt(statistics.fmean(ratio**2 for ratio in ratios)) <= CERTAIN_SD


def _predicted(known: Knowledge | None, cell: _Cell) -> float | None:
    if known is None or known.sensitivities.get(cell.tensor.name) is None:
        return None
    error = known.errors.get(cell.tensor.name, {}).get(cell.type_name, 0.0)
    return known.modelled(cell.tensor.name, library.types()[cell.type_name], error).value or None


def _result(
    at: Scoring, model: OpenedModel, found: Measured, cells: Sequence[_Cell], indexes: Sequence[int], before: set[str]
) -> SweepResult:
    known = knowledge.load(at.workspace, model, at.key.imatrix, found.cells, key=at.key)
    reports = [_report(known, cell) for cell in cells]
    return SweepResult(
        model_fingerprint=model.fingerprint,
        imatrix_fingerprint=at.key.imatrix or None,
        corpus_name=at.corpus.name,
        n_ctx=at.key.n_ctx,
        n_chunks=len(indexes),
        n_cells=len(cells),
        n_already_measured=sum(cell.mix.id in before for cell in cells),
        n_skipped=sum(report.measured is None for report in reports),
        cells=tuple(reports),
    )


def _report(known: Knowledge | None, cell: _Cell) -> SweepCellReport:
    qtype = library.types()[cell.type_name]
    return SweepCellReport(
        tensor=cell.tensor.name,
        type_name=cell.type_name,
        bits_per_weight=qtype.bits_per_weight,
        size_bytes=qtype.tensor_bytes(cell.tensor),
        measured=None if known is None else known.cells.get((cell.tensor.name, cell.type_name)),
        predicted_nats=_predicted(known, cell),
    )
