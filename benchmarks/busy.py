"""What other programs cost a pass: `python -m benchmarks.busy`.

The same chunks through the same model in processes whose threads spin while they wait for each other, as OpenMP's do by default,
and in ones whose threads sleep soon, as Quantailor has them: alone, and beside one process that does nothing but compute.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np

from benchmarks.setting import MODELS
from quantailor.analysis.corpus import chunks, load_corpus
from quantailor.ggml.library import SPIN_COUNT
from quantailor.ggml.runtime import LoadedModel
from quantailor.models.convert.base import write_base
from quantailor.models.opening import open_model
from quantailor.session import CALIBRATION_TEXT

DEFAULT_COUNT = "300000"
N_ROUNDS = 3
_OTHER = "while True: pass"


def pass_seconds(base: Path, n_chunks: int) -> float:
    """The mean time of one chunk, in this process."""
    tokens = chunks(load_corpus(base, CALIBRATION_TEXT), 512, limit=n_chunks)
    with LoadedModel(base) as model:
        model.decode(tokens[0], first=256)
        began = time.perf_counter()
        for chunk in tokens:
            model.decode(chunk, first=256)
    return (time.perf_counter() - began) / len(tokens)


def in_process(base: Path, n_chunks: int, count: str) -> float:
    """The same in a process of its own with this spin count."""
    command = [sys.executable, "-m", "benchmarks.busy", "--base", str(base), "--chunks", str(n_chunks)]
    done = subprocess.run(command, env=os.environ | {"GOMP_SPINCOUNT": count}, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, help="a base; by default the model that ships is converted")
    parser.add_argument("--chunks", type=int, default=0, help="time so many chunks here, and print the mean of one")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    options = parser.parse_args()
    if options.chunks:
        print(json.dumps(pass_seconds(options.base, options.chunks)))
        return
    base = options.base or options.out / "busy.gguf"
    if options.base is None and not base.exists():
        base.parent.mkdir(parents=True, exist_ok=True)
        with closing(open_model(MODELS[0])) as source:
            write_base(source, base)
    print("| beside | spinning, s a chunk | sleeping | ratio |\n|---|---|---|---|")
    for beside in (0, 1):
        others = [subprocess.Popen([sys.executable, "-c", _OTHER]) for _ in range(beside)]
        try:
            pairs = [[in_process(base, 8, count) for count in (DEFAULT_COUNT, SPIN_COUNT)] for _ in range(N_ROUNDS)]
        finally:
            for other in others:
                other.kill()
        spinning, sleeping = np.median(pairs, axis=0)
        print(
            f"| {beside} busy process{'' if beside == 1 else 'es'} | {spinning:.3f} | {sleeping:.3f} | {spinning / sleeping:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
