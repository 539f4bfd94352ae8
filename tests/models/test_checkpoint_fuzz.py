"""Mutated checkpoints: whatever the bytes, a model or a clear error comes out, in bounded memory."""

from __future__ import annotations

import json
import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantailor.errors import QuantailorError
from quantailor.models.gguf_writer import layout
from quantailor.models.huggingface import HuggingFaceSource
from tiny_models import write_tiny

pytestmark = pytest.mark.slow

CASES = 700
"""Cases of each of the twelve targets."""
MEMORY_BYTES = 64 << 20
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 255, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**30),
    *(0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf")),
    *("", "x", "\x00", "🚀", "../x", "/", "a b", "▁", "<|x|>", "\ud800", "x" * 5000),
    *([], {}, [[]], [None], {"type": "x"}, {"content": 1}, [{"id": 0}], ["x"], [1, 2]),
)
_TEXTS = ("{", "}", "[", "]", '"', ",", ":", "\\", "\\ud800", "null", "-", "1e999", "9" * 400, "[" * 2000, "\x00", "\n")


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    """All (container, key) pairs of a JSON value."""
    found: list[tuple[Any, Any]] = []
    stack = [value]
    while stack:
        item = stack.pop()
        pairs = list(item.items()) if isinstance(item, dict) else list(enumerate(item)) if isinstance(item, list) else []
        found += [(item, key) for key, _ in pairs]
        stack += [child for _, child in pairs]
    return found


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Replace, remove, rename or swap up to three values."""
    value = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        nodes = _nodes(value)
        if not nodes:
            break
        container, key = rng.choice(nodes)
        action = rng.randrange(4)
        if action == 0:
            del container[key]
        elif action == 1 and isinstance(container, dict):
            container[rng.choice(("", "x", "type", "content", f"{key}x"))] = container.pop(key)
        elif action == 2:
            container[key] = json.loads(json.dumps(rng.choice(nodes)[0]))
        else:
            container[key] = rng.choice(_ODD)
    return json.dumps(value).encode()


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, insert, remove, repeat or cut up to four times."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, size = rng.randrange(len(out) + 1), rng.randint(1, 12)
        action = rng.randrange(6)
        if action == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif action == 1:
            out[at:at] = rng.randbytes(size)
        elif action == 2:
            del out[at : at + size]
        elif action == 3:
            out[at:at] = rng.choice(_TEXTS).encode()
        elif action == 4:
            out[at : at + size] = rng.choice((b"\xff", b"\x00", b"\x80")) * size
        elif rng.random() < 0.3:
            del out[at:]
    return bytes(out)


def mutate_header(data: bytes, rng: random.Random) -> bytes:
    """Change a safetensors header as JSON, sometimes with a wrong length."""
    length = struct.unpack("<Q", data[:8])[0]
    header = mutate_json(data[8 : 8 + length], rng)
    told = len(header) if rng.random() < 0.9 else rng.choice((0, 1, len(header) - 1, len(header) + 1, len(data), 2**32, 2**63, 2**64 - 1))
    return struct.pack("<Q", told) + header + data[8 + length :]


def _use(folder: Path) -> bool:
    """Open the model, lay its base out and read an end of every tensor; whether it opened."""
    try:
        source = HuggingFaceSource(folder)
    except QuantailorError as error:
        lines = str(error).splitlines()
    else:
        return _laid_out(source)
    assert len(lines) == 1
    assert len(lines[0]) < 2000
    return False


def _laid_out(source: HuggingFaceSource) -> bool:
    try:
        layout(source.metadata, source.tensors)
        for tensor in source.tensors:
            assert source.raw_rows(tensor.name, tensor.n_rows - 1, tensor.n_rows).nbytes * tensor.n_rows == tensor.size_bytes
    except QuantailorError:
        return False
    finally:
        source.close()
    return True


@pytest.mark.parametrize(
    ("model", "name", "mutate"),
    [
        ("llama3", "model.safetensors", mutate_header),
        ("llama3", "model.safetensors", mutate_bytes),
        ("llama3-tied", "model.safetensors.index.json", mutate_json),
        ("llama3-tied", "model.safetensors.index.json", mutate_bytes),
        ("llama3", "config.json", mutate_json),
        ("llama3", "config.json", mutate_bytes),
        ("llama3", "tokenizer.json", mutate_json),
        ("byte-fallback", "tokenizer.json", mutate_json),
        ("llama3", "tokenizer_config.json", mutate_json),
        ("llama3", "README.md", mutate_bytes),
        ("mixtral", "tokenizer.model", mutate_bytes),
        ("llama2", "generation_config.json", mutate_json),
    ],
)
def test_mutated_file_gives_a_model_or_a_clear_error(
    model: str, name: str, mutate: Callable[[bytes, random.Random], bytes], tmp_path: Path
) -> None:
    folder = write_tiny(model, tmp_path)
    path = folder / name
    intact, rng = path.read_bytes(), random.Random(f"{model} {name} {mutate.__name__}")
    assert _use(folder)
    n_opened = 0
    for _ in range(CASES):
        path.write_bytes(mutate(intact, rng))
        n_opened += _use(folder)
    assert n_opened < CASES


def test_absurd_counts_need_little_memory(tmp_path: Path) -> None:
    folder = write_tiny("llama3", tmp_path)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    tracemalloc.start()
    for key in sorted(config):
        for value in (2**31 - 1, 2**30, 10**30, 1e300, [0] * 1000):
            path.write_text(json.dumps({**config, key: value}), encoding="utf-8")
            _use(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEMORY_BYTES
