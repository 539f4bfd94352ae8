"""The sweep: every tensor through every type, all others as they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from quantailor.analysis.scores.resting import is_told
from quantailor.analysis.sensitivity import mean_kld
from quantailor.costs.needs import Needs
from quantailor.errors import StrategyError
from quantailor.evidence.grounds import command_line
from quantailor.evidence.knowledge import Knowledge, errors_by_tensor, load_knowledge
from quantailor.evidence.measurements import Measured, chosen_tensors, usual_types
from quantailor.evidence.roundings import probing_rounding
from quantailor.ggml import library
from quantailor.records import Mix, SwapCell, TensorInfo
from quantailor.session import OpenedModel, Workspace
from quantailor.steps.measure import known_types
from quantailor.steps.probe import null_control
from quantailor.steps.scoring import Scoring, ScoringStep, measured_with, scoring
from quantailor.steps.stages import Stages
from quantailor.steps.step import StepResult

DEFAULT_SWEEP_CHUNKS = 8


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
class SweepResult(StepResult):
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


SAMPLE = 8
"""Tensors at which a type is tried before the rest is skipped."""
CERTAIN_SD = 0.15
"""A type whose sampled cells lie within this of what the probes say (standard deviation of the logarithm) is certain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepStep(ScoringStep[SweepResult], kind="sweep", result=SweepResult):
    """Every tensor through every type, all others as they are."""

    units: ClassVar[Mapping[str, str]] = {**ScoringStep.units, "sample of the sweep": "chunks", "sweep": "chunks"}

    chunks: int = DEFAULT_SWEEP_CHUNKS
    types: tuple[str, ...] = ()
    """Empty for all usual ones."""
    tensors: tuple[str, ...] = ()
    """Names, roles or patterns; empty for all."""
    only_uncertain: bool = False
    """Skip cells that the probes predict closely enough."""

    def check(self, workspace: Workspace) -> None:
        """The text and the types. Raises CorpusError, TypeUnavailableError."""
        super(SweepStep, self).check(workspace)
        known_types(self.types)

    def run(self, workspace: Workspace, stages: Stages) -> SweepResult:
        """Measure every missing cell, chunk by chunk; each score is stored as it comes."""
        with workspace.model(self.base) as model:
            workspace.require_scored(model, self.n_ctx)
            rounding = probing_rounding(workspace, model, self.imatrix, self.rounding, self.covariances, stages.warn)
            measurement = measured_with(workspace, model, self, rounding, known_types(self.types) if self.types else (), stages)
            with scoring(workspace, model, rounding, self, stages) as at:
                cells = _cells(at, model, measurement, self)
                indexes = at.first(self.chunks)
                scores = workspace.store.mix_scores(at.key)
                before = {mix for mix, rows in scores.items() if set(indexes) <= {row.index for row in rows}}
                null_control(at, model, indexes, stages)
                chosen = _uncertain(at, model, measurement, cells, indexes, stages) if self.only_uncertain else cells
                at.run([cell.mix for cell in chosen], indexes, stages.begin("sweep"))
                return _result(at, model, measurement, cells, indexes, before)

    def needs(self, workspace: Workspace) -> Needs:
        """As `ScoringStep.needs_on`, on its chunks."""
        return self.needs_on(workspace, self.chunks)


@dataclass(frozen=True)
class _Cell:
    tensor: TensorInfo
    type_name: str

    @property
    def mix(self) -> Mix:
        return Mix.of({self.tensor.name: self.type_name})


def _cells(at: Scoring, model: OpenedModel, found: Measured, step: SweepStep) -> list[_Cell]:
    """Tensor by tensor, the quantized types it can take, small ones first."""
    qtypes = library.types()
    wanted = known_types(step.types) if step.types else usual_types()
    available = errors_by_tensor(found.cells)
    tensors = [tensor for tensor in chosen_tensors(model.source, step.tensors) if tensor.name in at.scorer.weights]
    return [
        _Cell(tensor, name)
        for tensor in tensors
        for name in sorted(wanted, key=lambda name: qtypes[name].bits_per_weight)
        if name in available.get(tensor.name, ()) and qtypes[name].is_quantized and is_told(name, at.key.rest)
    ]


def _uncertain(
    at: Scoring, model: OpenedModel, found: Measured, cells: Sequence[_Cell], indexes: Sequence[int], stages: Stages
) -> list[_Cell]:
    """The cells whose outcome the probes do not tell: of types that a sample of tensors shows to differ from the prediction."""
    known = load_knowledge(at.workspace, model, found.key, found.cells, evidence=at.key)
    if known is None:
        raise StrategyError(
            "there are no probes that could predict a cell",
            remedy=f"Run `{command_line(at.workspace, 'probe', model.source.location)}` first, or leave out --only-uncertain",
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
    return known.modelled(cell.tensor.name, library.types()[cell.type_name], error) or None


def _result(
    at: Scoring, model: OpenedModel, found: Measured, cells: Sequence[_Cell], indexes: Sequence[int], before: set[str]
) -> SweepResult:
    known = load_knowledge(at.workspace, model, found.key, found.cells, evidence=at.key)
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
