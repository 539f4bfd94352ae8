"""Scales in blocks of scalar codes: where they stand and what they mean, found by asking ggml's dequantizer.

A weight is d k points[code] + e m, with d and e float16 of the block and k and m whole numbers of its sub-block. Not every type has e and
m, nor numbers; a number that is not there is 1. Bits of numbers are those that change the weights of one sub-block alone, and what each
adds is what the dequantizer answers.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np

from quantailor.analysis.rounding.bits import Fields, Settings
from quantailor.analysis.rounding.codes import CodeOf, ScalarCodes, scalar_codes
from quantailor.analysis.rounding.loops.lanes import Grid
from quantailor.analysis.rounding.scales import scale_places
from quantailor.numerics import Bytes, Doubles, Floats, Integers
from quantailor.qtypes import QType

_ONE = np.array([1], dtype=np.float16).view(np.uint8)
_SAME = 1e-4
"""Part of the table's width, or of a whole number, by which answers may differ and still be one."""


@dataclass(frozen=True, eq=False, slots=True)
class Numbers:
    """A float16 of a block and the whole numbers that multiply it."""

    place: int
    """Of the float16, bytes."""
    fields: Fields | None
    """Of the numbers, one for each sub-block; None where all are 1."""
    values: Integers
    """What settings of a field stand for, (n_settings,), all from the lowest to the highest."""

    @property
    def ends(self) -> tuple[int, int]:
        """The lowest and the highest number."""
        return int(self.values.min()), int(self.values.max())

    def write(self, data: Bytes, scale: Floats, numbers: Floats) -> None:
        """Set the scale, (n,), and the numbers, (n, n_sub), of blocks, (n, type_size)."""
        data[:, self.place : self.place + 2] = scale.astype(np.float16)[:, None].view(np.uint8)
        if self.fields is not None:
            settings: Settings = np.argsort(self.values).astype(np.uint32)
            self.fields.put(data, settings[numbers.astype(np.int64) - self.values.min()])


@dataclass(frozen=True, eq=False, slots=True)
class BlockScales:
    """The scales of a type's blocks."""

    layout: ScalarCodes
    members: Integers
    """Weights of each sub-block, (n_sub, width)."""
    grid: Grid
    steps: Numbers
    """d and k."""
    offsets: Numbers | None
    """e and m."""
    backwards: bool
    """Whether the grid's table begins with the last code."""

    def pack(self, scales: Floats, numbers: Floats, codes: CodeOf) -> Bytes:
        """Blocks of rows, (n_rows, n_blocks, type_size).

        Args:
            scales: d and e, (n_blocks, 2, n_rows).
            numbers: k and m, (n_blocks, n_sub, 2, n_rows).
            codes: places in the grid's table, (n_rows, n_blocks, block_size).
        """
        n_rows, n_blocks, size = codes.shape
        own = (self.layout.n_codes - 1 - codes if self.backwards else codes).reshape(-1, size)
        data = self.layout.pack(np.zeros((len(own), self.layout.qtype.type_size), dtype=np.uint8), own)
        for what, each in enumerate((self.steps, self.offsets)):
            if each is not None:
                each.write(data, scales[:, what].T.reshape(-1), numbers[:, :, what].transpose(2, 0, 1).reshape(len(own), -1))
        return data.reshape(n_rows, n_blocks, -1)


@functools.cache
def block_scales(qtype: QType) -> BlockScales | None:
    """Where a type's scales stand; None where weights have no codes of their own, or scales are of another kind."""
    layout, places = scalar_codes(qtype), scale_places(qtype)
    if layout is None or not places:
        return None
    bits = np.flatnonzero(np.unpackbits(layout.kept, bitorder="little"))
    bits = bits[~np.isin(bits >> 3, [byte for place in places for byte in (place, place + 1)])]
    answers = [_answers(layout, place, bits) for place in places]
    has_step = [bool(step.any()) for _, step in answers]
    if has_step.count(True) != 1 or has_step.count(False) > 1:
        return None
    first = has_step.index(True)
    offset, step = answers[first]
    unit, zeros = _unit(step), offset[step != 0] / step[step != 0]
    steps = _numbers(places[first], bits, step / unit)
    if steps is None or np.ptp(zeros) > _SAME * layout.n_codes:
        return None
    numbers, members = steps
    zero, last = float(np.median(zeros)), layout.n_codes - 1
    if numbers.fields is None:
        unit = float(step[0, 0])
    elif numbers.ends[0] % 2:  # their lowest bit makes them less
        numbers, unit = replace(numbers, values=-numbers.values), -unit
    backwards = unit < 0
    if backwards and not layout.affine:
        return None
    if backwards:
        zero, unit = -zero - last, -unit
    offsets, sign = None, 1.0
    if len(places) == 2:
        added = answers[1 - first][0]
        sign = float(np.sign(added[added != 0][0]))
        of_offsets = _numbers(places[1 - first], bits, sign * added)
        if of_offsets is None or not np.array_equal(of_offsets[1], members):
            return None
        offsets = of_offsets[0]
    ends = np.array([numbers.ends, (1, 1) if offsets is None else offsets.ends])
    grid = Grid(
        layout.table, layout.middles, np.diff(layout.table), np.float32(zero), np.float32(unit), np.float32(sign), ends, offsets is not None
    )
    return BlockScales(layout, members, grid, numbers, offsets, backwards)


def _answers(layout: ScalarCodes, place: int, bits: Integers) -> tuple[Doubles, Doubles]:
    """Offsets and steps of weights where one float16 is 1 and others are 0, without any bit and with each: (1 + n_bits, block_size)."""
    data = np.zeros((1 + len(bits), layout.qtype.type_size), dtype=np.uint8)
    data[:, place : place + 2] = _ONE
    data[1 + np.arange(len(bits)), bits >> 3] |= (1 << (bits & 7)).astype(np.uint8)
    offset, step = layout.grid(data)
    return offset.astype(np.float64), step.astype(np.float64)


def _unit(step: Doubles) -> float:
    """The least that a bit adds to a step, or the step where none does, from (1 + n_bits, block_size)."""
    added = np.abs(step[1:] - step[:1])
    return float(added[added > 0].min()) if added.any() else float(np.abs(step[0, 0]))


def _numbers(place: int, bits: Integers, answers: Doubles) -> tuple[Numbers, Integers] | None:
    """What multiplies a float16, by the answers without any bit and with each, (1 + n_bits, block_size), and the sub-blocks' weights."""
    whole = np.rint(answers).astype(np.int64)
    added = whole[1:] - whole[:1]
    if np.abs(answers - whole).max() > _SAME or len(np.unique(whole[0])) != 1:
        return None
    if not added.any():
        return Numbers(place, None, np.array([1])), np.arange(answers.shape[1])[None]
    own, added = bits[added.any(axis=1)], added[added.any(axis=1)]
    _, first, sub_of = np.unique(added != 0, axis=1, return_index=True, return_inverse=True)
    subs = np.argsort(first)
    members = [np.flatnonzero(sub_of.reshape(-1) == sub) for sub in subs]
    adds = [added[:, first[sub]] for sub in subs]
    orders = [np.flatnonzero(each)[np.argsort(np.abs(each[each != 0]))] for each in adds]
    worth = {tuple(each[order].tolist()) for each, order in zip(adds, orders, strict=True)}
    if len(worth) != 1 or len({len(each) for each in members}) != 1 or (added != 0).sum(axis=1).max() != len(members[0]):
        return None
    places = np.array([own[order] for order in orders])
    settings = np.arange(1 << places.shape[1])
    values = whole[0, 0] + (settings[:, None] >> np.arange(places.shape[1]) & 1) @ np.array(worth.pop())
    if np.ptp(values) != len(values) - 1 or len(np.unique(values)) != len(values):
        return None
    return Numbers(place, Fields(np.array(members), places), values), np.array(members)
