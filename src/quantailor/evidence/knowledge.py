"""What the store knows of a model's sensitivities, put together: alphas, swept cells, the curve, and damages from them."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from quantailor import records
from quantailor.analysis import sensitivity as probing
from quantailor.analysis.expected import expected_alphas, expected_noise
from quantailor.analysis.pooling import Departures, Finding, pooled
from quantailor.analysis.prediction import Damage, Learned, Makeup, fit_curve
from quantailor.analysis.sensitivity import NULL_MIX, ProbeGroup, Scores
from quantailor.evidence.grounds import ANCHOR, CURVE, STORED, WEIGHING, chosen, file_key, groups, single, told
from quantailor.ggml import library
from quantailor.qtypes import QType
from quantailor.records import (
    KERNELS,
    ChunkScore,
    Curve,
    CurvePoint,
    Estimate,
    Grounds,
    Mix,
    Sensitivity,
    SwapCell,
    TensorInfo,
    WeightError,
    layer_of,
    part_of,
    role_of,
)
from quantailor.session import OpenedModel, Workspace, quantizable_tensors
from quantailor.store import MeasurementKey, SwapKey

FINER_FLOOR = 1 / 64
"""F16 kernels round inputs 8 times more finely than BF16 ones, so the floor is that share of theirs."""


@dataclass(frozen=True)
class Knowledge:
    """What probes, sweeps and whole mixes say about one model with one importance matrix on one text."""

    key: SwapKey
    grounds: Grounds
    sensitivities: Mapping[str, Sensitivity]
    cells: Mapping[tuple[str, str], SwapCell]
    """(tensor, type) -> what was measured with that tensor alone at that type."""
    curve: Curve
    floor_nats: float
    """What a change without loss shows."""
    stored_nats: float | None
    """KLD between the base as it is stored and the finer one that mixes are compared with; None where they are the same."""
    n_chunks: int
    """The most chunks that a probe has."""
    errors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Tensor -> type -> `WeightError.error`."""
    departures: Mapping[str, Departures] = field(default_factory=dict)
    """How each tensor's measured cells differ from alpha x error + noise."""
    stored: Mapping[str, str] = field(default_factory=dict)
    """Tensor -> the type it has in the base."""
    learned: Learned | None = None
    """What whole mixes told of single tensors, beside their probes."""

    def carried(self, errors: Mapping[str, Mapping[str, float]]) -> Knowledge:
        """The same for files made with another importance matrix or rounded otherwise, whose weight errors these are.

        alpha is nats per unit of the error that was swapped in, so it belongs to the model and the text, and so do noise,
        departures over ln(error), and the curve. The errors are in the metric of those that alpha was found with. What was
        measured of single cells belongs to their very bytes, and is left out.
        """
        return dataclasses.replace(self, errors=errors, cells={})

    def damage(self, tensor: TensorInfo, qtype: QType, error: float) -> Estimate:
        """Nats that this type of this tensor adds to S, scaled as the curve says.

        A cell that was measured counts by its own precision, beside alpha x error + noise; a type between measured ones
        takes over how those differ from it. Whole mixes tell how far tensors are off that do most of what a mix does.
        """
        if not qtype.is_quantized or tensor.type_name == qtype.name:
            return Estimate(0.0)
        told = self._told(tensor.name, qtype, error)
        value = told.rounding + told.kernels
        return Estimate(value, value * math.hypot(told.alpha_sd, told.type_sd))

    def modelled(self, name: str, qtype: QType, error: float) -> float:
        """alpha x error + noise, nats, whether or not the cell was measured; 0 for a tensor that nothing is known of."""
        known = self.sensitivities.get(name)
        return 0.0 if known is None else known.alpha.value * error + probing.kernel_noise(known, qtype)

    def mix(self, types: Mapping[str, str]) -> Damage:
        """What the tensors of a mix add up to; those that are not named, or whose error is not known, add nothing."""
        parts, makeup = self._added(types)
        spread, tied = (math.sqrt(makeup.covariance(makeup)), ()) if self.learned is None else self.learned.left(makeup)
        return Damage(math.fsum(parts.values()), parts, spread, tied)

    def makeup(self, types: Mapping[str, str]) -> Makeup:
        """Which tensors the damage of a mix comes from, in the order of their names."""
        return self._added(types)[1]

    def _added(self, types: Mapping[str, str]) -> tuple[dict[str, float], Makeup]:
        qtypes, parts = library.types(), dict[str, float]()
        damages, alpha_sds, type_sds = (np.zeros(len(self.sensitivities)) for _ in range(3))
        numbers = np.full(len(self.sensitivities), -1)
        for name, number in self._numbers.items():  # in one order, so that sums are the same to the last bit
            type_name = types.get(name)
            if type_name is not None and qtypes[type_name].is_quantized and type_name != self.stored.get(name):
                told = self._told(name, qtypes[type_name], self.errors.get(name, {}).get(type_name, 0.0))
                parts[part_of(name)] = parts.get(part_of(name), 0.0) + told.rounding
                parts[KERNELS] = parts.get(KERNELS, 0.0) + told.kernels
                numbers[number] = qtypes[type_name].id
                damages[number], alpha_sds[number], type_sds[number] = told.rounding + told.kernels, told.alpha_sd, told.type_sd
        return parts, Makeup(damages / (math.fsum(parts.values()) or 1.0), alpha_sds, type_sds, numbers)

    def _told(self, name: str, qtype: QType, error: float) -> _Told:
        known = self.sensitivities.get(name)
        if known is None:
            return _Told(0.0, 0.0, 0.0, 0.0)
        curve, departure = self.curve, Estimate(0.0)
        if error > 0:
            departure = self.departures.get(name, _NONE_MEASURED).of(qtype.name, math.log(error))
        alpha_sd, factor = known.alpha.relative_se or 1.0, math.exp(departure.value)
        if self.learned is not None:
            factor *= self.learned.factor(self._numbers[name], qtype.id, alpha_sd, departure.se)
        rounding = curve.scales.get(part_of(name), 1.0) * math.exp(curve.unseen.value) * factor * known.alpha.value * error
        kernels = curve.scales.get(KERNELS, 1.0) * factor * probing.kernel_noise(known, qtype)
        return _Told(rounding, kernels, alpha_sd, departure.se)

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(sorted(self.sensitivities))}


class _Told(NamedTuple):
    """What a tensor at a type adds to S, nats, and how far that may be off, relative."""

    rounding: float
    """By rounding its weights."""
    kernels: float
    """By its kernel's rounding of inputs."""
    alpha_sd: float
    type_sd: float


_NONE_MEASURED = Departures()


def load_knowledge(
    workspace: Workspace,
    model: OpenedModel,
    question: MeasurementKey,
    cells: Sequence[WeightError],
    *,
    evidence: str | SwapKey | None = None,
) -> Knowledge | None:
    """What probes say about files made with this importance matrix and rounding; None where no tensor was probed that tells.

    Args:
        workspace: the store.
        model: the base.
        question: the measurement that a plan rests on: how its files are made, and in which metric errors are known.
        cells: its weight errors.
        evidence: the run to take, by its name or its key; None is the one that counts (see `grounds`).

    Raises:
        StrategyError: there is no evidence of that name.
    """
    run = chosen(workspace, model, question, cells, evidence)
    if run is None:
        return None
    tensors, key, scores = quantizable_tensors(model.source), run.key, run.scores
    errors = errors_by_tensor(run.cells)
    n_vocab = max((tensor.n_rows for tensor in tensors if layer_of(tensor.name) is None), default=0)
    base = scores.get(NULL_MIX.id, [])
    scores = probing.readable(scores, base, n_vocab)
    scores, uncertain_nats = told(tensors, scores, key.rest)
    floor, stored_nats = floor_of(workspace, key, scores)
    floor = max(floor, uncertain_nats)
    swept = {cell: probing.swap_cell(*cell, rows, base) for mix, rows in scores.items() if base and (cell := single(mix))}
    expected = expected_alphas(model.source, workspace.imatrices.intact(model.fingerprint, key.imatrix) if key.imatrix else None)
    sensitivities, departures = _sensitivities(workspace, model, tensors, errors, scores, floor, expected, tells_noise=not key.rest)
    known = Knowledge(
        key=key,
        grounds=run.grounds,
        sensitivities=sensitivities,
        cells=swept,
        curve=fit_curve(()),
        floor_nats=floor,
        stored_nats=stored_nats,
        n_chunks=max((cell.n_chunks for cell in swept.values()), default=len(scores.get(NULL_MIX.id, ()))),
        errors=errors,
        departures=departures,
        stored={tensor.name: tensor.type_name for tensor in tensors},
    )
    curve, learned = _curve(workspace, known, scores, tensors, question)
    known = dataclasses.replace(known, curve=curve, learned=learned)
    return known.carried(errors_by_tensor(cells)) if run.grounds.carried else known


def errors_by_tensor(cells: Sequence[WeightError]) -> dict[str, dict[str, float]]:
    """Tensor -> type -> `WeightError.error`, of the cells that could be measured."""
    found: dict[str, dict[str, float]] = {}
    for cell in cells:
        if cell.unavailable is None and cell.error is not None:
            found.setdefault(cell.tensor, {})[cell.type_name] = cell.error
    return found


def floor_of(workspace: Workspace, key: SwapKey, scores: Scores) -> tuple[float, float | None]:
    """The KLD of a change without loss, and that of the base as stored where it rests in a finer type; nats."""
    null = probing.mean_kld(scores[NULL_MIX.id]).value if NULL_MIX.id in scores else 0.0
    found = [scores[mix.id] for mix in workspace.store.mixes(key.model, STORED) if mix.id in scores]
    if key.base_kernels != "finer" or not found:
        return max(null, 0.0), None
    stored = probing.mean_kld(found[0]).value
    return max(null, stored * FINER_FLOOR), stored


def stored_mix(tensors: Sequence[TensorInfo]) -> Mix:
    """Every tensor at the type it is stored in: how the base differs from the finer one it is compared with."""
    return Mix.of({tensor.name: tensor.type_name for tensor in tensors})


def _sensitivities(
    workspace: Workspace,
    model: OpenedModel,
    tensors: Sequence[TensorInfo],
    errors: Mapping[str, Mapping[str, float]],
    scores: Scores,
    floor: float,
    expected: Mapping[str, float],
    *,
    tells_noise: bool,
) -> tuple[dict[str, Sensitivity], dict[str, Departures]]:
    """Every tensor's, from all that was probed and what was expected before, and how its own cells depart from it.

    Where the base's own kernels round inputs as those of the probes do, probes do not tell the noise. Those that drowned alone come from
    a weighing, where there is one.
    """
    qtypes = library.types()
    probed: dict[str, list[str]] = {}
    for cell in filter(None, map(single, scores)):
        probed.setdefault(cell[0], []).append(cell[1])
    singles = [(ProbeGroup(tensor.name, (tensor.name,)), sorted(probed.get(tensor.name, ()))) for tensor in tensors]
    probes = [
        (group, probing.sensitivity(group, errors, scores, qtypes, types, floor_nats=floor))
        for group, types in (*singles, *groups(tensors, scores))
    ]
    found: dict[str, Sensitivity] = {}
    for item in (item for _, items in probes for item in items):
        if item.tensor not in found or not found[item.tensor].probes:
            found[item.tensor] = item
    departures = {
        name: probing.departures(name, item, errors.get(name, {}), scores, qtypes, floor)
        for name, item in found.items()
        if item.status == "measured" and not item.group
    }
    in_graph = next((mix.types for mix in workspace.store.mixes(model.fingerprint, STORED)), None)
    found = _told_apart(_pooled(probes, found, errors, scores, expected, tells_noise=tells_noise), in_graph)
    return found | _weighed_together(workspace, model, tensors, errors, scores, found), departures


def _pooled(
    groups: Sequence[tuple[ProbeGroup, Sequence[Sensitivity]]],
    found: Mapping[str, Sensitivity],
    errors: Mapping[str, Mapping[str, float]],
    scores: Scores,
    expected: Mapping[str, float],
    *,
    tells_noise: bool,
) -> dict[str, Sensitivity]:
    """The same with alphas from all probes together; the noise keeps its proportion to alpha."""
    qtypes = library.types()
    firsts = [(group, items[0]) for group, items in groups if items[0].status == "measured"]
    scatter = [
        probing.chunk_variance(item.alpha, n)
        for group, item in firsts
        if (n := max(len(scores[group.mix(name).id]) for name in item.probes)) > 1
    ]
    usual = statistics.median(scatter) if scatter else probing.ALPHA_CHUNK_SD**2
    findings = [finding for group, items in groups if (finding := probing.finding(group, items[0], errors, scores, usual))]
    alphas, better = pooled(findings, list(found), expected), dict(found)
    noises: dict[int, list[Finding]] = {block: [] for block in probing.USUAL_NOISE}
    usual_noise = {block: {name: expected_noise(role_of(name), block, expected[name]) for name in found} for block in noises}
    multiplied = [name for name in found if all(shares[name] > 0 for shares in usual_noise.values())]
    for group, items in groups if alphas and tells_noise else ():
        if set(group.tensors) <= set(multiplied):
            for block, noise in probing.noise_findings(group, items[0], errors, scores, qtypes, alphas, usual):
                noises[block].append(noise)
    shares = {block: pooled(told, multiplied, usual_noise[block]) for block, told in noises.items()}
    for name, alpha in alphas.items():
        item = found[name]
        if item.status == "drowned" and alpha.value > item.alpha.value:
            alpha = item.alpha  # its own probes give an upper bound
        told_noise = {block: shares[block][name].value if name in shares[block] else usual_noise[block][name] for block in noises}
        noise_nats = {block: alpha.value * share for block, share in told_noise.items()}
        better[name] = dataclasses.replace(item, alpha=alpha, noise=noise_nats)
    return better


def _told_apart(found: Mapping[str, Sensitivity], in_graph: Collection[str] | None) -> dict[str, Sensitivity]:
    """The same, with tensors that take no part in the graph told from those that were not probed."""
    return {
        name: dataclasses.replace(item, status="not in the graph")
        if item.status == "not probed" and in_graph is not None and name not in in_graph
        else item
        for name, item in found.items()
    }


def _weighed_together(
    workspace: Workspace,
    model: OpenedModel,
    tensors: Sequence[TensorInfo],
    errors: Mapping[str, Mapping[str, float]],
    scores: Scores,
    found: Mapping[str, Sensitivity],
) -> dict[str, Sensitivity]:
    mixes = [mix for mix in workspace.store.mixes(model.fingerprint, WEIGHING) if mix.id in scores]
    names = [tensor.name for tensor in tensors if any(tensor.name in mix.types for mix in mixes)]
    if len(mixes) <= len(names) or not names:
        return {}
    weighed = probing.weigh(mixes, names, [probing.mean_kld(scores[mix.id]) for mix in mixes])
    type_name = next(iter(mixes[0].types.values()))
    better = {}
    for name, kld in weighed.items():
        error = errors.get(name, {}).get(type_name, 0.0)
        if found[name].status == "drowned" and error > 0 and kld.value > probing.DROWNED_BELOW_ERRORS * kld.se:
            alpha = Estimate(kld.value / error, kld.se / error)
            better[name] = Sensitivity(name, "measured", alpha, group="weighing", probes=(type_name,))
    return better


# The curve


def bits_per_weight(tensors: Sequence[TensorInfo], types: Mapping[str, str]) -> float:
    """Of these tensors together."""
    qtypes = library.types()
    return records.bits_per_weight([qtypes[types.get(tensor.name, tensor.type_name)].retyped(tensor) for tensor in tensors])


def _curve(
    workspace: Workspace, known: Knowledge, scores: Scores, tensors: Sequence[TensorInfo], question: MeasurementKey
) -> tuple[Curve, Learned]:
    """The curve of the whole mixes, and what they tell of single tensors."""
    in_files = workspace.store.mix_scores(file_key(known.key))
    chunks = {score.index for score in scores.get(NULL_MIX.id, ())}  # those that the base can read
    in_files = {mix: [score for score in rows if score.index in chunks] or rows for mix, rows in in_files.items()}
    kinds: tuple[tuple[str, Literal["memory", "file"], Scores], ...] = ((CURVE, "memory", scores), (ANCHOR, "file", in_files))
    mixes = [
        (mix, kind, rows) for purpose, kind, rows in kinds for mix in workspace.store.mixes(known.key.model, purpose) if mix.id in rows
    ]
    makeups = {mix.id: known.makeup(mix.types) for mix, _, _ in mixes}
    in_memory = [rows[mix.id] for mix, kind, rows in mixes if kind == "memory"]
    curve = fit_curve(
        [_point(known, mix, kind, rows, tensors) for mix, kind, rows in mixes],
        makeups=makeups,
        seen=_seen(workspace, known, scores, question),
        floor=_floor_of_files(workspace, known.key, scores),
        text_sd=_common_sd(in_memory),
        n_chunks=max(map(len, in_memory), default=0),
    )
    return curve, Learned(curve, makeups)


def _floor_of_files(workspace: Workspace, key: SwapKey, scores: Scores) -> Estimate:
    """What every file has beyond the same mix in memory, nats: the stored base beside the finer one that mixes are compared with."""
    found = [scores[mix.id] for mix in workspace.store.mixes(key.model, STORED) if mix.id in scores]
    return probing.mean_kld(found[0]) if key.base_kernels == "finer" and found else Estimate(0.0)


def _common_sd(mixes: Sequence[Sequence[ChunkScore]]) -> float:
    """The standard error over sections of the text, relative, of what all mixes have in common there."""
    together: dict[int, ChunkScore] = {}
    for rows in mixes:
        kld = probing.mean_kld(rows).value
        for score in rows if kld > 0 else ():
            before = together.get(score.index, dataclasses.replace(score, n_tokens=0, kld_sum=0.0))
            n_tokens, kld_sum = before.n_tokens + score.n_tokens, before.kld_sum + score.kld_sum / kld
            together[score.index] = dataclasses.replace(before, n_tokens=n_tokens, kld_sum=kld_sum)
    return probing.kld_over_sections(list(together.values())).relative_se if together else 0.0


def _seen(workspace: Workspace, known: Knowledge, scores: Scores, question: MeasurementKey) -> float:
    """The share of the evidence that flatters the question's rounding: chunks of mixes whose inputs that was fitted to (METHODS 4).

    Where only plainly rounded weights were swapped in it is all: errors of compensated cells are those in the covariances' own text.
    """
    key, (_, _, covariances) = known.key, known.key.rounding.partition(":")
    if not question.swapped:
        return 0.0
    if not key.rounding:
        return 1.0
    record = next((item for item in workspace.store.covariances(key.model) if item.fingerprint.startswith(covariances)), None)
    if record is None or key.corpus not in workspace.store.covariance_texts(key.model, covariances):
        return 0.0
    n_tokens = record.chunk_count * record.chunk_size
    mixes = [scores[mix.id] for mix in workspace.store.mixes(key.model, CURVE) if mix.id in scores] or list(scores.values())
    chunks = {score.index for rows in mixes for score in rows}
    return sum((index + 1) * key.n_ctx <= n_tokens for index in chunks) / max(1, len(chunks))


def _point(known: Knowledge, mix: Mix, kind: Literal["memory", "file"], scores: Scores, tensors: Sequence[TensorInfo]) -> CurvePoint:
    damage, measured = known.mix(mix.types), probing.kld_over_sections(scores[mix.id])
    return CurvePoint(mix.id, kind, bits_per_weight(tensors, mix.types), damage.nats, measured, damage.parts, damage.spread)
