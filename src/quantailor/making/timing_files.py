"""Files that are made to be timed: a model's structure at any types, with weights that cost next to nothing to quantize.

What a token takes depends on shapes and types, not on the values of weights. Of each tensor a few rows are quantized and repeated in a
random order, the same at every type; embeddings, norms, biases and routers stay as they are, so that tokens differ and reach different
experts.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from quantailor.control import QUIET, Control
from quantailor.ggml import codec, library
from quantailor.making.building import output_order, plain_metadata
from quantailor.models.gguf_writer import FileLayout, GGUFWriter, layout
from quantailor.models.source import ModelSource
from quantailor.numerics import Bytes
from quantailor.qtypes import QType
from quantailor.records import MetadataValue, TensorInfo

POOL_ROWS = 16
"""Rows of a tensor that are quantized."""
_PIECE_BYTES = 1 << 24


def timing_layout(source: ModelSource, types: Mapping[str, str], *, n_layers: int | None = None) -> FileLayout:
    """The file at these types (tensor -> type; others keep theirs), with its first layers alone where it is cut.

    Raises TypeUnavailableError where a type's block does not divide a row.
    """
    qtypes = library.types()
    kept = [tensor for tensor in output_order(source) if n_layers is None or tensor.layer is None or tensor.layer < n_layers]
    tensors = [qtypes[types[tensor.name]].retyped(tensor) if tensor.name in types else tensor for tensor in kept]
    return layout(_metadata(source, types, n_layers), tensors)


def _metadata(source: ModelSource, types: Mapping[str, str], n_layers: int | None) -> dict[str, MetadataValue]:
    """With what is said of each layer cut to as many as there are."""
    found, count = plain_metadata(source, types), f"{source.architecture}.block_count"
    if n_layers is None:
        return found
    whole = found[count].value
    for key, entry in found.items():
        if key.startswith(f"{source.architecture}.") and isinstance(entry.value, tuple) and len(entry.value) == whole:
            found[key] = dataclasses.replace(entry, value=entry.value[:n_layers])
    found[count] = dataclasses.replace(found[count], value=n_layers)
    return found


def write_timing_file(
    source: ModelSource, path: Path, types: Mapping[str, str], *, n_layers: int | None = None, control: Control = QUIET
) -> None:
    """Write the file of `timing_layout`; replaces one. Raises OutputError, NonFiniteWeightError, TypeUnavailableError."""
    with GGUFWriter(path, timing_layout(source, types, n_layers=n_layers), overwrite=True) as writer:
        for tensor in timing_layout(source, types, n_layers=n_layers).tensors:
            control.check()
            if source.tensor(tensor.name).type_name == tensor.type_name:
                _copy(writer, source, tensor)
            else:
                _repeat(writer, source, tensor)


def _copy(writer: GGUFWriter, source: ModelSource, tensor: TensorInfo) -> None:
    n_rows = max(1, _PIECE_BYTES // max(1, tensor.size_bytes // max(1, tensor.n_rows)))
    for start in range(0, tensor.n_rows, n_rows):
        writer.write(source.raw_rows(tensor.name, start, min(start + n_rows, tensor.n_rows)))


def _repeat(writer: GGUFWriter, source: ModelSource, tensor: TensorInfo) -> None:
    """Rows of the pool, (n_rows, row_bytes), in the order that the tensor's name gives."""
    pool = _pool(source, tensor, library.types()[tensor.type_name])
    order = np.random.default_rng(zlib.crc32(tensor.name.encode())).integers(0, len(pool), tensor.n_rows)
    n_rows = max(1, _PIECE_BYTES // pool.shape[1])
    for start in range(0, tensor.n_rows, n_rows):
        writer.write(pool[order[start : start + n_rows]])


def _pool(source: ModelSource, tensor: TensorInfo, qtype: QType) -> Bytes:
    """A few rows at a type, (n_pool, row_bytes), whose columns all count alike."""
    weights = source.rows(tensor.name, 0, min(POOL_ROWS, tensor.n_rows))
    codec.check_weights(weights, tensor.name)
    return codec.quantize(weights, qtype, np.ones(tensor.n_cols, dtype=np.float32)).reshape(len(weights), -1)
