"""Choosing the codes of a block whose weights share codes in groups, so that the output errors of its rows become small."""

from __future__ import annotations

import numpy as np

from quantailor.analysis.rounding.bits import Settings
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
        carried: what other blocks' errors add to these columns of d L, (n, size); is used up.
        data: blocks with their scales, (n, type_size).
        layout: of the type's codes.
        block: of the factor.

    Returns:
        The blocks, (n, type_size), and the errors that they make, (n, size), in the order of the factor.
    """
    run = layout.groups.shape[1]
    groups = block.within[::run] // run  # of the type, in the factor's order
    offset, scale = (np.ascontiguousarray(each[:, groups]) for each in layout.grid(data))
    codes = np.empty(offset.shape, dtype=np.uint32)
    errors = np.empty_like(weights)

    def values(number: int, chosen: Settings) -> Floats:
        found: Floats = offset[:, number, None] + scale[:, number, None] * layout.units(chosen[:, None])[:, 0]
        return found

    for number in reversed(range(len(groups))):
        place = slice(number * run, (number + 1) * run)
        own = block.lower[place, place]
        target = weights[:, place] - carried[:, place] @ np.linalg.inv(own)
        codes[:, number] = layout.nearest(target, offset[:, number], scale[:, number], own @ own.T)
        errors[:, place] = values(number, codes[:, number]) - weights[:, place]
        carried[:, : place.stop] += errors[:, place] @ block.lower[place, : place.stop]
    slopes = carried @ block.lower.T
    for _ in range(N_SWEEPS):
        for number in reversed(range(len(groups))):
            place = slice(number * run, (number + 1) * run)
            own = block.gram[place, place]
            target = weights[:, place] + errors[:, place] - slopes[:, place] @ np.linalg.inv(own)
            chosen = layout.nearest(target, offset[:, number], scale[:, number], own)
            change = values(number, chosen) - weights[:, place] - errors[:, place]
            better = (change * (2 * slopes[:, place] + change @ own)).sum(axis=1) < 0
            change[~better] = 0
            codes[better, number] = chosen[better]
            errors[:, place] += change
            slopes += change @ block.gram[place]
    natural = np.empty_like(codes)
    natural[:, groups] = codes
    return layout.pack(data, natural), errors
