"""Which evidence counts: every run of probes on a text, ranked by what it covers and how much was scored, never by date.

A run is what mixes scored with one importance matrix and rounding on one text have in common (`SwapKey`). Of several, that one counts
which covers most of the weights, to the whole per cent; among equals that with most tokens scored. One whose weights were
quantized with another importance matrix than the plan's, or rounded otherwise, is carried over (see `Knowledge.carried`) where
its own weight errors are known in the plan's metric, and counts as `CARRIED_WORTH` of its tokens.
"""

from __future__ import annotations

import shlex
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from quantailor.analysis import sensitivity as probing
from quantailor.analysis.scores.resting import FLOOR_SPREAD, above_floor, floor_nats, is_sure, is_told
from quantailor.analysis.sensitivity import NULL_MIX, ProbeGroup, Scores
from quantailor.analysis.weight_errors.measure import OUTPUT_SAMPLING, SAMPLED, MeasureSettings
from quantailor.analysis.weight_errors.weight_error import DEFINITION_VERSION
from quantailor.errors import StrategyError
from quantailor.ggml import library
from quantailor.jobs import resolve
from quantailor.present import words
from quantailor.records import ChunkScore, Grounds, TensorInfo, WeightError
from quantailor.session import CALIBRATION_TEXT, OpenedModel, Workspace, quantizable_tensors
from quantailor.store import MeasurementKey, SwapKey

CURVE, ANCHOR, WEIGHING, STORED = "curve", "anchor", "weighing", "stored"
"""What mixes of many tensors are for."""
GROUPINGS = ("tensor", "role-depth", "role")
"""From the finest; a tensor's sensitivity is that of the finest group that was probed."""
CARRIED_WORTH = 0.25
"""What a token that was scored with another importance matrix or rounding is worth."""
ENOUGH_MIXES, ENOUGH_MIX_CHUNKS = 24, 48
"""What a command asks for that is to make predictions closer, at least."""
NAME_LENGTH = 8


@dataclass(frozen=True)
class ProbeRun:
    """One run of probes, with its scores and the weight errors of what was swapped in."""

    key: SwapKey
    scores: Scores
    cells: Sequence[WeightError]
    grounds: Grounds
    n_tokens: float
    """Scored on probes and mixes, as they count for the question's importance matrix and rounding."""

    @property
    def rank(self) -> tuple[int, float, str]:
        """The larger counts."""
        return round(100 * self.grounds.weight_share), self.n_tokens, self.key.run


def runs(workspace: Workspace, model: OpenedModel, question: MeasurementKey, cells: Sequence[WeightError]) -> list[ProbeRun]:
    """Every run that tells of the question, a measurement with these weight errors; that which counts first."""
    keys = [key for key in workspace.store.swap_runs(model.fingerprint) if key.kernels == "as built"]
    found = [run for key in keys if (run := _run(workspace, model, key, question, cells)) is not None]
    return sorted(found, key=lambda run: run.rank, reverse=True)


def chosen(
    workspace: Workspace, model: OpenedModel, question: MeasurementKey, cells: Sequence[WeightError], name: str | SwapKey | None
) -> ProbeRun | None:
    """The run of that name, or of that key if it probed anything; for none the one that counts, or None where nothing was probed.

    Raises:
        StrategyError: no run has that name.
    """
    found = runs(workspace, model, question, cells)
    if not isinstance(name, str):
        return next((run for run in found if name in (None, run.key)), None)
    named = [run for run in found if run.key.run.startswith(name)] if len(name) > 2 else []
    if len(named) != 1:
        there = "; ".join(f"{run.grounds.name} ({words.grounds(run.grounds)})" for run in found) or "nothing was probed"
        raise StrategyError(f"{model.source.name} has no evidence {name!r}", remedy=f"There is: {there}")
    return named[0]


def _run(workspace: Workspace, model: OpenedModel, key: SwapKey, question: MeasurementKey, cells: Sequence[WeightError]) -> ProbeRun | None:
    tensors, scores = quantizable_tensors(model.source), workspace.store.mix_scores(key)
    names = {tensor.name for tensor in tensors}
    singles = {cell[0] for mix in scores if (cell := single(mix)) is not None and cell[0] in names}
    grouped = groups(tensors, scores)
    probed = singles | {name for group, _ in grouped for name in group.tensors}
    carried = (key.imatrix, key.rounding) != (question.imatrix, question.swapped)
    own = cells_with(workspace, model, key, question) if carried else cells
    known = {(cell.tensor, cell.type_name) for cell in own}
    if not probed or not own or (key.rounding != question.swapped and not known.issuperset(filter(None, map(single, scores)))):
        return None
    stored = workspace.store.mixes(model.fingerprint, STORED)
    possible = [tensor for tensor in tensors if not stored or tensor.name in stored[0].types or tensor.name in probed]
    probes = [(cell[1], len(rows)) for mix, rows in scores.items() if (cell := single(mix)) is not None and cell[0] in names]
    probes += [(name, len(scores[group.mix(name).id])) for group, types in grouped for name in types]
    mix_chunks = [len(scores[mix.id]) for mix in workspace.store.mixes(model.fingerprint, CURVE) if mix.id in scores]
    in_files = workspace.store.scored_mixes(file_key(key))
    without = {NULL_MIX.id, *(mix.id for mix in stored)}
    more: list[object] = ["--rest", "q8_0"] if key.rest else []
    if len(probed) == len(possible):  # whole mixes are compared with the base as it is stored
        more = _more_mixes([group.name for group, _ in grouped], probes, mix_chunks)
    n_tokens = sum(score.n_tokens for mix, rows in scores.items() if mix not in without for score in rows)
    place = text_place(workspace, key.corpus)
    grounds = Grounds(
        name=key.run[:NAME_LENGTH],
        text=f"text {key.corpus[:NAME_LENGTH]}" if place is None else place.name,
        n_ctx=key.n_ctx,
        imatrix=key.imatrix or None,
        carried=carried,
        rounding="" if key.rounding == question.swapped else "compensated" if key.rounding else "plain",
        rest=key.rest,
        n_probed=len(probed),
        n_tensors=len(possible),
        weight_share=sum(tensor.n_elements for tensor in possible if tensor.name in probed) / sum(t.n_elements for t in possible),
        n_chunks=statistics.median_low([n_chunks for _, n_chunks in probes]),
        n_mixes=len(mix_chunks),
        n_files=sum(mix.id in in_files for mix in workspace.store.mixes(model.fingerprint, ANCHOR)),
        command=command_line(workspace, "probe", model.source.location, *_probe_options(workspace, model, key, place), *more),
    )
    return ProbeRun(key, scores, own, grounds, CARRIED_WORTH * n_tokens if carried else n_tokens)


def is_current(key: MeasurementKey) -> bool:
    """Whether this version measures what is filed under that key: the same definitions, and output errors sampled in the same way."""
    if key.definition_version != DEFINITION_VERSION:
        return False
    return not (key.covariances and key.settings.startswith(SAMPLED)) or key.settings.endswith(OUTPUT_SAMPLING)


def cells_with(workspace: Workspace, model: OpenedModel, run: SwapKey, question: MeasurementKey) -> list[WeightError]:
    """The weight errors of what a run swapped in, in the question's metric, of the measurement that has the most.

    Where the question has covariances, others of the model will do, as another importance matrix does.
    """
    counts = {
        key: count
        for key, count in workspace.store.measurements(model.fingerprint).items()
        if (key.imatrix, key.swapped) == (run.imatrix, run.rounding)
        and is_current(key)
        and bool(key.covariances) == bool(question.covariances)
    }
    most: MeasurementKey | None = max(
        counts, key=lambda key: (key.covariances == question.covariances, counts[key], key.settings), default=None
    )
    return [] if most is None else workspace.store.cells(most, distributions=False)


def what_tells(workspace: Workspace, model: OpenedModel, question: MeasurementKey) -> str | None:
    """The command that lets probes of other rounding tell of the question, where such probes are all there is; None where there are none.

    It measures weight errors with covariances, which takes no pass of the model.
    """
    if not question.covariances:
        return None
    for key in workspace.store.swap_runs(model.fingerprint):
        if key.kernels == "as built" and not key.rounding and any(single(mix) for mix in workspace.store.scored_mixes(key)):
            return measure_command(workspace, model, replace(question, imatrix=key.imatrix, rounding=""))
    return None


def file_key(key: SwapKey) -> SwapKey:
    """The key of files, to that of mixes in memory."""
    return replace(key, kernels="file", base_kernels="as stored")


def single(mix: str) -> tuple[str, str] | None:
    """Tensor and type of a mix of one tensor, from its id."""
    name, separator, type_name = mix.rpartition("=")
    return (name, type_name) if separator else None


def groups(tensors: Sequence[TensorInfo], scores: Scores) -> list[tuple[ProbeGroup, list[str]]]:
    """Groups of several tensors that were probed, with the types they were probed at."""
    qtypes = library.types()
    found = []
    for grouping in GROUPINGS[1:]:
        for group in probing.groups_of(tensors, grouping):
            types = [name for name in qtypes if len(group.tensors) > 1 and group.mix(name).id in scores]
            if types:
                found.append((group, types))
    return found


def told(tensors: Sequence[TensorInfo], scores: Scores, rest: str) -> tuple[Scores, float]:
    """What scores tell beside a base that rests in `rest` (`SwapKey.rest`), and how far that is uncertain, nats.

    Single tensors and groups at types that drown tell how large the floor is; it is taken off the others.
    """
    if not rest:
        return scores, 0.0
    probes = [group for grouping in GROUPINGS for group in probing.groups_of(tensors, grouping)]
    types = {group.mix(name).id: name for group in probes for name in library.types()}
    floor = floor_nats([rows for mix, rows in scores.items() if single(mix) and mix in types and not is_told(types[mix], rest)])

    def tells(mix: str, rows: Sequence[ChunkScore]) -> bool:
        return mix not in types or (is_told(types[mix], rest) and is_sure(types[mix], rows, floor))

    kept = {mix: rows for mix, rows in scores.items() if tells(mix, rows)}
    return {mix: rows if mix == NULL_MIX.id else above_floor(rows, floor) for mix, rows in kept.items()}, FLOOR_SPREAD * floor


# Commands that are advised


def text_place(workspace: Workspace, corpus: str) -> Path | None:
    """Where a text lies or lay, by its SHA-256; the one that ships first."""
    if sha256(CALIBRATION_TEXT.read_bytes()).hexdigest() == corpus:
        return CALIBRATION_TEXT
    places = workspace.store.locations("text", corpus)
    return next((path for path in places if path.is_file() and sha256(path.read_bytes()).hexdigest() == corpus), next(iter(places), None))


def command_line(workspace: Workspace, *arguments: object) -> str:
    """A command of ours as it is typed in a shell, with the home where it is not the usual one."""
    home = () if workspace.home == resolve() else ("--home", workspace.home.path)
    return shlex.join(str(argument) for argument in ("quantailor", *arguments, *home))


def imatrix_option(workspace: Workspace, model: OpenedModel, imatrix: str) -> tuple[str, ...]:
    """What a command must say to use that importance matrix (by fingerprint, or "")."""
    records = workspace.imatrices.stored(model.fingerprint)
    if not imatrix:
        return ("--imatrix", "none") if records else ()
    if records and records[0].fingerprint == imatrix:
        return ()
    return ("--imatrix", str(workspace.imatrices.path(model.fingerprint, imatrix)))


def rounding_option(workspace: Workspace, model: OpenedModel, rounding: str) -> tuple[str, ...]:
    """What a command must say to round like this (`Rounding.key` or `bytes_key`); nothing where there is no other choice.

    Covariances are named where they are not the model's own.
    """
    version, _, covariances = rounding.partition(":")
    own = workspace.covariances.stored(model.fingerprint)[:1] if covariances else []
    named: tuple[str, ...] = ()
    if covariances and not any(record.fingerprint.startswith(covariances) for record in own):
        named = ("--covariances", str(workspace.covariances.path(model.fingerprint, covariances)))
    if version.startswith("compensated"):
        return ("--rounding", "compensated", *named)
    there = workspace.store.measurements(model.fingerprint)
    return ("--rounding", "plain", *named) if any(key.covariances for key in there) else named


def measure_command(workspace: Workspace, model: OpenedModel, like: MeasurementKey) -> str:
    """The command that measures more weight errors like those."""
    exhaustive = like.settings == MeasureSettings(exhaustive=True).key
    options = (*imatrix_option(workspace, model, like.imatrix), *rounding_option(workspace, model, like.rounding))
    return command_line(workspace, "measure", model.source.location, *options, *(("--exhaustive",) if exhaustive else ()))


def _probe_options(workspace: Workspace, model: OpenedModel, key: SwapKey, place: Path | None) -> list[object]:
    """What makes a probe command go on with that run."""
    text = () if place == CALIBRATION_TEXT else ("-f", place or "TEXT")
    how = (*imatrix_option(workspace, model, key.imatrix), *rounding_option(workspace, model, key.rounding))
    return [*text, "--n-ctx", key.n_ctx, *how]


def _more_mixes(grouped: Sequence[str], probes: Sequence[tuple[str, int]], mix_chunks: Sequence[int]) -> list[object]:
    """The options of a probe command that adds whole mixes to the probes that are there, (type, chunks) each."""
    n_mixes, n_chunks = len(mix_chunks), max(mix_chunks, default=0)
    factor = 2 if n_mixes >= ENOUGH_MIXES and n_chunks >= ENOUGH_MIX_CHUNKS else 1
    counts = Counter(name for name, _ in probes)
    types = sorted(name for name, count in counts.items() if 2 * count >= max(counts.values()))
    grouping = ["--group", "role-depth" if any("depth" in name for name in grouped) else "role"] if grouped else []
    chunks = max(n for _, n in probes)
    mixes = ["--mixes", max(ENOUGH_MIXES, factor * n_mixes), "--mix-chunks", max(ENOUGH_MIX_CHUNKS, factor * n_chunks)]
    return [*grouping, "--type", ",".join(types), "--chunks", chunks, *mixes]
