"""Tables that the strategy tests share: measured ones from golden files, and HiGHS as the judge."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from quantailor.records import Cell, TensorCells
from quantailor.strategy.constraints import padded
from quantailor.strategy.importance import with_importance

GOLDEN = Path(__file__).parent.parent / "golden"
MODELS = ("books-llama", "books-moe")


def measured(model: str) -> tuple[tuple[TensorCells, ...], int]:
    """Tables of a real model at every type that ggml can write, and the bytes of its other tensors."""
    data = json.loads((GOLDEN / f"tables-{model}.json").read_text(encoding="utf-8"))
    tables = []
    for tensor in data["tensors"]:
        elements = math.prod(tensor["shape"])
        cells = tuple(
            Cell(name, size, 8 * size / elements, relative * elements, relative, relative, rmse, largest)
            for name, (size, relative, rmse, largest) in tensor["cells"].items()
        )
        tables.append(TensorCells(tensor["name"], elements, cells))
    return with_importance(tables), data["fixed_bytes"]


def elements(tables: Sequence[TensorCells]) -> int:
    return sum(tensor.n_elements for tensor in tables)


def size_at(tables: Sequence[TensorCells], bits: float) -> int:
    """Bytes at so many bits per weight."""
    return int(elements(tables) * bits / 8)


def highs_bound(tables: Sequence[TensorCells], budget_bytes: int, *, scale: float) -> float:
    """HiGHS's lower bound of the least damage; `scale` brings the objective to about 1,000, above its absolute gap."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    sizes = np.array([padded(cell.size_bytes) for tensor in tables for cell in tensor.cells], dtype=np.int64)
    damages = np.array([cell.damage for tensor in tables for cell in tensor.cells])
    owner = np.repeat(np.arange(len(tables)), [len(tensor.cells) for tensor in tables])
    one_each = csr_array((np.ones(len(sizes)), (owner, np.arange(len(sizes)))))
    unit = int(np.gcd.reduce(sizes))
    weights = csr_array((sizes // unit).astype(float)[None, :])
    found = milp(
        damages * scale,
        integrality=np.ones(len(sizes)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(weights, 0, budget_bytes // unit)],
        options={"mip_rel_gap": 1e-6, "time_limit": 60},
    )
    return float(found.mip_dual_bound) / scale
