"""Rows that keep their size: scales that make up for what rounding to the nearest takes away.

Scales and codes of least error leave the error at right angles to what was rounded: a row that loses the part e of its squares is, beside
noise, itself made smaller by 1 - e. Alone that is for the best. Over a whole model noise adds up by squares, but rows that are all
smaller make every branch smaller in the same direction, which adds up by itself; so each row's scales are raised until its product with
the row that it stands for is what it was (Banner et al. 2019 keep norms in this way).
"""

from __future__ import annotations

import functools

import numpy as np

from quantailor.ggml import codec
from quantailor.numerics import Bytes, Doubles, Floats
from quantailor.qtypes import QType

MOST = 1.5
"""Scales are raised to this multiple at most: of a row that has lost more than a third nothing can be said."""
_DOUBLED = 1 << 10
"""Added to a float16's bits it doubles the number."""
_TRIED_BLOCKS, _MEAN = 16, 0.5


def keep_sizes(data: Bytes, values: Floats, importance: Floats, qtype: QType) -> Bytes:
    """Rounded rows with scales such that, column j counting v_j, sum v w' w = sum v w w for the rows w they stand for.

    Args:
        data: rows of the type's blocks, (n_rows, row_bytes).
        values: what was rounded, (n_rows, n_cols).
        importance: v, (n_cols,), none negative.
        qtype: the type.

    Returns:
        The rows' bytes, (n_rows, row_bytes). Those of types without a float16 as scale are as they were, as are rows that
        do not point where they should, or whose scales would overflow.
    """
    places = scale_places(qtype)
    if not places or not len(data):
        return data
    weighed = values * importance.astype(np.float64)
    kept = (weighed * codec.dequantize(data, qtype, values.shape[1])).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        gain = (weighed * values).sum(axis=1) / kept
        raised = _scaled(data, np.where(kept > 0, np.clip(gain, 1.0, MOST), 1.0), places, qtype)
        overflowing = np.flatnonzero(~np.isfinite(codec.dequantize(raised, qtype, values.shape[1])).all(axis=1))
    raised[overflowing] = data[overflowing]
    return raised


def _scaled(data: Bytes, gain: Doubles, places: tuple[int, ...], qtype: QType) -> Bytes:
    """Rows, (n_rows, row_bytes), with scales multiplied by their row's gain, (n_rows,)."""
    blocks = data.reshape(len(data), -1, qtype.type_size).copy()
    for place in places:
        scale = np.ascontiguousarray(blocks[:, :, place : place + 2]).view(np.float16)
        blocks[:, :, place : place + 2] = (scale * gain[:, None, None]).astype(np.float16).view(np.uint8)
    return blocks.reshape(len(data), -1)


@functools.cache
def scale_places(qtype: QType) -> tuple[int, ...]:
    """Where in a block the float16 stand that all its weights are in proportion to, bytes; none where it has no such.

    Found by asking ggml's dequantizer: doubled, such a number adds what it gives to the weights, and all of them together give the weights.
    """
    drawn = np.random.default_rng(0).normal(_MEAN, 1, (_TRIED_BLOCKS, qtype.block_size)).astype(np.float32)
    data = codec.quantize(drawn, qtype, np.ones(qtype.block_size, dtype=np.float32))
    values = _weights(data, qtype)
    added = {}
    for place in range(qtype.type_size - 1):
        once, twice = (_weights(_more(data, place, steps * _DOUBLED), qtype) - values for steps in (1, 2))
        if np.isfinite(twice).all() and once.any() and np.allclose(twice, 3 * once, rtol=1e-5, atol=0):
            added[place] = once
    return tuple(added) if added and np.allclose(sum(added.values()), values, rtol=1e-5, atol=1e-9) else ()


def _weights(data: Bytes, qtype: QType) -> Doubles:
    """The weights of blocks, (n, type_size): (n, block_size)."""
    weights: Doubles = codec.dequantize(data, qtype, qtype.block_size).astype(np.float64)
    return weights


def _more(data: Bytes, place: int, by: int) -> Bytes:
    """Blocks, (n, type_size), with two bytes of each, as a number, raised."""
    out = data.copy()
    number = np.ascontiguousarray(out[:, place : place + 2]).view(np.uint16)
    out[:, place : place + 2] = (number + np.uint16(by)).view(np.uint8)
    return out
