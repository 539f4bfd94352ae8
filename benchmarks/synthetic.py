"""Made-up tables with the sizes of real types, for tests, experiments and benchmarks."""

from __future__ import annotations

import math

import numpy as np

from quantailor.records import Cell, TensorCells

LAYOUTS: tuple[tuple[str, int, int], ...] = (
    *(("F16", 2, 1), ("Q8_0", 34, 32), ("Q6_K", 210, 256), ("Q5_1", 24, 32), ("Q5_K", 176, 256), ("Q5_0", 22, 32), ("Q4_1", 20, 32)),
    *(("Q4_K", 144, 256), ("IQ4_NL", 18, 32), ("Q4_0", 18, 32), ("NVFP4", 36, 64), ("IQ4_XS", 136, 256), ("MXFP4", 17, 32)),
    *(("Q3_K", 110, 256), ("IQ3_S", 110, 256), ("IQ3_XXS", 98, 256), ("Q2_K", 84, 256), ("IQ2_S", 82, 256), ("IQ2_XS", 74, 256)),
    *(("IQ2_XXS", 66, 256), ("TQ2_0", 66, 256), ("IQ1_M", 56, 256), ("TQ1_0", 54, 256), ("IQ1_S", 50, 256), ("Q1_0", 18, 128)),
)
"""(type, bytes per block, weights per block), 25 types."""

_ROLES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def tables(
    n_tensors: int, *, seed: int = 0, n_types: int = len(LAYOUTS), max_rows: int = 6400, max_blocks: int = 64
) -> tuple[TensorCells, ...]:
    """Tensors of random shapes whose error falls about four times per bit, with scatter between types and tensors.

    Args:
        n_tensors: how many; seven to a layer.
        seed: of the random numbers; the same seed gives the same tables.
        n_types: the first so many of `LAYOUTS`.
        max_rows: rows are a multiple of 32 up to this.
        max_blocks: columns are 256 times 1 to this.
    """
    rng = np.random.default_rng(seed)
    return tuple(_tensor(rng, index, n_types, max_rows, max_blocks) for index in range(n_tensors))


def _tensor(rng: np.random.Generator, index: int, n_types: int, max_rows: int, max_blocks: int) -> TensorCells:
    n_rows = 32 * int(rng.integers(1, max(2, max_rows // 32 + 1)))
    n_cols = 256 * int(rng.integers(1, max_blocks + 1))
    sensitivity = math.exp(float(rng.normal(0, 2)))
    cells = tuple(_cell(rng, layout, n_rows * n_cols, sensitivity) for layout in LAYOUTS[:n_types])
    return TensorCells(f"blk.{index // len(_ROLES)}.{_ROLES[index % len(_ROLES)]}.weight", n_rows * n_cols, cells)


def _cell(rng: np.random.Generator, layout: tuple[str, int, int], n_elements: int, sensitivity: float) -> Cell:
    name, block_bytes, block_size = layout
    bits = 8 * block_bytes / block_size
    relative_mse = float(4.0**-bits * math.exp(rng.normal(0, 0.3)))
    rmse = 0.02 * math.sqrt(relative_mse)
    return Cell(
        type_name=name,
        size_bytes=n_elements // block_size * block_bytes,
        bits_per_weight=bits,
        damage=sensitivity * relative_mse * n_elements,
        relative_mse=relative_mse,
        weighted_mse=relative_mse,
        rmse=rmse,
        max_abs_error=5 * rmse,
    )
