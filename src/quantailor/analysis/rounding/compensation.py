"""Rounding of rows in which every column makes up for what the columns before it lost.

Blocks of columns are rounded one after another (see `metric`). For each, ggml's quantizer is asked first, on the weights as they would
best be beside the errors so far, with the diagonal of the metric that the block has left as importances: it gives scales and minima.
These stand; then the codes are chosen within the block as `kernels` and `vectors` do it.
"""

from __future__ import annotations

import numpy as np

from quantailor.analysis.rounding.codes import ScalarCodes, scalar_codes
from quantailor.analysis.rounding.kernels import choose_codes, improve_codes
from quantailor.analysis.rounding.metric import Factor, FactorBlock, Metric
from quantailor.ggml import codec
from quantailor.numerics import Bytes, Floats
from quantailor.qtypes import QType

PANEL_ROWS = 64
"""Rows that go through together. Always as many, so that a row's bytes do not depend on its neighbours."""
WIDE = 256
"""Columns whose share of earlier errors is computed in one product."""
DOUBTFUL = 0.02
"""Rows that lose more than this part of what they hold are compared with ggml's rounding, and keep that where it loses less: with so few
bits a weight, what there is to make up for can grow from block to block."""
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
    """
    n_rows, n_cols = values.shape
    factor = metric.factor(qtype.block_size)
    out = np.empty((n_rows, qtype.row_bytes(n_cols)), dtype=np.uint8)
    for start in range(0, n_rows, PANEL_ROWS):
        part = values[start : start + PANEL_ROWS]
        panel = np.zeros((PANEL_ROWS, n_cols), dtype=np.float32)
        panel[: len(part)] = part
        out[start : start + PANEL_ROWS] = _round_panel(panel, qtype, factor)[: len(part)]
    return out


def _round_panel(values: Floats, qtype: QType, factor: Factor) -> Bytes:
    size, n_cols = qtype.block_size, values.shape[1]
    layout = scalar_codes(qtype)
    weights = values[:, factor.order]
    errors = np.zeros_like(weights)
    lost = np.zeros(len(values))
    data = np.empty((len(values), n_cols // size, qtype.row_bytes(size)), dtype=np.uint8)
    wide = max(size, WIDE)
    for last in range(n_cols, 0, -wide):
        first = max(0, last - wide)
        carried = errors[:, last:] @ factor.lower[last:, first:last]  # what later columns add to these columns of d L
        for stop in range(last, first, -size):
            start = stop - size
            block = factor.blocks[start // size]
            shift = carried[:, start - first : stop - first] + errors[:, stop:last] @ factor.lower[stop:last, start:stop]
            own = np.ascontiguousarray(weights[:, start:stop])
            codes, errors[:, start:stop] = _round_block(own, shift.copy(), qtype, layout, block)
            data[:, block.index] = codes
            lost += np.square(shift + errors[:, start:stop] @ block.lower).sum(axis=1)
    rounded = data.reshape(len(values), -1)
    doubtful = np.flatnonzero(lost > DOUBTFUL * (np.square(weights) @ factor.importance))
    if len(doubtful):
        plain = codec.quantize(values[doubtful], qtype, factor.importance[np.argsort(factor.order)])
        deltas = (codec.dequantize(plain, qtype, n_cols) - values[doubtful])[:, factor.order]
        better = np.square(deltas @ factor.lower).sum(axis=1) < lost[doubtful]
        rounded[doubtful[better]] = plain[better]
    return rounded


def _round_block(weights: Floats, carried: Floats, qtype: QType, layout: ScalarCodes | None, block: FactorBlock) -> tuple[Bytes, Floats]:
    """The bytes of rows of one block, (n, type_size), and the errors that they make, (n, size), in the factor's order as the weights."""
    best = weights - carried @ block.inverse
    data = codec.quantize(best[:, block.natural], qtype, block.importance)
    if layout is None:
        return data, codec.dequantize(data, qtype, qtype.block_size)[:, block.within] - weights
    offset, step = (np.ascontiguousarray(each[:, block.within]) for each in layout.grid(data))
    codes, errors = np.empty(weights.shape, dtype=np.uint8), np.empty_like(weights)
    grid = (offset, step, layout.middles, layout.table)
    choose_codes(weights, carried, block.lower, *grid, codes, errors)
    improve_codes(weights, carried @ block.lower.T, block.gram, *grid, N_SWEEPS, codes, errors)
    return layout.pack(data, codes[:, block.natural]), errors
