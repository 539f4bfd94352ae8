"""How one GGUF tensor comes out of a checkpoint's arrays, row by row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantailor.errors import ModelFormatError
from quantailor.models.safetensors_file import StoredArray
from quantailor.records import TensorInfo

Bytes = npt.NDArray[np.uint8]

ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4}
_DTYPES: dict[str, type[np.uint16] | type[np.float16] | type[np.float32]] = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of the base.

    `pieces` are the arrays it is made of, stacked along a new first dimension where there are several
    (experts); `heads` is set where rows are interleaved for ggml's rope; `constant` replaces the pieces.
    """

    info: TensorInfo
    pieces: tuple[StoredArray, ...] = ()
    heads: int | None = None
    constant: Bytes | None = None

    def raw_rows(self, start: int, stop: int) -> Bytes:
        """Rows [start, stop) over all pieces in the type of `info`: (stop - start, row_bytes)."""
        if not 0 <= start <= stop <= self.info.n_rows:
            raise IndexError(f"{self.info.name} has {self.info.n_rows} rows, not [{start}, {stop})")
        if self.constant is not None:
            return self.constant.reshape(self.info.n_rows, -1)[start:stop].copy()
        per_piece = self.info.n_rows // len(self.pieces)
        parts = []
        while start < stop:
            number, first = divmod(start, per_piece)
            last = min(per_piece, first + stop - start)
            parts.append(self._piece_rows(self.pieces[number], first, last))
            start += last - first
        row_bytes = self.info.n_cols * ITEM_BYTES[self.info.type_name]
        return np.concatenate(parts) if parts else np.empty((0, row_bytes), dtype=np.uint8)

    def _piece_rows(self, piece: StoredArray, start: int, stop: int) -> Bytes:
        n_cols, row_bytes = self.info.n_cols, self.info.n_cols * ITEM_BYTES[piece.dtype]
        if self.heads is None:
            return _converted(piece.read(start * row_bytes, stop * row_bytes), piece.dtype, self.info.type_name, n_cols)
        if len(self.info.shape) == 1:
            values = piece.read(0, row_bytes).view(_DTYPES[piece.dtype])[rope_order(np.arange(n_cols), n_cols // self.heads)]
            return _converted(values.view(np.uint8), piece.dtype, self.info.type_name, n_cols)
        head_rows = self.info.n_rows // self.heads
        low, high = start // head_rows * head_rows, -(-stop // head_rows) * head_rows
        wanted = rope_order(np.arange(start, stop), head_rows)
        block = piece.read(low * row_bytes, high * row_bytes).reshape(-1, row_bytes)
        return _converted(block[wanted - low], piece.dtype, self.info.type_name, n_cols)


def rope_order(rows: npt.NDArray[np.int64], head_rows: int) -> npt.NDArray[np.int64]:
    """Where these output rows lie in the checkpoint.

    Transformers rotates row i of a head with row i + head_rows / 2, ggml rotates neighbours: row 2 i + j of a
    head comes from row i + j * head_rows / 2.
    """
    head, row = np.divmod(rows, head_rows)
    place: npt.NDArray[np.int64] = head * head_rows + row // 2 + (row % 2) * (head_rows // 2)
    return place


def check_heads(array: StoredArray, heads: int) -> None:
    """Raise ModelFormatError where rows do not divide into heads of pairs."""
    if array.shape[0] % heads or array.shape[0] // heads % 2:
        raise ModelFormatError(
            f"{array.name} in {array.file.path} has the shape {array.shape}, which {heads} heads do not divide",
            remedy="Check config.json or download the model again",
        )


def _converted(data: Bytes, source: str, target: str, n_cols: int) -> Bytes:
    if source == target:
        return np.ascontiguousarray(data).reshape(-1, n_cols * ITEM_BYTES[target])
    values = _to_float32(data.reshape(-1), source)
    if target == "F32":
        out = values.view(np.uint8)
    elif target == "F16":
        with np.errstate(over="ignore"):
            out = values.astype(np.float16).view(np.uint8)
    else:
        out = _to_bfloat16(values).view(np.uint8)
    return out.reshape(-1, n_cols * ITEM_BYTES[target])


def _to_float32(data: Bytes, source: str) -> npt.NDArray[np.float32]:
    if source == "BF16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return data.view(_DTYPES[source]).astype(np.float32)


def _to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to nearest, ties to even; NaN stays a quiet NaN."""
    bits = values.view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)
