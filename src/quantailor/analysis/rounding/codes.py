"""Codes of single weights, in blocks whose scales stand: how to read, choose and write them.

    layout = scalar_codes(qtype)                    # found once per process, by asking ggml's dequantizer; None for types of vectors
    data = codec.quantize(...)                      # blocks with scales, (n, type_size)
    offset, step = layout.grid(data)                # each (n, block_size): weight = offset + step * layout.table[code]
    codes = layout.nearest(weights, offset, step)   # (n, block_size), or one column after another, as the caller likes
    data = layout.pack(data, codes)                 # the same scales, these codes

Codes are numbered by the value they stand for: `table` ascends from 0 to n_codes - 1, and `affine` says that table[code] == code. A step
may be negative or 0. Weights computed from the grid are those of the dequantizer but for rounding of float32; where every bit matters,
ask `codec.dequantize` for what was packed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantailor.analysis.rounding.bits import Fields, Settings, clearest_block, fields_of
from quantailor.analysis.rounding.compiling import compiled
from quantailor.ggml import codec
from quantailor.numerics import Bytes, Doubles, Floats, Integers
from quantailor.qtypes import QType

CodeOf = npt.NDArray[np.uint8]
"""Codes of weights: uint8."""
_MOST_BITS = 8
_SAME = 1e-4
"""Part of a table's width by which two weights' tables may differ and still be one."""
_CLEAR = 0.01
"""Weights that change by less than this part of their size, whatever their code, do not tell what the table is."""
_WRITTEN = 1 << 14
"""Weights that are quantized to see which codes are used."""


@dataclass(frozen=True, eq=False, slots=True)
class _Kind:
    """Fields of one size, and what their settings mean."""

    fields: Fields
    codes_of: Integers
    """(n_settings, n_weights)."""
    setting_of: Settings
    """By the weights' codes as digits of a number, the first the highest: (n_codes ** n_weights,)."""


@dataclass(frozen=True, eq=False, slots=True)
class ScalarCodes:
    """The codes of a type in which every weight has its own."""

    qtype: QType
    table: Floats
    """What each code stands for, in steps from the first: (n_codes,), ascending from 0 to n_codes - 1."""
    affine: bool
    """Whether table[code] == code."""
    _kinds: tuple[_Kind, ...]
    _ends: tuple[Bytes, Bytes, Bytes]
    """Bits of scales, and bits of blocks with nothing but the first and the last code: (type_size,) each."""

    @property
    def n_codes(self) -> int:
        return len(self.table)

    @property
    def middles(self) -> Floats:
        """Between the values of the table, (n_codes - 1,); empty where the codes are these values."""
        return self.table[:0] if self.affine else (self.table[1:] + self.table[:-1]) / np.float32(2)

    def places(self, values: Floats) -> CodeOf:
        """The codes that stand for values of the table, (n, ...): (n, ...)."""
        codes = np.empty(values.shape, dtype=np.uint8)
        find_places(values.reshape(-1), self.middles, codes.reshape(-1))
        return codes

    @property
    def kept(self) -> Bytes:
        """A mask of the bits that are not codes, (n_bytes,)."""
        return self._ends[0]

    def grid(self, data: Bytes) -> tuple[Floats, Floats]:
        """Offset and step of every weight of blocks, (n, type_size): each (n, block_size)."""
        kept, first, last = self._ends
        scales = data & kept
        ends = np.concatenate([scales | first, scales | last])
        lowest, highest = np.split(codec.dequantize(ends, self.qtype, self.qtype.block_size), 2)
        return lowest, (highest - lowest) / np.float32(self.n_codes - 1)

    def nearest(self, weights: Floats, offset: Floats, step: Floats) -> CodeOf:
        """The codes nearest to weights, (n, n_weights), with offset and step of the same shape: (n, n_weights)."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            place = np.nan_to_num((weights - offset) / step)
        if self.affine:
            codes: CodeOf = np.clip(np.rint(place), 0, self.n_codes - 1).astype(np.uint8)
        else:
            codes = np.searchsorted((self.table[1:] + self.table[:-1]) / 2, place).astype(np.uint8)
        return codes

    def pack(self, data: Bytes, codes: CodeOf) -> Bytes:
        """Blocks, (n, type_size), with the scales of the data and these codes, (n, block_size)."""
        out = data.copy()
        for kind in self._kinds:
            put_codes(out, codes, kind.fields.weights, kind.setting_of, self.n_codes, kind.fields.runs)
        return out

    def unpack(self, data: Bytes) -> CodeOf:
        """The codes in blocks, (n, type_size): (n, block_size)."""
        out = np.empty((len(data), self.qtype.block_size), dtype=np.uint8)
        for kind in self._kinds:
            out[:, kind.fields.weights] = kind.codes_of[kind.fields.take(data)]
        return out


@compiled
def find_places(values: Floats, middles: Floats, places: CodeOf) -> None:
    """Where values, (n,), stand among the middles, (n,), or, without these, in whole numbers; NaN stands first."""
    if len(middles):
        places[:] = np.uint8(0)
        for middle in middles:
            for k in range(len(values)):
                places[k] += np.uint8(values[k] > middle)
    else:
        for k in range(len(values)):
            places[k] = np.uint8(np.int32(values[k] if values[k] > np.float32(0) else np.float32(0)))


@compiled
def put_codes(data: Bytes, codes: CodeOf, weights: Integers, setting_of: Settings, n_codes: int, runs: Integers) -> None:
    """Write codes into fields of blocks, (n, type_size).

    Args:
        data: blocks.
        codes: (n, block_size).
        weights: see `Fields`, (n_fields, n_weights).
        setting_of: see `_Kind`.
        n_codes: of the type.
        runs: see `Fields`, (n_fields, n_runs, 4).
    """
    for field in range(weights.shape[0]):
        for run in range(runs.shape[1]):
            byte, shift, first, mask = runs[field, run]
            others = ~np.uint8(mask << shift)
            for row in range(data.shape[0] if mask else 0):
                number = 0
                for k in range(weights.shape[1]):
                    number = number * n_codes + codes[row, weights[field, k]]
                data[row, byte] = (data[row, byte] & others) | np.uint8(((setting_of[number] >> first) & mask) << shift)


@functools.cache
def scalar_codes(qtype: QType) -> ScalarCodes | None:
    """How a type's codes stand in its blocks; None where weights share codes, or where the dequantizer's answers fit no table."""
    fields = fields_of(qtype)
    if any(each.bits.shape[1] > _MOST_BITS for each in fields) or sum(each.weights.size for each in fields) != qtype.block_size:
        return None
    block = clearest_block(qtype, fields)
    answers = [_answers(each, block, qtype) for each in fields]
    table = np.unique(answers[0].shares[:, answers[0].clearest, 0])
    kinds = []
    for each, answer in zip(fields, answers, strict=True):
        codes_of = answer.codes(table)
        numbers = codes_of @ len(table) ** np.arange(codes_of.shape[1])[::-1]
        seen, settings = np.unique(numbers, return_index=True)
        if not answer.agree(table) or len(seen) != len(table) ** codes_of.shape[1]:
            return None
        kind = _Kind(each, codes_of, settings.astype(np.uint32))
        kinds.append(_as_ggml_writes(kind, block, qtype) if codes_of.shape[1] > 1 else kind)
    return _only_written(ScalarCodes(qtype, *_scaled(table), tuple(kinds), _ends(kinds, block)))


def _scaled(table: Doubles) -> tuple[Floats, bool]:
    """A table from 0 to n_codes - 1, (n_codes,), and whether its steps are all alike."""
    steps = (table - table[0]) / (table[-1] - table[0]) * (len(table) - 1)
    whole = np.rint(steps)
    affine = bool(np.abs(steps - whole).max() < _SAME * len(table)) and bool((np.diff(whole) == 1).all())
    return (whole if affine else steps).astype(np.float32), affine


def _only_written(layout: ScalarCodes) -> ScalarCodes:
    """Without codes that ggml's quantizer never writes, as 2 of a ternary type or -128 of Q8_0: no kernel was tried on them."""
    qtype = layout.qtype
    weights = np.random.default_rng(2).uniform(-1, 1, (_WRITTEN // qtype.block_size, qtype.block_size)).astype(np.float32)
    used = np.unique(layout.unpack(codec.quantize(weights, qtype)))
    if len(used) == layout.n_codes or len(layout._kinds) != 1 or layout._kinds[0].codes_of.shape[1] != 1:
        return layout
    (kind,) = layout._kinds
    nearest = np.abs(layout.table[:, None] - layout.table[used]).argmin(axis=1)
    kept = _Kind(kind.fields, nearest[kind.codes_of], kind.setting_of[used])
    return ScalarCodes(qtype, *_scaled(layout.table[used].astype(np.float64)), (kept,), _ends([kept], layout._ends[0]))


@dataclass(frozen=True, eq=False, slots=True)
class _Answers:
    """What the dequantizer gives for every setting of the fields of one size."""

    shares: Doubles
    """Where between its extremes each weight is, (n_settings, n_fields, n_weights), in the same direction for all fields."""
    clearest: int
    """The field where codes matter most."""
    clear: npt.NDArray[np.bool_]
    """Fields that tell what the table is, (n_fields,)."""

    def codes(self, table: Doubles) -> Integers:
        """The codes that settings stand for, by a table (n_codes,): (n_settings, n_weights)."""
        return np.searchsorted((table[1:] + table[:-1]) / 2, self.shares[:, self.clearest])

    def agree(self, table: Doubles) -> bool:
        """Whether all clear fields follow the table, (n_codes,)."""
        off = np.abs(self.shares[:, self.clear] - table[self.codes(table)][:, None])
        return bool(off.max() < _SAME)


def _answers(fields: Fields, block: Bytes, qtype: QType) -> _Answers:
    settings = np.arange(1 << fields.bits.shape[1], dtype=np.uint32)
    values = codec.dequantize(fields.everywhere(block, settings), qtype, qtype.block_size)[:, fields.weights].astype(np.float64)
    spread = (np.ptp(values, axis=0) / np.abs(values).max(axis=0)).min(axis=1)
    clearest = int(spread.argmax())
    each = np.arange(fields.weights.shape[1])
    first = values[values[:, clearest].argmin(axis=0), :, each].T  # (n_fields, n_weights)
    last = values[values[:, clearest].argmax(axis=0), :, each].T
    clear = spread > _CLEAR
    with np.errstate(divide="ignore", invalid="ignore"):
        return _Answers((values - first) / (last - first), clearest, clear)


def _as_ggml_writes(kind: _Kind, block: Bytes, qtype: QType) -> _Kind:
    """Of settings that mean the same, those that ggml's quantizer chooses: what it never writes no kernel was tried on."""
    values = codec.dequantize(kind.fields.everywhere(block, kind.setting_of), qtype, qtype.block_size)
    written = kind.fields.take(codec.quantize(values, qtype))[:, 0]
    same = (kind.codes_of[written] == kind.codes_of[kind.setting_of]).all(axis=1)
    return _Kind(kind.fields, kind.codes_of, np.where(same, written, kind.setting_of).astype(np.uint32))


def _ends(kinds: Sequence[_Kind], block: Bytes) -> tuple[Bytes, Bytes, Bytes]:
    first, last, used = np.zeros_like(block)[None], np.zeros_like(block)[None], np.zeros_like(block)[None]
    for kind in kinds:
        n_fields, n_bits = kind.fields.bits.shape
        kind.fields.put(first, np.full((1, n_fields), kind.setting_of[0]))
        kind.fields.put(last, np.full((1, n_fields), kind.setting_of[-1]))
        kind.fields.put(used, np.full((1, n_fields), (1 << n_bits) - 1, dtype=np.uint32))
    return ~used[0], first[0], last[0]
