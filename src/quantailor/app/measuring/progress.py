"""How far a model's measurement is, and what it says so far, read so that a page may ask every second.

A `MeasurementWatch` holds one number per tensor and type. Each look counts the cells of every tensor, which takes one pass
over an index, and reads the errors of those tensors alone whose count has changed.

Which measurement is shown: the one that a job of this model is at, else the one that `plan` would take. Where weights were measured
both with plain and with compensated rounding, either can be asked for.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np

from quantailor.analysis.weight_errors.measure import MeasureSettings
from quantailor.analysis.weight_errors.weight_error import DEFINITION_VERSION
from quantailor.app.jobs import JobReport, report_of
from quantailor.errors import ModelError, QuantailorError
from quantailor.evidence.damages import why_early
from quantailor.evidence.grounds import command_line, is_current, runs
from quantailor.evidence.knowledge import load_knowledge
from quantailor.evidence.measurements import most_telling
from quantailor.evidence.roundings import measured_key
from quantailor.ggml import library
from quantailor.jobs import Job, reconcile
from quantailor.numerics import Doubles
from quantailor.pipeline import StudyStep
from quantailor.present.words import plural
from quantailor.qtypes import never_quantized
from quantailor.records import Grounds, RoundingWish, Sensitivity, TensorInfo, WeightError
from quantailor.session import AUTO, NONE, Workspace
from quantailor.steps.hub.download import STAGES
from quantailor.steps.measure import MeasureStep, known_types
from quantailor.steps.options import COMPUTE
from quantailor.steps.step import from_json, kinds
from quantailor.store import MeasurementKey

COMMON_TYPE = "Q4_K"
"""The type at which tensors are compared unless another is asked for."""
RATE_SECONDS = 30.0
"""Cells per second are counted over the latest looks of so long a time."""
READ_TENSORS = 500
BAND = (10.0, 50.0, 90.0)
"""Percentiles over the tensors of a role."""


RoundingKind = Literal["compensated", "plain"]


@dataclass(frozen=True, slots=True)
class TensorProgress:
    """One tensor in the measurement."""

    name: str
    role: str
    layer: int | None
    n_elements: int
    n_measured: int
    """Cells of the wanted types that are settled: measured, or found to be impossible."""
    n_possible: int
    """All wanted types."""
    error: float | None
    """Share of the output's energy lost (`WeightError.error`) at the common type."""
    sensitivity: Sensitivity | None
    """What probes say; None before them."""

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to measure."""
        return self.n_measured >= self.n_possible


@dataclass(frozen=True, slots=True)
class MeasurementMap:
    """A model's measurement as far as it is."""

    model_fingerprint: str
    model_name: str
    imatrix_fingerprint: str | None
    notes: tuple[str, ...]
    """Where a plan would take another importance matrix than the latest, or than this measurement has."""
    settings: str
    """How it was measured (`MeasureSettings.key`); empty where nothing is."""
    rounding: RoundingKind | None
    """How the weights were rounded whose errors are shown; None where nothing is measured."""
    roundings: tuple[RoundingKind, ...]
    """Those that are measured, at least in part."""
    types: tuple[str, ...]
    """The types that are wanted or known, by falling bits per weight."""
    common_type: str | None
    """The type of `TensorProgress.error`; None where nothing is measured."""
    n_cells: int
    """Settled cells of the wanted types."""
    n_possible: int
    n_unavailable: int
    """Of the settled ones: types that a tensor cannot take."""
    n_tensors_done: int
    n_probed: int
    evidence: tuple[Grounds, ...]
    """Every run of probes that a plan could stand on; by default it stands on the first."""
    no_prediction: str | None
    """Why probes predict no KLD yet; None where they do, and without probes."""
    cells_per_second: float | None
    """While a job measures and enough is known."""
    job: JobReport | None
    """The job of this model that runs, waits or was stopped."""
    tensors: tuple[TensorProgress, ...]
    """In file order."""


@dataclass(frozen=True, slots=True)
class RoleBand:
    """Error against bits over the tensors of one role: percentiles of the best that so many bits can do."""

    role: str
    n_tensors: int
    bits: tuple[float, ...]
    low: tuple[float, ...]
    """10 % of the tensors lie below."""
    median: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class MeasuredType:
    """One measured type of one tensor."""

    type_name: str
    bits_per_weight: float
    error: float


def measurement_map(workspace: Workspace, fingerprint: str, *, type_name: str = COMMON_TYPE) -> MeasurementMap:
    """A model's measurement now; errors at `type_name`, or at the measured type that is nearest to it.

    Raises ModelError for an unknown model, TypeUnavailableError for a type that does not exist.
    """
    wanted = library.type_named(type_name).name
    watch = MeasurementWatch(workspace, fingerprint)
    watch.look()
    watch.look_at_probes()
    return watch.map(wanted)


def _job(workspace: Workspace, fingerprint: str) -> Job | None:
    """The job that measures this model: one that runs, else the latest unless it came to its end."""
    reconcile(workspace.store)
    places = {str(path) for path in workspace.store.locations("model", fingerprint)}
    jobs = [job for job in workspace.store.jobs.all() if _measures(job) and _paths(job) & places]
    running = next((job for job in jobs if job.state == "running"), None)
    latest = running or next(iter(jobs), None)
    return None if latest is None or latest.state in ("done", "cancelled") else latest


def _measures(job: Job) -> bool:
    step = kinds().get(job.kind)
    return step is not None and step.measures


def _paths(job: Job) -> set[str]:
    return {str(path) for path in (job.hub_path, job.arguments.get("model"), job.arguments.get("base")) if path}


class MeasurementWatch:
    """See the module docstring. One thread at a time may look. Raises ModelError for an unknown model."""

    def __init__(self, workspace: Workspace, fingerprint: str) -> None:
        record = workspace.store.model(fingerprint)
        if record is None:
            raise ModelError(f"no known model has the identity {fingerprint}", remedy="See `quantailor models`")
        self._workspace, self._record = workspace, record
        tensors = workspace.store.tensors(fingerprint)
        self.tensors: list[TensorInfo] = [tensor for tensor in tensors if never_quantized(tensor, record.architecture) is None]
        """The tensors whose type is a choice, in file order."""
        self._row = {tensor.name: at for at, tensor in enumerate(self.tensors)}
        self._bits = {name: qtype.bits_per_weight for name, qtype in library.types().items()}
        self._names = sorted(self._bits, key=lambda name: -self._bits[name])
        self._column = {name: at for at, name in enumerate(self._names)}
        self._key: MeasurementKey | None = None
        self._job: Job | None = None
        self._sensitivities: Mapping[str, Sensitivity] = {}
        self._evidence: tuple[Grounds, ...] = ()
        self._no_prediction: str | None = None
        self.rounding: RoundingWish = "auto"
        """Which measurement to look at, where there are several; "auto" as a job measures, or as a plan would take."""
        self._roundings: tuple[RoundingKind, ...] = ()
        self._forget()

    def _forget(self) -> None:
        shape = (len(self.tensors), len(self._names))
        self._errors: Doubles = np.full(shape, np.nan)  # (n_tensors, n_types)
        self._settled = np.zeros(shape, dtype=np.bool_)
        self._impossible = np.zeros(shape, dtype=np.bool_)
        self._counts: dict[str, int] = {}
        self._wanted: tuple[int, ...] = ()
        self._samples: deque[tuple[float, int]] = deque()

    @property
    def is_active(self) -> bool:
        """Whether a job of this model runs or waits."""
        return self._job is not None and self._job.state in ("queued", "running")

    @property
    def has_cells(self) -> bool:
        """Whether anything can be chosen from."""
        return bool(np.isfinite(self._errors).any())

    def look(self) -> frozenset[str]:
        """Read what is new; the names of the tensors that changed."""
        self._job = _job(self._workspace, self._record.fingerprint)
        key = self._current_key()
        everything = key != self._key
        if everything:
            self._key = key
            self._forget()
        counts = {} if key is None else self._workspace.store.cell_counts(key)
        changed = [name for name, count in counts.items() if self._counts.get(name) != count and name in self._row]
        if changed and key is not None:
            self._read(key, changed)
        self._counts = counts
        wanted = self._wanted_columns()
        everything = everything or wanted != self._wanted
        self._wanted = wanted
        self._samples.append((self._workspace.store.now, sum(counts.values())))
        return frozenset(self._row if everything else changed)

    def look_at_probes(self) -> bool:
        """Read sensitivities anew, which takes a while; whether there are some."""
        self._sensitivities, self._evidence, self._no_prediction = {}, (), None
        if self._key is not None:
            self._look_at_probes(self._key)
        return bool(self._sensitivities)

    def map(self, type_name: str = COMMON_TYPE) -> MeasurementMap:
        """What was seen at the last looks."""
        common = self.common_type(type_name)
        settled = self._settled[:, list(self._wanted)]
        rows = settled.sum(axis=1)
        job = None if self._job is None else report_of(self._workspace, self._job)
        return MeasurementMap(
            model_fingerprint=self._record.fingerprint,
            model_name=self._record.name,
            imatrix_fingerprint=self._key.imatrix or None if self._key else None,
            notes=self._notes(),
            settings=self._key.settings if self._key else "",
            rounding=_kind_of(self._key) if self._key else None,
            roundings=self._roundings,
            types=tuple(self._names[at] for at in self._wanted),
            common_type=common,
            n_cells=int(settled.sum()),
            n_possible=settled.size,
            n_unavailable=int(self._impossible[:, list(self._wanted)].sum()),
            n_tensors_done=int((rows == settled.shape[1]).sum()) if settled.size else 0,
            n_probed=len(self._sensitivities),
            evidence=self._evidence,
            no_prediction=self._no_prediction,
            cells_per_second=self._rate(),
            job=job,
            tensors=tuple(self._tensor(at, int(rows[at]), common) for at in range(len(self.tensors))),
        )

    def common_types(self) -> tuple[str, ...]:
        """Quantized types with at least one measured tensor, by falling bits per weight."""
        qtypes = library.types()
        found = np.atleast_1d(np.isfinite(self._errors).any(axis=0))
        return tuple(name for name, there in zip(self._names, found, strict=True) if there and qtypes[name].is_quantized)

    def common_type(self, wanted: str) -> str | None:
        """The measured type nearest to the wanted one in bits per weight."""
        there = self.common_types()
        if wanted in there or not there:
            return wanted if there else None
        return min(there, key=lambda name: abs(self._bits[name] - self._bits.get(wanted, self._bits[COMMON_TYPE])))

    def curve(self, tensor: str) -> tuple[MeasuredType, ...]:
        """Every measured type of a tensor by rising bits per weight."""
        at = self._row.get(tensor)
        if at is None:
            return ()
        found = [
            MeasuredType(name, self._bits[name], float(self._errors[at, self._column[name]])) for name in reversed(self.common_types())
        ]
        return tuple(point for point in found if np.isfinite(point.error))

    def bands(self) -> tuple[RoleBand, ...]:
        """Percentiles by role, roles in order of first appearance; the best type of at most so many bits counts."""
        names = list(reversed(self.common_types()))
        bits = np.array(sorted({self._bits[name] for name in names}))
        best = self._best(names, bits)  # (n_tensors, n_bits)
        roles = dict.fromkeys(tensor.role for tensor in self.tensors)
        return tuple(filter(None, (self._band(role, bits, best) for role in roles)))

    def _best(self, names: Sequence[str], bits: Doubles) -> Doubles:
        best = np.full((len(self.tensors), len(bits)), np.nan)
        for name in names:
            at = int(np.searchsorted(bits, self._bits[name]))
            best[:, at] = np.fmin(best[:, at], self._errors[:, self._column[name]])
        return np.fmin.accumulate(best, axis=1)

    def _band(self, role: str, bits: Doubles, best: Doubles) -> RoleBand | None:
        rows = best[[tensor.role == role for tensor in self.tensors]]
        rows = rows[np.isfinite(rows).any(axis=1)]
        there = np.isfinite(rows).any(axis=0)
        if not len(rows) or not there.any():
            return None
        low, median, high = (tuple(map(float, line)) for line in np.nanpercentile(rows[:, there], BAND, axis=0))
        return RoleBand(role, len(rows), tuple(map(float, bits[there])), low, median, high)

    def _tensor(self, at: int, n_settled: int, common: str | None) -> TensorProgress:
        tensor = self.tensors[at]
        error = np.nan if common is None else self._errors[at, self._column[common]]
        return TensorProgress(
            tensor.name,
            tensor.role,
            tensor.layer,
            tensor.n_elements,
            n_settled,
            len(self._wanted),
            float(error) if np.isfinite(error) else None,
            self._sensitivities.get(tensor.name),
        )

    def _read(self, key: MeasurementKey, names: Sequence[str]) -> None:
        """A part at a time, so that the rows of a large model never stand in memory together."""
        for start in range(0, len(names), READ_TENSORS):
            for tensor, type_name, _, error, impossible in self._workspace.store.cell_errors(key, names[start : start + READ_TENSORS]):
                at, column = self._row[tensor], self._column.get(type_name)
                if column is None:
                    continue
                self._settled[at, column] = True
                self._impossible[at, column] = impossible
                self._errors[at, column] = np.nan if error is None or impossible else error

    def _rate(self) -> float | None:
        """Cells per second over the latest looks, where any were added."""
        if not self.is_active or not self._samples:
            return None
        now = self._samples[-1][0]
        while self._samples[0][0] < now - RATE_SECONDS:
            self._samples.popleft()
        (first, before), (_, count) = self._samples[0], self._samples[-1]
        return (count - before) / (now - first) if now - first >= 1.0 and count > before else None

    # What is looked at

    def _current_key(self) -> MeasurementKey | None:
        store, model = self._workspace.store, self._record.fingerprint
        asked = None if self._job is None else _asked(self._job)
        stored = [record.fingerprint for record in self._workspace.imatrices.stored(model)]
        counts = {key: count for key, count in store.measurements(model).items() if is_current(key)}
        self._roundings = tuple(sorted({_kind_of(key) for key in counts}))
        key = None if asked is None else self._asked_key(asked, stored)
        if key is not None and (self.rounding in (AUTO, _kind_of(key)) or self.rounding not in self._roundings):
            return key
        if self.rounding in self._roundings:
            counts = {key: count for key, count in counts.items() if _kind_of(key) == self.rounding}
        own = [record.fingerprint[:16] for record in self._workspace.covariances.stored(model)]
        return most_telling(counts, (*stored, ""), store.measured_tensors(model), own)

    def _asked_key(self, asked: _Asked, stored: Sequence[str]) -> MeasurementKey:
        """The measurement that a job adds to; `stored` are the importance matrices, that of its own first."""
        store, model = self._workspace.store, self._record.fingerprint
        # A study has just recorded the one that it takes.
        latest = (record.fingerprint for record in store.imatrices(model) if record.fingerprint in stored)
        imatrix = "" if asked.imatrix == NONE or not stored else stored[0] if asked.imatrix == AUTO else next(latest)
        rounding = measured_key(self._workspace, model, asked.rounding, asked.covariances)
        settings = MeasureSettings(exhaustive=asked.exhaustive).key_with(rounding)
        return MeasurementKey(model, imatrix, settings, DEFINITION_VERSION, rounding=rounding)

    def _notes(self) -> tuple[str, ...]:
        model = self._record.fingerprint
        stored, passed_over = self._workspace.imatrices.stored(model), self._workspace.imatrices.passed_over(model)
        notes = () if passed_over is None else (passed_over,)
        if self._key is None or self._job is not None or not stored or stored[0].fingerprint == self._key.imatrix:
            return notes
        place = next((path for path in self._workspace.store.locations("model", model) if path.exists()), "MODEL")
        matrix = f"importance matrix {stored[0].fingerprint[:12]} ({plural(stored[0].chunk_count, 'chunk')})"
        command = command_line(self._workspace, "measure", place)
        return (*notes, f"A plan takes {matrix}, with which nothing is measured yet: `{command}` does it.")

    def _wanted_columns(self) -> tuple[int, ...]:
        """Columns of the types that the job measures; without one, of those that any tensor was measured at."""
        asked = None if self._job is None else _asked(self._job)
        if asked is None:
            return tuple(map(int, np.flatnonzero(self._settled.any(axis=0))))
        return tuple(sorted(self._column[name] for name in asked.types))

    def _look_at_probes(self, key: MeasurementKey) -> None:
        """What probes say of every tensor; nothing where the model's file is gone."""
        place = next((path for path in self._workspace.store.locations("model", key.model) if path.exists()), None)
        if place is None:
            return
        with suppress(QuantailorError), self._workspace.model(place) as model:
            if model.fingerprint != key.model:
                return
            cells = self._cells()
            known = load_knowledge(self._workspace, model, key, cells)
            if known is not None:
                self._sensitivities = {name: item for name, item in known.sensitivities.items() if item.probes}
                self._evidence = tuple(run.grounds for run in runs(self._workspace, model, key, cells))
                self._no_prediction = why_early(known)

    def _cells(self) -> list[WeightError]:
        return [
            WeightError(self.tensors[at].name, name, 0, self._bits[name], weighted_mse=float(self._errors[at, self._column[name]]))
            for at, column in np.argwhere(np.isfinite(self._errors))
            for name in (self._names[column],)
        ]


@dataclass(frozen=True, slots=True)
class _Asked:
    """The measurement that a job works on."""

    types: tuple[str, ...]
    exhaustive: bool
    imatrix: str
    rounding: RoundingWish
    covariances: str


def _kind_of(key: MeasurementKey) -> RoundingKind:
    return "compensated" if key.swapped else "plain"


def _asked(job: Job) -> _Asked | None:
    """None while a job has not come to its measurement, or is of another kind."""
    if job.progress.stage in ("", *STAGES, "convert", "imatrix", "calibrate"):
        return None
    try:
        step = from_json(job.kind, json.dumps(job.arguments))
        if isinstance(step, StudyStep):
            imatrix = NONE if step.imatrix == NONE else COMPUTE
            # One that is not told compensates wherever it has covariances of its own.
            rounding: RoundingWish = "compensated" if step.rounding == AUTO and step.imatrix != NONE else step.rounding
            return _Asked(step.candidate_types, step.settings.exhaustive, imatrix, rounding, step.covariances)
        if not isinstance(step, MeasureStep):
            return None
        return _Asked(known_types(step.types), step.exhaustive, step.imatrix, step.rounding, step.covariances)
    except QuantailorError:
        return None
