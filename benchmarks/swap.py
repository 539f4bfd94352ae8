"""What probes cost: `python -m benchmarks.swap`, part of `make bench`.

1. A probe (quantize, swap in, run the chunks, score, put back) against plain inference of the same chunks by the same
   loaded model, interleaved tensor by tensor so that both see the same machine.
2. A sweep of some tensors through some types against building and loading one file per cell and scoring that.
3. Peak memory of probing, in a process of its own, beyond the model's own size.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.setting import MODELS
from quantailor.analysis.corpus import chunks, load_corpus, spread
from quantailor.analysis.rounding.rounding import PLAIN
from quantailor.analysis.scores.fidelity import first_scored
from quantailor.analysis.scores.mix_scores import FileScorer, MixScorer
from quantailor.making import building
from quantailor.models.convert.base import write_base
from quantailor.models.identity import fingerprint
from quantailor.models.opening import open_model
from quantailor.models.source import ModelSource
from quantailor.records import Mix, Strategy, TensorChoice
from quantailor.session import CALIBRATION_TEXT, quantizable_tensors

GOAL_PROBE, GOAL_SWEEP, GOAL_MEMORY_GIB = 1.10, 5.0, 1.0
PROBE_TYPE = "Q2_K"
SWEEP_TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
N_CHUNKS = 8


class Bench:
    """A base, its chunks and a scorer."""

    def __init__(self, model: Path, folder: Path, n_threads: int | None = None) -> None:
        self.n_threads = n_threads
        self.path = folder / f"{model.name}.gguf"
        if not self.path.exists():
            directory = open_model(model)
            write_base(directory, self.path)
            directory.close()
        self.source: ModelSource = open_model(self.path)
        self.names = [tensor.name for tensor in quantizable_tensors(self.source)]
        self.tokens = chunks(load_corpus(self.path, CALIBRATION_TEXT), 512)
        self.indexes = sorted(spread(len(self.tokens))[:N_CHUNKS])
        self.folder = folder

    def scorer(self) -> MixScorer:
        return MixScorer(self.source, self.path, self.names, self.tokens, self.folder / "logp", rounding=PLAIN, n_threads=self.n_threads)


def probe_cost(bench: Bench) -> tuple[float, float]:
    """Seconds of all probes, and of plain inference of their chunks."""
    with bench.scorer() as scorer:
        scorer.prepare(bench.indexes)
        probing = plain = 0.0
        for name in bench.names:
            started = time.perf_counter()
            for _ in scorer.score([Mix.of({name: PROBE_TYPE})], bench.indexes):
                pass
            scorer.set_mix({})
            probed = time.perf_counter()
            for index in bench.indexes:
                scorer.logits(bench.tokens[index], first=first_scored(bench.tokens.shape[1]))
            probing, plain = probing + probed - started, plain + time.perf_counter() - probed
    return probing, plain


def sweep_cost(bench: Bench, names: Sequence[str], n_chunks: int) -> tuple[float, float]:
    """Seconds of a sweep in memory, and of building, loading and scoring one file per cell, for the same cells."""
    indexes, cells = bench.indexes[:n_chunks], [Mix.of({name: kind}) for name in names for kind in SWEEP_TYPES]
    files = FileScorer(bench.path, bench.tokens, bench.folder / "logp")
    _score_file(files, bench.path, bench.indexes)  # the base's log-probabilities belong to neither side
    with bench.scorer() as scorer:
        scorer.prepare(bench.indexes)
        in_memory = in_files = 0.0
        for cell in cells:
            started = time.perf_counter()
            for _ in scorer.score([cell], indexes):
                pass
            scored = time.perf_counter()
            _score_file(files, _built(bench, cell), indexes)
            in_memory, in_files = in_memory + scored - started, in_files + time.perf_counter() - scored
    return in_memory, in_files


def _score_file(files: FileScorer, path: Path, indexes: Sequence[int]) -> None:
    for _ in files.score(path, indexes):
        pass


def _built(bench: Bench, cell: Mix) -> Path:
    output = bench.folder / "cell.gguf"
    choices = tuple(TensorChoice(name, kind, "") for name, kind in cell.types.items())
    strategy = Strategy(fingerprint(bench.source), bench.source.name, bench.source.architecture, "manual", choices)
    building.build(bench.source, strategy, output, overwrite=True)
    return output


def peak_memory(model: Path) -> float:
    """Peak bytes of a process that probes, less the size of the model."""
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.swap", "--probe-only", str(model)], cwd=Path(__file__).parent.parent)
    watched, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        try:
            peak = max(peak, watched.memory_info().rss)
        except psutil.Error:
            break
        time.sleep(0.02)
    if process.wait():
        raise SystemExit("the probing process failed")
    return float(peak)


def main() -> int:
    """Print the figures; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--probe-only", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.probe_only:
            probe_cost(Bench(options.probe_only, Path(name)))
            return 0
        missed = False
        for model in MODELS:
            bench = Bench(model, Path(name))
            probing, plain = probe_cost(bench)
            print(
                f"{model.name}: probe / inference {probing / plain:.3f} (goal {GOAL_PROBE}), {len(bench.names)} probes, {N_CHUNKS} chunks"
            )
            memory = (peak_memory(model) - bench.path.stat().st_size) / 2**30
            print(f"{model.name}: peak memory beyond the model {memory:.2f} GiB (goal {GOAL_MEMORY_GIB})")
            missed |= probing / plain > GOAL_PROBE or memory > GOAL_MEMORY_GIB
        bench = Bench(MODELS[0], Path(name))
        chosen = bench.names[:: len(bench.names) // 6]
        few, many = sweep_cost(bench, chosen, 1), sweep_cost(bench, chosen, N_CHUNKS)
        for n_chunks, (in_memory, in_files) in ((1, few), (N_CHUNKS, many)):
            print(f"{MODELS[0].name}: sweep with {n_chunks} chunks a cell, files / memory {in_files / in_memory:.2f} (goal {GOAL_SWEEP})")
        per_chunk, per_file_chunk = (more - less for more, less in zip(many, few, strict=True))
        ready = (few[1] - per_file_chunk / (N_CHUNKS - 1)) / max(few[0] - per_chunk / (N_CHUNKS - 1), 1e-9)
        print(f"{MODELS[0].name}: to have a cell ready, inference apart, files / memory {ready:.1f}", flush=True)
        return int(missed)


if __name__ == "__main__":
    sys.exit(main())
