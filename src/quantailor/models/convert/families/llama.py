"""Llama and the families that share its arrays: Mistral and Mixtral, Granite 3, SmolLM3."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from quantailor.errors import UnsupportedModelError
from quantailor.models.convert.families.config import assumed, float32, uint32
from quantailor.models.convert.families.experts import Experts
from quantailor.models.convert.families.family import LLAMA_NAMES, Family, Shape
from quantailor.models.json_files import INSIST, JsonObject
from quantailor.records import MetadataValue


class Llama(Family):
    """`LlamaForCausalLM`: Llama 2, 3 and 3.x, and what is built like them."""

    architecture = "llama"
    defaults = assumed(vocab=32000, width=4096, feed_forward=11008, layers=32, heads=32, context=2048, eps=1e-6, rope_base=10000.0)
    rotates = True
    vocabulary_kind = "llama"
    implied_head_dim: ClassVar[bool] = True
    """Whether an absent `head_dim` is worked out and then written."""

    def __init__(self, values: JsonObject, place: str) -> None:
        super().__init__(values, place)
        self.rope_dim  # noqa: B018 - a wrong head_dim is refused at once

    @property
    def head_dim(self) -> int | None:
        return self.rope_dim if self.implied_head_dim else super().head_dim

    def outer_optional(self) -> dict[str, Shape]:
        return {**super().outer_optional(), "rope_freqs.weight": (self.rope_dim // 2,)}

    def layer_optional(self) -> dict[str, Shape]:
        """Biases of all matrices."""
        matrices = [name for name, shape in self.layer().items() if len(shape) == 2 and name != "ffn_gate_inp.weight"]
        return {name.replace("weight", "bias"): self.layer()[name][:1] for name in matrices}

    def entries(self, file_type: MetadataValue) -> dict[str, MetadataValue]:
        entries = super().entries(file_type)
        entries["vocab_size"] = uint32(self.vocab_size)
        entries["rope.dimension_count"] = uint32(self.rope_dim)
        return entries


class Mistral(Llama):
    """`MistralForCausalLM`: Llama's arrays under other defaults."""

    defaults = Llama.defaults | assumed(feed_forward=14336, kv_heads=8, context=131072)
    window_keys = ("sliding_window",)


_SCALES: Mapping[str, str] = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}


class Granite(Llama):
    """`GraniteForCausalLM`."""

    architecture = "granite"
    defaults = Llama.defaults | dict.fromkeys(_SCALES.values(), 1.0)
    implied_head_dim = False

    @property
    def rope_dim(self) -> int:
        return self.config.count("hidden_size") // self.n_heads

    @property
    def head_dim(self) -> int | None:
        """Granite's heads divide the hidden size; a `head_dim` is not looked at."""
        return None

    def entries(self, file_type: MetadataValue) -> dict[str, MetadataValue]:
        entries = super().entries(file_type)
        for name, key in _SCALES.items():
            if self.config.get(key):
                entries[name] = float32(self.config.number(key))
        return entries


_STEP = 4
"""llama.cpp knows this rhythm only."""


class SmolLM3(Llama):
    """`SmolLM3ForCausalLM`."""

    architecture = "smollm3"
    defaults = (
        Llama.defaults
        | assumed(vocab=128256, width=2048, layers=36, heads=16, kv_heads=4, context=32768, rope_base=2000000.0)
        | assumed(no_rope_layer_interval=_STEP, tie_word_embeddings=True)
    )
    implied_head_dim = False

    def outer_optional(self) -> dict[str, Shape]:
        return Family.outer_optional(self)

    def layer_optional(self) -> dict[str, Shape]:
        return Family.layer_optional(self)

    def __init__(self, values: JsonObject, place: str) -> None:
        """Raises UnsupportedModelError where other layers than every fourth do without rope."""
        super().__init__(values, place)
        interval = self.config.count("no_rope_layer_interval")
        rhythm = [int((layer + 1) % interval != 0) for layer in range(self.n_layers)]
        if (self.config.get("no_rope_layers") or rhythm) != [int((layer + 1) % _STEP != 0) for layer in range(self.n_layers)]:
            raise UnsupportedModelError(f"{place} leaves rope out of layers other than every {_STEP}th", remedy=INSIST)


class Mixtral(Experts, Mistral):
    """`MixtralForCausalLM`."""

    defaults = Mistral.defaults | assumed(eps=1e-5, rope_base=1000000.0, num_local_experts=8, num_experts_per_tok=2)
    implied_head_dim = False
    layer_names: ClassVar[Mapping[str, str]] = {
        **{key: name for key, name in LLAMA_NAMES.items() if not key.startswith("mlp.")},
        "block_sparse_moe.gate": "ffn_gate_inp",
    }
    expert_pattern = re.compile(r"^model\.layers\.(\d{1,6})\.block_sparse_moe\.experts\.(\d{1,6})\.(w[123])\.weight$")
    matrices: ClassVar[Mapping[str, str]] = {"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"}
    expert_count_key = "num_local_experts"

    def feed_forward(self) -> dict[str, Shape]:
        return self.routed(self.config.count("intermediate_size"))
