"""The models that somebody works on: what the store knows of each, and where its files are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from quantailor.analysis.weight_errors.measure import MeasureSettings
from quantailor.errors import ModelError, QuantailorError
from quantailor.evidence.measurements import usual_types
from quantailor.ggml import library
from quantailor.jobs import Job, reconcile
from quantailor.pipeline import Level
from quantailor.session import Workspace
from quantailor.session.covariances import KeptCovariances
from quantailor.session.imatrices import KeptImatrices
from quantailor.steps.conversion.convert import openable
from quantailor.store import CalibrationRecord, Location, MeasurementKey, ModelRecord, ResultCounts


@dataclass(frozen=True, slots=True)
class ProjectReport:
    """A model that is worked on, and what is known of it."""

    fingerprint: str
    name: str
    architecture: str
    n_parameters: int
    size_bytes: int
    """Of all tensors."""
    is_quantized: bool
    base: str | None
    """A GGUF file of it that exists."""
    source: str | None
    """Where it came from: a directory that exists, else the base."""
    has_imatrix: bool
    has_covariances: bool
    n_cells: int
    """Weight errors of its largest measurement."""
    level: str | None
    """The highest level of `study` whose kinds of results are there; None where nothing is measured."""
    is_probed: bool
    n_strategies: int
    n_builds: int
    """Built files that exist."""
    n_verdicts: int
    last_activity: str
    """UTC, ISO 8601."""
    active_jobs: tuple[int, ...]
    """Jobs of this model that wait, run, or stopped before their end; the latest first."""
    is_moe: bool = False
    """It has experts: tensors of several matrices."""


CalibrationKind = Literal["importance matrix", "input covariances"]


@dataclass(frozen=True, slots=True)
class KeptCalibration:
    """An importance matrix or input covariances of a model, as the home keeps them."""

    kind: CalibrationKind
    record: CalibrationRecord
    size_bytes: int
    is_own: bool
    """Whether commands take it unless told otherwise."""


ACTIVE = ("queued", "running", "paused", "interrupted")
"""States of jobs that have not come to their end."""
SWEPT_SHARE = 0.9
"""Share of the cells from which on a model counts as swept; a few tensors take no part in the graph."""


def list_projects(workspace: Workspace) -> list[ProjectReport]:
    """Every model that is there or that something is known of, the latest used first.

    Models that are only references or files we built are left out.
    """
    reconcile(workspace.store)
    seen = _Seen.of(workspace)
    found = [_report(workspace, record, seen) for record in workspace.store.models() if not _is_product(workspace, record, seen)]
    kept = [report for report in found if report.source or report.n_cells or report.has_imatrix or report.is_probed or report.n_verdicts]
    return sorted(kept, key=lambda report: report.last_activity, reverse=True)


def calibrations(workspace: Workspace, fingerprint: str) -> list[KeptCalibration]:
    """A model's importance matrices, then its input covariances, of each the one that is in use first."""
    kinds: dict[CalibrationKind, KeptImatrices | KeptCovariances] = {
        "importance matrix": workspace.imatrices,
        "input covariances": workspace.covariances,
    }
    return [
        KeptCalibration(kind, record, kept.path(fingerprint, record.fingerprint).stat().st_size, is_own=number == 0)
        for kind, kept in kinds.items()
        for number, record in enumerate(kept.stored(fingerprint))
    ]


def open_project(workspace: Workspace, model: Path) -> ProjectReport:
    """Record a GGUF file or a Hugging Face directory and report it; of a directory that we do not know, its conversion.

    Raises ModelError where it cannot be read.
    """
    with workspace.model(openable(workspace, model)) as opened:
        fingerprint = opened.fingerprint
    return project(workspace, fingerprint)


def project(workspace: Workspace, fingerprint: str) -> ProjectReport:
    """The model of that fingerprint, or of the only one that begins so. Raises ModelError where there is none."""
    records = [record for record in workspace.store.models() if record.fingerprint.startswith(fingerprint)] if fingerprint else []
    if len(records) != 1:
        raise ModelError(f"{len(records)} known models have the identity {fingerprint}", remedy="See `quantailor models`")
    reconcile(workspace.store)
    return _report(workspace, records[0], _Seen.of(workspace))


@dataclass(frozen=True)
class _Seen:
    """What belongs to more than one model: locations and jobs, read once."""

    models: Mapping[str, Sequence[Location]]
    builds: frozenset[Path]
    jobs: Mapping[str, Sequence[Job]] = field(default_factory=dict)
    """By the paths they work on."""

    @classmethod
    def of(cls, workspace: Workspace) -> _Seen:
        models: dict[str, list[Location]] = defaultdict(list)
        for location in workspace.store.every_location("model"):
            models[location.key].append(location)
        jobs: dict[str, list[Job]] = defaultdict(list)
        for job in workspace.store.jobs.all():
            for path in _paths(job):
                jobs[path].append(job)
        return cls(models, frozenset(location.path for location in workspace.store.every_location("build")), jobs)

    def jobs_of(self, fingerprint: str) -> list[Job]:
        """The jobs that work on any file of a model, the latest first."""
        found = {job.id: job for location in self.models.get(fingerprint, ()) for job in self.jobs.get(str(location.path), ())}
        return sorted(found.values(), key=lambda job: job.id, reverse=True)


def _paths(job: Job) -> set[str]:
    """The models that a job's task names; a conversion's output is one too."""
    keys = ("model", "base", "output") if job.kind in ("convert", "study") else ("model", "base")
    return {str(path) for path in (job.hub_path, *(job.arguments.get(key) for key in keys)) if path}


def _is_product(workspace: Workspace, record: ModelRecord, seen: _Seen) -> bool:
    """Whether every known file of a model is one that we wrote: built from a strategy, or a reference."""
    ours = workspace.home.references
    paths = [location.path for location in seen.models.get(record.fingerprint, ())]
    return bool(paths) and all(path in seen.builds or path.is_relative_to(ours) or _carries_strategy(workspace, path) for path in paths)


def _carries_strategy(workspace: Workspace, path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with workspace.source(path) as source:
            return "quantailor.strategy" in source.metadata
    except QuantailorError:
        return False


def _report(workspace: Workspace, record: ModelRecord, seen: _Seen) -> ProjectReport:
    store, fingerprint = workspace.store, record.fingerprint
    locations = seen.models.get(fingerprint, ())
    there = [location.path for location in locations if _may_hold(workspace, location.path, fingerprint)]
    base = next((path for path in there if path.is_file()), None)
    measurements, counts = store.measurements(fingerprint), store.counts(fingerprint)
    jobs, tensors = seen.jobs_of(fingerprint), store.tensors(fingerprint)
    return ProjectReport(
        fingerprint=fingerprint,
        name=record.name,
        architecture=record.architecture,
        n_parameters=record.n_elements,
        size_bytes=record.size_bytes,
        is_quantized=bool(library.quantized_types(tensors)),
        base=None if base is None else str(base),
        source=next((str(path) for path in (*(path for path in there if path.is_dir()), base) if path is not None), None),
        has_imatrix=bool(workspace.imatrices.stored(fingerprint)),
        has_covariances=any(workspace.covariances.path(fingerprint, one.fingerprint).exists() for one in store.covariances(fingerprint)),
        n_cells=max(measurements.values(), default=0),
        level=_level(
            measurements,
            counts,
            store.n_available_cells(fingerprint, [name for name in usual_types() if library.types()[name].is_quantized]),
        ),
        is_probed=bool(counts.n_swept or counts.n_mixes),
        n_strategies=counts.n_strategies,
        n_builds=sum(path.exists() for path in set(store.builds(fingerprint))),
        n_verdicts=counts.n_verdicts,
        last_activity=_last_activity(locations, jobs),
        active_jobs=tuple(job.id for job in jobs if job.state in ACTIVE),
        is_moe=any(tensor.layer is not None and tensor.n_slices > 1 for tensor in tensors),
    )


def _may_hold(workspace: Workspace, path: Path, fingerprint: str) -> bool:
    """Whether something is there that is not known to be another model by now; no weights are read for this."""
    known = workspace.known_identity(path)
    return path.exists() and (known is None or known.fingerprint == fingerprint)


def _level(measurements: Mapping[MeasurementKey, int], counts: ResultCounts, n_to_sweep: int) -> Level | None:
    """The highest level whose kinds of results are there."""
    if not measurements:
        return None
    exhaustive = MeasureSettings(exhaustive=True).key
    if not (counts.n_swept or counts.n_mixes):
        return "quick"
    if not any(key.settings == exhaustive for key in measurements):
        return "balanced"
    return "exhaustive" if counts.n_swept >= SWEPT_SHARE * n_to_sweep else "thorough"


def _last_activity(locations: Sequence[Location], jobs: Sequence[Job]) -> str:
    times = [location.seen for location in locations]
    times += [at for job in jobs for at in (job.created, job.heartbeat, job.finished) if at is not None]
    return datetime.fromtimestamp(max(times, default=0.0), UTC).isoformat(timespec="seconds")
