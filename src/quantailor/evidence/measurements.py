"""Which measurement of a model counts for a question, and the rules' input made of it."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from quantailor.analysis.importance.imatrix import holds
from quantailor.analysis.rounding.rounding import COMPENSATED, PLAIN_MEASURED, Rounding
from quantailor.analysis.weight_errors.measure import MeasureSettings
from quantailor.errors import StrategyError, TensorNotFoundError
from quantailor.evidence.grounds import imatrix_option, is_current, measure_command
from quantailor.ggml import library
from quantailor.making import building
from quantailor.models.source import ModelSource
from quantailor.qtypes import IMATRIX_EXEMPT, needs_imatrix
from quantailor.records import Cell, TensorCells, TensorInfo, WeightError
from quantailor.session import AUTO, NONE, OpenedModel, Workspace, quantizable_tensors
from quantailor.store import MeasurementKey
from quantailor.strategy.choose import ModelFacts
from quantailor.strategy.constraints import matches

UNUSUAL_TYPES = frozenset({"TQ1_0", "TQ2_0", "Q1_0", "Q2_0", "MXFP4", "NVFP4"})
"""Types that a plan uses only where the user allows them: made for weights trained that way, or run by few backends."""


def usual_types() -> tuple[str, ...]:
    """The types that a plan uses unless the user says otherwise, as ggml lists them."""
    return tuple(name for name in library.types() if name not in UNUSUAL_TYPES)


def usual_table(table: TensorCells, quick: Sequence[str] = ()) -> TensorCells:
    """A tensor with the types that plans use unless the user says otherwise, of `quick` ones alone if there are any; all where that
    leaves none.
    """
    qtypes = library.types()
    kept = tuple(cell for cell in table.cells if cell.type_name not in UNUSUAL_TYPES and qtypes[cell.type_name].is_quantized)
    kept = tuple(cell for cell in kept if cell.type_name in quick) or kept
    return TensorCells(table.name, table.n_elements, kept or table.cells, table.importance)


def chosen_tensors(source: ModelSource, patterns: Collection[str]) -> list[TensorInfo]:
    """The quantizable tensors that patterns select, as those of constraints do; all for none.

    Raises TensorNotFoundError for a pattern that selects none.
    """
    tensors = quantizable_tensors(source)
    for pattern in patterns:
        if not any(matches(pattern, tensor.name) for tensor in tensors):
            raise TensorNotFoundError(f"no quantizable tensor of {source.name} matches {pattern}", remedy="See `quantailor inspect`")
    return [tensor for tensor in tensors if not patterns or any(matches(pattern, tensor.name) for pattern in patterns)]


@dataclass(frozen=True)
class Measured:
    """One measurement of a model: its key, its cells, and the rules' input made of weight errors alone."""

    key: MeasurementKey
    cells: Sequence[WeightError]
    tables: Sequence[TensorCells]
    text_sha256: str | None = None
    """The text that the importance matrix was computed from, where this home did it."""

    @property
    def is_exhaustive(self) -> bool:
        """Whether every row was measured."""
        return self.key.settings == MeasureSettings(exhaustive=True).key


def measured(
    workspace: Workspace, model: OpenedModel, imatrix: str, exhaustive: bool | None = None, *, rounding: str = AUTO, partial: bool = False
) -> Measured:
    """The measurement to work with; see `plan` and `tensor_tables` for the arguments.

    "auto" is the model's own importance matrix, and compensated rounding where as much is measured with it as without, else
    plain. `rounding` may also be "plain", "compensated", or the `Rounding.key` of one measurement. With `partial` an
    other matrix where that was not measured as far, and with what other measurements of the same rounding know of
    further tensors and types.

    Raises:
        StrategyError: there is none.
    """
    key = _measurement(workspace, model, imatrix, exhaustive, rounding, partial=partial)
    cells = _possible(workspace, model, key, workspace.store.cells(key, distributions=False))
    if partial:
        cells = _with_earlier(workspace, model, key, cells)
    try:
        tables = tensor_tables(model.source, cells, partial=partial)
    except StrategyError as error:
        raise StrategyError(error.message, remedy=f"Run `{measure_command(workspace, model, key)}`") from None
    texts = workspace.store.imatrix_texts(model.fingerprint, key.imatrix) if key.imatrix else set()
    return Measured(key, cells, tables, min(texts, default=None))


def _with_earlier(workspace: Workspace, model: OpenedModel, key: MeasurementKey, cells: Sequence[WeightError]) -> Sequence[WeightError]:
    """With what others of the same rounding know of tensors and types that this one has not come to."""
    counts = workspace.store.measurements(model.fingerprint)
    known = {(cell.tensor, cell.type_name): cell for cell in cells}
    for other in sorted(counts, key=lambda each: -counts[each]):
        if other != key and other.rounding == key.rounding and is_current(other):
            for cell in _possible(workspace, model, key, workspace.store.cells(other, distributions=False)):
                if cell.unavailable is None:
                    known.setdefault((cell.tensor, cell.type_name), cell)
    return tuple(known.values())


def _possible(workspace: Workspace, model: OpenedModel, key: MeasurementKey, cells: Sequence[WeightError]) -> Sequence[WeightError]:
    """Without types that need importances which a tensor lacks; earlier versions measured them for embeddings and output."""
    qtypes = library.types()
    doubtful = {
        (cell.tensor, cell.type_name)
        for cell in cells
        if cell.unavailable is None
        and (cell.tensor in IMATRIX_EXEMPT or not key.imatrix)
        and needs_imatrix(cell.tensor, qtypes[cell.type_name])
    }
    if not doubtful:
        return cells
    imatrix = workspace.imatrices.read(model.fingerprint, key.imatrix) if key.imatrix else None
    held = {name for name, _ in doubtful if holds(imatrix, model.source.tensor(name))}
    return [cell for cell in cells if (cell.tensor, cell.type_name) not in doubtful or cell.tensor in held]


def measured_for(workspace: Workspace, model: OpenedModel, rounding: Rounding) -> Measured:
    """The measurement of weights rounded like that, with that very importance matrix or none. Raises StrategyError where there is none."""
    imatrix = rounding.imatrix
    wanted = NONE if imatrix is None else str(workspace.imatrices.path(model.fingerprint, imatrix.fingerprint))
    return measured(workspace, model, wanted, rounding=rounding.key if rounding.compensated else "plain")


def _measurement(
    workspace: Workspace, model: OpenedModel, imatrix: str, exhaustive: bool | None, rounding: str, *, partial: bool
) -> MeasurementKey:
    """The measurement to plan with; see `plan`. Raises StrategyError where there is none."""
    counts = {
        key: count
        for key, count in workspace.store.measurements(model.fingerprint).items()
        if is_current(key)
        and _is_rounded(key, rounding)
        and (exhaustive is None or key.settings == MeasureSettings(exhaustive=exhaustive).key_with(key.rounding))
    }
    if imatrix == AUTO:
        wanted = [record.fingerprint for record in workspace.imatrices.stored(model.fingerprint)] + [""]
    else:
        chosen = workspace.imatrices.choose(model, imatrix)
        wanted = ["" if chosen is None else chosen.fingerprint]
    n_tensors = workspace.store.measured_tensors(model.fingerprint)
    if partial:
        # One that has just begun takes no tensor away from one that has them all.
        most = max((n_tensors[key] for key in counts if key.imatrix in wanted), default=0)
        counts = {key: count for key, count in counts.items() if n_tensors[key] == most}
    own = [record.fingerprint[:16] for record in workspace.covariances.stored(model.fingerprint)]
    key = most_telling(counts, wanted, n_tensors, own)
    if key is None or (key.imatrix != wanted[0] and not partial):
        with_it = f"with importance matrix {wanted[0][:12]}" if wanted[0] else "without an importance matrix"
        how = rounding if rounding not in (AUTO, "plain", "compensated") else "compensated" if rounding == "compensated" else ""
        settings = MeasureSettings(exhaustive=bool(exhaustive)).key_with(how)
        like = MeasurementKey(model.fingerprint, wanted[0], settings, rounding=how)
        remedy = f"Run `{measure_command(workspace, model, like)}` first"
        if key is not None:
            remedy += f", or use what was measured: {' '.join(imatrix_option(workspace, model, key.imatrix))}"
        if like.swapped:
            with_it += " and with compensated rounding"
        if like.covariances:
            with_it += f" by the covariances {like.covariances}"
        raise StrategyError(f"nothing is measured {with_it} for {model.source.name}", remedy=remedy)
    return key


def roundings_measured(workspace: Workspace, fingerprint: str) -> list[str]:
    """`Rounding.key` of everything that is measured of a model as this version rounds: what most is known of first."""
    counts = {key: n for key, n in workspace.store.measurements(fingerprint).items() if is_current(key)}
    return list(dict.fromkeys(key.rounding for key in sorted(counts, key=lambda key: -counts[key]) if _is_rounded(key, AUTO)))


def _is_rounded(key: MeasurementKey, rounding: str) -> bool:
    """Whether a measurement is of such rounding, as this version does it."""
    if rounding not in (AUTO, "plain", "compensated"):
        return key.rounding == rounding
    version, _, _ = key.rounding.partition(":")
    return version in {AUTO: ("", PLAIN_MEASURED, COMPENSATED), "plain": ("", PLAIN_MEASURED), "compensated": (COMPENSATED,)}[rounding]


def most_telling(
    counts: Mapping[MeasurementKey, int], imatrices: Sequence[str], n_tensors: Mapping[MeasurementKey, int], covariances: Sequence[str]
) -> MeasurementKey | None:
    """The measurement to take: of the first of these importance matrices that has one, that with the most cells.

    Of several roundings that counts of which most is measured; among equals compensated before plain, and with covariances before
    without, the first of these before others.
    """
    ranks = {fingerprint: -rank for rank, fingerprint in enumerate(covariances)}

    def worth(key: MeasurementKey) -> tuple[int, int, bool, bool, int, str]:
        rank = ranks.get(key.covariances, -len(ranks))
        return n_tensors[key], counts[key], bool(key.swapped), bool(key.covariances), rank, key.rounding

    for imatrix in imatrices:
        keys = [key for key in counts if key.imatrix == imatrix]
        if keys:
            roundings = {key.rounding for key in keys}
            best = [max((key for key in keys if key.rounding == rounding), key=lambda key: _size(key, counts)) for rounding in roundings]
            return max(best, key=worth)
    return None


def _size(key: MeasurementKey, counts: Mapping[MeasurementKey, int]) -> tuple[int, bool]:
    return counts[key], key.settings == MeasureSettings(exhaustive=True).key


def tensor_tables(source: ModelSource, cells: Sequence[WeightError], *, partial: bool = False) -> list[TensorCells]:
    """The rules' input: every quantizable tensor with the types it may take; damage is `relative_mse x elements`.

    Raises StrategyError where a tensor is not measured; with `partial` it is left out, and keeps the type it has.
    """
    by_tensor: dict[str, list[Cell]] = {}
    tensors = {tensor.name: tensor for tensor in quantizable_tensors(source)}
    for cell in cells:
        if cell.unavailable is None and cell.relative_mse is not None and cell.tensor in tensors:
            by_tensor.setdefault(cell.tensor, []).append(_cell(tensors[cell.tensor], cell))
    missing = [name for name in tensors if name not in by_tensor]
    if missing and not (partial and by_tensor):
        raise StrategyError(
            f"{len(missing)} tensors are not measured, {missing[0]} among them",
            remedy=f"Run `{shlex.join(('quantailor', 'measure', source.location))}`",
        )
    return [TensorCells(name, tensor.n_elements, tuple(by_tensor[name])) for name, tensor in tensors.items() if name in by_tensor]


def _cell(tensor: TensorInfo, cell: WeightError) -> Cell:
    relative_mse = cell.relative_mse or 0.0
    return Cell(
        type_name=cell.type_name,
        size_bytes=cell.size_bytes,
        bits_per_weight=cell.bits_per_weight,
        damage=relative_mse * tensor.n_elements,
        relative_mse=relative_mse,
        weighted_mse=cell.weighted_mse or 0.0,
        output_mse=cell.output_mse,
        rmse=cell.rmse or 0.0,
        max_abs_error=cell.max_abs_error or 0.0,
    )


def model_facts(model: OpenedModel, tables: Sequence[TensorCells]) -> ModelFacts:
    """What the rules must know beside the tables; the header's size is a lower estimate that `exact_size` corrects."""
    names = {table.name for table in tables}
    others = [tensor for tensor in model.source.tensors if tensor.name not in names]
    empty = building.plain_layout(model.source, {}).size_bytes
    data = sum(tensor.size_bytes for tensor in model.source.tensors)
    other_bytes = sum(tensor.size_bytes for tensor in others)
    return ModelFacts(
        fingerprint=model.fingerprint,
        name=model.source.name,
        architecture=model.source.architecture,
        fixed_bytes=empty - data + other_bytes,
        fixed_tensor_bytes=other_bytes,
        fixed_elements=sum(tensor.n_elements for tensor in others),
    )
