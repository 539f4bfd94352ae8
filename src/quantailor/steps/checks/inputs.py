"""What can be seen to be impossible before any work: texts, importance matrices, and plans that no types could meet."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from quantailor.analysis.corpus import chunk_length, chunks
from quantailor.analysis.importance.imatrix import Imatrix, ImatrixEntry
from quantailor.analysis.importance.imatrix_file import read_imatrix
from quantailor.analysis.texts import check_text
from quantailor.errors import InfeasibleError
from quantailor.evidence.measurements import model_facts
from quantailor.evidence.presets import preset_size_bytes
from quantailor.evidence.roundings import is_fingerprint
from quantailor.evidence.speed_limits import speed_asked
from quantailor.ggml import library
from quantailor.ggml.reference import preset_name
from quantailor.making import building
from quantailor.models.gguf_writer import layout
from quantailor.qtypes import IMATRIX_EXEMPT, unavailable
from quantailor.records import Cell, Strategy, TensorCells, TensorChoice, TensorInfo
from quantailor.session import AUTO, NONE, OpenedModel, Workspace, quantizable_tensors, require_fit
from quantailor.steps.checks.limits import constraints_of
from quantailor.steps.options import COMPUTE, DEFAULT_N_CTX, REPO
from quantailor.steps.plan import PlanOptions
from quantailor.strategy.choose import select

SPARE_BYTES, SPARE_BYTES_PER_TENSOR = 4096, 384
"""What the header says of the importance matrix and the probes, and of a tensor beside its type, takes no more than this."""


def check_texts(*texts: str | None) -> None:
    """Raise CorpusError where a text that was named cannot be read."""
    for text in texts:
        if text is not None:
            check_text(Path(text))


def require_long_texts(workspace: Workspace, base: str, *texts: str | None) -> None:
    """Raise CorpusError where a text that was named, and that a later part of a job is to run on, fills no chunk."""
    for text in texts:
        if text is not None:
            with workspace.model(base) as model:
                chunks(workspace.corpus(model, Path(text)), chunk_length(model.source, DEFAULT_N_CTX))


def check_imatrix(imatrix: str) -> None:
    """Raise ImatrixError where a file that was named is not an importance matrix."""
    if imatrix not in (AUTO, NONE, COMPUTE, REPO):
        read_imatrix(Path(imatrix))


def require_ours(workspace: Workspace, model: OpenedModel, imatrix: str, covariances: str) -> None:
    """Raise ImatrixError or CovarianceError where a file that was named is another model's, or cannot be read."""
    if imatrix not in (AUTO, NONE, COMPUTE, REPO):
        require_fit(Path(imatrix), model.source)
    if covariances not in (AUTO, NONE) and not is_fingerprint(covariances):
        workspace.covariances.require_of(model.fingerprint, Path(covariances))


def check_plan(options: PlanOptions) -> None:
    """Raise StrategyError, OptionError or TypeUnavailableError where options cannot be read."""
    constraints_of(options)
    if options.speed is not None:
        speed_asked(options.speed)
    if options.like is not None:
        preset_name(options.like)


def check_possible(model: OpenedModel, options: PlanOptions, types: Sequence[str], *, has_imatrix: bool) -> None:
    """Raise StrategyError where no types could meet a plan's size, bits and limits, whatever is measured."""
    tables = [_table(tensor, model.source.architecture, types, has_imatrix=has_imatrix) for tensor in quantizable_tensors(model.source)]
    target: dict[str, str | int | float] = {"bits_per_weight": options.bits_per_weight or 32.0}
    size_bytes = _asked_bytes(model, options, has_imatrix=has_imatrix)
    if size_bytes is not None:
        target = {"size_bytes": size_bytes}
    if options.like is not None:
        target["like"] = preset_name(options.like)
    facts, limits = model_facts(model, tables), constraints_of(options)

    def fit(spare_bytes: int) -> None:
        """Solve with so much room for what cannot be known yet of the header."""
        select(
            tables, model=facts, target=target, constraints=limits, knees={}, exact_size=lambda plan: _bare_size(model, plan) + spare_bytes
        )

    try:
        fit(0 if options.like is None else -SPARE_BYTES)  # the preset's header is not known to the byte either
    except InfeasibleError as error:
        if error.smallest_bytes is None:
            raise
        try:
            fit(SPARE_BYTES + SPARE_BYTES_PER_TENSOR * len(tables))
        except InfeasibleError as roomy:
            raise InfeasibleError(roomy.message.replace(" takes ", " takes at most "), remedy=roomy.remedy) from None


def asked_bits(model: OpenedModel, options: PlanOptions, *, has_imatrix: bool) -> float | None:
    """Bits per weight of the file that a plan is asked for, header included; None where it is asked for a divergence, or for nothing."""
    size_bytes = _asked_bytes(model, options, has_imatrix=has_imatrix)
    if size_bytes is None:
        return options.bits_per_weight
    return 8 * size_bytes / sum(tensor.n_elements for tensor in model.source.tensors)


def _asked_bytes(model: OpenedModel, options: PlanOptions, *, has_imatrix: bool) -> int | None:
    if options.like is not None:
        return preset_size_bytes(model, preset_name(options.like), _usual_imatrix(model) if has_imatrix else None)
    return options.size_bytes


def _bare_size(model: OpenedModel, strategy: Strategy) -> int:
    """The size of a strategy's file where it says no more than each tensor's type."""
    choices = (TensorChoice(choice.name, choice.type_name, reason="", damage=0.0) for choice in strategy.tensors)
    bare, qtypes = dataclasses.replace(strategy, tensors=tuple(choices)), library.types()
    types = strategy.types
    tensors = [qtypes[types[each.name]].retyped(each) if each.name in types else each for each in model.source.tensors]
    return layout(building.output_metadata(model.source, bare), tensors).size_bytes


def _usual_imatrix(model: OpenedModel) -> Imatrix:
    """An importance matrix that holds what a usual one does, for what depends on that alone."""
    held = (tensor for tensor in quantizable_tensors(model.source) if tensor.name not in IMATRIX_EXEMPT)
    return Imatrix(
        {each.name: ImatrixEntry(np.ones((each.n_slices, each.n_cols), np.float32), np.ones(each.n_slices, np.int64)) for each in held}
    )


def _table(tensor: TensorInfo, architecture: str, types: Sequence[str], *, has_imatrix: bool) -> TensorCells:
    qtypes, held = library.types(), has_imatrix and tensor.name not in IMATRIX_EXEMPT
    there = [
        qtype
        for name in types
        if unavailable(tensor, qtype := qtypes[name], architecture=architecture, has_imatrix=held, qtypes=qtypes) is None
    ] or [qtypes[tensor.type_name]]
    cells = (
        Cell(
            qtype.name,
            qtype.tensor_bytes(tensor),
            qtype.bits_per_weight,
            damage=tensor.n_elements * math.exp2(-2 * qtype.bits_per_weight),
        )
        for qtype in there
    )
    return TensorCells(tensor.name, tensor.n_elements, tuple(cells))
