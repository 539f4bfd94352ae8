"""Probes: how much each tensor's error matters to the model, measured in memory."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from quantailor.analysis import sensitivity as analysis
from quantailor.analysis.rounding.rounding import Rounding
from quantailor.analysis.scores.resting import RESTING, floor_mixes, is_told
from quantailor.analysis.sensitivity import NULL_MIX, ProbeGroup, Scores
from quantailor.control import Control, Passes, TimeUp
from quantailor.costs.model_size import QUICK_TYPES, is_large
from quantailor.costs.needs import Needs
from quantailor.errors import InferenceError
from quantailor.evidence.grounds import ANCHOR, CURVE, STORED, WEIGHING, file_key
from quantailor.evidence.knowledge import errors_by_tensor, floor_of, load_knowledge, stored_mix
from quantailor.evidence.measurements import Measured, usual_table
from quantailor.evidence.roundings import probing_rounding
from quantailor.ggml import library
from quantailor.making import building
from quantailor.present.words import plural
from quantailor.records import Curve, Grounds, Mix, Sensitivity, Strategy, TensorCells, TensorChoice, TensorInfo
from quantailor.session import OpenedModel, Workspace, quantizable_tensors
from quantailor.steps.measure import known_types
from quantailor.steps.scoring import Scoring, ScoringStep, measured_with, scoring
from quantailor.steps.stages import Stages
from quantailor.steps.step import StepResult
from quantailor.strategy.random_mixes import curve_mixes

DEFAULT_PROBE_TYPES = ("Q2_K", "Q6_K", "Q8_0")
"""One that tells alpha, and one for each size of the blocks in which kernels round inputs."""
THOROUGH_PROBE_TYPES = (*DEFAULT_PROBE_TYPES, "Q4_K", "IQ3_XXS", "IQ2_XXS", "IQ1_S")
"""From what tells most to what tells least."""
DEFAULT_PROBE_CHUNKS = 2
DEFAULT_MIXES = 16
DEFAULT_MIX_CHUNKS = 8
DEFAULT_ANCHORS = 3
MIX_CHUNKS_PER_PROBE_CHUNK = 4
Grouping = Literal["tensor", "role-depth", "role"]
ANCHOR_BITS = 8.5
"""Bits per weight of the first anchor, which is all Q8_0."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is probed, at most, where nobody says."""

    types: tuple[str, ...]
    chunks: int

    @property
    def mix_chunks(self) -> int:
        """Chunks of whole mixes."""
        return MIX_CHUNKS_PER_PROBE_CHUNK * self.chunks


USUAL_EFFORT = Effort(DEFAULT_PROBE_TYPES, DEFAULT_PROBE_CHUNKS)
TIMED_EFFORT = Effort(THOROUGH_PROBE_TYPES, 16)
"""Where time or passes are what limits."""


def effort(seconds: float | None, passes: int | None) -> Effort:
    """That of a limit of time or of passes, or of none."""
    return USUAL_EFFORT if seconds is None and passes is None else TIMED_EFFORT


@dataclass(frozen=True, slots=True)
class ProbeResult(StepResult):
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
    grounds: Grounds
    """What plans can stand on now."""


FIRST_CHUNKS = 1
"""Chunks of the first round; each further round doubles them."""
LEAST_CHUNKS = 4
"""Before so many, chunks do not tell how far they are apart, and so not whether there are enough."""
FEW_MIX_CHUNKS = 2
"""Of whole mixes where passes are few."""
ENOUGH_SHARE = 0.9
"""Probing stops when this share of the tensors that did not drown reach the target error."""
MANY_TENSORS = 4
"""From so many tensors to a role in a quarter of the depth these are probed before single tensors."""
ROUNDS: Mapping[Grouping, str] = {"role": "roles", "role-depth": "roles by depth", "tensor": "tensors"}
STEPS_UP = ("Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
"""Tried in turn where a probe's KLD is above `analysis.MAX_PROBE_KLD`."""
STEPS_DOWN = ("IQ2_XXS", "IQ1_S")
"""Tried in turn where a probe drowns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeStep(ScoringStep[ProbeResult], kind="probe", result=ProbeResult):
    """Measure how much each tensor's error matters to the model."""

    units: ClassVar[Mapping[str, str]] = {**ScoringStep.units, "probes": "chunks", "weighing": "chunks", "whole mixes": "chunks"}

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
    seconds: float | None = None
    """Probing stops then, wherever it is, and everything counts; one probe of every role is made in any case."""
    passes: int | None = None
    """Probing stops when so many chunks were run through the model with something quantized; what the store has does not count."""
    total_passes: int | None = None
    """The same with what the store has, so that a run that was stopped, or is made again, ends where one alone does."""

    def check(self, workspace: Workspace) -> None:
        """The text and the types. Raises CorpusError, TypeUnavailableError."""
        super(ProbeStep, self).check(workspace)
        known_types(self.types)

    @property
    def told(self) -> ProbeStep:
        """The same without what a base that rests at 8 bits does not tell: types of many bits, and how mixes do beside the stored base."""
        if self.rest == "16":
            return self
        types = tuple(name for name in known_types(self.types) if is_told(name, RESTING))
        return dataclasses.replace(self, types=types or DEFAULT_PROBE_TYPES[:1], mixes=0, anchors=0)

    def run(self, workspace: Workspace, stages: Stages) -> ProbeResult:
        """Probe every tensor or group, then measure whole mixes and anchors. Raises InferenceError where no tensor is in the graph."""
        if self != self.told:
            return self.told.run(workspace, stages)
        known_types(self.types)
        moment = None if self.seconds is None else time.monotonic() + self.seconds
        if self.seconds is not None:
            stages.limit(self.seconds)
        with workspace.model(self.base) as model:
            workspace.require_scored(model, self.n_ctx)
            rounding = probing_rounding(workspace, model, self.imatrix, self.rounding, self.covariances, stages.warn)
            measurement = measured_with(workspace, model, self, rounding, self.types, stages)
            try:
                with scoring(workspace, model, rounding, self, stages) as at:
                    before = n_scored(at)
                    if moment is None and self.passes is None and self.total_passes is None:
                        self._probe(at, model, rounding, measurement, stages)
                    else:
                        self._sharpen(at, model, rounding, measurement, stages, moment)
            except TimeUp as up:
                stages.note(f"{up}; everything that was scored counts")
            known = load_knowledge(workspace, model, measurement.key, measurement.cells, evidence=at.key)
            if known is None:
                raise InferenceError(f"no tensor of {model.source.name} takes part in its graph", remedy="Check the model with `inspect`")
            return ProbeResult(
                model_fingerprint=model.fingerprint,
                imatrix_fingerprint=at.key.imatrix or None,
                corpus_name=at.corpus.name,
                n_ctx=at.key.n_ctx,
                n_chunks=known.n_chunks,
                base_kernels=at.key.base_kernels,
                floor_nats=known.floor_nats,
                stored_nats=known.stored_nats,
                n_scored_before=before,
                n_scored=n_scored(at),
                sensitivities=tuple(known.sensitivities.values()),
                curve=known.curve,
                grounds=known.grounds,
            )

    def _probe(self, at: Scoring, model: OpenedModel, rounding: Rounding, found: Measured, stages: Stages) -> None:
        """Everything that was asked for, one after the other."""
        null_control(at, model, at.first(self.chunks), stages)
        probes = _Probes(at, model, found, self)
        n_chunks = min(FIRST_CHUNKS, self.chunks)
        while not probes.end_after(n_chunks, stages):
            n_chunks = min(2 * n_chunks, self.chunks)
        if self.weighing:
            _weigh(at, model, self, stages)
        score_whole_mixes(at, model, rounding, found, self, stages)

    def _sharpen(self, at: Scoring, model: OpenedModel, rounding: Rounding, found: Measured, stages: Stages, moment: float | None) -> None:
        """What helps a plan most comes first, and whole mixes grow along with the probes. Raises TimeUp."""
        one = at.first(FIRST_CHUNKS)
        null_control(at, model, one, stages)
        at = dataclasses.replace(at, passes=Passes(self.passes if self.total_passes is None else self.total_passes - n_passes(at)))
        other = [index for index in at.first(2 * FIRST_CHUNKS) if index not in one] or one
        rounds = first_rounds(quantizable_tensors(model.source), self)
        for number, (group, n_types, is_first, mix_chunks) in enumerate(rounds):
            if number and moment is not None:
                if number == 1 and time.monotonic() >= moment:
                    stages.warn("One probe of every role, and what comes before, took longer than --time allows; probing ends there.")
                stages = stages.until(moment)
            wanted = dataclasses.replace(self, group=group, types=self.types[:n_types])
            _Probes(at, model, found, wanted).score(one if is_first else other, stages.begin(f"probes, {ROUNDS[group]}"))
            if mix_chunks:
                few = dataclasses.replace(self, mix_chunks=min(self.mix_chunks, mix_chunks))
                score_whole_mixes(at, model, rounding, found, few, stages)
        n_chunks, is_last = FIRST_CHUNKS, False
        while not is_last:
            types = self.types if n_chunks >= LEAST_CHUNKS else self.types[: len(DEFAULT_PROBE_TYPES)]
            is_last = _Probes(at, model, found, dataclasses.replace(self, types=types)).end_after(n_chunks, stages)
            if n_chunks > FIRST_CHUNKS or is_last:
                mix_chunks = min(self.mix_chunks, MIX_CHUNKS_PER_PROBE_CHUNK * n_chunks)
                score_whole_mixes(at, model, rounding, found, dataclasses.replace(self, mix_chunks=mix_chunks), stages)
            n_chunks = min(2 * n_chunks, self.chunks)
        if self.weighing:
            _weigh(at, model, self, stages)

    def needs(self, workspace: Workspace) -> Needs:
        """As `ScoringStep.needs_on`, on the chunks of whole mixes, with room for the largest anchor."""
        n_chunks = max(1, self.mix_chunks if self.mixes or self.anchors else 0)
        return self.needs_on(workspace, n_chunks, ANCHOR_BITS if self.anchors and "Q8_0" in self.types else 0.0)


class Round(NamedTuple):
    """What is probed at once."""

    group: Grouping
    n_types: int
    """At the first so many of the types."""
    is_first: bool
    """On the first chunk, or on another."""
    mix_chunks: int = 0
    """On how many chunks whole mixes are scored after it."""


def first_rounds(tensors: Sequence[TensorInfo], step: ProbeStep) -> Iterator[Round]:
    """What is probed first, where passes are few.

    Roles tell more per pass than anything else, and their probes at types of small errors tell what kernels cost. Where passes are counted
    over all runs, they are few, and whole mixes come next, which tell what all alphas have in common. Roles by depth are worth their passes
    there, or where there are many more tensors; a first prediction comes before each tensor alone.
    """
    group, is_short = step.group, step.total_passes is not None
    many = 1 if is_short else MANY_TENSORS
    yield Round("role", 1, True)
    yield Round("role", len(DEFAULT_PROBE_TYPES), True, mix_chunks=FEW_MIX_CHUNKS if is_short and group != "role" else 0)
    if group != "role" and len(tensors) >= many * len(analysis.groups_of(tensors, "role-depth")):
        yield Round("role-depth", 1, False, mix_chunks=0 if group == "role-depth" else LEAST_CHUNKS)
    yield Round(group, 1, False)
    yield Round(group, 1, True, mix_chunks=LEAST_CHUNKS)


def n_passes(at: Scoring) -> int:
    """Of these and of files those in which something was quantized."""
    store, files = at.workspace.store, file_key(at.key)
    bases = {NULL_MIX.id, *(mix.id for mix in store.mixes(at.key.model, STORED))}
    return sum(len(chunks) for key in (at.key, files) for mix, chunks in store.mix_scores(key).items() if mix not in bases)


def n_scored(at: Scoring) -> int:
    """Scores of mixes in memory that the store has, (mix, chunk) pairs."""
    return sum(map(len, at.workspace.store.mix_scores(at.key).values()))


def null_control(at: Scoring, model: OpenedModel, indexes: Sequence[int], stages: Stages) -> None:
    """Score the base against itself; and, where it rests in a finer type, as it is stored, or where at 8 bits, what tells its floor."""
    mixes = [NULL_MIX]
    control = stages.begin("null control")
    at.run(mixes, indexes, control)
    mix = stored_mix([tensor for tensor in quantizable_tensors(model.source) if tensor.name in at.scorer.weights])
    at.workspace.store.record_mixes(model.fingerprint, STORED, [mix])  # which also says what is in the graph
    if at.key.rest:
        at.run(floor_mixes([tensor for tensor in quantizable_tensors(model.source) if tensor.name in mix.types]), indexes, control)
    elif at.key.base_kernels == "finer":
        at.run([mix], indexes[:LEAST_CHUNKS], control)


class _Probes:
    """The rounds of one probe command."""

    def __init__(self, at: Scoring, model: OpenedModel, found: Measured, step: ProbeStep) -> None:
        self._at, self._step = at, step
        self._errors = errors_by_tensor([cell for cell in found.cells if is_told(cell.type_name, at.key.rest)])
        tensors = [tensor for tensor in quantizable_tensors(model.source) if tensor.name in at.scorer.weights]
        groups = analysis.largest_first(analysis.groups_of(tensors, step.group), tensors)
        self._types = {group: self._probe_types(group) for group in groups}
        self._floor, _ = floor_of(at.workspace, at.key, self._scores())

    def end_after(self, n_chunks: int, stages: Stages) -> bool:
        """A round of so many chunks; whether no other is needed: the errors are small enough, or the chunks are used up."""
        indexes = self._at.first(n_chunks)
        control = stages.begin(f"probes, {plural(len(indexes), 'chunk')}")
        self.score(indexes, control)
        self._adapt(indexes, control)
        return n_chunks >= self._step.chunks or len(indexes) < n_chunks or (n_chunks >= LEAST_CHUNKS and self._is_precise())

    def score(self, indexes: Sequence[int], control: Control) -> None:
        """Everything on these chunks, without a second look at what was too large or drowned."""
        self._at.run([group.mix(name) for group, types in self._types.items() for name in types], indexes, control)

    def _probe_types(self, group: ProbeGroup) -> list[str]:
        """The wanted types that all of the group can take; where none tells alpha, the nearest that does."""
        known = [set(self._errors.get(name, ())) for name in group.tensors]
        common = set.intersection(*known) if known else set()
        types = [name for name in known_types(self._step.types) if name in common]
        qtypes = library.types()
        if not any(qtypes[name].bits_per_weight < ALPHA_BITS for name in types):
            smaller = [name for name in common if qtypes[name].is_quantized and qtypes[name].bits_per_weight >= LEAST_BITS]
            types += sorted(smaller, key=lambda name: qtypes[name].bits_per_weight)[:1]
        return list(dict.fromkeys(types))

    def _adapt(self, indexes: Sequence[int], control: Control) -> None:
        """Try other types where the largest probe is no small perturbation, or drowns."""
        for steps, is_wrong in ((STEPS_UP, self._is_too_large), (STEPS_DOWN, self._is_drowned)):
            for type_name in steps:
                scores = self._scores()
                wrong = [group for group in self._types if is_wrong(group, scores)]
                changed = [group for group in wrong if self._add(group, type_name)]
                if not wrong:
                    break
                self._at.run([group.mix(type_name) for group in changed], indexes, control)

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
        precise = [item for item in found if item.alpha.se <= self._step.target_error * item.alpha.value]
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


def _weigh(at: Scoring, model: OpenedModel, step: ProbeStep, stages: Stages) -> None:
    """Probe random halves of all tensors together, for those that drown alone."""
    names = [tensor.name for tensor in quantizable_tensors(model.source) if tensor.name in at.scorer.weights]
    least = 2 * len(names)  # of a half and its complement, the second tells only the sum
    if step.weighing < least:
        raise InferenceError(
            f"{step.weighing} halves cannot weigh {plural(len(names), 'tensor')}", remedy=f"Ask for at least {least} with --weighing"
        )
    mixes: list[Mix] = analysis.weighing_mixes(names, step.types[0], step.weighing, seed=0)
    at.workspace.store.record_mixes(model.fingerprint, WEIGHING, mixes)
    at.run(mixes, at.first(step.chunks), stages.begin("weighing"))


ANCHOR_SHARES = (0.25, 0.6)
"""Where between the smallest and the largest random mix those lie that are built as files, beside one all Q8_0."""


def score_whole_mixes(at: Scoring, model: OpenedModel, rounding: Rounding, found: Measured, step: ProbeStep, stages: Stages) -> None:
    """Draw random mixes, score them in memory; build a few as files and score those."""
    quick = QUICK_TYPES if is_large(model.source) else ()
    tables = [usual_table(table, quick) for table in found.tables if table.name in at.scorer.weights]
    mixes = curve_mixes(tables, step.mixes)
    store, indexes = at.workspace.store, at.first(step.mix_chunks)
    store.record_mixes(model.fingerprint, CURVE, mixes)
    at.run(mixes, indexes, stages.begin("whole mixes"))
    anchors = _anchors(tables, mixes, step.anchors)
    store.record_mixes(model.fingerprint, ANCHOR, anchors)
    for number, mix in enumerate(anchors):
        which = f"{number + 1} of {len(anchors)}"
        build = builder(at, model, rounding, mix, stages.begin(f"anchor {which}"), step.compute.n_threads)
        at.run_file(mix, build, indexes, partial(stages.begin, f"whole mixes, file {which}"))


def _anchors(tables: Sequence[TensorCells], mixes: Sequence[Mix], n_anchors: int) -> list[Mix]:
    nearest = {table.name: min(table.cells, key=lambda cell: abs(cell.bits_per_weight - 8.5)).type_name for table in tables}
    picked = [mixes[number] for number in sorted({int(share * (len(mixes) - 1)) for share in ANCHOR_SHARES if mixes})]
    return [Mix.of(nearest), *picked][:n_anchors] if tables else []


def builder(at: Scoring, model: OpenedModel, rounding: Rounding, mix: Mix, control: Control, n_threads: int | None) -> Callable[[], Path]:
    """What builds a mix as a file in the home, to be deleted after use."""

    def build() -> Path:
        strategy = Strategy(
            model_fingerprint=model.fingerprint,
            model_name=model.source.name,
            architecture=model.source.architecture,
            method="manual",
            tensors=tuple(TensorChoice(name, type_name, "a random mix") for name, type_name in mix.types.items()),
        )
        output = at.workspace.home.references / f"anchor-{at.key.run}-{mix.id[-12:]}.gguf"
        building.build(
            model.source,
            strategy,
            output,
            rounding=rounding,
            n_threads=n_threads,
            control=control,
            overwrite=True,
            fingerprint=model.fingerprint,
        )
        return output

    return build
