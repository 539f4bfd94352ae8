"""Probes: how much each tensor's error matters to the model, measured in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

from quantailor.analysis import sensitivity as analysis
from quantailor.analysis.sensitivity import NULL_MIX, ProbeGroup, Scores
from quantailor.control import Control
from quantailor.errors import InferenceError, StrategyError
from quantailor.ggml import library
from quantailor.records import Mix, Sensitivity
from quantailor.service import knowledge, tasks
from quantailor.service.knowledge import STORED, WEIGHING
from quantailor.service.planning import Measured, measured
from quantailor.service.results import ProbeResult
from quantailor.service.scoring import Scoring, scoring
from quantailor.service.stages import Stages
from quantailor.service.whole_mixes import score_whole_mixes
from quantailor.service.work import known_types, measure
from quantailor.service.workspace import OpenedModel, Workspace, quantizable_tensors

FIRST_CHUNKS = 4
"""Chunks of the first round; each further round doubles them."""
ENOUGH_SHARE = 0.9
"""Probing stops when this share of the tensors that did not drown reach the target error."""
STEPS_UP = ("Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
"""Tried in turn where a probe's KLD is above `analysis.MAX_PROBE_KLD`."""
STEPS_DOWN = ("IQ2_XXS", "IQ1_S")
"""Tried in turn where a probe drowns."""


def probe(workspace: Workspace, task: tasks.ProbeTask, stages: Stages) -> ProbeResult:
    """Probe every tensor or group, then measure whole mixes and anchors; what the store has is not measured again."""
    known_types(task.types)
    with workspace.model(task.base) as model:
        imatrix = workspace.choose_imatrix(model, task.imatrix)
        found = measured_with(workspace, model, task, task.types, stages)
        with scoring(workspace, model, imatrix, task) as at:
            before = n_scored(at)
            null_control(at, model, at.first(task.chunks), stages)
            _Probes(at, model, found, task).run(stages)
            if task.weighing:
                _weigh(at, model, task, stages)
            score_whole_mixes(at, model, imatrix, found, task, stages)
            known = knowledge.load(workspace, model, at.key.imatrix, found.cells, key=at.key)
            if known is None:
                raise InferenceError(f"no tensor of {model.source.name} takes part in its graph", remedy="Check the model with `inspect`")
            return ProbeResult(
                model_fingerprint=model.fingerprint,
                imatrix_fingerprint=at.key.imatrix or None,
                corpus_name=at.corpus.name,
                n_ctx=task.n_ctx,
                n_chunks=known.n_chunks,
                base_kernels=at.key.base_kernels,
                floor_nats=known.floor_nats,
                stored_nats=known.stored_nats,
                n_scored_before=before,
                n_scored=n_scored(at),
                sensitivities=tuple(known.sensitivities.values()),
                curve=known.curve,
            )


def measured_with(
    workspace: Workspace, model: OpenedModel, task: tasks.ProbeTask | tasks.SweepTask, types: Sequence[str], stages: Stages
) -> Measured:
    """The weight errors to work with. Where nothing is measured yet all types are, else those of `types` that are missing."""
    try:
        before = measured(workspace, model, task.imatrix)
        known, exhaustive = {cell.type_name for cell in before.cells}, before.is_exhaustive
    except StrategyError:
        known, exhaustive = set(), False
    more = tasks.MeasureTask(
        base=task.base,
        types=tuple(sorted(known | set(types))) if known else (),
        exhaustive=exhaustive,
        imatrix=task.imatrix,
        allow_requantize=bool(known),  # whoever measured it allowed that
        n_threads=task.n_threads,
    )
    measure(workspace, more, stages)
    return measured(workspace, model, task.imatrix, exhaustive if known else None)


def n_scored(at: Scoring) -> int:
    """Scores of mixes in memory that the store has, (mix, chunk) pairs."""
    return sum(map(len, at.workspace.store.mix_scores(at.key).values()))


def null_control(at: Scoring, model: OpenedModel, indexes: Sequence[int], stages: Stages) -> None:
    """Score the base against itself; and, where it rests in a finer type, as it is stored."""
    mixes = [NULL_MIX]
    control = stages.begin("null control")
    at.run(mixes, indexes, control)
    if at.key.base_kernels == "finer":
        tensors = [tensor for tensor in quantizable_tensors(model.source) if tensor.name in at.scorer.weights]
        mix = knowledge.stored_mix(tensors)
        at.workspace.store.record_mixes(model.fingerprint, STORED, [mix])
        at.run([mix], indexes[:FIRST_CHUNKS], control)


class _Probes:
    """The rounds of one probe command."""

    def __init__(self, at: Scoring, model: OpenedModel, found: Measured, task: tasks.ProbeTask) -> None:
        self._at, self._task = at, task
        self._errors = knowledge.errors_by_tensor(found.cells)
        tensors = [tensor for tensor in quantizable_tensors(model.source) if tensor.name in at.scorer.weights]
        groups = analysis.groups_of(tensors, task.group)
        self._types = {group: self._probe_types(group) for group in groups}
        self._floor, _ = knowledge.floor_of(at.workspace, at.key, self._scores())

    def run(self, stages: Stages) -> None:
        """Rounds of more and more chunks, until the errors are small enough or the chunks are used up."""
        n_chunks = min(FIRST_CHUNKS, self._task.chunks)
        while True:
            indexes = self._at.first(n_chunks)
            control = stages.begin(f"probes, {len(indexes)} chunks")
            self._score(indexes, control)
            self._adapt(indexes, control)
            if n_chunks >= self._task.chunks or len(indexes) < n_chunks or self._is_precise():
                return
            n_chunks = min(2 * n_chunks, self._task.chunks)

    def _score(self, indexes: Sequence[int], control: Control) -> None:
        self._at.run([group.mix(name) for group, types in self._types.items() for name in types], indexes, control)

    def _probe_types(self, group: ProbeGroup) -> list[str]:
        """The wanted types that all of the group can take; where none tells alpha, the nearest that does."""
        known = [set(self._errors.get(name, ())) for name in group.tensors]
        common = set.intersection(*known) if known else set()
        types = [name for name in known_types(self._task.types) if name in common]
        qtypes = library.types()
        if not any(qtypes[name].bits_per_weight < ALPHA_BITS for name in types):
            smaller = [name for name in common if qtypes[name].is_quantized and qtypes[name].bits_per_weight >= LEAST_BITS]
            types += sorted(smaller, key=lambda name: qtypes[name].bits_per_weight)[:1]
        return list(dict.fromkeys(types))

    def _adapt(self, indexes: Sequence[int], control: Control) -> None:
        """Try other types where the largest probe is no small perturbation, or drowns."""
        for steps, is_wrong in ((STEPS_UP, self._is_too_large), (STEPS_DOWN, self._is_drowned)):
            for step in steps:
                scores = self._scores()
                wrong = [group for group in self._types if is_wrong(group, scores)]
                changed = [group for group in wrong if self._add(group, step)]
                if not wrong:
                    break
                self._at.run([group.mix(step) for group in changed], indexes, control)

    def _add(self, group: ProbeGroup, type_name: str) -> bool:
        if type_name in self._types[group] or not all(type_name in self._errors.get(name, ()) for name in group.tensors):
            return False
        self._types[group].append(type_name)
        return True

    def _is_too_large(self, group: ProbeGroup, scores: Scores) -> bool:
        """Whether no probe of the group tells alpha from a small perturbation."""
        qtypes = library.types()
        telling = [name for name in self._types[group] if qtypes[name].bits_per_weight < _NOISE_BITS]
        klds = [analysis.mean_kld(scores[group.mix(name).id]).value for name in telling]
        return bool(klds) and min(klds) > analysis.MAX_PROBE_KLD

    def _is_drowned(self, group: ProbeGroup, scores: Scores) -> bool:
        klds = [analysis.mean_kld(scores[group.mix(name).id]) for name in self._types[group]]
        return all(analysis.is_drowned(kld, self._floor) for kld in klds)

    def _is_precise(self) -> bool:
        found = [item for item in self._sensitivities() if item.status == "measured" and item.alpha.value > 0]
        precise = [item for item in found if item.alpha.se <= self._task.target_error * item.alpha.value]
        return len(precise) >= math.ceil(ENOUGH_SHARE * len(found))

    def _sensitivities(self) -> list[Sensitivity]:
        scores, qtypes = self._scores(), library.types()
        found: list[Sensitivity] = []
        for group, types in self._types.items():
            found += analysis.sensitivity(group, self._errors, scores, qtypes, types, floor_nats=self._floor)[:1]
        return found

    def _scores(self) -> Scores:
        return self._at.workspace.store.mix_scores(self._at.key)


ALPHA_BITS = 5.0
"""A probe of fewer bits tells alpha; from `_NOISE_BITS` on it tells the kernel's noise."""
_NOISE_BITS = 6.0
LEAST_BITS = 2.5


def _weigh(at: Scoring, model: OpenedModel, task: tasks.ProbeTask, stages: Stages) -> None:
    """Probe random halves of all tensors together, for those that drown alone."""
    names = [tensor.name for tensor in quantizable_tensors(model.source) if tensor.name in at.scorer.weights]
    least = 2 * len(names)  # of a half and its complement, the second tells only the sum
    if task.weighing < least:
        raise InferenceError(
            f"{task.weighing} halves cannot weigh {len(names)} tensors", remedy=f"Ask for at least {least} with --weighing"
        )
    mixes: list[Mix] = analysis.weighing_mixes(names, task.types[0], task.weighing, seed=0)
    at.workspace.store.record_mixes(model.fingerprint, WEIGHING, mixes)
    at.run(mixes, at.first(task.chunks), stages.begin("weighing"))
