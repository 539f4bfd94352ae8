"""An importance matrix: computed, imported, exported, reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from quantailor import files
from quantailor.analysis.corpus import Corpus, chunk_length, chunks
from quantailor.analysis.importance.computing import ImatrixState, ImatrixWork, compute_imatrix
from quantailor.analysis.importance.imatrix import Imatrix, as_seen
from quantailor.analysis.importance.imatrix_file import read_imatrix, write_imatrix
from quantailor.analysis.importance.statistics import ImatrixStatistics, statistics
from quantailor.costs.model_size import ModelSize
from quantailor.costs.needs import Needs, n_together, run_layer_by_layer
from quantailor.errors import ImatrixError
from quantailor.evidence.grounds import command_line
from quantailor.present import words
from quantailor.processes.crews import ModelFiles
from quantailor.qtypes import IMATRIX_EXEMPT
from quantailor.session import CALIBRATION_TEXT, OpenedModel, Workspace, fitted, gguf_path, other_words, others, quantizable_tensors
from quantailor.steps.checks.inputs import check_texts
from quantailor.steps.options import DEFAULT_N_CTX, Compute
from quantailor.steps.stages import Stages
from quantailor.steps.step import Answer, ModelStep, Screen, StepResult
from quantailor.store import ImatrixKey

CHECKPOINT_CHUNKS = 4
"""Chunks between two saved states of an importance matrix."""


@dataclass(frozen=True, slots=True)
class ImatrixReport(StepResult):
    """An importance matrix of the store."""

    fingerprint: str
    model_fingerprint: str
    path: str
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int
    n_tensors: int
    missing_tensors: tuple[str, ...]
    """Quantizable tensors that it does not hold: low-bit types are unavailable there."""
    left_out: tuple[str, ...] = ()
    """Entries of the file that do not have as many values as the tensor needs; the rest was taken."""
    unseen_tensors: tuple[str, ...] = ()
    """Tensors whose importances are all zero or that no token reached: their columns count alike."""
    statistics: tuple[ImatrixStatistics, ...] = ()
    not_in_model: tuple[str, ...] = ()
    """Entries whose tensors the model lacks."""
    other_model: str | None = None
    """A sentence where these make it probable that the matrix is another model's."""
    passed_over: str | None = None
    """A sentence where later commands do not take this model's latest one by themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationStep(ModelStep[Answer]):
    """A step that runs a text through the model and keeps what its tensors are given."""

    runs_model: ClassVar[bool] = True
    measures: ClassVar[bool] = True
    screen: ClassVar[Screen | None] = "measure"

    base: str
    text: str | None = None
    """None means the calibration text that ships with Quantailor."""
    chunks: int | None = None
    n_ctx: int = DEFAULT_N_CTX
    process_output: bool = False
    output: str | None = None
    """Where the result is written too."""
    overwrite: bool = False

    def check(self, workspace: Workspace) -> None:
        """The text, and that the output may be written. Raises CorpusError, OutputError."""
        super(CalibrationStep, self).check(workspace)
        check_texts(self.text)
        if self.output is not None:
            files.refuse_existing(Path(self.output), overwrite=self.overwrite)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImatrixStep(CalibrationStep[ImatrixReport], kind="imatrix", result=ImatrixReport):
    """Compute an importance matrix."""

    units: ClassVar[Mapping[str, str]] = {"imatrix": "chunks"}

    def run(self, workspace: Workspace, stages: Stages) -> ImatrixReport:
        """Compute it, or take the one that the same computation gave before."""
        with workspace.model(self.base) as model:
            corpus = workspace.seen_corpus(model, Path(self.text) if self.text else CALIBRATION_TEXT)
            n_ctx = chunk_length(model.source, self.n_ctx, stages.warn)
            key = computation_key(model, corpus, n_ctx, self.chunks, self.compute, process_output=self.process_output)
            earlier = workspace.store.computed_imatrix(key)
            imatrix = None if earlier is None else workspace.imatrices.intact(model.fingerprint, earlier.fingerprint)
            if imatrix is None:
                imatrix = _compute(workspace, self, stages, model, corpus, key)
            else:
                stages.note("this importance matrix was computed before")
            workspace.imatrices.keep(model.fingerprint, imatrix, imported=False, computed=key)
            if self.output:
                write_imatrix(imatrix, Path(self.output), overwrite=self.overwrite)
            return imatrix_report(workspace, model, imatrix)

    def needs(self, workspace: Workspace) -> Needs:
        """Memory for what is held beside the model."""
        with workspace.source(self.base) as source:
            return run_layer_by_layer(ModelSize.of(source), self.n_ctx)


def computation_key(
    model: OpenedModel, corpus: Corpus, n_ctx: int, n_chunks: int | None, compute: Compute, *, process_output: bool
) -> ImatrixKey:
    """What an importance matrix, and covariances with it, are filed under."""
    options = f"chunks={n_chunks or 'all'} output={int(process_output)}"
    return ImatrixKey(model.fingerprint, corpus.sha256, n_ctx, options, compute.devices.engine)


def _compute(workspace: Workspace, step: ImatrixStep, stages: Stages, model: OpenedModel, corpus: Corpus, key: ImatrixKey) -> Imatrix:
    workspace.require_runnable(model)
    store = workspace.store
    progress = store.imatrix_progress(key)
    base, tokens = ModelFiles(gguf_path(model), model.fingerprint, model.files), chunks(corpus, key.n_ctx, limit=step.chunks)

    def keep(state: ImatrixState) -> None:
        store.record_imatrix_progress(key, state.n_chunks_done, state.to_bytes())

    return compute_imatrix(
        ImatrixWork(base, tokens, step.compute.n_threads, step.compute.devices, chunks_together(model, key.n_ctx, step.compute, stages)),
        state=ImatrixState.from_bytes(progress.state) if progress else None,
        on_chunk=keep,
        every=CHECKPOINT_CHUNKS,
        control=stages.begin("imatrix"),
        process_output=step.process_output,
        dataset=corpus.name,
        executor=stages.executor,
    )


def chunks_together(model: OpenedModel, n_ctx: int, compute: Compute, stages: Stages, *, sums_bytes: int = 0) -> int:
    """How many chunks run side by side, which is said where they are several; one by one where others do the work."""
    if compute.cluster is not None:
        return 1
    size = ModelSize.of(model.source)
    found = n_together(size, n_ctx, compute.n_gpu_layers, sums_bytes=sums_bytes)
    if found > 1:
        stages.note(
            f"the model is larger than the free memory: up to {found} chunks run side by side, layer by layer, so that"
            f" {words.size(size.tensor_bytes)} are read from disk once for all of them"
        )
    return found


def use_imatrix(
    workspace: Workspace, base: Path, *, import_file: Path | None = None, export: Path | None = None, overwrite: bool = False
) -> ImatrixReport:
    """Import an importance matrix for a model, or take the one that "auto" takes; write it to `export` if given; report it.

    Raises ImatrixError where there is none, or where it does not fit the model.
    """
    with workspace.model(base) as model:
        if import_file is not None:
            found: Imatrix | None = read_imatrix(import_file)
        else:
            found = workspace.imatrices.default(model.fingerprint)
        if found is None:
            raise ImatrixError(
                f"there is no importance matrix for {model.source.name}",
                remedy=f"Compute one with `{command_line(workspace, 'imatrix', base)}`, or --import a file",
            )
        found, left_out = fitted(found, model.source)
        if import_file is not None:
            workspace.imatrices.keep(model.fingerprint, found, imported=True)
        if export is not None:
            write_imatrix(found, export, overwrite=overwrite)
        return imatrix_report(workspace, model, found, left_out)


def imatrix_report(workspace: Workspace, model: OpenedModel, imatrix: Imatrix, left_out: tuple[str, ...] = ()) -> ImatrixReport:
    """An importance matrix with its statistics and what it lacks."""
    seen = as_seen(imatrix, model.source.tensors)
    needed = [tensor.name for tensor in quantizable_tensors(model.source) if tensor.name not in IMATRIX_EXEMPT]
    return ImatrixReport(
        fingerprint=imatrix.fingerprint,
        model_fingerprint=model.fingerprint,
        path=str(workspace.imatrices.path(model.fingerprint, imatrix.fingerprint)),
        datasets=imatrix.datasets,
        chunk_count=imatrix.chunk_count,
        chunk_size=imatrix.chunk_size,
        n_tensors=len(imatrix.entries),
        missing_tensors=tuple(name for name in needed if name not in imatrix.entries),
        left_out=left_out,
        unseen_tensors=tuple(name for name, entry in seen.entries.items() if not entry.counts.any()),
        not_in_model=others(imatrix, model.source),
        other_model=other_words(imatrix, model.source),
        passed_over=workspace.imatrices.passed_over(model.fingerprint),
        statistics=tuple(statistics(seen)),
    )
