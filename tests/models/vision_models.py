"""A small Gemma 3 that sees: the text model below `language_model`, a SigLIP tower and a projector, named as in published checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from benchmarks.in_memory import MemorySource
from test_families import HIDDEN, write_small

from quantailor.models.convert.base import write_base
from quantailor.models.safetensors_file import SafetensorsFile
from quantailor.records import MetadataValue
from tiny_models import numbers, packed, safetensors_bytes

ARCHITECTURE = "Gemma3ForConditionalGeneration"
WIDTH, INNER = 32, 64
VISION: Mapping[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
PREPROCESSOR: Mapping[str, Any] = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "image_seq_length": 4}
_LAYER: Mapping[str, tuple[int, ...]] = {
    **{f"{norm}.{part}": (WIDTH,) for norm in ("layer_norm1", "layer_norm2") for part in ("weight", "bias")},
    **{f"self_attn.{name}.weight": (WIDTH, WIDTH) for name in ("q_proj", "k_proj", "v_proj", "out_proj")},
    **{f"self_attn.{name}.bias": (WIDTH,) for name in ("q_proj", "k_proj", "v_proj", "out_proj")},
    "mlp.fc1.weight": (INNER, WIDTH),
    "mlp.fc1.bias": (INNER,),
    "mlp.fc2.weight": (WIDTH, INNER),
    "mlp.fc2.bias": (WIDTH,),
}
TOWER: Mapping[str, tuple[int, ...]] = {
    "multi_modal_projector.mm_input_projection_weight": (WIDTH, HIDDEN),
    "multi_modal_projector.mm_soft_emb_norm.weight": (WIDTH,),
    "vision_tower.vision_model.embeddings.patch_embedding.weight": (WIDTH, 3, 14, 14),
    "vision_tower.vision_model.embeddings.patch_embedding.bias": (WIDTH,),
    "vision_tower.vision_model.embeddings.position_embedding.weight": (16, WIDTH),
    "vision_tower.vision_model.post_layernorm.weight": (WIDTH,),
    "vision_tower.vision_model.post_layernorm.bias": (WIDTH,),
    **{f"vision_tower.vision_model.encoder.layers.0.{name}": shape for name, shape in _LAYER.items()},
}
"""Names and shapes of what is no part of the text model."""


def write_vision(place: Path, **fake: Any) -> Path:
    """Write the directory. `fake` goes to the converter that stands in for llama.cpp's, whose projector is `projector_bytes`."""
    write_small("Gemma3ForCausalLM", place)
    text = json.loads((place / "config.json").read_text(encoding="utf-8"))
    config = {"architectures": [ARCHITECTURE], "text_config": text, "vision_config": dict(VISION), "fake": fake}
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (place / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR), encoding="utf-8")
    with closing(SafetensorsFile(place / "model.safetensors")) as file:
        arrays = {
            f"language_model.{name}": (array.dtype, array.shape, array.read(0, array.size_bytes).tobytes())
            for name, array in file.arrays.items()
        }
    arrays |= {name: ("BF16", shape, packed(numbers(name, shape), "BF16")) for name, shape in TOWER.items()}
    (place / "model.safetensors").write_bytes(safetensors_bytes(arrays))
    (place / "projector.data").write_bytes(projector_bytes(place))
    return place


def write_projector(place: Path, *, text_width: int, width: int = 64, inner: int = 128, n_layers: int = 1, side: int = 224) -> Path:
    """Write a Gemma 3 tower that libmtmd runs: pictures of `side` pixels, in vectors of `text_width` for the text model."""
    counts = {
        "image_size": side,
        "patch_size": 14,
        "embedding_length": width,
        "feed_forward_length": inner,
        "block_count": n_layers,
        "projection_dim": text_width,
        "attention.head_count": width // 32,
    }
    metadata = {
        "general.architecture": MetadataValue("string", "clip"),
        "general.type": MetadataValue("string", "mmproj"),
        "clip.has_vision_encoder": MetadataValue("bool", True),
        "clip.projector_type": MetadataValue("string", "gemma3"),
        "clip.use_gelu": MetadataValue("bool", True),
        **{f"clip.vision.{key}": MetadataValue("uint32", count) for key, count in counts.items()},
        "clip.vision.attention.layer_norm_epsilon": MetadataValue("float32", 1e-6),
        "clip.vision.image_mean": MetadataValue("array", (0.5, 0.5, 0.5), "float32"),
        "clip.vision.image_std": MetadataValue("array", (0.5, 0.5, 0.5), "float32"),
    }
    matrices = {"attn_q": (width, width), "attn_k": (width, width), "attn_v": (width, width), "attn_out": (width, width)}
    matrices |= {"ffn_up": (inner, width), "ffn_down": (width, inner)}
    shapes: dict[str, tuple[int, ...]] = {"v.patch_embd.weight": (width, 3, 14, 14), "v.patch_embd.bias": (width,)}
    shapes |= {"v.position_embd.weight": ((side // 14) ** 2, width), "v.post_ln.weight": (width,), "v.post_ln.bias": (width,)}
    for layer in range(n_layers):
        for name, shape in {**matrices, "ln1": (width,), "ln2": (width,)}.items():
            shapes |= {f"v.blk.{layer}.{name}.weight": shape, f"v.blk.{layer}.{name}.bias": shape[:1]}
    shapes |= {"mm.input_projection.weight": (width, text_width), "mm.soft_emb_norm.weight": (width,)}
    arrays: dict[str, npt.NDArray[np.floating]] = {
        name: (numbers(name, shape) / 20).astype(np.float16 if len(shape) > 1 and "position" not in name else np.float32)
        for name, shape in shapes.items()
    }
    write_base(MemorySource(arrays, metadata=metadata), place)
    return place


def projector_bytes(folder: Path, *, width: int = HIDDEN) -> bytes:
    """A GGUF file that calls itself a projector to text models of that width; 0 gives one without arrays. `folder` has it for a moment."""
    metadata = {
        "general.architecture": MetadataValue("string", "clip"),
        "general.type": MetadataValue("string", "mmproj"),
        "clip.has_vision_encoder": MetadataValue("bool", True),
        "clip.vision.projection_dim": MetadataValue("uint32", width),
    }
    file = folder / "projector.gguf"
    arrays = {"mm.input_projection.weight": np.ones((width, WIDTH), np.float16)} if width else {}
    write_base(MemorySource(arrays, metadata=metadata), file)
    found = file.read_bytes()
    file.unlink()
    return found
