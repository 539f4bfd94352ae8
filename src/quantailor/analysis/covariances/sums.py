"""X^T X of an input, summed batch by batch as its upper triangle, the same bits for any number of threads.

A sum is kept in panels of `PANEL` rows: rows [start, stop) hold the columns from `start` on. Each panel is one matrix product that
one thread does whole with a BLAS of one thread, so that no sum depends on how many threads there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from quantailor.numerics import Floats

PANEL = 256
"""Rows of a panel. Part of what the bits of a sum depend on."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Some rows of an upper triangle."""

    start: int
    stop: int
    offset: int
    """Elements of the panels before it."""

    def of(self, packed: Floats, n_cols: int) -> Floats:
        """Its rows in a packed sum, a view: (stop - start, n_cols - start)."""
        height, width = self.stop - self.start, n_cols - self.start
        return packed[self.offset : self.offset + height * width].reshape(height, width)


def panels(n_cols: int) -> Iterator[Panel]:
    """The panels of a matrix of n_cols rows and columns, in order."""
    offset = 0
    for start in range(0, n_cols, PANEL):
        stop = min(start + PANEL, n_cols)
        yield Panel(start, stop, offset)
        offset += (stop - start) * (n_cols - start)


def packed_size(n_cols: int) -> int:
    """Elements of a sum."""
    return sum((panel.stop - panel.start) * (n_cols - panel.start) for panel in panels(n_cols))


def add_products(pool: ThreadPoolExecutor, batches: Sequence[tuple[Floats, Floats]]) -> None:
    """Add X^T X to sums. `batches` holds packed sums, (packed_size,), each with its X, (n_rows, n_cols)."""
    tasks = [_task(packed, x, panel) for packed, x in batches if len(x) for panel in panels(x.shape[1])]
    if len(tasks) == 1:
        tasks[0]()
    for future in [pool.submit(task) for task in tasks] if len(tasks) > 1 else ():
        future.result()


def _task(packed: Floats, x: Floats, panel: Panel) -> Callable[[], None]:
    def add() -> None:
        rows = panel.of(packed, x.shape[1])
        rows += x[:, panel.start : panel.stop].T @ x[:, panel.start :]

    return add


def diagonal(packed: Floats, n_cols: int) -> Floats:
    """The diagonal of a packed sum: (n_cols,)."""
    return np.concatenate([np.diagonal(panel.of(packed, n_cols)) for panel in panels(n_cols)])


def add_diagonal(packed: Floats, n_cols: int, value: float) -> None:
    """Add a multiple of the identity, (n_cols, n_cols), to a packed sum."""
    for panel in panels(n_cols):
        own = np.arange(panel.stop - panel.start)
        panel.of(packed, n_cols)[own, own] += np.float32(value)


def trace_of_product(one: Floats, other: Floats, n_cols: int) -> float:
    """tr(A B) of two symmetric matrices, (n_cols, n_cols), given as packed sums."""
    total = 0.0
    for panel in panels(n_cols):
        products = panel.of(one, n_cols).astype(np.float64) * panel.of(other, n_cols)
        height = panel.stop - panel.start  # what lies behind this square counts for its mirror image, too
        total += 2 * float(products.sum()) - float(products[:, :height].sum())
    return total
