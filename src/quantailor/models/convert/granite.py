"""Granite 3: Llama with multipliers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from quantailor.models.convert.config import float32
from quantailor.models.convert.llama import Llama
from quantailor.records import MetadataValue

_SCALES: Mapping[str, str] = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}


class Granite(Llama):
    """`GraniteForCausalLM`."""

    architecture = "granite"
    defaults: ClassVar[Mapping[str, Any]] = {**Llama.defaults, **dict.fromkeys(_SCALES.values(), 1.0)}
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
