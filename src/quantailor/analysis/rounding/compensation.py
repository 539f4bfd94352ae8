"""Rounding of rows in which every column makes up for what the columns before it lost.

Blocks of columns are rounded one after another (see `metric`). Scales and codes are chosen together as `scale_search` does it. Where
a type's scales are not known, ggml's quantizer is asked first, on the weights as they would best be beside the errors so far, with the
diagonal of the metric that the block has left as importances. Its scales and minima stand; then the codes are chosen within the block as
`vector_choice` and `scale_search` do it.
"""

from __future__ import annotations

import functools

import numpy as np

from quantailor.analysis.rounding.block_scales import block_scales
from quantailor.analysis.rounding.codes import CodeOf, ScalarCodes, scalar_codes
from quantailor.analysis.rounding.loops.kernels import improve_codes
from quantailor.analysis.rounding.loops.lanes import LANES, Grid
from quantailor.analysis.rounding.loops.scale_search import choose_values
from quantailor.analysis.rounding.metric import Factor, FactorBlock, Metric, Span
from quantailor.analysis.rounding.scale_choice import round_with_scales
from quantailor.analysis.rounding.vector_choice import choose_vectors
from quantailor.analysis.rounding.vectors import VectorCodes, vector_codes
from quantailor.ggml import codec
from quantailor.numerics import Bytes, Floats
from quantailor.qtypes import QType

PANEL_ROWS = 256
"""Rows whose products with what they lost so far are computed together, at most; a multiple of `LANES`."""
DOUBTFUL = 0.6
"""Rows that lose more than this part of what ggml's rounding usually does are compared with it, and keep that where it loses less: with few
bits a weight, what there is to make up for can grow from block to block."""
LEAST = 1e-30
"""Weights below this are 0 to ggml's quantizers here: MXFP4's exponents wrap around on a block of nothing larger than 1e-38."""
N_SWEEPS = 4
"""How often a block's codes are looked at again, at most."""


def round_rows(values: Floats, qtype: QType, metric: Metric) -> Bytes:
    """Round rows to a quantized type so that their output errors become small.

    Args:
        values: weights, (n_rows, n_cols), already checked.
        qtype: a type with blocks.
        metric: of the matrix's input.

    Returns:
        The rows' bytes, (n_rows, row_bytes).

    Raises:
        TypeUnavailableError: the block does not divide the row.
        CovarianceError: the metric is not positive.
    """
    n_rows, n_cols = values.shape
    out = np.empty((n_rows, qtype.row_bytes(n_cols)), dtype=np.uint8)
    vectors = vector_codes(qtype)
    factor = metric.factor(qtype.block_size) if vectors is None else metric.factor(qtype.block_size, vectors.groups.shape[1])
    for start in range(0, n_rows, PANEL_ROWS):
        part = values[start : start + PANEL_ROWS]
        n_padded = -(-len(part) // LANES) * LANES  # always a multiple, so that a row's bytes do not depend on its neighbours
        panel = np.zeros((n_padded, n_cols), dtype=np.float32)
        panel[: len(part)] = part
        with np.errstate(over="ignore", invalid="ignore"):  # of scales near a type's limit; such rows are rounded as ggml does
            out[start : start + PANEL_ROWS] = _round_panel(panel, qtype, factor)[: len(part)]
    return out


def _round_panel(values: Floats, qtype: QType, factor: Factor) -> Bytes:
    n_rows, n_cols = values.shape
    layout = scalar_codes(qtype) or vector_codes(qtype)
    weights = np.take(values, factor.order, axis=1)
    errors = np.zeros_like(weights)
    lost = np.zeros(n_rows)
    data = np.empty((n_rows, n_cols // qtype.block_size, qtype.type_size), dtype=np.uint8)
    for span in factor.spans:
        carried = errors[:, span.stop :] @ span.below  # what later columns add to these of d L
        own = np.ascontiguousarray(weights[:, span.start : span.stop])
        for first in range(0, n_rows, LANES):
            rows = slice(first, first + LANES)
            data[rows, [block.index for block in span.blocks]], errors[rows, span.start : span.stop], more = _round_span(
                own[rows], carried[rows], qtype, layout, span
            )
            lost[rows] += more
    rounded = data.reshape(n_rows, -1)
    doubtful = np.flatnonzero(~(lost <= DOUBTFUL * usual_loss(qtype) * (np.square(weights) @ factor.importance)))
    if len(doubtful):
        plain = codec.quantize(values[doubtful], qtype, factor.importance[np.argsort(factor.order)])
        deltas = (codec.dequantize(plain, qtype, n_cols) - values[doubtful])[:, factor.order]
        better = (factor.losses(deltas) < lost[doubtful]) | ~np.isfinite(lost[doubtful])
        rounded[doubtful[better]] = plain[better]
    return rounded


@functools.cache
def usual_loss(qtype: QType) -> float:
    """Part of the squares of normally distributed weights that ggml's rounding to a type loses."""
    weights = np.random.default_rng(0).normal(size=(64, qtype.block_size)).astype(np.float32)
    data = codec.quantize(weights, qtype, np.ones(qtype.block_size, dtype=np.float32))
    return float(np.square(codec.dequantize(data, qtype, qtype.block_size) - weights).sum() / np.square(weights).sum())


def _round_span(
    weights: Floats, carried: Floats, qtype: QType, layout: ScalarCodes | VectorCodes | None, span: Span
) -> tuple[Bytes, Floats, Floats]:
    """Round rows of a span, (n, n_cols) in the factor's order.

    Gives the bytes of their blocks, (n, n_blocks, type_size), the errors that they make, (n, n_cols), and what is lost, (n,).
    """
    scales = block_scales(qtype)
    if scales is not None:
        return round_with_scales(weights, carried, scales, span, N_SWEEPS)
    size, n_blocks = qtype.block_size, len(span.blocks)
    data = np.empty((len(weights), n_blocks, qtype.type_size), dtype=np.uint8)
    errors, offset, step = (np.empty_like(weights) for _ in range(3))
    codes = np.empty(weights.shape, dtype=np.uint8)
    pulled = carried
    for number in reversed(range(n_blocks)):
        block, place = span.blocks[number], slice(number * size, (number + 1) * size)
        own, shift = np.ascontiguousarray(weights[:, place]), pulled[:, place].copy()
        best = own - shift @ block.inverse
        best[np.abs(best) < LEAST] = 0
        data[:, number] = codec.quantize(best[:, block.natural], qtype, block.importance)
        if layout is None:
            errors[:, place] = codec.dequantize(data[:, number], qtype, size)[:, block.within] - own
        elif isinstance(layout, VectorCodes):
            data[:, number], errors[:, place] = choose_vectors(own, shift, data[:, number], layout, block)
        else:
            grid = tuple(np.ascontiguousarray(each[:, block.within]) for each in layout.grid(data[:, number]))
            offset[:, place], step[:, place] = grid
            codes[:, place], errors[:, place] = _chosen(own, shift, layout, grid, block, again=n_blocks > 1)
            if n_blocks == 1:
                pulled = shift
                break
        pulled[:, : place.stop] += errors[:, place] @ span.lower[place, : place.stop]
    lost: Floats = np.einsum("ij,ij->i", pulled, pulled)
    if isinstance(layout, ScalarCodes):
        slopes = pulled @ span.lower.T
        improve_codes(weights, slopes, span.gram, offset, step, layout.middles, layout.table, N_SWEEPS, codes, errors, lost)
        data = layout.pack(data.reshape(-1, qtype.type_size), codes[:, span.natural].reshape(-1, size)).reshape(data.shape)
    return data, errors, lost


def _chosen(
    weights: Floats, shift: Floats, layout: ScalarCodes, scales: tuple[Floats, ...], block: FactorBlock, *, again: bool
) -> tuple[CodeOf, Floats]:
    """Codes of rows of one block and the errors that they make, each (n, size); looked at again at once, if that is wished.

    `shift` becomes the block's columns of d L with the errors as they were before that.
    """
    offset, step = scales
    one, whole = np.float32(1), np.ones((2, 2), dtype=np.int64)
    grid = Grid(layout.table, layout.middles, np.diff(layout.table), np.float32(0), one, one, whole, True)
    of_rows = (weights, block.lower, step, offset, shift, weights, weights)
    columns, upper, steps, offsets, carried, values, made = (np.ascontiguousarray(each.T) for each in of_rows)
    choose_values(columns, upper, np.arange(len(carried)), steps, offsets, grid, carried, values, made)
    shift[:], errors = carried.T, np.ascontiguousarray(made.T)
    codes = np.ascontiguousarray(layout.places(values.T))
    if again:
        slopes, gains = shift @ block.lower.T, np.zeros(len(weights), dtype=np.float32)
        improve_codes(weights, slopes, block.gram, offset, step, layout.middles, layout.table, N_SWEEPS, codes, errors, gains)
    return codes, errors
