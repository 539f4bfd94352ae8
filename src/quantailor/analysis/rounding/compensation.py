"""Rounding of rows in which every block of columns makes up for what the blocks before it lost."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from quantailor.analysis.rounding.metric import Metric
from quantailor.ggml import codec
from quantailor.numerics import Bytes, Floats
from quantailor.qtypes import QType

PANEL_ROWS = 64
"""Rows that go through together. Always as many, so that a row's bytes do not depend on its neighbours."""
WIDE = 256
"""Columns whose share of earlier errors is computed in one product."""


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
    out = np.empty((n_rows, qtype.row_bytes(n_cols)), dtype=np.uint8)
    for start in range(0, n_rows, PANEL_ROWS):
        part = values[start : start + PANEL_ROWS]
        panel = np.zeros((PANEL_ROWS, n_cols), dtype=np.float32)
        panel[: len(part)] = part
        out[start : start + PANEL_ROWS] = _round_panel(panel, qtype, metric)[: len(part)]
    return out


def _round_panel(values: Floats, qtype: QType, metric: Metric) -> Bytes:
    factor, size = metric.factor(qtype.block_size), qtype.block_size
    lower, n_cols = factor.lower, values.shape[1]
    weights = values[:, factor.order]
    errors = np.zeros_like(weights)
    data = np.empty((len(values), n_cols // size, qtype.row_bytes(size)), dtype=np.uint8)
    wide = max(size, WIDE)
    for last in range(n_cols, 0, -wide):
        first = max(0, last - wide)
        carried = errors[:, last:] @ lower[last:, first:last]  # what later columns add to these columns of d L
        for stop in range(last, first, -size):
            start = stop - size
            own = lower[start:stop, start:stop]
            shift = carried[:, start - first : stop - first] + errors[:, stop:last] @ lower[stop:last, start:stop]
            target = weights[:, start:stop] - scipy.linalg.solve_triangular(own, shift.T, trans="T", lower=True, check_finite=False).T
            codes = codec.quantize(target, qtype, np.einsum("ij,ij->i", own, own))
            errors[:, start:stop] = codec.dequantize(codes, qtype, size) - weights[:, start:stop]
            data[:, factor.order[start] // size] = codes
    return data.reshape(len(values), -1)
