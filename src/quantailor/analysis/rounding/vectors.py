"""Codes of vectors, in blocks whose scales stand: how to read, choose and write them.

    layout = vector_codes(qtype)                 # found once per process, by asking ggml's dequantizer; None for other types
    data = codec.quantize(...)                   # blocks with scales, (n, type_size)
    offset, scale = layout.grid(data)            # each (n, n_groups): the weights of a group are offset + scale * layout.units(code)
    targets = weights[:, layout.groups[g]]       # (n, n_weights)
    codes[:, g] = layout.nearest(targets, offset[:, g], scale[:, g], metric)
    data = layout.pack(data, codes)              # the same scales, these codes

A code holds, from its lowest bit: one index into `codebook` or two, each for its part of the group, and the bits of signs if there are any.
Weights computed from the grid are those of the dequantizer but for rounding of float32.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from quantailor.analysis.rounding.bits import Fields, Settings, clearest_block, fields_of, random_blocks
from quantailor.analysis.rounding.search import LANES, Book
from quantailor.ggml import codec
from quantailor.numerics import Bytes, Doubles, Floats, Integers
from quantailor.qtypes import QType

_MOST_INDEX_BITS = 12
_FAR = 1e6
"""Targets in units of a scale that is next to nothing are no farther away than this."""
_SAME = 1e-4
"""Part of a group's largest weight by which two groups' entries may differ and still be one."""
_CLEAR = 0.01
"""Groups whose entries differ by less than this part of their weights do not tell what the codebook is."""


@dataclass(frozen=True, eq=False, slots=True)
class VectorCodes:
    """The codes of a type in which groups of weights share one."""

    qtype: QType
    groups: Integers
    """(n_groups, n_weights), places in the block."""
    codebook: Floats
    """(n_entries, n_part): weights of a part of a group, in units of the scale; without their signs where these have bits of their own."""
    masks: Integers
    """For each setting of the bits of signs, which weights are negative, the first weight's bit the lowest: (n_sign_settings,)."""
    book: Book
    """The codebook as it is searched."""
    _setting_of_mask: Integers
    _fields: Fields
    _ends: tuple[int, ...]
    """Codes whose first weight is 1 and, where there are no signs, -1 in units of the scale."""

    @property
    def n_parts(self) -> int:
        """How many indices a code has."""
        return int(self.groups.shape[1] // self.codebook.shape[1])

    @property
    def _index_bits(self) -> int:
        return len(self.codebook).bit_length() - 1

    @property
    def n_codes(self) -> int:
        return int((1 << self.n_parts * self._index_bits) * len(self.masks))

    def grid(self, data: Bytes) -> tuple[Floats, Floats]:
        """Offset and scale of every group of blocks, (n, type_size): each (n, n_groups)."""
        first = self.groups[:, 0]
        ends = []
        for end in self._ends:
            codes = np.full((len(data), len(self.groups)), end, dtype=np.uint32)
            ends.append(codec.dequantize(self.pack(data, codes), self.qtype, self.qtype.block_size)[:, first])
        high: Floats = ends[0]
        low: Floats = -ends[0] if len(ends) == 1 else ends[1]
        return (high + low) / np.float32(2), (high - low) / np.float32(2)

    def units(self, codes: Settings) -> Floats:
        """What codes, (n, n_groups), stand for in units of the scale: (n, n_groups, n_weights)."""
        bits = self._index_bits
        indices = codes[..., None] >> np.arange(self.n_parts, dtype=np.uint32) * bits & (len(self.codebook) - 1)
        sizes = self.codebook[indices].reshape(*codes.shape, -1)
        negative = self.masks[codes >> self.n_parts * bits, None] >> np.arange(sizes.shape[-1]) & 1
        units: Floats = np.where(negative, -sizes, sizes)
        return units

    def nearest(self, targets: Floats, offset: Floats, scale: Floats, metric: Floats) -> Settings:
        """Codes of one group, (n,), so that (t - w)^T M (t - w) is small for targets t and the weights w of the codes; see `search`.

        Args:
            targets: (n, n_weights).
            offset: of the group, (n,).
            scale: of the group, (n,).
            metric: M, (n_weights, n_weights), positive definite.
        """
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            x = (targets - offset[:, None]) / scale[:, None]
        x = np.clip(np.nan_to_num(x), -_FAR, _FAR)
        return self.codes_of(*self.book.nearest(x, metric))

    def codes_of(self, entries: Integers, signs: Floats) -> Settings:
        """The codes of what `book` finds, entries (n, n_parts) and signs (n, n_weights), or of several groups: (n,), or (n_groups, n)."""
        mask = (signs < 0) @ (1 << np.arange(signs.shape[-1])) if self.book.signed else np.zeros(signs.shape[:-1], dtype=np.int64)
        codes = self._setting_of_mask[mask] << self.n_parts * self._index_bits
        for part in range(self.n_parts):
            codes |= entries[..., part] << part * self._index_bits
        return codes.astype(np.uint32)

    def pack(self, data: Bytes, codes: Settings) -> Bytes:
        """Blocks, (n, type_size), with the scales of the data and these codes, (n, n_groups)."""
        out = data.copy()
        self._fields.put(out, codes)
        return out

    def unpack(self, data: Bytes) -> Settings:
        """The codes in blocks, (n, type_size): (n, n_groups)."""
        return self._fields.take(data)


@functools.cache
def vector_codes(qtype: QType) -> VectorCodes | None:
    """How a type's codes stand in its blocks; None where weights have their own, or where the dequantizer's answers fit no codebook."""
    kinds = fields_of(qtype)
    if len(kinds) != 1 or kinds[0].weights.shape[1] < 2 or kinds[0].weights.size != qtype.block_size:
        return None
    order = _order(qtype, kinds[0])
    if order is None or not LANES <= 1 << order.n_index <= 1 << _MOST_INDEX_BITS:
        return None
    book = _codebook(qtype, order)
    masks = None if book is None else _masks(qtype, order, book.ends[0])
    if book is None or masks is None:
        return None
    codebook = book.entries.astype(np.float32)
    setting_of_mask = np.zeros(1 << order.fields.weights.shape[1], dtype=np.int64)
    setting_of_mask[masks] = np.arange(len(masks))
    even = 1 < len(masks) < len(setting_of_mask)
    searched = Book.of(codebook, order.n_parts, signed=len(masks) > 1, even=even)
    return VectorCodes(qtype, order.fields.weights, codebook, masks, searched, setting_of_mask, order.fields, book.ends)


@dataclass(frozen=True, eq=False, slots=True)
class _Order:
    """The bits of codes in order: indices, part after part, then signs; and the weights so that those of a part stand together."""

    fields: Fields
    block: Bytes
    """One in which codes matter, (type_size,)."""
    n_parts: int
    n_index: int
    """Bits of one index."""
    n_signs: int

    def in_all_parts(self, indices: Integers) -> Settings:
        """Codes with these indices, (n,), in every part, and no sign set: (n,)."""
        codes: Settings = sum((indices << part * self.n_index for part in range(self.n_parts)), np.zeros_like(indices)).astype(np.uint32)
        return codes

    def answers(self, qtype: QType, codes: Settings) -> Doubles:
        """What the dequantizer gives for codes, (n,), in every group: (n, n_groups, n_weights)."""
        values = codec.dequantize(self.fields.everywhere(self.block, codes), qtype, qtype.block_size)
        answers: Doubles = values[:, self.fields.weights].astype(np.float64)
        return answers


@dataclass(frozen=True, eq=False, slots=True)
class _Codebook:
    entries: Doubles
    """(n_entries, n_part)."""
    ends: tuple[int, ...]
    """See `VectorCodes`."""


def _order(qtype: QType, fields: Fields) -> _Order | None:
    """Which bits are signs, those that change no weight's size, and which belong to which part of a group."""
    data = random_blocks(qtype, 24, np.random.default_rng(3))
    values = codec.dequantize(data, qtype, qtype.block_size)[:, fields.weights]
    signs, touched = [], []
    for k in range(fields.bits.shape[1]):
        flipped = data.copy()
        fields.put(flipped, fields.take(data) ^ np.uint32(1 << k))
        other = codec.dequantize(flipped, qtype, qtype.block_size)[:, fields.weights]
        signs.append(bool((np.abs(other) == np.abs(values)).all()))
        touched.append((other != values).any(axis=(0, 1)))
    is_sign = np.array(signs)
    own = np.array(touched)[~is_sign].astype(np.int32)  # (n_index_bits, n_weights)
    from scipy.sparse.csgraph import connected_components  # scipy takes a quarter of a second to import

    n_parts, part_of = connected_components(own.T @ own, directed=False)
    n_index = [int(own[:, part_of == part].any(axis=1).sum()) for part in range(n_parts)]
    sizes = np.bincount(part_of)
    if len(set(n_index)) != 1 or len(set(sizes.tolist())) != 1 or sizes[0] not in (4, 8):
        return None
    weights = np.argsort(part_of, kind="stable")
    bits = np.flatnonzero(~is_sign)[np.argsort(part_of[own.argmax(axis=1)], kind="stable")]
    ordered = Fields(fields.weights[:, weights], fields.bits[:, np.concatenate([bits, np.flatnonzero(is_sign)])])
    return _Order(ordered, clearest_block(qtype, [fields]), n_parts, n_index[0], int(is_sign.sum()))


def _codebook(qtype: QType, order: _Order) -> _Codebook | None:
    values = order.answers(qtype, order.in_all_parts(np.arange(1 << order.n_index)))
    values = values.reshape(*values.shape[:2], order.n_parts, -1)  # (n_entries, n_groups, n_parts, n_part)
    spread = (np.ptp(values, axis=0) / np.abs(values).max(axis=0)).min(axis=(1, 2))
    clearest = int(spread.argmax())
    first = values[:, :, 0, 0]
    high = int((np.abs(first) if order.n_signs else first)[:, clearest].argmax())
    low = int(first[:, clearest].argmin())
    scale, offset = (first[high], 0.0) if order.n_signs else ((first[high] - first[low]) / 2, (first[high] + first[low]) / 2)
    clear = spread > _CLEAR
    units = ((values - np.reshape(offset, (1, -1, 1, 1))) / np.reshape(scale, (1, -1, 1, 1)))[:, clear]
    entries: Doubles = units.mean(axis=(1, 2))
    if np.abs(units - entries[:, None, None]).max() > _SAME:
        return None
    ends = order.in_all_parts(np.array([high] if order.n_signs else [high, low]))
    return _Codebook(entries, tuple(ends.tolist()))


def _masks(qtype: QType, order: _Order, code: int) -> Integers | None:
    """Which weights are negative at each setting of the bits of signs: (n_sign_settings,); None where no rule is seen."""
    settings = np.arange(1 << order.n_signs)
    values = order.answers(qtype, (settings << order.n_parts * order.n_index | code).astype(np.uint32))
    negative = values * values[:1] < 0
    n_weights = values.shape[2]
    masks: Integers = negative[:, 0] @ (1 << np.arange(n_weights))
    parity = negative[:, 0].sum(axis=1) % 2
    free = len(settings) in (1, 1 << n_weights)
    even = 2 * len(settings) == 1 << n_weights and not parity.any()
    same = bool((np.abs(values) == np.abs(values[:1])).all() and (negative == negative[:, :1]).all())
    return masks if same and (free or even) and len(np.unique(masks)) == len(masks) else None
