"""What a plan costs for models with the shapes of real ones: `python -m benchmarks.large`.

Made-up weights (`benchmarks.llama_shapes`), one chunk of 512 tokens of which 256 are scored, as probes have it. For every shape a
process of its own loads the model, runs the chunk alone, then as probes of tensors from first to last (quantize, swap in, run, score,
put back), and tells seconds of both, their ratio, passes per second, its peak memory beside the file's size, and what the passes of a
plan with default settings take at that rate. Quantizing whole mixes comes on top: `quantailor cost` counts that, too.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.llama_shapes import SHAPES, write_shape
from benchmarks.setting import MODELS, OUT
from quantailor.analysis.corpus import chunks, load_corpus
from quantailor.analysis.rounding.rounding import PLAIN
from quantailor.analysis.scores.mix_scores import MixScorer
from quantailor.ggml.devices import Devices
from quantailor.models.convert.base import write_base
from quantailor.models.opening import open_model
from quantailor.models.source import ModelSource
from quantailor.pipeline.parts import LARGE_PASSES
from quantailor.records import Mix
from quantailor.session import CALIBRATION_TEXT, quantizable_tensors

N_CTX = 512
PROBE_TYPE = "Q4_0"
GOAL = 0.9
"""Of running alone to probing."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds a pass."""

    alone: float
    probing: float

    def __str__(self) -> str:
        return (
            f"{self.alone:.3f} s a pass alone, {self.probing:.3f} s a probe: {self.alone / self.probing:.2f} (goal {GOAL}),"
            f" {1 / self.probing:.2f} probes a second; a plan's {LARGE_PASSES} passes: {LARGE_PASSES * self.probing / 60:.0f} min"
        )


def pass_rates(path: Path, folder: Path, *, n_passes: int, n_gpu_layers: int = 0, n_threads: int | None = None) -> Rates:
    """Run `n_passes` of each on a GGUF file; `folder` keeps log-probabilities. Raises SystemExit where a divergence is NaN."""
    source = open_model(path)
    names = [tensor.name for tensor in quantizable_tensors(source)]
    probed = [names[index] for index in np.linspace(1, len(names) - 1, n_passes).astype(int)]
    tokens = chunks(load_corpus(path, CALIBRATION_TEXT), N_CTX, limit=1)
    place = folder / f"{path.stem}-{n_gpu_layers}"
    with MixScorer(source, path, names, tokens, place, rounding=PLAIN, devices=Devices(n_gpu_layers), n_threads=n_threads) as scorer:
        scorer.prepare([0])
        alone = probing = 0.0
        for name in probed:  # in turns, so that both see the same machine
            started = time.perf_counter()
            scorer.logits(tokens[0], first=N_CTX // 2, view=True)
            ran = time.perf_counter()
            ((_, scored),) = scorer.score([Mix.of({name: PROBE_TYPE})], [0])
            scorer.set_mix({})
            alone, probing = alone + ran - started, probing + time.perf_counter() - ran
            if not np.isfinite(scored.kld_sum):
                raise SystemExit(f"the divergence of {name} is not finite")
    source.close()
    return Rates(alone / n_passes, probing / n_passes)


def written(shape: str, type_name: str, folder: Path, vocabulary: ModelSource | None = None) -> Path:
    """The model of a shape, with the demo model's vocabulary unless another is given; written unless it is there."""
    path = folder / f"{shape}-{type_name}.gguf"
    if path.exists():
        return path
    if vocabulary is not None:
        return write_shape(path, shape, type_name, vocabulary)
    with tempfile.TemporaryDirectory() as name:
        directory = open_model(MODELS[0])
        write_base(directory, Path(name) / "base.gguf")
        directory.close()
        base = open_model(Path(name) / "base.gguf")
        write_shape(path, shape, type_name, base)
        base.close()
    return path


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=["1B-BF16", "8B-Q8_0"], help=f"SHAPE-TYPE, SHAPE one of {', '.join(SHAPES)}")
    parser.add_argument("--passes", type=int, default=4, help="of each kind")
    parser.add_argument("--out", type=Path, default=OUT / "large", help="where the models lie")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.shapes:
        shape, _, type_name = name.partition("-")
        path = written(shape, type_name, options.out)
        if options.one:
            with tempfile.TemporaryDirectory() as folder:
                rates = pass_rates(path, Path(folder), n_passes=options.passes, n_threads=options.threads)
            peak, size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, path.stat().st_size / 2**30
            print(f"{name}: {rates}; peak memory {peak:.2f} GiB, the file has {size:.2f} GiB", flush=True)
        else:
            words = [name, "--one", "--passes", options.passes, "--out", options.out]
            words += ["--threads", options.threads] if options.threads else []
            subprocess.run([sys.executable, "-m", "benchmarks.large", *map(str, words)], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
