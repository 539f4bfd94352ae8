"""How one GGUF tensor comes out of a checkpoint's arrays, row by row.

A tensor's rows are read through a chain of small views: an array, a choice of its rows, several arrays one after
the other, a transposition. Each view has `n_rows` rows of `n_cols` numbers of one `dtype`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from quantailor.errors import ModelFormatError
from quantailor.models.safetensors_file import StoredArray
from quantailor.records import TensorInfo

Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]

MXFP4_SIZE, MXFP4_BYTES = 32, 17
"""Weights of a block and its bytes."""
ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4}
_DTYPES: dict[str, type[np.uint16] | type[np.float16] | type[np.float32]] = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}


class Rows(Protocol):
    """Rows of numbers: what a tensor is made from."""

    @property
    def n_rows(self) -> int: ...

    @property
    def n_cols(self) -> int: ...

    @property
    def dtype(self) -> str: ...

    def read(self, start: int, stop: int) -> Bytes:
        """Rows [start, stop): (stop - start, bytes of a row)."""


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of the base and the rows it is made from."""

    info: TensorInfo
    source: Rows

    def raw_rows(self, start: int, stop: int) -> Bytes:
        """Rows [start, stop) in the type of `info`: (stop - start, row_bytes)."""
        if not 0 <= start <= stop <= self.info.n_rows:
            raise IndexError(f"{self.info.name} has {self.info.n_rows} rows, not [{start}, {stop})")
        return converted(self.source.read(start, stop), self.source.dtype, self.info.type_name)


@dataclass(frozen=True, slots=True)
class ArrayRows:
    """An array as it is stored; `n_cols` may cut its rows shorter."""

    array: StoredArray
    n_cols: int

    @property
    def n_rows(self) -> int:
        return self.array.size_bytes // (self.n_cols * ITEM_BYTES[self.array.dtype])

    @property
    def dtype(self) -> str:
        return self.array.dtype

    def read(self, start: int, stop: int) -> Bytes:
        row_bytes = self.n_cols * ITEM_BYTES[self.array.dtype]
        return self.array.read(start * row_bytes, stop * row_bytes).reshape(-1, row_bytes)


@dataclass(frozen=True, slots=True)
class Constant:
    """Float32 numbers that stand in no array."""

    values: npt.NDArray[np.float32]
    """(n_rows, n_cols)"""
    dtype: str = "F32"

    @property
    def n_rows(self) -> int:
        return int(self.values.shape[0])

    @property
    def n_cols(self) -> int:
        return int(self.values.shape[1])

    def read(self, start: int, stop: int) -> Bytes:
        return np.ascontiguousarray(self.values[start:stop]).view(np.uint8)


@dataclass(frozen=True, slots=True)
class Picked:
    """Some rows of `inner`, or all in another order; `place` gives the place in `inner` of each row."""

    inner: Rows
    n_rows: int
    place: Callable[[Places], Places]

    @property
    def n_cols(self) -> int:
        return self.inner.n_cols

    @property
    def dtype(self) -> str:
        return self.inner.dtype

    def read(self, start: int, stop: int) -> Bytes:
        if start == stop:
            return self.inner.read(0, 0)
        wanted = self.place(np.arange(start, stop))
        low, high = int(wanted.min()), int(wanted.max()) + 1
        block = self.inner.read(low, high)
        return block if np.array_equal(wanted, np.arange(low, high)) else block[wanted - low]


@dataclass(frozen=True, slots=True)
class Stacked:
    """Pieces of equal shape, one after the other: experts."""

    pieces: tuple[Rows, ...]

    @property
    def n_rows(self) -> int:
        return sum(piece.n_rows for piece in self.pieces)

    @property
    def n_cols(self) -> int:
        return self.pieces[0].n_cols

    @property
    def dtype(self) -> str:
        kinds = {piece.dtype for piece in self.pieces}
        return kinds.pop() if len(kinds) == 1 else "F32"

    def read(self, start: int, stop: int) -> Bytes:
        per_piece = self.pieces[0].n_rows
        parts = []
        while start < stop:
            number, first = divmod(start, per_piece)
            last = min(per_piece, first + stop - start)
            piece = self.pieces[number]
            parts.append(converted(piece.read(first, last), piece.dtype, self.dtype))
            start += last - first
        return np.concatenate(parts) if parts else converted(self.pieces[0].read(0, 0), self.pieces[0].dtype, self.dtype)


@dataclass(frozen=True, slots=True)
class Transposed:
    """Each slice of `slice_rows` rows of `inner`, transposed."""

    inner: Rows
    slice_rows: int

    @property
    def n_rows(self) -> int:
        return self.inner.n_rows // self.slice_rows * self.inner.n_cols

    @property
    def n_cols(self) -> int:
        return self.slice_rows

    @property
    def dtype(self) -> str:
        return self.inner.dtype

    def read(self, start: int, stop: int) -> Bytes:
        per_slice, item = self.inner.n_cols, ITEM_BYTES[self.dtype]
        first, last = start // per_slice, -(-stop // per_slice)
        block = self.inner.read(first * self.slice_rows, last * self.slice_rows)
        turned = block.reshape(last - first, self.slice_rows, per_slice, item).transpose(0, 2, 1, 3)
        rows = turned.reshape(-1, self.slice_rows * item)
        return np.ascontiguousarray(rows[start - first * per_slice : stop - first * per_slice])


@dataclass(frozen=True, slots=True)
class Regrouped:
    """Rows of one number each, `n_cols` of them put into one row: what orders single numbers."""

    inner: Rows
    n_cols: int

    @property
    def n_rows(self) -> int:
        return self.inner.n_rows // self.n_cols

    @property
    def dtype(self) -> str:
        return self.inner.dtype

    def read(self, start: int, stop: int) -> Bytes:
        row_bytes = self.n_cols * ITEM_BYTES[self.dtype]
        return self.inner.read(start * self.n_cols, stop * self.n_cols).reshape(stop - start, row_bytes)


@dataclass(frozen=True, slots=True)
class PlusOne:
    """Weights of a norm that multiplies by 1 + weight; the sum is rounded to F16 where the weights are."""

    inner: Rows

    @property
    def n_rows(self) -> int:
        return self.inner.n_rows

    @property
    def n_cols(self) -> int:
        return self.inner.n_cols

    @property
    def dtype(self) -> str:
        return "F16" if self.inner.dtype == "F16" else "F32"

    def read(self, start: int, stop: int) -> Bytes:
        data = converted(self.inner.read(start, stop), self.inner.dtype, self.dtype)
        kind = np.float16 if self.dtype == "F16" else np.float32
        with np.errstate(invalid="ignore"):
            sums: npt.NDArray[Any] = np.add(data.reshape(-1).view(kind), kind(1), dtype=kind)
        out: Bytes = sums.view(np.uint8).reshape(data.shape)
        return out


@dataclass(frozen=True, slots=True)
class Float8Rows:
    """8-bit floats (E4M3 or E5M2) times the scale of their block; read as float32.

    `scales` is a view of (ceil(rows / block_rows), ceil(cols / block_cols)) numbers.
    """

    array: StoredArray
    n_cols: int
    scales: Rows
    block: tuple[int, int]
    """Rows and columns that share a scale."""
    dtype: str = "F32"

    @property
    def n_rows(self) -> int:
        return self.array.size_bytes // self.n_cols

    def read(self, start: int, stop: int) -> Bytes:
        codes = self.array.read(start * self.n_cols, stop * self.n_cols).reshape(-1, self.n_cols)
        values = float8_values(self.array.dtype)[codes]  # (rows, n_cols)
        if start == stop:
            return values.view(np.uint8)
        high, wide = self.block
        first, last = start // high, (stop - 1) // high + 1
        stored = _to_float32(self.scales.read(first, last).reshape(-1), self.scales.dtype).reshape(last - first, -1)
        scales = np.repeat(stored[np.arange(start, stop) // high - first], wide, axis=1)[:, : self.n_cols]
        with np.errstate(over="ignore", invalid="ignore"):
            return np.ascontiguousarray(values * scales).view(np.uint8)


@dataclass(frozen=True, slots=True)
class Mxfp4Rows:
    """Blocks of 32 four-bit floats with one exponent, in ggml's order (block_mxfp4 in ggml-common.h).

    A checkpoint's byte holds weights 2 i and 2 i + 1 of its block, ggml's weights i and i + 16.
    """

    blocks: StoredArray
    """(..., n_blocks, 16)"""
    scales: StoredArray
    """(..., n_blocks): exponents"""
    n_cols: int
    dtype: str = "MXFP4"

    @property
    def n_rows(self) -> int:
        return self.scales.size_bytes // (self.n_cols // MXFP4_SIZE)

    def read(self, start: int, stop: int) -> Bytes:
        n_blocks = self.n_cols // MXFP4_SIZE
        packed = self.blocks.read(start * n_blocks * 16, stop * n_blocks * 16).reshape(-1, 16)
        weights = np.stack([packed & 0x0F, packed >> 4], axis=2).reshape(-1, 2, 16)
        scales = self.scales.read(start * n_blocks, stop * n_blocks).reshape(-1, 1)
        whole = np.concatenate([scales, weights[:, 0] | weights[:, 1] << 4], axis=1)
        return np.ascontiguousarray(whole).reshape(stop - start, n_blocks * MXFP4_BYTES)


def float8_values(dtype: str) -> npt.NDArray[np.float32]:
    """The number behind each of the 256 codes of F8_E4M3 (no infinities, one NaN) or F8_E5M2 (as IEEE 754)."""
    codes = np.arange(256)
    n_mantissa, bias = (3, 7) if dtype == "F8_E4M3" else (2, 15)
    exponent, mantissa = (codes & 0x7F) >> n_mantissa, codes & (1 << n_mantissa) - 1
    normal = np.ldexp(1 + mantissa / (1 << n_mantissa), exponent - bias)
    values = np.where(exponent > 0, normal, np.ldexp(mantissa / (1 << n_mantissa), 1 - bias))
    if dtype == "F8_E4M3":
        values[(codes & 0x7F) == 0x7F] = np.nan
    else:
        values[(exponent == 31) & (mantissa == 0)] = np.inf
        values[(exponent == 31) & (mantissa > 0)] = np.nan
    return np.where(codes > 127, -values, values).astype(np.float32)


def head_order(heads: int, n_rows: int) -> Callable[[Places], Places]:
    """The order of `rope_order` for that many heads."""
    return lambda rows: rope_order(rows, n_rows // heads)


def rope_order(rows: Places, head_rows: int) -> Places:
    """Where these output rows lie in the checkpoint.

    Transformers rotates row i of a head with row i + head_rows / 2, ggml rotates neighbours: row 2 i + j of a
    head comes from row i + j * head_rows / 2.
    """
    head, row = np.divmod(rows, head_rows)
    place: Places = head * head_rows + row // 2 + (row % 2) * (head_rows // 2)
    return place


def slices(rows_in: int, rows_out: int, first: int = 0) -> Callable[[Places], Places]:
    """Of every `rows_in` rows, `rows_out` from `first` on."""
    return lambda rows: rows // rows_out * rows_in + rows % rows_out + first


def every_second(first: int) -> Callable[[Places], Places]:
    """Every second row from `first` on."""
    return lambda rows: rows * 2 + first


def check_heads(array: StoredArray, heads: int) -> None:
    """Raise ModelFormatError where rows do not divide into heads of pairs."""
    if array.shape[0] % heads or array.shape[0] // heads % 2:
        raise ModelFormatError(
            f"{array.name} in {array.file.path} has the shape {array.shape}, which {heads} heads do not divide",
            remedy="Check config.json or download the model again",
        )


def same_shape(experts: Sequence[StoredArray]) -> tuple[int, ...]:
    """The shape that all experts of a stack have. Raises ModelFormatError where they differ."""
    first = experts[0]
    for expert in experts:
        if expert.shape != first.shape:
            raise ModelFormatError(
                f"{expert.name} in {expert.file.path} has the shape {expert.shape}, {first.name} {first.shape}",
                remedy="Download the model again",
            )
    return first.shape


def converted(data: Bytes, source: str, target: str) -> Bytes:
    """Rows in another type: (n_rows, bytes of a row)."""
    if source == target:
        return np.ascontiguousarray(data)
    with np.errstate(over="ignore", invalid="ignore"):
        values = _to_float32(np.ascontiguousarray(data).reshape(-1), source)
        if target == "F32":
            out = values.view(np.uint8)
        elif target == "F16":
            out = values.astype(np.float16).view(np.uint8)
        else:
            out = _to_bfloat16(values).view(np.uint8)
    return out.reshape(len(data), data.shape[1] // ITEM_BYTES[source] * ITEM_BYTES[target])


def _to_float32(data: Bytes, source: str) -> npt.NDArray[np.float32]:
    if source == "BF16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return data.view(_DTYPES[source]).astype(np.float32)


def _to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to nearest, ties to even; NaN stays a quiet NaN."""
    bits = values.view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)
