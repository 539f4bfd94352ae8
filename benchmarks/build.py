"""Building against `llama_model_quantize`: throughput on the same types, and the memory a build takes.

Run with `python -m benchmarks.build [--weights-m 200] [--rounds 3] [--types Q8_0,Q4_K,...]`. A synthetic model of Llama shapes
with heavy-tailed weights is written to a temporary folder. The two build it in turn, each run in a process of its
own; what counts is the time of the call itself, without the start of Python.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from quantailor.ggml import codec, library
from quantailor.ggml.reference_worker import Request, quantize
from quantailor.making.building import build
from quantailor.models.gguf_writer import GGUFWriter, layout
from quantailor.models.identity import fingerprint
from quantailor.models.opening import open_model
from quantailor.qtypes import never_quantized
from quantailor.records import MetadataValue, Strategy, TensorChoice, TensorInfo

N_EMBD, N_FF, N_VOCAB = 2048, 8192, 32000
DEFAULT_TYPES = "Q8_0,Q4_0,Q4_K,Q6_K,IQ4_XS"


def shapes(n_layers: int) -> dict[str, tuple[int, ...]]:
    """Tensors of a Llama with 2048-wide layers: 61 M weights each."""
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (N_VOCAB, N_EMBD), "output_norm.weight": (N_EMBD,)}
    for layer in range(n_layers):
        roles = {"attn_q": (N_EMBD, N_EMBD), "attn_k": (512, N_EMBD), "attn_v": (512, N_EMBD), "attn_output": (N_EMBD, N_EMBD)}
        roles |= {"ffn_gate": (N_FF, N_EMBD), "ffn_up": (N_FF, N_EMBD), "ffn_down": (N_EMBD, N_FF)}
        found |= {f"blk.{layer}.{role}.weight": shape for role, shape in roles.items()}
        found |= {f"blk.{layer}.{role}.weight": (N_EMBD,) for role in ("attn_norm", "ffn_norm")}
    return found


def write_model(path: Path, n_layers: int) -> None:
    """A model file with BF16 weights that llama.cpp can quantize."""
    numbers = {"block_count": n_layers, "context_length": 512, "embedding_length": N_EMBD, "feed_forward_length": N_FF}
    numbers |= {"attention.head_count": 32, "attention.head_count_kv": 8, "rope.dimension_count": 64, "vocab_size": N_VOCAB}
    metadata = {"general.architecture": MetadataValue("string", "llama"), "general.file_type": MetadataValue("uint32", 32)}
    metadata |= {f"llama.{key}": MetadataValue("uint32", value) for key, value in numbers.items()}
    metadata["llama.attention.layer_norm_rms_epsilon"] = MetadataValue("float32", 1e-5)
    qtypes = library.types()
    tensors = []
    for name, shape in shapes(n_layers).items():
        type_name = "F32" if len(shape) == 1 else "BF16"
        tensors.append(TensorInfo(name, shape, type_name, int(np.prod(shape)) * qtypes[type_name].type_size))
    generator = np.random.default_rng(0)
    with GGUFWriter(path, layout(metadata, tensors)) as writer:
        for tensor in tensors:
            for start in range(0, tensor.n_rows, 512):
                n_rows = min(512, tensor.n_rows - start)
                values = generator.standard_t(4, (n_rows, tensor.n_cols)).astype(np.float32) * np.float32(0.02)
                writer.write(codec.quantize(values, qtypes[tensor.type_name]).reshape(-1))


def build_ours(base: Path, output: Path, type_name: str) -> None:
    source = open_model(base)
    names = [tensor.name for tensor in source.tensors if never_quantized(tensor, source.architecture) is None]
    choices = tuple(TensorChoice(name, type_name, "benchmark") for name in names)
    build(source, Strategy(fingerprint(source), source.name, source.architecture, "manual", choices), output)
    source.close()


def build_theirs(base: Path, output: Path, type_name: str) -> None:
    type_id = library.types()[type_name].id
    n_threads = psutil.cpu_count() or 1
    request = Request(base=str(base), output=str(output), presets=(), n_threads=n_threads, overrides=((".*", type_id),))
    assert quantize(request, library.presets()["Q8_0"], np.empty(0, np.float32), lambda *_: None)


class PeakMemory(threading.Thread):
    """Samples this process' memory without the pages of mapped files, which the system can drop at any time."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_bytes, self._stop_asked = 0, threading.Event()

    def run(self) -> None:
        process = psutil.Process()
        while not self._stop_asked.wait(0.02):
            memory = process.memory_info()
            self.peak_bytes = max(self.peak_bytes, memory.rss - getattr(memory, "shared", 0))

    def stop(self) -> int:
        self._stop_asked.set()
        self.join()
        return self.peak_bytes


def run_one(side: str, base: Path, output: Path, type_name: str) -> None:
    """Build once in this process and print seconds and peak bytes."""
    work: Callable[[Path, Path, str], None] = build_ours if side == "ours" else build_theirs
    library.types()
    memory = PeakMemory()
    memory.start()
    start = time.perf_counter()
    work(base, output, type_name)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "private_bytes": memory.stop(), "peak_bytes": whole_peak()}))


def whole_peak() -> int:
    """The process' largest resident set, mapped files included."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(side: str, base: Path, output: Path, type_name: str) -> dict[str, float]:
    output.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.build", "--side", side, "--base", str(base), "--output", str(output), "--types", type_name]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights-m", type=int, default=200, help="size of the synthetic model in millions of weights")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--types", default=DEFAULT_TYPES)
    parser.add_argument("--side", choices=["ours", "theirs"])
    parser.add_argument("--base", type=Path)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.side:
        run_one(arguments.side, arguments.base, arguments.output, arguments.types)
        return
    with tempfile.TemporaryDirectory(prefix="quantailor-bench-") as name:
        base = Path(name) / "base.gguf"
        write_model(base, max(1, round((arguments.weights_m - 65.5) / 60.8)))
        print(f"build, {base.stat().st_size / 2**20:.0f} MiB of BF16, {psutil.cpu_count()} threads, {arguments.rounds} rounds in turn")
        for type_name in arguments.types.split(","):
            compare(base, Path(name), type_name, arguments.rounds)


def compare(base: Path, folder: Path, type_name: str, rounds: int) -> None:
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for index in range(rounds):
        for side in ("ours", "theirs") if index % 2 else ("theirs", "ours"):
            runs[side].append(measure(side, base, folder / f"{side}.gguf", type_name))
    seconds = {side: statistics.median(run["seconds"] for run in figures) for side, figures in runs.items()}
    ratio = seconds["theirs"] / seconds["ours"]
    private, whole = (max(run[key] for run in runs["ours"]) / 2**20 for key in ("private_bytes", "peak_bytes"))
    print(
        f"{type_name:8} ours {seconds['ours']:6.2f} s, llama_model_quantize {seconds['theirs']:6.2f} s: "
        f"throughput ratio {ratio:.2f}; our memory {private:.0f} MiB, {whole:.0f} MiB with mapped files"
    )


if __name__ == "__main__":
    main()
