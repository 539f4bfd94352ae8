"""Choosing scales and codes of rows of a span, for types whose scales are known and whose weights have codes of their own."""

from __future__ import annotations

import numpy as np

from quantailor.analysis.rounding.block_scales import BlockScales
from quantailor.analysis.rounding.kernels import improve_codes
from quantailor.analysis.rounding.metric import Span
from quantailor.analysis.rounding.scale_search import change_scales, choose_blocks
from quantailor.numerics import Bytes, Floats

FACTORS = np.array([1.0, 0.94, 0.97, 1.03, 1.06, 1.09, 1.12], dtype=np.float32)
"""Multiples of a block's scales that are tried with the codes that go with them."""
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
    members = np.stack([block.natural[scales.members] for block in span.blocks])
    found = np.zeros((len(members), 2, n_rows), dtype=np.float32)
    numbers = np.zeros((len(members), members.shape[1], 2, n_rows), dtype=np.float32)
    values, errors, pulled = np.empty_like(weights.T, order="C"), np.empty_like(weights.T, order="C"), np.ascontiguousarray(carried.T)
    reaches = REACHES_OF_FEW if layout.n_codes <= FEW_CODES else REACHES
    inverse = np.stack([block.inverse for block in span.blocks])
    importance = np.concatenate([block.importance[block.within] for block in span.blocks])
    of_span = (np.ascontiguousarray(weights.T), pulled, span.lower, inverse, importance, members)
    choose_blocks(*of_span, grid, reaches, N_TRIES, FACTORS, found, numbers, values, errors)
    errors, pulled = np.ascontiguousarray(errors.T), np.ascontiguousarray(pulled.T)
    codes = np.ascontiguousarray(layout.places(values.T))
    step, offset = np.empty_like(weights), np.empty_like(weights)
    width = members.shape[1] * members.shape[2]
    for number, columns in enumerate(members):
        steps = (grid.unit * found[number, 0] * numbers[number, :, 0]).T[:, :, None]
        offsets = (grid.sign * found[number, 1] * numbers[number, :, 1]).T[:, :, None]
        step[:, number * width + columns] = steps
        offset[:, number * width + columns] = offsets + grid.zero * steps
    lost: Floats = np.einsum("ij,ij->i", pulled, pulled)
    slopes = pulled @ span.lower.T
    for again in range(N_ROUNDS + 1):
        improve_codes(weights, slopes, span.gram, offset, step, grid.middles, grid.table, n_sweeps, codes, errors, lost)
        changed = (weights, slopes, span.gram, members, grid, NUDGE, found, numbers, step, offset, codes, errors, lost)
        if again == N_ROUNDS or not change_scales(*changed):
            break
    overflown = ~np.isfinite(lost)
    codes[overflown], found[..., overflown], numbers[..., overflown], lost[overflown] = 0, 0, grid.numbers[:, :1], np.inf
    natural = np.concatenate([number * width + block.natural for number, block in enumerate(span.blocks)])
    return scales.pack(found, numbers, codes[:, natural].reshape(n_rows, len(members), -1)), errors, lost
