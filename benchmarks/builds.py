"""What another build of llama.cpp gives on this machine: `python -m benchmarks.builds PYTHON`.

PYTHON is an interpreter whose llama-cpp-python was built in another way, such as the one that `make setup NATIVE=1` makes in another
clone. Both do the same in turns, each in a process of its own: run a chunk of 512 tokens through a model, whose weights rest as F16,
BF16 or Q8_0, probe tensors of it, and measure the error of each usual type on random weights. Ratios are medians over the rounds, this
build's seconds divided by the other's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.in_memory import MemorySource, measure_model
from benchmarks.large import pass_rates, written
from benchmarks.llama_shapes import SHAPES
from benchmarks.setting import OUT, ROOT
from quantailor.evidence.measurements import usual_types
from quantailor.ggml import library
from quantailor.qtypes import needs_imatrix

RESTING = ("F16", "BF16", "Q8_0")
TENSOR, MATRIX = "blk.0.ffn_up.weight", (512, 2048)


def seconds(model: Path, n_passes: int) -> dict[str, float]:
    """Seconds of a pass alone, of a probe, and of measuring one matrix at the usual types that need no importances."""
    with tempfile.TemporaryDirectory() as folder:
        rates = pass_rates(model, Path(folder), n_passes=n_passes)
    rows = np.random.default_rng(0).standard_normal(MATRIX).astype(np.float32)
    source = MemorySource({TENSOR: rows})
    types = [name for name in usual_types() if not needs_imatrix(TENSOR, library.type_named(name))]
    started = time.perf_counter()
    for _ in measure_model(source, list(source.arrays), types):
        pass
    return {"pass": rates.alone, "probe": rates.probing, "measure": time.perf_counter() - started}


def _run(python: str, model: Path, n_passes: int) -> dict[str, float]:
    words = [python, "-m", "benchmarks.builds", python, "--one", str(model), "--passes", str(n_passes)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return {str(what): float(value) for what, value in json.loads(done.stdout.splitlines()[-1]).items()}


def main() -> int:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="the interpreter that has the other build")
    parser.add_argument("--shape", default="1B", choices=SHAPES, help="of the model, whose weights are made up")
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="GGUF files in place of it")
    parser.add_argument("--passes", type=int, default=3, help="of each kind and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT / "large", help="where the models lie")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(seconds(options.one, options.passes)))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    for model in options.models or [written(options.shape, type_name, options.out) for type_name in RESTING]:
        rounds = [[_run(python, model, options.passes) for python in (sys.executable, options.python)] for _ in range(options.rounds)]
        for what in ("pass", "probe", "measure"):
            ratios = [here[what] / there[what] for here, there in rounds]
            mine, other = (statistics.median(each[number][what] for each in rounds) for number in (0, 1))
            print(
                f"{model.stem}: {what} here / there {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}),"
                f" {mine:.3f} and {other:.3f} s",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
