"""An importance matrix and the covariances of all inputs, in one run of the calibration text."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from quantailor import files
from quantailor.analysis.corpus import Corpus, chunk_length, chunks
from quantailor.analysis.covariances.calibrating import compute_calibration
from quantailor.analysis.covariances.capture import BUDGET_BYTES, Calibration, expected_bytes, forget_run
from quantailor.analysis.covariances.covariance_file import CovarianceFile, Input
from quantailor.analysis.importance.imatrix import TOKEN_EMBEDDINGS, Imatrix
from quantailor.costs.model_size import ModelSize
from quantailor.costs.needs import Needs, run_layer_by_layer
from quantailor.session import CALIBRATION_TEXT, OpenedModel, Workspace, gguf_path, quantizable_tensors
from quantailor.steps.calibration.imatrix import CalibrationStep, ImatrixReport, chunks_together, computation_key, imatrix_report
from quantailor.steps.stages import Stages
from quantailor.steps.step import StepResult
from quantailor.store import ImatrixKey

FEW_TOKENS = 1.0
"""Experts with fewer tokens than this times their columns are told of: they rest on the covariance of all experts for the most part."""


@dataclass(frozen=True, slots=True)
class CalibrateReport(StepResult):
    """Input covariances of the home, and the importance matrix of the same run."""

    fingerprint: str
    """Of the covariances."""
    model_fingerprint: str
    path: str
    size_bytes: int
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int
    n_inputs: int
    """Distinct ones; matrices that are multiplied with the same one share it."""
    n_matrices: int
    """Covariance matrices, experts apart."""
    missing_tensors: tuple[str, ...]
    """Quantizable tensors whose inputs were not seen: they can only be rounded plainly."""
    n_few: int
    """Experts' covariances that rest on fewer tokens than they have columns."""
    imatrix: ImatrixReport


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateStep(CalibrationStep[CalibrateReport], kind="calibrate", result=CalibrateReport):
    """Compute an importance matrix and input covariances, which are what `output` is for."""

    units: ClassVar[Mapping[str, str]] = {"calibrate": "chunks"}

    memory_bytes: int | None = None
    """For sums, beside the model; with more of it the text runs fewer times. None for 1.5 GiB."""

    def run(self, workspace: Workspace, stages: Stages) -> CalibrateReport:
        """Compute both, or take what the same computation gave before."""
        with workspace.model(self.base) as model:
            corpus = workspace.seen_corpus(model, Path(self.text) if self.text else CALIBRATION_TEXT)
            n_ctx = chunk_length(model.source, self.n_ctx, stages.warn)
            key = computation_key(model, corpus, n_ctx, self.chunks, self.compute, process_output=self.process_output)
            found = _computed(workspace, model, key)
            if found is None:
                found = self._compute(workspace, stages, model, corpus, key)
            else:
                stages.note("these covariances were computed before")
            imatrix, covariances = found
            workspace.imatrices.keep(model.fingerprint, imatrix, imported=False, computed=key)
            kept = workspace.covariances.keep(model.fingerprint, covariances, imported=False, computed=key)
            forget_run(_place(workspace, model, key))
            if self.output:
                with files.whole_file(Path(self.output), overwrite=self.overwrite) as target, kept.path.open("rb") as source:
                    shutil.copyfileobj(source, target, 1 << 20)
            return _report(workspace, model, imatrix, kept)

    def needs(self, workspace: Workspace) -> Needs:
        """Memory for what is held beside the model and for sums; disk for the covariances and twice the sums of one pass over the text."""
        with workspace.source(self.base) as source:
            needs = run_layer_by_layer(ModelSize.of(source), self.n_ctx)
            in_memory, in_file = expected_bytes(quantizable_tensors(source))
        sums = min(in_memory, self.memory_bytes or BUDGET_BYTES)
        disk = [(workspace.home.covariances / "covariances.gguf", in_file + 2 * sums)]
        if self.output is not None:
            disk.append((Path(self.output), in_file))
        return replace(needs, disk=tuple(disk), memory_bytes=needs.memory_bytes + sums)

    def _compute(self, workspace: Workspace, stages: Stages, model: OpenedModel, corpus: Corpus, key: ImatrixKey) -> tuple[Imatrix, Path]:
        workspace.require_runnable(model)
        place = _place(workspace, model, key)
        budget_bytes = self.memory_bytes or BUDGET_BYTES
        sums_bytes = min(budget_bytes, expected_bytes(quantizable_tensors(model.source))[0])
        run = Calibration(
            gguf_path(model),
            model.fingerprint,
            place,
            names=frozenset(tensor.name for tensor in quantizable_tensors(model.source)),
            n_threads=self.compute.n_threads,
            devices=self.compute.devices,
            process_output=self.process_output,
            dataset=corpus.name,
            budget_bytes=budget_bytes,
            n_together=chunks_together(model, key.n_ctx, self.compute, stages, sums_bytes=sums_bytes),
        )
        tokens = chunks(corpus, key.n_ctx, limit=self.chunks)
        return compute_calibration(run, tokens, control=stages.begin("calibrate"), executor=stages.executor), place


def _place(workspace: Workspace, model: OpenedModel, key: ImatrixKey) -> Path:
    """Where a run writes its covariances, until they are whole and have a fingerprint."""
    run = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    return workspace.home.covariances / f"{model.fingerprint[:16]}-run-{run}.gguf"


def _computed(workspace: Workspace, model: OpenedModel, key: ImatrixKey) -> tuple[Imatrix, Path] | None:
    """What that computation gave, if both results are still there."""
    matrix, covariances = workspace.store.computed_imatrix(key), workspace.store.computed_covariances(key)
    if matrix is None or covariances is None:
        return None
    imatrix = workspace.imatrices.intact(model.fingerprint, matrix.fingerprint)
    found = workspace.covariances.intact(model.fingerprint, covariances.fingerprint)
    return None if imatrix is None or found is None else (imatrix, found.path)


def _report(workspace: Workspace, model: OpenedModel, imatrix: Imatrix, found: CovarianceFile) -> CalibrateReport:
    description = found.description
    multiplied = [tensor.name for tensor in quantizable_tensors(model.source) if tensor.name not in TOKEN_EMBEDDINGS]
    return CalibrateReport(
        fingerprint=found.fingerprint,
        model_fingerprint=model.fingerprint,
        path=str(found.path),
        size_bytes=found.size_bytes,
        datasets=description.datasets,
        chunk_count=description.chunk_count,
        chunk_size=description.chunk_size,
        n_inputs=len(description.inputs),
        n_matrices=sum(one.n_matrices for one in description.inputs),
        missing_tensors=tuple(name for name in multiplied if found.input_of(name) is None),
        n_few=sum(_n_few(one, counts) for one, counts in zip(description.inputs, description.counts, strict=True)),
        imatrix=imatrix_report(workspace, model, imatrix),
    )


def _n_few(one: Input, counts: Sequence[int]) -> int:
    return sum(count < FEW_TOKENS * one.n_cols for count in counts[: one.n_slices]) if one.n_slices > 1 else 0
