"""Speed of measuring: `python benchmarks/measure.py`, or `make bench`.

1. Throughput of an exhaustive run against a bare loop of quantize and dequantize over the same rows, types and
   threads, interleaved in one process so that both see the same machine.
2. Time to sample a synthetic model of 1.2 B weights (shapes of Llama 3.2 1B, heavy-tailed weights) against its
   exhaustive time, extrapolated from 64 rows of every layer that are measured exhaustively in between.
3. Peak memory of that run, in a process of its own, with the model in a file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from benchmarks.in_memory import MemorySource, measure_model
from quantailor.analysis.importance.error_weights import ErrorWeights
from quantailor.analysis.weight_errors.measure import BLOCK_WEIGHTS, MeasureSettings
from quantailor.errors import TensorNotFoundError
from quantailor.ggml import codec, library
from quantailor.numerics import Bytes, Floats
from quantailor.qtypes import QType
from quantailor.records import MetadataValue, TensorInfo, WeightError

GOAL_THROUGHPUT, GOAL_SPEEDUP, GOAL_MEMORY_GIB = 0.9, 20.0, 1.5


@dataclass(frozen=True)
class RawFileSource:
    """BF16 rows of many tensors in one flat file; enough of a model source to measure."""

    path: Path
    shapes: dict[str, tuple[int, int]]
    architecture: str = "llama"
    name: str = "synthetic 1B"
    metadata: dict[str, MetadataValue] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    config_files: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def location(self) -> str:
        return str(self.path)

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        return [self.tensor(name) for name in self.shapes]

    def tensor(self, name: str) -> TensorInfo:
        if name not in self.shapes:
            raise TensorNotFoundError(f"{self.path} has no tensor {name}")
        shape = self.shapes[name]
        return TensorInfo(name, shape, "BF16", 2 * shape[0] * shape[1])

    def raw_rows(self, name: str, start: int, stop: int) -> Bytes:
        offset = 0
        for other, (n_rows, n_cols) in self.shapes.items():
            if other == name:
                with self.path.open("rb") as file:
                    file.seek(offset + 2 * start * n_cols)
                    data = file.read(2 * (stop - start) * n_cols)
                return np.frombuffer(data, dtype=np.uint8).reshape(stop - start, -1)
            offset += 2 * n_rows * n_cols
        raise TensorNotFoundError(f"{self.path} has no tensor {name}")

    def rows(self, name: str, start: int, stop: int) -> Floats:
        return codec.dequantize(self.raw_rows(name, start, stop), library.types()["BF16"], self.shapes[name][1])

    def close(self) -> None:
        """Files are opened for each read."""


def llama_1b_shapes() -> dict[str, tuple[int, int]]:
    """The matrices of Llama 3.2 1B: 1.24 B weights."""
    shapes = {"token_embd.weight": (128256, 2048)}
    block = {"attn_q": (2048, 2048), "attn_k": (512, 2048), "attn_v": (512, 2048), "attn_output": (2048, 2048)}
    block |= {"ffn_gate": (8192, 2048), "ffn_up": (8192, 2048), "ffn_down": (2048, 8192)}
    shapes |= {f"blk.{layer}.{role}.weight": shape for layer in range(16) for role, shape in block.items()}
    return shapes


def heavy_tailed(rng: np.random.Generator, n_rows: int, n_cols: int) -> Floats:
    """Student's t with 5 degrees of freedom, rows and columns of uneven scale."""
    values = rng.standard_t(5, size=(n_rows, n_cols)).astype(np.float32)
    values *= rng.lognormal(-4, 0.3, (n_rows, 1)).astype(np.float32)
    values *= rng.lognormal(0, 0.2, (1, n_cols)).astype(np.float32)
    return values


def weights_of(tensor: TensorInfo) -> ErrorWeights:
    """A random importance matrix: lognormal, as real ones are."""
    rng = np.random.default_rng(len(tensor.name) + tensor.n_rows)
    columns = rng.lognormal(0, 1, (tensor.n_slices, tensor.n_cols)).astype(np.float32)
    return ErrorWeights(columns=columns, means=(0.2 * np.sqrt(columns)).astype(np.float32), quantizer=columns)


def write_model(path: Path, shapes: dict[str, tuple[int, int]]) -> None:
    """Write the synthetic model; values repeat after 8 M weights, each tensor at an offset and scale of its own."""
    rng = np.random.default_rng(0)
    pool = {n_cols: heavy_tailed(rng, (1 << 23) // n_cols, n_cols) for n_cols in {shape[1] for shape in shapes.values()}}
    with path.open("wb") as file:
        for n_rows, n_cols in shapes.values():
            values = np.roll(pool[n_cols], int(rng.integers(1 << 20)))
            for start in range(0, n_rows, len(values)):
                part = values[: n_rows - start] * np.float32(rng.lognormal(0, 0.1))
                file.write((part.view(np.uint32) >> 16).astype(np.uint16).tobytes())


def types_to_measure() -> list[QType]:
    return [qtype for qtype in library.types().values() if qtype.name not in ("F32", "BF16")]


def bare_loop(values: Floats, importance: Floats, qtypes: Sequence[QType], n_threads: int) -> float:
    """Seconds to quantize and dequantize all rows to all types, block by block, and nothing else."""
    size = max(1, BLOCK_WEIGHTS // values.shape[1])

    def block(start: int) -> None:
        for qtype in qtypes:
            codec.dequantize(codec.quantize(values[start : start + size], qtype, importance), qtype, values.shape[1])

    start = time.perf_counter()
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(block, range(0, len(values), size)))
    return time.perf_counter() - start


def measured(values: Floats, qtypes: Sequence[QType], n_threads: int) -> float:
    """Seconds of an exhaustive measurement of the same rows and types."""
    source = MemorySource({"blk.0.ffn_up.weight": values.astype(np.float16)})
    start = time.perf_counter()
    cells = measure_model(
        source,
        ["blk.0.ffn_up.weight"],
        [t.name for t in qtypes],
        weights_of=weights_of,
        settings=MeasureSettings(exhaustive=True),
        n_threads=n_threads,
        seed="bench",
    )
    assert all(cell.weighted_mse is not None for cell in cells)
    return time.perf_counter() - start


def throughput(n_threads: int, rounds: int) -> Iterator[tuple[str, float, float]]:
    """(what, bare seconds, measured seconds), the median of interleaved rounds: all types, then each alone."""
    values = heavy_tailed(np.random.default_rng(1), 256, 2048).astype(np.float16).astype(np.float32)
    importance = weights_of(TensorInfo("blk.0.ffn_up.weight", values.shape, "F16", 2 * values.size)).columns
    assert importance is not None
    everything = types_to_measure()
    bare_loop(values[:16], importance[0], everything, n_threads)
    for what, qtypes in [("all types", everything), *((t.name, [t]) for t in everything)]:
        pairs = [(bare_loop(values, importance[0], qtypes, n_threads), measured(values, qtypes, n_threads)) for _ in range(rounds)]
        bare, ours = np.median(np.array(pairs), axis=0)
        yield what, float(bare), float(ours)


def sampled_run(path: Path, n_threads: int) -> dict[str, float]:
    """Sample the synthetic model layer by layer, with a few rows exhaustively in between; seconds, rows, peak memory."""
    source = RawFileSource(path, llama_1b_shapes())
    names = list(source.shapes)
    type_names = [qtype.name for qtype in types_to_measure()]
    everything = types_to_measure()
    bare_loop(np.ones((1, 256), dtype=np.float32), np.ones(256, dtype=np.float32), everything, 1)
    cells: list[WeightError] = []
    sampled = exhaustive = n_exhaustive = 0.0
    for group in [names[:1], *(names[at : at + 7] for at in range(1, len(names), 7))]:
        start = time.perf_counter()
        cells += measure_model(source, group, type_names, weights_of=weights_of, n_threads=n_threads, seed="bench")
        sampled += time.perf_counter() - start
        rows = source.rows(group[-1], 0, 64 * 2048 // source.shapes[group[-1]][1])
        exhaustive += measured(rows, everything, n_threads)
        n_exhaustive += rows.size
    worst = max((c.weighted_mse_se / c.weighted_mse for c in cells if c.weighted_mse and c.sampled), default=0.0)
    quantized = [c for c in cells if library.types()[c.type_name].is_quantized]
    return {
        "seconds": sampled,
        "exhaustive_seconds": exhaustive / n_exhaustive * sum(rows * cols for rows, cols in source.shapes.values()),
        "cells": len(cells),
        "rows": float(np.mean([c.n_rows_measured for c in quantized])),
        "exhausted": sum(not c.sampled for c in quantized),
        "worst_se": worst,
        "peak_gib": _peak_bytes() / 2**30,
    }


def _peak_bytes() -> int:
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def main() -> None:
    """Print every figure with its goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip-model", action="store_true", help="leave out the 1 B model (2.5 GB in a temporary folder)")
    parser.add_argument("--sampled-worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sampled_worker:
        print(json.dumps(sampled_run(options.sampled_worker, options.threads)))
        return
    print(f"Exhaustive measurement against a bare loop, {options.threads} threads, median of {options.rounds}")
    for what, bare, ours in throughput(options.threads, options.rounds):
        if what == "all types":
            per_weight = 1e9 * ours / (256 * 2048)
            goal = f"goal >= {GOAL_THROUGHPUT}: {'met' if bare / ours >= GOAL_THROUGHPUT else 'MISSED'}"
            print(f"  all types: {bare / ours:.3f} of the bare loop ({ours:.2f} s, {per_weight:.0f} ns per weight); {goal}")
        else:
            print(f"    {what:8s} {bare / ours:.3f}  ({1e9 * ours / (256 * 2048):.1f} ns per weight)")
    if options.skip_model:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "synthetic.bin"
        write_model(path, llama_1b_shapes())
        command = [sys.executable, __file__, "--sampled-worker", str(path), "--threads", str(options.threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    n_weights = sum(rows * cols for rows, cols in llama_1b_shapes().values())
    speedup = seen["exhaustive_seconds"] / seen["seconds"]
    print(f"Sampled measurement of {n_weights / 1e9:.2f} B weights: {seen['seconds']:.0f} s, {seen['cells']} cells")
    print(f"  on average {seen['rows']:.0f} rows per tensor, {seen['exhausted']} cells exhausted")
    print(f"  worst stated standard error {100 * seen['worst_se']:.2f} %")
    met = "met" if speedup >= GOAL_SPEEDUP else "MISSED"
    print(f"  {speedup:.1f}x faster than exhaustive ({seen['exhaustive_seconds']:.0f} s, extrapolated); goal >= {GOAL_SPEEDUP:g}: {met}")
    met = "met" if seen["peak_gib"] <= GOAL_MEMORY_GIB else "MISSED"
    print(f"  peak memory {seen['peak_gib']:.2f} GiB; goal <= {GOAL_MEMORY_GIB:g} + largest tensor in float32: {met}")


if __name__ == "__main__":
    main()
