"""Qwen 2, 2.5 and 3, dense and with experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from quantailor.models.convert.families.config import assumed
from quantailor.models.convert.families.experts import Experts
from quantailor.models.convert.families.family import LLAMA_NAMES, QK_NORMS, Family, Key, Shape


class Qwen2(Family):
    """`Qwen2ForCausalLM`."""

    architecture = "qwen2"
    defaults = assumed(vocab=151936, width=4096, feed_forward=22016, layers=32, heads=32, kv_heads=32) | assumed(
        context=32768, eps=1e-6, rope_base=10000.0
    )
    pools = True
    window_keys = ("use_sliding_window", "sliding_window")

    @property
    def query_rows(self) -> int:
        """As wide as the model, whatever a head has."""
        return self.config.count("hidden_size")

    def outer_optional(self) -> dict[str, Shape]:
        return {**super().outer_optional(), "output.bias": (self.vocab_size,)}


class Qwen3(Qwen2):
    """`Qwen3ForCausalLM`: norms of query and key, heads of their own size."""

    architecture = "qwen3"
    defaults = Qwen2.defaults | assumed(head_dim=128)
    layer_names: ClassVar[Mapping[str, str]] = LLAMA_NAMES | QK_NORMS

    @property
    def query_rows(self) -> int:
        return self.n_heads * self.head_rows

    def outer_optional(self) -> dict[str, Shape]:
        return Family.outer_optional(self)

    def attention(self) -> dict[str, Shape]:
        return {**super().attention(), **self.head_norms()}


class Qwen2Moe(Experts):
    """`Qwen2MoeForCausalLM`: routed experts and one shared one."""

    architecture = "qwen2moe"
    defaults = (
        Qwen2.defaults
        | assumed(width=2048, feed_forward=5632, layers=24, heads=16, kv_heads=16)
        | assumed(moe_intermediate_size=1408, shared_expert_intermediate_size=5632, num_experts=60, num_experts_per_tok=4)
    )
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
    needs_output = True

    @property
    def query_rows(self) -> int:
        """As wide as the model, whatever a head has."""
        return self.config.count("hidden_size")

    def feed_forward(self) -> dict[str, Shape]:
        """Routed experts and a shared one."""
        width = self.config.count("hidden_size")
        shared = self.config.optional_count("shared_expert_intermediate_size") or self.config.count("intermediate_size")
        return {
            **self.routed(self.config.count("moe_intermediate_size")),
            "ffn_gate_inp_shexp.weight": (1, width),
            "ffn_gate_shexp.weight": (shared, width),
            "ffn_up_shexp.weight": (shared, width),
            "ffn_down_shexp.weight": (width, shared),
        }


class Qwen3Moe(Qwen2Moe):
    """`Qwen3MoeForCausalLM`: routed experts alone."""

    architecture = "qwen3moe"
    defaults = (
        Qwen2.defaults
        | assumed(width=2048, feed_forward=6144, layers=24, kv_heads=4)
        | assumed(moe_intermediate_size=768, num_experts=128, num_experts_per_tok=8)
    )
    layer_names: ClassVar[Mapping[str, str]] = {**Qwen2Moe.layer_names, **QK_NORMS}
    needs_output = False

    @property
    def query_rows(self) -> int:
        return self.n_heads * self.head_rows

    def attention(self) -> dict[str, Shape]:
        return {**super().attention(), **self.head_norms()}

    def feed_forward(self) -> dict[str, Shape]:
        return self.routed(self.config.count("moe_intermediate_size"))
