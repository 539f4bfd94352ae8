"""Quantize and dequantize rows with ggml's own code.

The C calls release the GIL, so callers get parallelism from threads; each call here runs in one. Rows are
independent in every ggml type, so any split into rows gives the same bytes.

ggml ends the process on some inputs instead of reporting them. What could reach such an assertion is refused
here first: wrong shapes, a missing importance vector where the type needs one, and weights or importances
that are not finite or so large that their weighted squares overflow float32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from quantailor.errors import ImatrixError, NonFiniteWeightError, TypeUnavailableError
from quantailor.ggml import library
from quantailor.numerics import Bytes, Floats
from quantailor.present.words import not_finite
from quantailor.qtypes import QType

MAX_ABS_WEIGHT = 1e6
"""Largest weight we pass on; block scales are float16 and squares are summed in float32."""
MAX_IMPORTANCE = 1e20
_PLAIN = {"I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "F64": "<f8"}
"""`UNTOUCHED` types as numpy calls them."""


def check_weights(values: Floats, name: str) -> None:
    """Refuse weights, (n_rows, n_cols), that no quantizer should see; `name` is the tensor's.

    Raises:
        NonFiniteWeightError: NaN, Inf or weights beyond `MAX_ABS_WEIGHT`.
    """
    largest = float(np.max(np.abs(values), initial=0.0))
    if largest <= MAX_ABS_WEIGHT:
        return
    if n_bad := int(np.count_nonzero(~np.isfinite(values))):
        raise NonFiniteWeightError(f"{name} has {not_finite(n_bad)}", remedy="Get an intact copy of the model")
    raise NonFiniteWeightError(
        f"{name} has a weight of {largest:g}, too large for quantization, whose scales are float16",
        remedy="Check how the model was trained or saved, and scale such a weight down, or take another copy of the model",
    )


def check_importance(importance: Floats, name: str) -> None:
    """Refuse importances, (n_slices, n_cols) or any other shape, that no quantizer should see; `name` is the tensor's.

    Raises:
        ImatrixError: one that is negative, not finite or beyond `MAX_IMPORTANCE`.
    """
    bad = ~((importance >= 0) & (importance <= MAX_IMPORTANCE))
    if bad.any():
        value = float(importance[bad].flat[0])
        raise ImatrixError(f"the importance matrix has the value {value:g} for {name}", remedy="Compute it again")


def quantize(values: Floats, qtype: QType, importance: Floats | None = None) -> Bytes:
    """Quantize rows as `llama-quantize` does.

    Args:
        values: weights, (n_rows, n_cols), C-contiguous, already checked with `check_weights`.
        qtype: the type to write.
        importance: E[x^2] per column, (n_cols,), already checked; None quantizes without weights.

    Returns:
        The rows' bytes, (n_rows, row_bytes).

    Raises:
        TypeUnavailableError: the block does not divide the row, or the type needs an importance vector.
        ImatrixError: the importances are not one per column.
    """
    n_rows, n_cols = values.shape
    out = np.empty((n_rows, qtype.row_bytes(n_cols)), dtype=np.uint8)
    source = np.ascontiguousarray(values, dtype=np.float32)
    if qtype.aborts_without_imatrix and importance is None:
        raise TypeUnavailableError(f"{qtype.name} cannot be written without an importance vector")
    weights = None
    if importance is not None:
        if importance.shape != (n_cols,):
            raise ImatrixError(f"importance of shape {importance.shape} for rows of {n_cols} weights")
        weights = np.ascontiguousarray(importance, dtype=np.float32)
    if n_rows:
        library.load().ggml.ggml_quantize_chunk(
            qtype.id, source.ctypes.data, out.ctypes.data, 0, n_rows, n_cols, None if weights is None else weights.ctypes.data
        )
    return out


def dequantize(data: npt.NDArray[np.generic], qtype: QType, n_cols: int) -> Floats:
    """Turn rows of `qtype` back into weights: (n_rows, row_bytes) bytes -> (n_rows, n_cols) float32.

    Raises:
        TypeUnavailableError: the bytes are not a whole number of rows.
    """
    flat = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
    row_bytes = qtype.row_bytes(n_cols)
    if flat.size % row_bytes:
        raise TypeUnavailableError(f"{flat.size} bytes are not a whole number of {qtype.name} rows of {row_bytes} bytes")
    out = np.empty((flat.size // row_bytes, n_cols), dtype=np.float32)
    if qtype.name in _PLAIN:
        # ggml has no function that makes weights of these: a call would end the process.
        out[:] = flat.view(_PLAIN[qtype.name]).reshape(out.shape)
    elif qtype.name == "F32":
        out.view(np.uint8).reshape(-1)[:] = flat
    elif out.size:
        traits = library.load().ggml.ggml_get_type_traits(qtype.id).contents
        traits.to_float(flat.ctypes.data, out.ctypes.data, out.size)
    return out


def is_valid(data: Bytes, qtype: QType) -> bool:
    """Whether ggml accepts bytes, (n_rows, row_bytes), as rows of `qtype` (no NaN or Inf in the scales)."""
    flat = np.ascontiguousarray(data).reshape(-1)
    return bool(library.load().ggml.ggml_validate_row_data(qtype.id, flat.ctypes.data, flat.size))
