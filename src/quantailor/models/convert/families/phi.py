"""Phi 3 and 4: fused matrices, long rope factors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import ClassVar

from quantailor.errors import ModelFormatError
from quantailor.models.convert.families.config import COMPLETE, assumed, float32, uint32
from quantailor.models.convert.families.family import LLAMA_NAMES, MAX_HEAD_DIM, Family, Shape
from quantailor.models.convert.families.rows import PlannedTensor, constant
from quantailor.records import MetadataValue

_FUSED = ("attn_q.weight", "attn_k.weight", "attn_v.weight", "ffn_gate.weight")


class Phi3(Family):
    """`Phi3ForCausalLM`, which Phi-4 and Phi-4-mini are too."""

    architecture = "phi3"
    defaults = assumed(vocab=32064, width=3072, feed_forward=8192, layers=32, heads=32, context=4096) | assumed(
        original_max_position_embeddings=4096, eps=1e-5, rope_base=10000.0, partial_rotary_factor=1.0
    )
    layer_names: ClassVar[Mapping[str, str]] = {
        **{key: name for key, name in LLAMA_NAMES.items() if key not in ("mlp.gate_proj", "mlp.up_proj")},
        "self_attn.qkv_proj": "attn_qkv",
        "mlp.gate_up_proj": "ffn_up",
    }
    vocabulary_kind = "phi3"
    rotates_part = True

    def outer_optional(self) -> dict[str, Shape]:
        factors = {f"rope_factors_{name}.weight": (self.rope_dim // 2,) for name in ("long", "short")}
        return {**super().outer_optional(), **factors}

    def layer(self) -> dict[str, Shape]:
        """Query, key and value in one matrix, gate and up in another."""
        shapes, width = super().layer(), self.config.count("hidden_size")
        shapes = {name: shape for name, shape in shapes.items() if name not in _FUSED}
        fused = {"attn_qkv.weight": (self._fused_rows, width), "ffn_up.weight": (2 * shapes["ffn_up.weight"][0], width)}
        return {**shapes, **fused}

    def layer_optional(self) -> dict[str, Shape]:
        return {"attn_qkv.bias": (self._fused_rows,)}

    @property
    def head_dim(self) -> int | None:
        """Phi's heads divide the hidden size; a `head_dim` is not looked at."""
        return None

    @property
    def _fused_rows(self) -> int:
        return self.config.count("hidden_size") + 2 * self.key_rows

    @property
    def rope_dim(self) -> int:
        """Columns of a head that are turned. Raises ModelFormatError."""
        part = self.config.rope.get("partial_rotary_factor", self.config.get("partial_rotary_factor"))
        dim = int(self.config.as_number("partial_rotary_factor", part) * self.config.count("hidden_size")) // self.n_heads
        if not 0 <= dim <= MAX_HEAD_DIM:
            raise self.config.wrong("partial_rotary_factor", part)
        return dim

    @property
    def _original_length(self) -> int:
        length = self.config.count("original_max_position_embeddings")
        if length < 2:
            raise self.config.wrong("original_max_position_embeddings", length)
        return length

    def leading(self) -> dict[str, MetadataValue]:
        """The scale of attention at long contexts (arXiv:2402.13753)."""
        if not self.config.rope.get("long_factor"):
            return {}
        scale, factor = self.config.count("max_position_embeddings") / self._original_length, 1.0
        if scale > 1 and self.config.rope["rope_type"] == "yarn":
            factor = 1 + 0.1 * math.log(scale)
        elif scale > 1:
            factor = math.sqrt(1 + math.log(scale) / math.log(self._original_length))
        return {f"{self.architecture}.rope.scaling.attn_factor": float32(factor)}

    def _first(self) -> Iterable[PlannedTensor]:
        rope = self.config.rope
        if not rope.get("long_factor"):
            return
        for name in ("long", "short"):
            yield constant(f"rope_factors_{name}.weight", self._factors(f"{name}_factor", rope.get(f"{name}_factor")))

    def _factors(self, key: str, stored: object) -> list[float]:
        if not isinstance(stored, list) or len(stored) != self.rope_dim // 2:
            raise self.config.wrong(key, stored)
        return [self.config.as_number(key, value) for value in stored]

    def entries(self, file_type: MetadataValue) -> dict[str, MetadataValue]:
        """The model's own metadata. Raises ModelFormatError for a kind of rope that this family does not have."""
        rope, count, config = self.config.rope, self.config.count, self.config
        if rope["rope_type"] not in ("default", "longrope", "su", "yarn"):
            raise config.wrong("rope_type", rope["rope_type"])
        if rope["rope_type"] != "default" and not rope.get("long_factor"):
            raise ModelFormatError(f"{config.place} has the rope type {rope['rope_type']} without long_factor", remedy=COMPLETE)
        return {
            "context_length": uint32(count("max_position_embeddings")),
            "rope.scaling.original_context_length": uint32(self._original_length),
            "embedding_length": uint32(count("hidden_size")),
            "feed_forward_length": uint32(count("intermediate_size")),
            "block_count": uint32(self.n_layers),
            "attention.head_count": uint32(self.n_heads),
            "attention.head_count_kv": uint32(self.n_kv_heads),
            "attention.layer_norm_rms_epsilon": float32(config.number("rms_norm_eps")),
            "rope.dimension_count": uint32(self.rope_dim),
            "rope.freq_base": float32(config.above_zero("rope_theta", rope["rope_theta"])),
            "general.file_type": file_type,
            "attention.sliding_window": uint32(config.optional_count("sliding_window") or 0),
        }
