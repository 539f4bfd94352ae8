"""Llama and the families that share its arrays: Mistral, Granite, SmolLM3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from quantailor.models.convert.family import Family, outtype
from quantailor.records import MetadataValue

__all__ = ["Llama", "Mistral", "outtype"]


class Llama(Family):
    """`LlamaForCausalLM`: Llama 2, 3 and 3.x, and what is built like them."""

    architecture = "llama"
    defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "default_rope_theta": 10000.0,
    }
    rotates = True
    vocabulary_kind = "llama"
    implied_head_dim: ClassVar[bool] = True
    """Whether an absent `head_dim` is worked out and then written."""

    def __init__(self, values: Mapping[str, Any], place: str) -> None:
        super().__init__(values, place)
        self.rope_dim  # noqa: B018 - a wrong head_dim is refused at once

    @property
    def head_dim(self) -> int | None:
        return self.rope_dim if self.implied_head_dim else super().head_dim

    def entries(self, file_type: MetadataValue) -> dict[str, MetadataValue]:
        entries = super().entries(file_type)
        entries["vocab_size"] = MetadataValue("uint32", self.vocab_size)
        entries["rope.dimension_count"] = MetadataValue("uint32", self.rope_dim)
        return entries


class Mistral(Llama):
    """`MistralForCausalLM`: Llama's arrays under other defaults."""

    defaults: ClassVar[Mapping[str, Any]] = {
        **Llama.defaults,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    }
