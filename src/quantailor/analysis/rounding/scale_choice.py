"""Choosing scales and codes of rows of a span, for types whose scales are known and whose weights have codes of their own."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from quantailor.analysis.rounding.block_scales import BlockScales
from quantailor.analysis.rounding.loops.kernels import improve_codes
from quantailor.analysis.rounding.loops.lanes import products_with_lower, turn
from quantailor.analysis.rounding.loops.scale_changes import change_scales, spread
from quantailor.analysis.rounding.loops.scale_search import choose_blocks
from quantailor.analysis.rounding.metric import Span
from quantailor.numerics import Bytes, Floats

S = TypeVar("S", np.float32, np.uint8)

REACHES = np.array([-1.0, -0.7, -0.4, -0.1, 0.2, 0.5, 0.8], dtype=np.float32)
REACHES_OF_FEW = np.array([0.0, 0.4, 0.8, 1.2, 1.6, 2.0], dtype=np.float32)
"""Steps by which the largest weight of a sub-block goes beyond the last code, for tables of up to three codes and of more."""
FEW_CODES = 3
N_TRIES = 3
"""How many of the largest whole numbers a block's largest scale may have."""
N_ROUNDS = 2
"""How often scales are looked at again, at most."""
NUDGE = np.float32(0.03)
"""The part by which a scale that is a float16 by itself is made more or less to see whether that is better."""


def round_with_scales(weights: Floats, carried: Floats, scales: BlockScales, span: Span, n_sweeps: int) -> tuple[Bytes, Floats, Floats]:
    """Round rows of a span, (n, n_cols) in the factor's order.

    Args:
        weights: (n, n_cols).
        carried: what other errors add to these columns of d L, (n, n_cols).
        scales: of the type.
        span: of the factor.
        n_sweeps: how often codes are looked at again, at most.

    Returns:
        The bytes of the blocks, (n, n_blocks, type_size), the errors that they make, (n, n_cols), and what is lost, (n,): infinity for rows
        whose scales would overflow.
    """
    layout, grid, n_rows = scales.layout, scales.grid, len(weights)
    size = layout.qtype.block_size
    within = span.natural.reshape(-1, size) - np.arange(0, len(span.natural), size)[:, None]
    members = np.ascontiguousarray(within[:, scales.members])
    found = np.zeros((len(members), 2, n_rows), dtype=np.float32)
    numbers = np.zeros((len(members), members.shape[1], 2, n_rows), dtype=np.float32)
    columns, pulled = _turned(weights), _turned(carried)  # columns of lanes, see `lanes`
    values, lane_errors = np.empty_like(columns), np.empty_like(columns)
    reaches = REACHES_OF_FEW if layout.n_codes <= FEW_CODES else REACHES
    of_span = (columns, pulled, span.upper, span.inverse, span.importance, members)
    choose_blocks(*of_span, grid, reaches, N_TRIES, found, numbers, values, lane_errors)
    lane_codes, lane_slopes = layout.places(values), np.empty_like(columns)
    products_with_lower(pulled, span.lower, lane_slopes)
    errors, codes, slopes = _turned(lane_errors), _turned(lane_codes), _turned(lane_slopes)
    step = grid.unit * found[:, None, 0] * numbers[:, :, 0]
    offset = grid.sign * found[:, None, 1] * numbers[:, :, 1] + grid.zero * step
    steps, offsets = np.empty_like(weights), np.empty_like(weights)  # of each weight
    lost: Floats = np.einsum("ij,ij->j", pulled, pulled)
    for again in range(N_ROUNDS + 1):
        spread(step, members, steps)
        spread(offset, members, offsets)
        improve_codes(weights, slopes, span.gram, offsets, steps, grid.middles, grid.table, n_sweeps, codes, errors, lost)
        if again == N_ROUNDS:
            break
        for rows, lanes in ((codes, lane_codes), (errors, lane_errors)):
            turn(rows, lanes)
        changing = (found, numbers, step, offset, lane_codes, lane_errors, lost)
        if not change_scales(columns, slopes, span.gram, members, grid, NUDGE, *changing):
            break
        for rows, lanes in ((codes, lane_codes), (errors, lane_errors)):
            turn(lanes, rows)
    overflown = ~np.isfinite(lost)
    if overflown.any():
        codes[overflown], found[..., overflown], numbers[..., overflown], lost[overflown] = 0, 0, grid.numbers[:, :1], np.inf
    return scales.pack(found, numbers, codes[:, span.natural].reshape(n_rows, len(members), -1)), errors, lost


def _turned(rows: npt.NDArray[S]) -> npt.NDArray[S]:
    """Of an array, (n, m), the columns, (m, n)."""
    columns = np.empty(rows.shape[::-1], dtype=rows.dtype)
    turn(rows, columns)
    return columns
