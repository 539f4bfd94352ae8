"""Tensors as they go into a file: rows are read, quantized in threads, and handed on in order.

Memory stays at a few blocks of rows per thread whatever the size of the model, beside the covariances of compensated rounding.
Every slice of a tensor (an expert) has its own importances and covariances, so no block crosses a slice; rows are independent, so the
bytes depend neither on the blocks nor on the threads.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from quantailor.analysis.rounding.compensation import PANEL_ROWS
from quantailor.analysis.rounding.rounding import Rounding
from quantailor.analysis.threads import Workers
from quantailor.control import QUIET, Control
from quantailor.errors import NonFiniteWeightError, TypeUnavailableError
from quantailor.ggml import codec, library
from quantailor.models.source import ModelSource
from quantailor.numerics import Bytes
from quantailor.records import TensorInfo

BLOCK_WEIGHTS = 1 << 20
"""Weights that one thread takes at a time."""


@dataclass(frozen=True, slots=True)
class Block:
    """Rows [start, stop) of one tensor, within one slice."""

    tensor: TensorInfo
    index: int
    """Of the slice."""
    start: int
    stop: int


def quantized_blocks(
    source: ModelSource,
    tensors: Sequence[TensorInfo],
    rounding: Rounding,
    *,
    n_threads: int | None = None,
    control: Control = QUIET,
    block_weights: int = BLOCK_WEIGHTS,
) -> Generator[tuple[TensorInfo, Bytes], None, None]:
    """The bytes of some tensors, block by block in order, each (n_bytes,); a few per thread are under way at any time.

    Args:
        source: where the weights come from.
        tensors: with the types they are to have; a tensor that has its type already is copied.
        rounding: how weights become codes.
        n_threads: None takes all processors.
        control: asked between blocks whether to go on.
        block_weights: weights that one thread takes at a time, or more where compensated rounding takes that many rows together anyway.

    Raises:
        NonFiniteWeightError: NaN or Inf among the weights.
        TypeUnavailableError, ImatrixError: a tensor cannot take its type.
    """
    blocks = _blocks(tensors, block_weights, PANEL_ROWS if rounding.compensated else 1)
    with Workers(n_threads, control) as workers:
        yield from workers.map(lambda block: (block.tensor, _block_bytes(source, block, rounding)), blocks)


def _blocks(tensors: Sequence[TensorInfo], block_weights: int, least_rows: int) -> Iterator[Block]:
    for tensor in tensors:
        n_rows_per_block = max(least_rows, block_weights // max(1, tensor.n_cols))
        n_rows_per_block -= n_rows_per_block % least_rows
        for index in range(tensor.n_slices):
            first, last = index * tensor.rows_per_slice, (index + 1) * tensor.rows_per_slice
            for start in range(first, last, n_rows_per_block):
                yield Block(tensor, index, start, min(start + n_rows_per_block, last))


def _block_bytes(source: ModelSource, block: Block, rounding: Rounding) -> Bytes:
    """The block as it goes into the file, flat; runs in a thread."""
    tensor, stored = block.tensor, source.tensor(block.tensor.name)
    qtype = library.stored_types()[tensor.type_name]
    if stored.type_name == tensor.type_name:
        data = source.raw_rows(tensor.name, block.start, block.stop)
        if not codec.is_valid(data, qtype):
            raise NonFiniteWeightError(f"{tensor.name} has weights that are NaN or Inf", remedy="Get an intact copy of the model")
        return data.reshape(-1)
    weights = source.rows(tensor.name, block.start, block.stop)
    codec.check_weights(weights, tensor.name)
    data = rounding.quantize(tensor, block.index, weights, qtype)
    if not codec.is_valid(data, qtype):
        raise TypeUnavailableError(f"{tensor.name} cannot be {qtype.name}: its weights overflow", remedy="Choose another type for it")
    return data.reshape(-1)
