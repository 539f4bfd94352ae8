"""OLMo 2: norms after attention and feed-forward, and of the whole query and key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from quantailor.models.convert.families.config import assumed
from quantailor.models.convert.families.family import LLAMA_NAMES, QK_NORMS, Family, Shape


class Olmo2(Family):
    """`Olmo2ForCausalLM`."""

    architecture = "olmo2"
    defaults = assumed(vocab=50304, width=4096, feed_forward=11008, layers=32, heads=32, context=2048, eps=1e-5, rope_base=10000.0)
    layer_names: ClassVar[Mapping[str, str]] = {
        **{key: name for key, name in LLAMA_NAMES.items() if key != "input_layernorm"},
        **QK_NORMS,
        "post_attention_layernorm": "post_attention_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }
    vocabulary_kind = "bpe"
    needs_output = True

    def layer(self) -> dict[str, Shape]:
        """Norms after attention and feed-forward instead of before them."""
        shapes, width = super().layer(), self.config.count("hidden_size")
        shapes = {name: shape for name, shape in shapes.items() if name not in ("attn_norm.weight", "ffn_norm.weight")}
        around = {"post_attention_norm.weight": (width,), "post_ffw_norm.weight": (width,)}
        return {**shapes, **around, "attn_q_norm.weight": (width,), "attn_k_norm.weight": (self.key_rows,)}
