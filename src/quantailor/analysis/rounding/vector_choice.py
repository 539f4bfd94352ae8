"""Choosing the codes of a block whose weights share codes in groups, so that the output errors of its rows become small."""

from __future__ import annotations

import numpy as np

from quantailor.analysis.rounding.metric import FactorBlock
from quantailor.analysis.rounding.vectors import VectorCodes
from quantailor.numerics import Bytes, Floats

N_SWEEPS = 2
"""How often each group is looked at again."""


def choose_vectors(weights: Floats, carried: Floats, data: Bytes, layout: VectorCodes, block: FactorBlock) -> tuple[Bytes, Floats]:
    """Choose the codes of rows of a block whose scales stand.

    Groups are chosen from the last to the first in the factor's order, each the nearest to what makes up for those behind it in the
    metric that is left to it; then each again beside all others, where that loses less.

    Args:
        weights: (n, size), in the order of the factor.
        carried: what other blocks' errors add to these columns of d L, (n, size).
        data: blocks with their scales, (n, type_size).
        layout: of the type's codes.
        block: of the factor.

    Returns:
        The blocks, (n, type_size), and the errors that they make, (n, size), in the order of the factor.
    """
    run = layout.groups.shape[1]
    groups = block.within[::run] // run  # of the type, in the factor's order
    offset, scale = (np.ascontiguousarray(each[:, groups]) for each in layout.grid(data))
    chosen = layout.book.choose(weights, carried, block.lower, offset, scale)
    slopes = (carried + chosen.errors @ block.lower) @ block.lower.T
    layout.book.improve(weights, slopes, block.gram, offset, scale, N_SWEEPS, chosen)
    codes = np.empty(offset.shape, dtype=np.uint32)
    codes[:, groups] = layout.codes_of(chosen.entries, chosen.signs).T
    return layout.pack(data, codes), chosen.errors
