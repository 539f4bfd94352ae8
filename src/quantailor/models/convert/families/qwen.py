"""Qwen 2, 2.5 and 3, dense and with experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from quantailor.models.convert.families.experts import Experts
from quantailor.models.convert.families.family import LLAMA_NAMES, QK_NORMS, Family, Key
from quantailor.models.json_files import JsonObject


class Qwen2(Family):
    """`Qwen2ForCausalLM`."""

    architecture = "qwen2"
    defaults: ClassVar[JsonObject] = {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "default_rope_theta": 10000.0,
    }


class Qwen3(Qwen2):
    """`Qwen3ForCausalLM`: norms of query and key, heads of their own size."""

    architecture = "qwen3"
    defaults: ClassVar[JsonObject] = {**Qwen2.defaults, "head_dim": 128}
    layer_names: ClassVar[Mapping[str, str]] = LLAMA_NAMES | QK_NORMS


class Qwen2Moe(Experts):
    """`Qwen2MoeForCausalLM`: routed experts and one shared one."""

    architecture = "qwen2moe"
    defaults: ClassVar[JsonObject] = {
        **Qwen2.defaults,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts": 60,
        "num_experts_per_tok": 4,
    }
    layer_names: ClassVar[Mapping[str, str]] = {
        **LLAMA_NAMES,
        "mlp.gate": "ffn_gate_inp",
        "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
        "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
        "mlp.shared_expert.up_proj": "ffn_up_shexp",
        "mlp.shared_expert.down_proj": "ffn_down_shexp",
    }
    keys = (
        Key("expert_feed_forward_length", "moe_intermediate_size"),
        Key("expert_shared_feed_forward_length", "shared_expert_intermediate_size", optional=True),
    )
    vocabulary_kind = "bpe"


class Qwen3Moe(Qwen2Moe):
    """`Qwen3MoeForCausalLM`: routed experts alone."""

    architecture = "qwen3moe"
    defaults: ClassVar[JsonObject] = {
        **Qwen2.defaults,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
    }
    layer_names: ClassVar[Mapping[str, str]] = {**Qwen2Moe.layer_names, **QK_NORMS}
