"""OLMo 2: norms after attention and feed-forward, and of the whole query and key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from quantailor.models.convert.families.family import LLAMA_NAMES, QK_NORMS, Family
from quantailor.models.json_files import JsonObject


class Olmo2(Family):
    """`Olmo2ForCausalLM`."""

    architecture = "olmo2"
    defaults: ClassVar[JsonObject] = {
        "vocab_size": 50304,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "default_rope_theta": 10000.0,
    }
    layer_names: ClassVar[Mapping[str, str]] = {
        **{key: name for key, name in LLAMA_NAMES.items() if key != "input_layernorm"},
        **QK_NORMS,
        "post_attention_layernorm": "post_attention_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }
    vocabulary_kind = "bpe"
