"""How fast and how close to optimal: `python benchmarks/solve.py`.

Solves both models that ship with the tests and 1,000 synthetic tensors x 25 types over a range of sizes, and
prints time, HiGHS's time, and the objective against HiGHS's bound. Ends with 1 where a line misses its mark.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import synthetic
from quantailor.records import Cell, TensorCells
from quantailor.strategy.constraints import padded
from quantailor.strategy.rules import highs, optimal

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
BITS = (2.3, 2.7, 3.5, 4.5, 4.83, 5.7, 6.6, 9.0)
MAX_GAP = 1e-4
MAX_SECONDS = 2.0


def measured(model: str) -> tuple[TensorCells, ...]:
    data = json.loads((GOLDEN / f"tables-{model}.json").read_text(encoding="utf-8"))
    tables = []
    for tensor in data["tensors"]:
        n_elements = math.prod(tensor["shape"])
        cells = (Cell(name, cell[0], 8 * cell[0] / n_elements, cell[1] * n_elements) for name, cell in tensor["cells"].items())
        tables.append(TensorCells(tensor["name"], n_elements, tuple(cells)))
    return tuple(tables)


def highs_bound(tables: Sequence[TensorCells], budget_bytes: int) -> float:
    sizes = np.array([padded(cell.size_bytes) for tensor in tables for cell in tensor.cells], dtype=np.float64)
    damages = np.array([cell.damage for tensor in tables for cell in tensor.cells])
    program = highs.Program(tuple(len(tensor.cells) for tensor in tables), damages, sizes[None, :], np.array([float(budget_bytes)]))
    found = highs.solve(program)
    return found.lower_bound if found else -math.inf


def run(label: str, tables: Sequence[TensorCells]) -> bool:
    """Print one line per size; whether all meet the marks."""
    n_elements, good = sum(tensor.n_elements for tensor in tables), True
    for bits in BITS:
        budget = int(n_elements * bits / 8)
        start = time.perf_counter()
        solution = optimal.solve(tables, budget_bytes=budget)
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        bound = highs_bound(tables, budget)
        highs_seconds = time.perf_counter() - start
        gap = solution.objective / bound - 1 if bound > 0 else math.nan
        ok = gap <= MAX_GAP and seconds < MAX_SECONDS and solution.size_bytes <= budget
        good &= ok
        print(
            f"{label:12} {bits:5.2f} bpw  ours {seconds:6.3f} s  HiGHS {highs_seconds:6.3f} s  above HiGHS's bound {gap:9.2e}  "
            f"own gap {solution.gap:8.2e}  left over {budget - solution.size_bytes:9,} bytes  {'ok' if ok else 'MISSED'}"
        )
    return good


def main() -> int:
    print(f"marks: at most {MAX_GAP:g} above HiGHS's bound, under {MAX_SECONDS:g} s, never over the budget")
    results = [run(model, measured(model)) for model in ("books-llama", "books-moe")]
    results += [run(f"synthetic {seed}", synthetic.tables(1000, seed=seed)) for seed in range(3)]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
