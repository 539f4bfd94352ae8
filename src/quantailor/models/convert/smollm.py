"""SmolLM3: Llama, of which every fourth layer has no rope."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from quantailor.errors import UnsupportedModelError
from quantailor.models.convert.family import REMEDY
from quantailor.models.convert.llama import Llama

_STEP = 4
"""llama.cpp knows this rhythm only."""


class SmolLM3(Llama):
    """`SmolLM3ForCausalLM`."""

    architecture = "smollm3"
    defaults: ClassVar[Mapping[str, Any]] = {
        **Llama.defaults,
        "vocab_size": 128256,
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "default_rope_theta": 2000000.0,
        "no_rope_layer_interval": _STEP,
    }
    implied_head_dim = False

    def __init__(self, values: Mapping[str, Any], place: str) -> None:
        super().__init__(values, place)
        interval = self.config.count("no_rope_layer_interval")
        rhythm = [int((layer + 1) % interval != 0) for layer in range(self.n_layers)]
        if (self.config.get("no_rope_layers") or rhythm) != [int((layer + 1) % _STEP != 0) for layer in range(self.n_layers)]:
            raise UnsupportedModelError(f"{place} leaves rope out of other layers than every {_STEP}th", remedy=REMEDY)
