"""OLMo 2: norms after attention and feed-forward, and of the whole query and key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from quantailor.models.convert.families.config import assumed
from quantailor.models.convert.families.family import LLAMA_NAMES, QK_NORMS, Family


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
