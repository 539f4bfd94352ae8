"""Tensors as they go into a file: rows are read, quantized in threads, and handed on in order.

Memory stays at a few blocks of rows per thread whatever the size of the model, beside the covariances of compensated rounding.
Every slice of a tensor (an expert) has its own importances and covariances, so no block crosses a slice; rows are independent, so the
bytes depend neither on the blocks nor on the threads.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from quantailor.analysis.rounding.compensation import PANEL_ROWS
from quantailor.analysis.rounding.rounding import Rounding
from quantailor.analysis.threads import Workers
from quantailor.control import QUIET, Control, ProgressCounter
from quantailor.errors import NonFiniteWeightError, TypeUnavailableError
from quantailor.ggml import codec, library
from quantailor.models.opening import open_model
from quantailor.models.source import ModelSource
from quantailor.numerics import Bytes
from quantailor.processes.crews import Bench, ModelFiles, Work
from quantailor.records import TensorInfo

BLOCK_WEIGHTS = 1 << 20
"""Weights that one thread takes at a time."""


@dataclass(frozen=True, slots=True)
class Block:
    """Rows [start, stop) of one tensor, within one slice."""

    tensor: TensorInfo
    """With the type that it is to have; one that has it already is copied."""
    index: int
    """Of the slice."""
    start: int
    stop: int

    @property
    def n_bytes(self) -> int:
        """What it takes in the file."""
        return (self.stop - self.start) * (self.tensor.size_bytes // self.tensor.n_rows)


@dataclass(frozen=True, eq=False, slots=True)
class BlockBytes:
    """A block as it goes into the file."""

    name: str
    start: int
    data: Bytes
    """(n_bytes,)."""


@dataclass(frozen=True, eq=False)
class BlockWork(Work[Block, BlockBytes]):
    """Blocks of one model to quantize."""

    model: ModelFiles
    rounding: Rounding
    n_threads: int | None = None
    """None takes all processors."""
    source: ModelSource | None = None
    """The model where it is open already; it does not travel."""
    is_apart: ClassVar[bool] = False

    def __getstate__(self) -> Mapping[str, object]:
        return {**self.__dict__, "source": None}

    def bench(self) -> _BlockBench:
        """Open the model. Raises ModelError where it cannot be read."""
        return _BlockBench(self)

    def on_threads(self, n_threads: int) -> BlockWork:
        """The same with so many threads, unless it says how many."""
        return replace(self, n_threads=self.n_threads or n_threads)

    def key(self, task: Block) -> tuple[str, int]:
        """The tensor and the first row."""
        return task.tensor.name, task.start

    def key_of(self, item: BlockBytes) -> tuple[str, int]:
        """The same of bytes."""
        return item.name, item.start

    def group(self, task: Block) -> tuple[str, int]:
        """What belongs to one metric, whose factor takes long, stays together."""
        return task.tensor.name, task.index

    def weight(self, task: Block) -> float:
        """Its bytes, as progress counts them."""
        return float(task.n_bytes)

    def label(self, task: Block) -> str:
        """The tensor."""
        return task.tensor.name


class _BlockBench(Bench[Block, BlockBytes]):
    """An open model."""

    def __init__(self, work: BlockWork) -> None:
        self._work, self._source = work, work.source or open_model(work.model.path)

    def facts(self) -> object:
        return None

    def do(self, tasks: Sequence[Block], *, control: Control) -> Iterator[BlockBytes]:
        progress = ProgressCounter(control, sum(block.n_bytes for block in tasks))
        with Workers(self._work.n_threads, control) as workers:
            for block, data in workers.map(lambda block: (block, _block_bytes(self._source, block, self._work.rounding)), tasks):
                yield BlockBytes(block.tensor.name, block.start, data)
                progress.add(len(data), block.tensor.name)

    def close(self) -> None:
        if self._work.source is None:
            self._source.close()


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
    blocks = blocks_of(tensors, rounding, block_weights)
    with Workers(n_threads, control) as workers:
        yield from workers.map(lambda block: (block.tensor, _block_bytes(source, block, rounding)), blocks)


def blocks_of(tensors: Iterable[TensorInfo], rounding: Rounding, block_weights: int = BLOCK_WEIGHTS) -> Iterator[Block]:
    """Tensors, with the types that they are to have, in blocks; see `quantized_blocks`."""
    least_rows = PANEL_ROWS if rounding.compensated else 1
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
