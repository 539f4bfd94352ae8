"""Directories of a family that our own conversion does not know, for the converter that stands in for llama.cpp's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.in_memory import MemorySource

from quantailor.models.convert.base import write_base
from quantailor.records import MetadataValue
from tiny_models import numbers, packed, safetensors_bytes

SCRIPT = Path(__file__).with_name("converter_script.py")
ARCHITECTURE = "TailoredForCausalLM"


def write_foreign(folder: Path, *, ready: bytes | None = None, **fake: Any) -> Path:
    """Write a directory whose conversion is `ready`, a GGUF file of one tensor by default; `fake` goes to the converter."""
    folder.mkdir(parents=True, exist_ok=True)
    if ready is None:
        source = MemorySource(
            {"token_embd.weight": np.ones((64, 64), np.float16)}, metadata={"general.architecture": MetadataValue("string", "tailored")}
        )
        ready = write_base(source, folder / "small.gguf").read_bytes()
        (folder / "small.gguf").unlink()
    config = {"architectures": [ARCHITECTURE], "hidden_size": 8, "fake": fake}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    shape = (64, 64)
    weights = {"transformer.wte.weight": ("F16", shape, packed(numbers("wte", shape), "F16"))}
    (folder / "model.safetensors").write_bytes(safetensors_bytes(weights))
    (folder / "ready.data").write_bytes(ready)
    return folder
