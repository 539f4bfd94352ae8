"""What telling a model from all others costs, beside plain reading: `python -m benchmarks.identity [--weights-m 250] [--rounds 5]`.

A checkpoint of Llama shapes with random BF16 weights is written to a temporary folder and converted. Each round reads the base
plainly, digests it, and digests the checkpoint, all from the page cache; figures are medians over the rounds. Ratios are of the time that
this process computes, in all of its threads, so that other programs count for little.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.setting import MODELS
from quantailor.models.convert.base import write_base
from quantailor.models.identity import BLOCK_BYTES, identify
from quantailor.models.opening import open_model

HIDDEN, INNER, VOCABULARY = 2048, 8192, 4096
LAYER = 4 * HIDDEN**2 + 3 * HIDDEN * INNER
GOAL = 3.0
"""Digesting takes no more than so many times as long as reading from memory; few disks are faster than a third of memory."""


def write_checkpoint(folder: Path, n_layers: int) -> Path:
    """A Hugging Face directory with the demo model's vocabulary."""
    folder.mkdir()
    config = json.loads((MODELS[0] / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": n_layers, "vocab_size": VOCABULARY}
    config |= {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": HIDDEN // 16, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copyfile(MODELS[0] / "tokenizer.model", folder / "tokenizer.model")
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(n_layers):
        block = f"model.layers.{layer}"
        shapes |= {f"{block}.{norm}_layernorm.weight": (HIDDEN,) for norm in ("input", "post_attention")}
        shapes |= {f"{block}.self_attn.{part}_proj.weight": (HIDDEN, HIDDEN) for part in "qkvo"}
        shapes |= {f"{block}.mlp.{part}_proj.weight": (INNER, HIDDEN) for part in ("gate", "up")}
        shapes[f"{block}.mlp.down_proj.weight"] = (HIDDEN, INNER)
    header, at = {}, 0
    for name, shape in shapes.items():
        n_bytes = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + n_bytes]}
        at += n_bytes
    text = json.dumps(header).encode()
    rng = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            weights = rng.standard_normal(int(np.prod(shape)), dtype=np.float32)
            stream.write((weights.view(np.uint32) >> 16).astype("<u2").tobytes())
    return folder


def read_plainly(path: Path) -> None:
    """The whole file, one block after the other, into the same memory."""
    block = bytearray(BLOCK_BYTES)
    with path.open("rb", buffering=0) as stream:
        while stream.readinto(block):
            pass


def digest(path: Path) -> None:
    """What a model's first opening costs."""
    source = open_model(path)
    try:
        identify(source)
    finally:
        source.close()


def seconds(work: Callable[[Path], None], path: Path) -> tuple[float, float]:
    """By the clock, and computing."""
    start = time.perf_counter(), time.process_time()
    work(path)
    return time.perf_counter() - start[0], time.process_time() - start[1]


def main() -> int:
    """Run it; 0 where the goal is met."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--weights-m", type=int, default=250, help="millions of weights")
    options.add_argument("--rounds", type=int, default=5)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as place:
        checkpoint = write_checkpoint(Path(place) / "checkpoint", max(1, asked.weights_m * 1_000_000 // LAYER))
        source = open_model(checkpoint)
        base = write_base(source, Path(place) / "base.gguf")
        source.close()
        gib = base.stat().st_size / 2**30
        works = {"plain reading": (read_plainly, base), "GGUF": (digest, base), "checkpoint": (digest, checkpoint)}
        for work, path in works.values():
            work(path)
        rounds = [{name: seconds(work, path) for name, (work, path) in works.items()} for _ in range(asked.rounds)]
    print(f"{gib:.2f} GiB, seconds per GiB from the page cache, medians of {asked.rounds} rounds")
    worst = 0.0
    for name in works:
        elapsed, computed = (statistics.median(taken[name][at] for taken in rounds) / gib for at in (0, 1))
        ratio = statistics.median(taken[name][1] / taken["plain reading"][1] for taken in rounds)
        worst = max(worst, ratio)
        print(f"{name:14} {elapsed:.3f} s/GiB by the clock, {computed:.3f} computing: {ratio:.2f} of plain reading")
    print(f"goal: at most {GOAL:g}")
    return 0 if worst <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
