"""How one GGUF tensor comes out of a checkpoint's arrays, row by row.

A tensor's rows are read through a chain of small views: an array, a choice of its rows, several arrays one after
the other, a transposition. Each function here makes one such view; nothing is read before `Rows.read` is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantailor.errors import ModelFormatError, NonFiniteWeightError
from quantailor.models.safetensors_file import StoredArray
from quantailor.numerics import Bytes, Floats
from quantailor.records import TensorInfo

Order = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]
"""Row numbers of a view -> where these rows lie in the view beneath; both (n_rows,)."""

MXFP4_SIZE, MXFP4_BYTES = 32, 17
"""Weights of a block and its bytes."""
LOST_ENERGY = 0.01
"""A row is lost where float16 takes more than this part of the sum of its squared weights: they are below some 2e-7."""
ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4}
_DTYPES: dict[str, type[np.uint16] | type[np.float16] | type[np.float32]] = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of numbers: what a tensor is made from."""

    n_rows: int
    n_cols: int
    dtype: str
    read: Callable[[int, int], Bytes]
    """Rows [start, stop): (stop - start, bytes of a row)."""


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of the base and the rows it is made from."""

    info: TensorInfo
    source: Rows

    def raw_rows(self, start: int, stop: int) -> Bytes:
        """Rows [start, stop) in the type of `info`: (stop - start, row_bytes).

        Raises IndexError for rows that are not there, NonFiniteWeightError where that type does not hold a weight.
        """
        if not 0 <= start <= stop <= self.info.n_rows:
            raise IndexError(f"{self.info.name} has {self.info.n_rows} rows, not [{start}, {stop})")
        try:
            return converted(self.source.read(start, stop), self.source.dtype, self.info.type_name)
        except OverflowError as error:
            raise NonFiniteWeightError(
                f"{self.info.name} has the weight {error}, which {self.info.type_name} does not hold",
                remedy='Save the checkpoint in bfloat16, which holds it (model.to(torch.bfloat16).save_pretrained("..."))',
            ) from error

    def lost_rows(self, start: int, stop: int) -> tuple[int, int]:
        """How many of rows [start, stop) lose more than `LOST_ENERGY` to F16, whose least step is 2^-24, and how many are not zero.

        (0, 0) where the base takes every weight as it is.
        """
        if self.info.type_name != "F16" or self.source.dtype == "F16" or start == stop:
            return 0, 0
        values = _to_float32(self.source.read(start, stop).reshape(-1), self.source.dtype).reshape(stop - start, -1)
        largest = np.abs(values).max(axis=1)  # (n_rows,)
        small = values[largest < np.finfo(np.float16).smallest_normal].astype(np.float64)  # (rows, n_cols)
        lost = np.square(small - small.astype(np.float16)).sum(axis=1)
        return int(np.count_nonzero(lost > LOST_ENERGY * np.square(small).sum(axis=1))), int(np.count_nonzero(largest))


# Views


def array_rows(array: StoredArray, n_cols: int) -> Rows:
    """An array as it is stored; `n_cols` may cut its rows shorter."""
    row_bytes = n_cols * ITEM_BYTES[array.dtype]

    def read(start: int, stop: int) -> Bytes:
        return array.read(start * row_bytes, stop * row_bytes).reshape(-1, row_bytes)

    return Rows(array.size_bytes // row_bytes, n_cols, array.dtype, read)


def constant(name: str, values: Sequence[float]) -> PlannedTensor:
    """A float32 vector that no array holds."""
    row: Floats = np.asarray(values, dtype=np.float32).reshape(1, -1)
    rows = Rows(1, row.shape[1], "F32", lambda start, stop: np.ascontiguousarray(row[start:stop]).view(np.uint8))
    return PlannedTensor(TensorInfo(name, row.shape[1:], "F32", row.nbytes), rows)


def picked(inner: Rows, n_rows: int, order: Order) -> Rows:
    """Some rows of `inner`, or all in another order."""

    def read(start: int, stop: int) -> Bytes:
        if start == stop:
            return inner.read(0, 0)
        wanted = order(np.arange(start, stop))
        low, high = int(wanted.min()), int(wanted.max()) + 1
        block = inner.read(low, high)
        return block if np.array_equal(wanted, np.arange(low, high)) else block[wanted - low]

    return Rows(n_rows, inner.n_cols, inner.dtype, read)


def stacked(pieces: Sequence[Rows]) -> Rows:
    """Pieces of equal shape, one after the other: experts. Pieces of different types become float32."""
    per_piece = pieces[0].n_rows
    dtypes = {piece.dtype for piece in pieces}
    dtype = dtypes.pop() if len(dtypes) == 1 else "F32"

    def read(start: int, stop: int) -> Bytes:
        parts = [converted(pieces[0].read(0, 0), pieces[0].dtype, dtype)]
        while start < stop:
            number, first = divmod(start, per_piece)
            last = min(per_piece, first + stop - start)
            parts.append(converted(pieces[number].read(first, last), pieces[number].dtype, dtype))
            start += last - first
        return np.concatenate(parts)

    return Rows(per_piece * len(pieces), pieces[0].n_cols, dtype, read)


def transposed(inner: Rows, slice_rows: int) -> Rows:
    """Each slice of `slice_rows` rows of `inner`, transposed."""
    per_slice, item = inner.n_cols, ITEM_BYTES[inner.dtype]

    def read(start: int, stop: int) -> Bytes:
        first, last = start // per_slice, -(-stop // per_slice)
        block = inner.read(first * slice_rows, last * slice_rows)
        turned = block.reshape(last - first, slice_rows, per_slice, item).transpose(0, 2, 1, 3)
        rows = turned.reshape(-1, slice_rows * item)
        return np.ascontiguousarray(rows[start - first * per_slice : stop - first * per_slice])

    return Rows(inner.n_rows // slice_rows * per_slice, slice_rows, inner.dtype, read)


def regrouped(inner: Rows, n_cols: int) -> Rows:
    """Rows of one number each, `n_cols` of them put into one row: what orders single numbers."""

    def read(start: int, stop: int) -> Bytes:
        return inner.read(start * n_cols, stop * n_cols).reshape(stop - start, n_cols * ITEM_BYTES[inner.dtype])

    return Rows(inner.n_rows // n_cols, n_cols, inner.dtype, read)


def plus_one(inner: Rows) -> Rows:
    """Weights of a norm that multiplies by 1 + weight; the sum is rounded to F16 where the weights are."""
    dtype, kind = ("F16", np.float16) if inner.dtype == "F16" else ("F32", np.float32)

    def read(start: int, stop: int) -> Bytes:
        data = converted(inner.read(start, stop), inner.dtype, dtype)
        with np.errstate(invalid="ignore"):
            sums: npt.NDArray[np.generic] = np.add(data.reshape(-1).view(kind), kind(1), dtype=kind)
        out: Bytes = sums.view(np.uint8).reshape(data.shape)
        return out

    return Rows(inner.n_rows, inner.n_cols, dtype, read)


def float8_rows(array: StoredArray, n_cols: int, scales: Rows, block: tuple[int, int]) -> Rows:
    """8-bit floats (E4M3 or E5M2) times the scale of their block; read as float32.

    Args:
        array: (rows, n_cols) codes.
        n_cols: numbers of a row.
        scales: a view of (ceil(rows / block rows), ceil(n_cols / block columns)) numbers.
        block: rows and columns that share a scale.
    """
    high, wide = block

    def read(start: int, stop: int) -> Bytes:
        codes = array.read(start * n_cols, stop * n_cols).reshape(-1, n_cols)
        values = _float8_values(array.dtype)[codes]  # (rows, n_cols)
        if start == stop:
            return values.view(np.uint8)
        first, last = start // high, (stop - 1) // high + 1
        stored = _to_float32(scales.read(first, last).reshape(-1), scales.dtype).reshape(last - first, -1)
        factors = np.repeat(stored[np.arange(start, stop) // high - first], wide, axis=1)[:, :n_cols]
        with np.errstate(over="ignore", invalid="ignore"):
            return np.ascontiguousarray(values * factors).view(np.uint8)

    return Rows(array.size_bytes // n_cols, n_cols, "F32", read)


def mxfp4_rows(blocks: StoredArray, scales: StoredArray, n_cols: int) -> Rows:
    """Blocks of 32 four-bit floats with one exponent, in ggml's order (block_mxfp4 in ggml-common.h).

    A checkpoint's byte holds weights 2 i and 2 i + 1 of its block, ggml's weights i and i + 16.

    Args:
        blocks: (..., n_blocks, 16) bytes.
        scales: (..., n_blocks) exponents.
        n_cols: weights of a row.
    """
    n_blocks = n_cols // MXFP4_SIZE

    def read(start: int, stop: int) -> Bytes:
        packed = blocks.read(start * n_blocks * 16, stop * n_blocks * 16).reshape(-1, 16)
        weights = np.stack([packed & 0x0F, packed >> 4], axis=2).reshape(-1, 2, 16)
        exponents = scales.read(start * n_blocks, stop * n_blocks).reshape(-1, 1)
        whole = np.concatenate([exponents, weights[:, 0] | weights[:, 1] << 4], axis=1)
        return np.ascontiguousarray(whole).reshape(stop - start, n_blocks * MXFP4_BYTES)

    return Rows(scales.size_bytes // n_blocks, n_cols, "MXFP4", read)


# Orders


def head_order(array: StoredArray, heads: int) -> Order:
    """Where the rows of query and key heads lie in the checkpoint.

    Transformers rotates row i of a head with row i + head_rows / 2, ggml rotates neighbours: row 2 i + j of a
    head comes from row i + j * head_rows / 2. Raises ModelFormatError where rows do not divide into heads of pairs.
    """
    head_rows, rest = divmod(array.shape[0], heads)
    if rest or head_rows % 2:
        raise ModelFormatError(
            f"{array.name} in {array.file.path} has the shape {array.shape}, which {heads} heads do not divide",
            remedy="Check config.json or download the model again",
        )
    return lambda rows: rows // head_rows * head_rows + rows % head_rows // 2 + (rows % 2) * (head_rows // 2)


def slices(rows_in: int, rows_out: int, first: int = 0) -> Order:
    """Of every `rows_in` rows, `rows_out` from `first` on."""
    return lambda rows: rows // rows_out * rows_in + rows % rows_out + first


# Number formats


def _float8_values(dtype: str) -> Floats:
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


def converted(data: Bytes, source: str, target: str) -> Bytes:
    """Rows in another type: (n_rows, row_bytes) of `source` -> (n_rows, row_bytes) of `target`.

    Raises OverflowError, which holds the largest weight, where finite ones would become infinite.
    """
    if source == target:
        return np.ascontiguousarray(data)
    with np.errstate(over="ignore", invalid="ignore"):
        values = _to_float32(np.ascontiguousarray(data).reshape(-1), source)
        if target == "F32":
            out = values.view(np.uint8)
        else:
            narrow = values.astype(np.float16) if target == "F16" else _to_bfloat16(values)
            lost = np.isfinite(values) & ~np.isfinite(narrow if target == "F16" else _to_float32(narrow.view(np.uint8), "BF16"))
            if lost.any():
                raise OverflowError(f"{values[lost][np.argmax(np.abs(values[lost]))]:,.6g}")
            out = narrow.view(np.uint8)
    return out.reshape(len(data), data.shape[1] // ITEM_BYTES[source] * ITEM_BYTES[target])


def _to_float32(data: Bytes, source: str) -> Floats:
    if source == "BF16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return data.view(_DTYPES[source]).astype(np.float32)


def _to_bfloat16(values: Floats) -> npt.NDArray[np.uint16]:
    """Round to nearest, ties to even; NaN stays a quiet NaN."""
    bits = values.view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)
