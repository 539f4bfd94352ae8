"""What each bit of a quantized block means, found by asking ggml's dequantizer.

A bit of random blocks is flipped, and the weights that change say what it is: one weight, or a few that share bits, have it in
their code; many weights, and it belongs to a scale. No layout is written down here, so none can be wrong.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantailor.analysis.rounding.compiling import compiled
from quantailor.ggml import codec
from quantailor.numerics import Bytes, Integers
from quantailor.qtypes import QType

MOST_SHARING = 8
"""Weights of one code at most; scales of every type are shared by more."""
_PROBED_BLOCKS = 24
"""Random blocks in which each bit is flipped: what it does may show in some only."""
_TRIED_BLOCKS = 4096
_SCALES = (1e-3, 1e3)
"""The largest weight of a random block that is used."""

Settings = npt.NDArray[np.uint32]
"""Bits of codes, the first bit the lowest: uint32."""


@dataclass(frozen=True, eq=False)
class Fields:
    """Fields of a block, alike in size: the weights that share a code, and its bits."""

    weights: Integers
    """(n_fields, n_weights), places in the block."""
    bits: Integers
    """(n_fields, n_bits), places in the block: eight times the byte, plus the bit in it."""

    @functools.cached_property
    def runs(self) -> Integers:
        """Bits of each field that stand side by side in one byte: the byte, the first one's place there and in the field, and a mask of as
        many bits, (n_fields, n_runs, 4). Fields of fewer runs than others have some of no bits."""
        found: list[list[tuple[int, int, int, int]]] = []
        for bits in self.bits:
            starts = [k for k in range(len(bits)) if k == 0 or bits[k] != bits[k - 1] + 1 or bits[k] % 8 == 0]
            lengths = np.diff([*starts, len(bits)])
            found.append([(bits[k] >> 3, bits[k] & 7, k, (1 << n) - 1) for k, n in zip(starts, lengths, strict=True)])
        most = max(map(len, found))
        return np.array([each + [(0, 0, 0, 0)] * (most - len(each)) for each in found])

    def put(self, data: Bytes, settings: Settings) -> None:
        """Set the fields of blocks, (n, type_size), to settings, (n, n_fields); other bits stay."""
        put_bits(data, settings, self.runs)

    def take(self, data: Bytes) -> Settings:
        """The fields of blocks, (n, type_size): (n, n_fields)."""
        out = np.empty((len(data), len(self.bits)), dtype=np.uint32)
        take_bits(data, self.bits, out)
        return out

    def everywhere(self, data: Bytes, settings: Settings) -> Bytes:
        """One block, (type_size,), with all fields at each of the settings, (n,): (n, type_size)."""
        out = np.repeat(data[None], len(settings), axis=0)
        self.put(out, np.repeat(settings[:, None], len(self.bits), axis=1))
        return out


@compiled
def put_bits(data: Bytes, settings: Settings, runs: Integers) -> None:
    """Write settings, (n, n_fields), into the runs of bits, (n_fields, n_runs, 4), of blocks, (n, type_size)."""
    for row in range(data.shape[0]):
        for field in range(runs.shape[0]):
            setting = settings[row, field]
            for k in range(runs.shape[1]):
                byte, shift, first, mask = runs[field, k]
                data[row, byte] = (data[row, byte] & ~(mask << shift)) | (((setting >> first) & mask) << shift)


@compiled
def take_bits(data: Bytes, bits: Integers, out: Settings) -> None:
    """Read the bits, (n_fields, n_bits), of blocks, (n, type_size), into out, (n, n_fields)."""
    for row in range(data.shape[0]):
        for field in range(bits.shape[0]):
            setting = 0
            for k in range(bits.shape[1]):
                setting |= ((data[row, bits[field, k] >> 3] >> (bits[field, k] & 7)) & 1) << k
            out[row, field] = setting


def random_blocks(qtype: QType, n: int, rng: np.random.Generator) -> Bytes:
    """Blocks of random bytes whose weights are finite and of ordinary size: at most n, (n, type_size)."""
    data = rng.integers(0, 256, (_TRIED_BLOCKS, qtype.type_size), dtype=np.uint8)
    values = codec.dequantize(data, qtype, qtype.block_size)
    largest = np.max(np.abs(values), axis=1)
    usable: npt.NDArray[np.bool_] = np.isfinite(values).all(axis=1) & (largest > _SCALES[0]) & (largest < _SCALES[1])
    found: Bytes = data[usable][:n]
    return found


@functools.cache
def fields_of(qtype: QType) -> tuple[Fields, ...]:
    """All fields that hold codes, those of one size together. Bits that change many weights are in none."""
    data = random_blocks(qtype, _PROBED_BLOCKS, np.random.default_rng(0))
    changes = np.zeros((8 * qtype.type_size, qtype.block_size), dtype=bool)
    for block in data:
        values = _flipped(block, qtype)
        changes |= values[1:] != values[:1]
    code_bits = np.flatnonzero((changes.sum(axis=1) > 0) & (changes.sum(axis=1) <= MOST_SHARING))
    own = changes[code_bits].astype(np.int32)
    from scipy.sparse.csgraph import connected_components  # scipy takes a quarter of a second to import

    n_groups, group_of = connected_components(own.T @ own, directed=False)
    kinds: dict[tuple[int, int], list[tuple[Integers, Integers]]] = defaultdict(list)
    for group in range(n_groups):
        weights = np.flatnonzero(group_of == group)
        bits = code_bits[own[:, weights].any(axis=1)]
        kinds[len(weights), len(bits)].append((weights, bits))
    return tuple(Fields(np.array([w for w, _ in each]), np.array([b for _, b in each])) for each in kinds.values())


def _flipped(block: Bytes, qtype: QType) -> npt.NDArray[np.uint32]:
    """The weights, as bits, of a block and of the block with each bit flipped: (1 + n_bits, block_size)."""
    places = np.arange(8 * block.size)
    data = np.repeat(block[None], 1 + places.size, axis=0)
    data[1 + places, places >> 3] ^= (1 << (places & 7)).astype(np.uint8)
    return codec.dequantize(data, qtype, qtype.block_size).view(np.uint32)


def clearest_block(qtype: QType, fields: Sequence[Fields]) -> Bytes:
    """A block, (n_bytes,), in which every weight depends on its code, as far as can be, and not on what is added to it alone."""
    rng = np.random.default_rng(1)
    data = random_blocks(qtype, 64, rng)
    tries = []
    for _ in range(16):
        for each in fields:
            each.put(data, rng.integers(0, 1 << each.bits.shape[1], (len(data), len(each.bits)), dtype=np.uint32))
        tries.append(codec.dequantize(data, qtype, qtype.block_size))
    spread = np.ptp(np.array(tries), axis=0) / np.maximum(np.abs(tries).max(axis=0), np.finfo(np.float32).tiny)
    best: Bytes = data[int(np.argmax(spread.min(axis=1)))]
    return best
