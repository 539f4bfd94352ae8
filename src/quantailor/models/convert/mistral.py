"""The Mistral family: Llama's arrays under other defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantailor.models.convert.llama import Llama


class Mistral(Llama):
    """`MistralForCausalLM`."""

    defaults: Mapping[str, Any] = {
        **Llama.defaults,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    }
