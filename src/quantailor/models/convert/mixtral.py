"""The Mixtral family: Mistral with experts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from quantailor.models.convert.experts import Experts
from quantailor.models.convert.family import LLAMA_NAMES
from quantailor.models.convert.llama import Mistral


class Mixtral(Experts, Mistral):
    """`MixtralForCausalLM`."""

    defaults: ClassVar[Mapping[str, Any]] = {
        **Mistral.defaults,
        "rms_norm_eps": 1e-5,
        "default_rope_theta": 1000000.0,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }
    implied_head_dim = False
    layer_names: ClassVar[Mapping[str, str]] = {
        **{key: name for key, name in LLAMA_NAMES.items() if not key.startswith("mlp.")},
        "block_sparse_moe.gate": "ffn_gate_inp",
    }
    expert_pattern = re.compile(r"^model\.layers\.(\d{1,6})\.block_sparse_moe\.experts\.(\d{1,6})\.(w[123])\.weight$")
    matrices: ClassVar[Mapping[str, str]] = {"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"}
    expert_count_key = "num_local_experts"
