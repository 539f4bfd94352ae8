"""Jobs that ended in this home, as evidence of how fast the machine is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from quantailor.analysis.weight_errors.measure import MeasureSettings, expected_work
from quantailor.costs.model_size import ModelSize
from quantailor.costs.seconds import measure_seconds
from quantailor.costs.trial import MIN_PAST_SECONDS, N_PAST_RUNS, PastRun, inference_seconds, past_ratio
from quantailor.errors import QuantailorError
from quantailor.session import Workspace
from quantailor.steps.calibration.imatrix import ImatrixStep
from quantailor.steps.measure import MeasureStep, known_types
from quantailor.steps.step import from_json
from quantailor.store import Job


def measure_ratio(workspace: Workspace) -> float | None:
    """How long measuring really took, compared with what is estimated; None where no run tells."""
    return past_ratio(list(_measure_runs(workspace)))


def inference_ratio(workspace: Workspace, *, on_gpu: bool) -> float | None:
    """The same for importance matrices, which are inference and little else; with and without a GPU apart."""
    return past_ratio(list(_imatrix_runs(workspace, on_gpu)))


def _measure_runs(workspace: Workspace) -> Iterator[PastRun]:
    for job, size in _ended(workspace, "measure"):
        task = from_json(job.kind, json.dumps(job.arguments))
        if not isinstance(task, MeasureStep) or task.tensors:
            continue
        types, settings = known_types(task.types), MeasureSettings(exhaustive=task.exhaustive)
        share = job.progress.total / sum(expected_work(tensor, len(types), settings) for tensor in size.tensors)
        low, high = measure_seconds(dict.fromkeys(size.tensors, types), exhaustive=task.exhaustive, n_threads=task.compute.n_threads)
        yield PastRun((share * low, share * high), _seconds(job))


def _imatrix_runs(workspace: Workspace, on_gpu: bool) -> Iterator[PastRun]:
    for job, size in _ended(workspace, "imatrix"):
        task = from_json(job.kind, json.dumps(job.arguments))
        if isinstance(task, ImatrixStep) and bool(task.compute.n_gpu_layers) == on_gpu:
            flops = job.progress.total * size.decode_flops(task.n_ctx)
            estimated = inference_seconds(flops, n_threads=task.compute.n_threads, n_gpu_layers=task.compute.n_gpu_layers)
            yield PastRun(estimated, _seconds(job))


def _ended(workspace: Workspace, kind: str) -> Iterator[tuple[Job, ModelSize]]:
    """Jobs of one kind that did something and were never interrupted, the latest first, with their model's size."""
    n_found = 0
    for job in workspace.store.jobs.all(states=("done",)):
        size = _size_of(workspace, job) if job.kind == kind and _tells(job) else None
        if size is not None:
            n_found += 1
            yield job, size
        if n_found == N_PAST_RUNS:
            return


def _tells(job: Job) -> bool:
    """Whether its time is that of its work: done at one go, long enough, and no download in it."""
    at_one_go = job.attempt == 1 and job.progress.total > 0 and job.hub_commit is None
    return at_one_go and _seconds(job) >= MIN_PAST_SECONDS


def _seconds(job: Job) -> float:
    return (job.finished or 0.0) - (job.started or 0.0)


def _size_of(workspace: Workspace, job: Job) -> ModelSize | None:
    """Of the model that it worked on; None where what lies at its place has changed since, or is gone."""
    path = Path(str(job.arguments.get("base", "")))
    if not workspace.is_unchanged(path, job.started or 0.0):
        return None
    try:
        with workspace.source(path) as source:
            return ModelSize.of(source)
    except QuantailorError:
        return None
