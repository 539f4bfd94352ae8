"""Measures tensors x types: exhaustively, or on sampled rows until the standard error is small enough.

Work is cut into blocks of rows that do not depend on the number of threads; a block is read once and quantized
to every wanted type while it is in the cache, and its sums are combined in block order. Results are therefore
bit for bit the same for any number of threads, and memory is a few blocks per thread plus a few numbers per row.

A sampled row's figures depend on nothing but the row, and every type stops on its own along the same sequence
of rows (see `sampling`), so what is stored already never changes what is measured later. The energies that errors are
held against are those of all rows, W^T H W too, computed once for all types. Plain float types
quantize faster than rows can be chosen, and lose weight only in rare values; they are measured exhaustively.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from quantailor.analysis.importance.error_weights import UNWEIGHTED, ErrorWeights
from quantailor.analysis.rounding.compensation import PANEL_ROWS
from quantailor.analysis.rounding.metric import Metric
from quantailor.analysis.rounding.rounding import Rounding
from quantailor.analysis.threads import Workers
from quantailor.analysis.weight_errors import sampling, weight_error
from quantailor.analysis.weight_errors.sampling import RowPlan
from quantailor.analysis.weight_errors.weight_error import (
    N_FINE_BINS,
    Energy,
    RowSums,
    Totals,
    Weighting,
)
from quantailor.control import QUIET, Control, ProgressCounter
from quantailor.errors import NonFiniteWeightError, QuantailorError
from quantailor.ggml import codec, library
from quantailor.models.identity import fingerprint
from quantailor.models.source import ModelSource
from quantailor.numerics import Bytes, Doubles, Floats, Integers
from quantailor.present.words import not_finite
from quantailor.processes.heap import give_back
from quantailor.qtypes import QType, unavailable
from quantailor.records import Estimate, TensorInfo, WeightError

DEFAULT_RELATIVE_SE = 0.01
OUTPUT_SES = 3.0
"""Where output_mse is measured it decides, and may be so much less precise: alphas, its other factor, are known to a tenth at best."""
LARGE_OUTPUT_SES = 5.0
"""The same in large models, of which less is known of alphas, and rounding rows takes most of a measurement."""
SAMPLED = "sampled-"
"""How the settings of a sampled measurement begin."""
OUTPUT_SAMPLING = "-2"
"""Version of how output_mse is sampled, behind the settings of what was. The first, which had none, estimated W^T H W from the sample."""
BLOCK_WEIGHTS = 1 << 16
"""Weights of an exhaustive block: it stays in a core's cache, and cheap types do not drown in calls."""
ENERGY_WEIGHTS = 1 << 18
"""Weights of a block whose energies alone are wanted: larger, as nothing is quantized."""
GROUP_WEIGHTS = 1 << 15
"""Weights of a group of sampled rows: in a core's cache, and few enough that a pilot keeps several cores busy."""
BATCH_WEIGHTS = 1 << 26
"""Weights x types after which an exhaustive run hands over its cells, so that little is lost when it is killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureSettings:
    """How carefully to measure.

    Raises:
        QuantailorError: `relative_se` is not between 0 and 1.
    """

    exhaustive: bool = False
    relative_se: float = DEFAULT_RELATIVE_SE
    """Sampling goes on until the relative standard error of weighted_mse is at most this; or that of output_mse, where there is one,
    `output_ses` times this."""
    output_ses: float = OUTPUT_SES
    """No part of `key`: whatever was measured until another figure of it stands with its own standard error."""

    def __post_init__(self) -> None:
        if not 0 < self.relative_se < 1:
            raise QuantailorError(f"a relative standard error of {self.relative_se:g} is not between 0 and 1", remedy="Try 0.01")

    @property
    def key(self) -> str:
        """A short text that is equal for settings whose results can stand in one table; see `key_with` where covariances are at hand."""
        return "exhaustive" if self.exhaustive else f"{SAMPLED}{self.relative_se:g}-{sampling.PILOT_DRAWS}"

    def key_with(self, rounding: str) -> str:
        """The same for what is measured with a rounding, its `Rounding.key`: with covariances it holds how output_mse is sampled."""
        return f"{self.key}{OUTPUT_SAMPLING}" if rounding and not self.exhaustive else self.key


def measure_cells(
    source: ModelSource,
    tasks: Sequence[tuple[TensorInfo, str]],
    *,
    weights_of: Callable[[TensorInfo], ErrorWeights] | None = None,
    rounding: Rounding | None = None,
    settings: MeasureSettings | None = None,
    seed: str | None = None,
    n_threads: int | None = None,
    control: Control = QUIET,
) -> Iterator[WeightError]:
    """The same for single cells, tensors with the names of types; those of a tensor that stand together are measured together.

    Raises as `measure_model` does.
    """
    settings, qtypes_of = settings or MeasureSettings(), library.types()
    missing = [(tensor, [qtypes_of[name] for _, name in cells]) for tensor, cells in groupby(tasks, key=itemgetter(0))]
    seed = seed or fingerprint(source)
    ready: set[str] = set()
    progress = ProgressCounter(control, sum(expected_work(tensor, len(qtypes), settings) for tensor, qtypes in missing))
    try:
        with Workers(n_threads, control) as workers:
            for tensor, qtypes in missing:
                control.check()
                weights = UNWEIGHTED if weights_of is None else weights_of(tensor)
                measurable = []
                for qtype in qtypes:
                    held = weights.quantizer is not None
                    reason = unavailable(tensor, qtype, architecture=source.architecture, has_imatrix=held, qtypes=library.types())
                    if reason is None:
                        measurable.append(qtype)
                    else:
                        yield weight_error.unavailable_cell(tensor, qtype, reason)
                _set_up([qtype for qtype in measurable if qtype.name not in ready], control)
                ready.update(qtype.name for qtype in measurable)
                progress.add(expected_work(tensor, len(qtypes) - len(measurable), settings), tensor.name)
                for batch in _batches(tensor, measurable, settings):
                    measurement = _Measurement(source, tensor, weights, rounding, settings, seed, workers)
                    yield from measurement.cells(batch)
                    give_back()
                    progress.add(expected_work(tensor, len(batch), settings), tensor.name)
    finally:
        if rounding is not None:
            rounding.forget()
        give_back()


def _batches(tensor: TensorInfo, qtypes: Sequence[QType], settings: MeasureSettings) -> Iterator[Sequence[QType]]:
    size = max(1, BATCH_WEIGHTS // tensor.n_elements) if settings.exhaustive else max(1, len(qtypes))
    for start in range(0, len(qtypes), size):
        yield qtypes[start : start + size]


def _set_up(qtypes: Sequence[QType], control: Control) -> None:
    """Let ggml make its tables, which takes seconds for some types, before the work whose speed predicts the rest."""
    for qtype in qtypes:
        control.check()
        codec.quantize(np.ones((1, qtype.block_size), np.float32), qtype, np.ones(qtype.block_size, np.float32))


def expected_work(tensor: TensorInfo, n_types: int, settings: MeasureSettings) -> float:
    """Expected work in weights x types, for progress."""
    if settings.exhaustive:
        return float(tensor.n_elements * n_types)
    return n_types * min(tensor.n_elements, 2 * sampling.PILOT_DRAWS * tensor.n_cols + tensor.n_elements / 1000)


class _BlockSums(NamedTuple):
    """One type's sums over a block of rows."""

    totals: Doubles
    """Plain, weighted, output and with all of H, (4,)."""
    largest: float
    fine: Integers
    """Counts in the fine bins, (N_FINE_BINS,)."""


@dataclass(slots=True)
class _Sample:
    """One type's figures for the rows measured so far; rows ascend."""

    rows: Integers
    sums: RowSums
    pilot_rows: Integers
    pilot_fine: Integers
    """Counts in the fine bins of each pilot row, (n_pilot_rows, N_FINE_BINS)."""

    def extend(self, rows: Integers, sums: RowSums) -> None:
        order = np.argsort(np.concatenate([self.rows, rows]), kind="stable")
        self.rows = np.concatenate([self.rows, rows])[order]
        self.sums = RowSums(*(column[order] for column in _joined([self.sums, sums])))


def _joined(parts: Iterable[RowSums]) -> RowSums:
    return RowSums(*map(np.concatenate, zip(*parts, strict=True)))


class _Measurement:
    """The measurement of one tensor."""

    def __init__(
        self,
        source: ModelSource,
        tensor: TensorInfo,
        weights: ErrorWeights,
        rounding: Rounding | None,
        settings: MeasureSettings,
        seed: str,
        workers: Workers,
    ) -> None:
        self._source, self._tensor, self._weights, self._workers = source, tensor, weights, workers
        self._rounding = rounding
        covariances = None if rounding is None else rounding.covariances
        self._has_covariances = covariances is not None
        self._has_metric = covariances is not None and any(covariances.key_of(tensor, index) for index in range(tensor.n_slices))
        self._settings = settings
        self._seed = f"{seed}/{tensor.name}"
        self._scales: Weighting = weight_error.weighting(tensor, weights)

    def cells(self, qtypes: Sequence[QType]) -> tuple[WeightError, ...]:
        """Measure these types; cells in their order."""
        lossless = [t for t in qtypes if t.name in (self._tensor.type_name, "F32")]
        lossy = [t for t in qtypes if t not in lossless]
        cells = {
            t.name: weight_error.lossless_cell(self._tensor, t, self._weights, with_covariances=self._has_covariances) for t in lossless
        }
        try:
            if lossy and not self._settings.exhaustive:
                cells |= self._sampled([t for t in lossy if t.is_quantized])
            if missing := [t for t in lossy if t.name not in cells]:
                cells |= self._exhaustive(missing)
        except NonFiniteWeightError:
            self._refuse()
            raise
        return tuple(cells[t.name] for t in qtypes)

    def _refuse(self) -> None:
        """Raise NonFiniteWeightError with the count of the whole tensor."""
        n_bad = sum(self._workers.map(lambda rows: int(np.count_nonzero(~np.isfinite(self._read(rows)))), self._blocks()))
        if n_bad:
            raise NonFiniteWeightError(f"{self._tensor.name} has {not_finite(n_bad)}", remedy="Get an intact copy of the model")

    # Rows

    def _blocks(self) -> Iterator[Integers]:
        """Row indexes of every block, none across slices."""
        return self._groups(np.arange(self._tensor.n_rows), BLOCK_WEIGHTS)

    def _groups(self, rows: Integers, n_weights: int) -> Iterator[Integers]:
        """Cut ascending rows into groups of about `n_weights`, none across slices."""
        size = max(PANEL_ROWS if self._has_metric else 1, n_weights // self._tensor.n_cols)
        per_slice = self._tensor.rows_per_slice
        for index in range(self._tensor.n_slices):
            start, stop = np.searchsorted(rows, [index * per_slice, (index + 1) * per_slice])
            for first in range(start, stop, size):
                yield rows[first : min(first + size, stop)]

    def _read(self, rows: Integers) -> Floats:
        """Weights of ascending rows, (len(rows), n_cols)."""
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        parts = [self._source.rows(self._tensor.name, int(run[0]), int(run[-1]) + 1) for run in runs]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _checked(self, rows: Integers) -> tuple[Floats, Floats]:
        """Weights and their squares; NonFiniteWeightError where ggml must not see them."""
        values = self._read(rows)
        with np.errstate(all="ignore"):
            squares = np.multiply(values, values)
        if not squares.max() <= codec.MAX_ABS_WEIGHT**2:
            codec.check_weights(values, self._tensor.name)
        return values, squares

    def _energies(self, rows: Integers) -> RowSums:
        """Sums of the weights themselves."""
        values, squares = self._checked(rows)
        return weight_error.row_sums(values, squares, self._scales, rows, self._metric(rows))

    def _slice(self, rows: Integers) -> int:
        return int(rows[0]) // self._tensor.rows_per_slice

    def _metric(self, rows: Integers, *, quantized: bool = True) -> Metric | None:
        """That of the rows' matrix; none for plain floats, whose errors are too small and too random for pairs of columns to matter."""
        if not quantized:
            return None
        return self._rounding.metric(self._tensor, self._slice(rows)) if self._rounding is not None and self._has_metric else None

    def _codes(self, values: Floats, qtype: QType, rows: Integers) -> Bytes:
        if self._rounding is not None:
            return self._rounding.quantize(self._tensor, self._slice(rows), values, qtype)
        given = self._weights.quantizer
        return codec.quantize(values, qtype, None if given is None else np.asarray(given[self._slice(rows)], dtype=np.float32))

    def _errors(self, values: Floats, qtype: QType, rows: Integers) -> tuple[RowSums, Floats]:
        """Sums of one type's errors in some rows, and the squares."""
        error, squares = weight_error.quantization_error(values, qtype, lambda: self._codes(values, qtype, rows))
        with np.errstate(all="ignore"):
            return weight_error.row_sums(error, squares, self._scales, rows, self._metric(rows, quantized=qtype.is_quantized)), squares

    # All rows

    def _exhaustive(self, qtypes: Sequence[QType]) -> dict[str, WeightError]:
        def block(rows: Integers) -> tuple[Energy, list[_BlockSums]]:
            values, squares = self._checked(rows)
            metric = self._metric(rows, quantized=any(qtype.is_quantized for qtype in qtypes))
            energy = weight_error.row_sums(values, squares, self._scales, rows, metric)
            found = Energy(float(energy.plain.sum()), float(energy.weighted.sum()), float(energy.full.sum()))
            return found, [self._block_sums(values, t, rows) for t in qtypes]

        plain = weighted = full = 0.0
        sums = [_BlockSums(np.zeros(4), 0.0, np.zeros(N_FINE_BINS, dtype=np.int64)) for _ in qtypes]
        for found, parts in self._workers.map(block, self._blocks()):
            plain, weighted, full = plain + found.plain, weighted + found.weighted, full + found.full
            sums = [
                _BlockSums(one.totals + part.totals, max(one.largest, part.largest), one.fine + part.fine)
                for one, part in zip(sums, parts, strict=True)
            ]
        energy = Energy(plain, weighted, full)
        return {t.name: self._record(t, self._totals(t, part, energy), energy) for t, part in zip(qtypes, sums, strict=True)}

    def _block_sums(self, values: Floats, qtype: QType, rows: Integers) -> _BlockSums:
        sums, squares = self._errors(values, qtype, rows)
        fine = np.bincount(weight_error.fine_bins(squares).reshape(-1), minlength=N_FINE_BINS)
        totals = np.array([column.sum() for column in (*sums[:3], sums.full)])
        return _BlockSums(totals, float(sums.largest.max()), fine)

    def _totals(self, qtype: QType, sums: _BlockSums, energy: Energy) -> Totals:
        plain, weighted, output, full = (Estimate(float(total)) for total in sums.totals)
        return Totals(
            plain,
            weighted,
            output if self._scales.means is not None else None,
            sums.largest,
            sums.fine / self._tensor.n_elements,
            (0.0,) * len(weight_error.QUANTILES),
            self._tensor.n_rows,
            weight_error.ratio(full, energy.full if qtype.is_quantized else energy.weighted) if self._has_covariances else None,
        )

    def _record(self, qtype: QType, totals: Totals, energy: Energy) -> WeightError:
        return weight_error.weight_error(self._tensor, qtype, totals, energy, n_unseen=self._weights.n_unseen_slices)

    # Sampled rows

    def _sampled(self, qtypes: Sequence[QType]) -> dict[str, WeightError]:
        """Cells of the types for which sampling reaches its target with fewer draws than there are rows."""
        if not qtypes or self._tensor.n_rows <= sampling.PILOT_DRAWS:
            return {}
        energies = _joined(self._workers.map(self._energies, self._groups(np.arange(self._tensor.n_rows), ENERGY_WEIGHTS)))
        certain = sampling.OUTPUT_CERTAIN_DRAWS if self._has_metric else sampling.PILOT_DRAWS
        per_slice = self._tensor.rows_per_slice
        plan = sampling.plan_rows(energies.plain, energies.weighted, per_slice, self._seed, certain_draws=certain)
        todo = dict.fromkeys(qtypes, (sampling.PILOT_DRAWS, 0))
        samples: dict[QType, _Sample] = {}
        cells: dict[str, WeightError] = {}
        while todo := {t: step for t, step in todo.items() if step[0] <= plan.n_open}:
            n, before = min(todo.values())
            ready = [t for t, step in todo.items() if step == (n, before)]
            self._draw(plan, n, before, ready, samples)
            for qtype in ready:
                del todo[qtype]
                weighted = self._total(plan, n, samples[qtype], samples[qtype].sums.weighted, energies.weighted)
                relative_se = weighted.relative_se
                if self._has_metric:
                    output = self._total(plan, n, samples[qtype], samples[qtype].sums.full, energies.weighted)
                    relative_se = output.relative_se / self._settings.output_ses
                if relative_se <= self._settings.relative_se or not math.isfinite(weighted.value):
                    energy = Energy(float(energies.plain.sum()), float(energies.weighted.sum()), float(energies.full.sum()))
                    cells[qtype.name] = self._record(qtype, self._estimated(plan, n, energies, samples[qtype]), energy)
                    del samples[qtype]
                else:
                    todo[qtype] = (sampling.next_stage(n, relative_se, self._settings.relative_se), n)
        return cells

    def _draw(self, plan: RowPlan, n: int, before: int, qtypes: Sequence[QType], samples: dict[QType, _Sample]) -> None:
        """Measure the rows that `n` draws need beyond those of `before` draws."""
        rows = plan.measured(n)
        if before:
            rows = np.setdiff1d(rows, plan.measured(before))
        measured: list[list[tuple[RowSums, Integers]]] = [[] for _ in qtypes]

        def group(rows: Integers) -> list[tuple[RowSums, Integers]]:
            values, _ = self._checked(rows)
            return [self._group_sums(values, t, rows, count=not before) for t in qtypes]

        for parts in self._workers.map(group, self._groups(rows, GROUP_WEIGHTS)):
            for gathered, part in zip(measured, parts, strict=True):
                gathered.append(part)
        for qtype, gathered in zip(qtypes, measured, strict=True):
            if not before:
                fine = np.concatenate([fine for _, fine in gathered])
                samples[qtype] = _Sample(rows, _joined(sums for sums, _ in gathered), rows, fine)
            elif gathered:
                samples[qtype].extend(rows, _joined(sums for sums, _ in gathered))

    def _group_sums(self, values: Floats, qtype: QType, rows: Integers, *, count: bool) -> tuple[RowSums, Integers]:
        sums, squares = self._errors(values, qtype, rows)
        if not count:
            return sums, np.empty((0, N_FINE_BINS), dtype=np.int64)
        bins = weight_error.fine_bins(squares) + N_FINE_BINS * np.arange(len(rows))[:, None]
        counts = np.bincount(bins.reshape(-1), minlength=len(rows) * N_FINE_BINS)
        return sums, counts.reshape(len(rows), N_FINE_BINS).astype(np.int32)

    def _total(self, plan: RowPlan, n: int, sample: _Sample, y: Doubles, x: Doubles) -> Estimate:
        """The total over all rows of `y`, known for the sample, from `x`, known for every row."""
        draws = plan.draws(n)
        rows = np.concatenate([plan.certain, draws.rows])
        positions = np.searchsorted(sample.rows, rows)
        return sampling.estimate_total(plan, draws, y[positions], x[rows], float(x.sum()))

    def _estimated(self, plan: RowPlan, n: int, energies: RowSums, sample: _Sample) -> Totals:
        sums = sample.sums
        shares, quantiles_se = self._distribution(plan, sample)
        weighted, output_mse = self._total(plan, n, sample, sums.weighted, energies.weighted), None
        if self._has_covariances:
            output_mse = weight_error.ratio(self._total(plan, n, sample, sums.full, energies.weighted), float(energies.full.sum()))
        return Totals(
            self._total(plan, n, sample, sums.plain, energies.plain),
            weighted,
            None if self._scales.means is None else self._total(plan, n, sample, sums.output, energies.weighted),
            float(sums.largest.max()),
            shares,
            quantiles_se,
            len(sample.rows),
            output_mse,
        )

    def _distribution(self, plan: RowPlan, sample: _Sample) -> tuple[Doubles, tuple[float, ...]]:
        """Shares of the fine bins and standard errors of the quantiles, from the pilot's rows."""
        draws = plan.draws(sampling.PILOT_DRAWS)
        positions = np.searchsorted(sample.pilot_rows, np.concatenate([plan.certain, draws.rows]))
        counts = sample.pilot_fine[positions]
        shares = sampling.estimate_shares(plan, draws, counts / self._tensor.n_cols)
        edges, cumulative = weight_error.fine_edges(), np.cumsum(shares)
        errors = []
        for q in weight_error.QUANTILES:
            k = int(np.searchsorted(cumulative, q * cumulative[-1]))
            low, high = max(0, k - 2), min(k + 2, N_FINE_BINS - 1)
            density = (cumulative[high] - cumulative[low]) / (edges[high + 1] - edges[low + 1])
            below = counts[len(plan.certain) :, : k + 1].sum(axis=1) / self._tensor.n_cols
            errors.append(sampling.share_below_se(plan, draws, below) / density if density > 0 else 0.0)
        return shares, tuple(float(error) for error in errors)
