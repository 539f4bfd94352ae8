"""The first half of the way after the base: importance matrix, measurements."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from quantailor.analysis.corpus import Corpus, chunks, load_corpus
from quantailor.analysis.importance import imatrix as imatrices
from quantailor.analysis.importance.imatrix import Imatrix, ImatrixState
from quantailor.analysis.importance.imatrix_file import read_imatrix, write_imatrix
from quantailor.analysis.weight_errors.measure import DEFINITION_VERSION, MeasureSettings, measure_model
from quantailor.errors import ImatrixError, TensorNotFoundError, TypeUnavailableError
from quantailor.ggml import library
from quantailor.models.source import ModelSource
from quantailor.qtypes import IMATRIX_EXEMPT
from quantailor.records import TensorInfo, WeightError
from quantailor.service import tasks
from quantailor.service.results import CellReport, ImatrixReport, ImatrixTensorReport, MeasureResult
from quantailor.service.stages import Stages
from quantailor.service.workspace import CALIBRATION_TEXT, OpenedModel, Workspace, check_fit, gguf_path, quantizable_tensors
from quantailor.store import ImatrixKey, MeasurementKey

CHECKPOINT_CHUNKS = 4
"""Chunks between two saved states of an importance matrix."""


# Importance matrix


def compute_imatrix(workspace: Workspace, task: tasks.ImatrixTask, stages: Stages) -> ImatrixReport:
    """Compute an importance matrix, or find the one that the same computation gave before."""
    with workspace.model(task.base, allow_requantize=True) as model:
        text = Path(task.text) if task.text else CALIBRATION_TEXT
        corpus = load_corpus(gguf_path(model), text)
        key = ImatrixKey(model.fingerprint, corpus.sha256, task.n_ctx, f"chunks={task.chunks or 'all'} output={int(task.process_output)}")
        earlier = workspace.store.computed_imatrix(key)
        if earlier is None or not workspace.imatrix_path(model.fingerprint, earlier.fingerprint).exists():
            found = _compute(workspace, task, stages, model, corpus, key)
        else:
            found = workspace.imatrix(model.fingerprint, earlier.fingerprint)
            stages.note("this importance matrix was computed before")
        workspace.keep_imatrix(model.fingerprint, found, imported=False, computed=key)
        if task.output:
            write_imatrix(found, Path(task.output), overwrite=task.overwrite)
        return imatrix_report(workspace, model, found)


def _compute(workspace: Workspace, task: tasks.ImatrixTask, stages: Stages, model: OpenedModel, corpus: Corpus, key: ImatrixKey) -> Imatrix:
    store = workspace.store
    progress = store.imatrix_progress(key)
    tokens = chunks(corpus, task.n_ctx, limit=task.chunks)

    def keep(state: ImatrixState) -> None:
        if state.n_chunks_done % CHECKPOINT_CHUNKS == 0:
            store.record_imatrix_progress(key, state.n_chunks_done, state.to_bytes())

    return imatrices.compute_imatrix(
        gguf_path(model),
        tokens,
        state=ImatrixState.from_bytes(progress.state) if progress else None,
        on_chunk=keep,
        control=stages.begin("imatrix"),
        n_threads=task.n_threads,
        n_gpu_layers=task.n_gpu_layers,
        process_output=task.process_output,
        dataset=corpus.name,
    )


def use_imatrix(
    workspace: Workspace, base: Path, *, import_file: Path | None = None, export: Path | None = None, overwrite: bool = False
) -> ImatrixReport:
    """Import an importance matrix for a model, or take its newest; write it to `export` if given; report it.

    Raises ImatrixError where there is none, or where it does not fit the model.
    """
    with workspace.model(base) as model:
        if import_file is not None:
            found: Imatrix | None = read_imatrix(import_file)
        else:
            found = workspace.newest_imatrix(model.fingerprint)
        if found is None:
            raise ImatrixError(
                f"there is no importance matrix for {model.source.name}", remedy="Compute one with `quantailor imatrix`, or --import a file"
            )
        check_fit(found, model.source)
        if import_file is not None:
            workspace.keep_imatrix(model.fingerprint, found, imported=True)
        if export is not None:
            write_imatrix(found, export, overwrite=overwrite)
        return imatrix_report(workspace, model, found)


def imatrix_report(workspace: Workspace, model: OpenedModel, imatrix: Imatrix) -> ImatrixReport:
    """An importance matrix with its statistics and what it lacks."""
    needed = [tensor.name for tensor in quantizable_tensors(model.source) if tensor.name not in IMATRIX_EXEMPT]
    return ImatrixReport(
        fingerprint=imatrix.fingerprint,
        model_fingerprint=model.fingerprint,
        path=str(workspace.imatrix_path(model.fingerprint, imatrix.fingerprint)),
        datasets=imatrix.datasets,
        chunk_count=imatrix.chunk_count,
        chunk_size=imatrix.chunk_size,
        n_tensors=len(imatrix.entries),
        missing_tensors=tuple(name for name in needed if name not in imatrix.entries),
        statistics=tuple(_statistics_report(item) for item in imatrices.statistics(imatrix)),
    )


def _statistics_report(item: imatrices.ImatrixStatistics) -> ImatrixTensorReport:
    return ImatrixTensorReport(
        tensor=item.tensor,
        sum_of_squares=item.total,
        minimum=item.minimum,
        maximum=item.maximum,
        mean=item.mean,
        standard_deviation=item.standard_deviation,
        active_share=item.active_share,
        normalized_entropy=item.normalized_entropy,
        n_experts=item.n_experts,
        n_unseen_experts=item.n_unseen_experts,
    )


# Measurement


def measure(workspace: Workspace, task: tasks.MeasureTask, stages: Stages) -> MeasureResult:
    """Measure every missing cell and store each as it comes."""
    type_names = known_types(task.types)
    settings = MeasureSettings(exhaustive=task.exhaustive)
    with workspace.model(task.base, allow_requantize=task.allow_requantize) as model:
        imatrix = workspace.choose_imatrix(model, task.imatrix)
        tensors = chosen_tensors(model.source, task.tensors)
        key = MeasurementKey(model.fingerprint, imatrix.fingerprint if imatrix else "", settings.key, DEFINITION_VERSION)
        before = workspace.store.recorded_cells(key)
        cells = measure_model(
            model.source,
            [tensor.name for tensor in tensors],
            type_names,
            weights_of=lambda tensor: imatrices.error_weights(imatrix, tensor),
            done=lambda tensor, type_name: (tensor, type_name) in before,
            settings=settings,
            seed=model.fingerprint,
            n_threads=task.n_threads,
            control=stages.begin("measure"),
        )
        for cell in cells:
            workspace.store.record_cells(key, [cell])
        return _measure_result(workspace, key, {tensor.name for tensor in tensors}, type_names, before)


def _measure_result(
    workspace: Workspace, key: MeasurementKey, names: Collection[str], type_names: Collection[str], before: Collection[tuple[str, str]]
) -> MeasureResult:
    cells = [cell for cell in workspace.store.cells(key, distributions=False) if cell.tensor in names and cell.type_name in type_names]
    return MeasureResult(
        model_fingerprint=key.model,
        imatrix_fingerprint=key.imatrix or None,
        settings=key.settings,
        n_tensors=len(names),
        n_types=len(type_names),
        n_cells=len(cells),
        n_unavailable=sum(cell.unavailable is not None for cell in cells),
        n_already_measured=sum((cell.tensor, cell.type_name) in before for cell in cells),
        unseen_experts=dict(Counter({cell.tensor: cell.n_unseen_experts for cell in cells if cell.n_unseen_experts})),
        cells=tuple(_cell_report(cell) for cell in cells),
    )


def _cell_report(cell: WeightError) -> CellReport:
    return CellReport(
        tensor=cell.tensor,
        type_name=cell.type_name,
        bits_per_weight=cell.bits_per_weight,
        relative_mse=cell.relative_mse,
        relative_mse_se=cell.relative_mse_se,
        weighted_mse=cell.weighted_mse,
        weighted_mse_se=cell.weighted_mse_se,
        rmse=cell.rmse,
        max_abs_error=cell.max_abs_error,
        sampled=cell.sampled,
        unavailable=cell.unavailable,
    )


def known_types(names: Collection[str]) -> tuple[str, ...]:
    """The types asked for, as ggml spells them; all for none. Raises TypeUnavailableError for an unknown one."""
    qtypes = library.types()
    found = tuple(dict.fromkeys(name.upper() for name in names)) or tuple(qtypes)
    for name in found:
        if name not in qtypes:
            raise TypeUnavailableError(f"there is no type {name}", remedy=f"Known: {', '.join(qtypes)}")
    return found


def chosen_tensors(source: ModelSource, patterns: Collection[str]) -> list[TensorInfo]:
    """The quantizable tensors that match a role or a glob; all for none. Raises TensorNotFoundError where none matches."""
    tensors = quantizable_tensors(source)
    found = [tensor for tensor in tensors if not patterns or any(_matches(tensor, pattern) for pattern in patterns)]
    if not found:
        raise TensorNotFoundError(
            f"no quantizable tensor of {source.name} matches {', '.join(patterns)}", remedy="See `quantailor inspect`"
        )
    return found


def _matches(tensor: TensorInfo, pattern: str) -> bool:
    return tensor.role == pattern or fnmatch.fnmatchcase(tensor.name, pattern)
