"""DeepSeek V2 and V3: attention through a latent vector (MLA), shared and routed experts.

llama.cpp multiplies the key half of `kv_b_proj` into the query ("absorption"), so the matrix is split per head into
its key half, transposed, and its value half.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import ClassVar

from quantailor.errors import ModelFormatError
from quantailor.models.convert.families.config import assumed, float32, uint32
from quantailor.models.convert.families.experts import Experts
from quantailor.models.convert.families.family import LLAMA_NAMES, Key, LeftOut, Shape, Text
from quantailor.models.convert.families.rows import PlannedTensor, picked, slices, transposed
from quantailor.models.json_files import INTACT, JsonObject
from quantailor.records import MetadataValue

_KV_B = re.compile(r"^model\.layers\.(\d{1,6})\.self_attn\.kv_b_proj\.weight$")
_LATER_LAYER = re.compile(r"^model\.layers\.(\d{1,6})\.")
_FURTHER_WHY = "they predict further tokens (MTP, NextN), and llama.cpp's converter leaves them out of DeepSeek V2 and V3 as well"
_GATING = {"softmax": 1, "sigmoid": 2}


class DeepseekV2(Experts):
    """`DeepseekV2ForCausalLM`."""

    architecture = "deepseek2"
    rotates_part = True
    defaults = (
        assumed(vocab=102400, width=4096, feed_forward=11008, layers=32, heads=32, kv_heads=32)
        | assumed(context=2048, eps=1e-6, rope_base=10000.0)
        | assumed(kv_lora_rank=512, q_lora_rank=1536, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
        | assumed(n_routed_experts=64, n_shared_experts=2, moe_intermediate_size=1407, first_k_dense_replace=0)
        | assumed(routed_scaling_factor=1.0, norm_topk_prob=False)
    )
    layer_names: ClassVar[Mapping[str, str]] = {
        **{key: name for key, name in LLAMA_NAMES.items() if key not in ("self_attn.k_proj", "self_attn.v_proj")},
        "self_attn.q_a_proj": "attn_q_a",
        "self_attn.q_a_layernorm": "attn_q_a_norm",
        "self_attn.q_b_proj": "attn_q_b",
        "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
        "self_attn.kv_a_layernorm": "attn_kv_a_norm",
        "mlp.gate": "ffn_gate_inp",
        "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
        "mlp.shared_experts.up_proj": "ffn_up_shexp",
        "mlp.shared_experts.down_proj": "ffn_down_shexp",
    }
    expert_count_key = "n_routed_experts"
    keys = (
        Key("leading_dense_block_count", "first_k_dense_replace"),
        Key("vocab_size", "vocab_size"),
        Key("attention.q_lora_rank", "q_lora_rank", optional=True),
        Key("attention.kv_lora_rank", "kv_lora_rank"),
    )
    vocabulary_kind = "bpe"

    def __init__(self, values: JsonObject, place: str) -> None:
        super().__init__(values, place)
        count = self.config.count
        self.latent, self.rope_part = count("kv_lora_rank"), count("qk_rope_head_dim")
        self.key_part, self.value_part = count("qk_nope_head_dim"), count("v_head_dim")

    @property
    def rope_dim(self) -> int:
        return self.rope_part

    # Tensors

    def _left_out(self, name: str) -> LeftOut | None:
        """Layers beyond the last predict further tokens; a tied output is the embedding."""
        match = _LATER_LAYER.match(name)
        if match and int(match[1]) >= self.n_layers:
            return LeftOut(f"model.layers.{int(match[1])}", _FURTHER_WHY)
        is_tied = name == "lm_head.weight" and self.config.get("tie_word_embeddings") is True
        return LeftOut("lm_head", "the output is tied to the embedding, which is kept") if is_tied else None

    def gguf_name(self, text: Text) -> str:
        if text.name.endswith(".mlp.gate.e_score_correction_bias"):
            layer = int(text.name.split(".")[2])
            return f"blk.{layer}.exp_probs_b.bias"
        return super().gguf_name(text)

    def _planned(self, text: Text, target: str) -> Iterable[PlannedTensor]:
        match = _KV_B.match(text.name)
        if match is None:
            yield from super()._planned(text, target)
            return
        shape, per_head = text.array.shape, self.key_part + self.value_part
        if shape != (self.n_heads * per_head, self.latent):
            raise ModelFormatError(f"{text.array.name} in {text.array.file.path} has the shape {shape}", remedy=INTACT)
        rows = self._rows(text.array)
        keys = picked(rows, self.n_heads * self.key_part, slices(per_head, self.key_part))
        values = picked(rows, self.n_heads * self.value_part, slices(per_head, self.value_part, self.key_part))
        block = f"blk.{int(match[1])}"
        yield self._tensor(f"{block}.attn_k_b.weight", transposed(keys, self.key_part), (self.n_heads, self.latent, self.key_part), target)
        yield self._tensor(f"{block}.attn_v_b.weight", values, (self.n_heads, self.value_part, self.latent), target)

    def attention(self) -> dict[str, Shape]:
        """Through the latent vector; the query as well where the configuration gives it a rank."""
        width, heads = self.config.count("hidden_size"), self.n_heads
        query, rank = heads * (self.key_part + self.rope_part), self.config.optional_count("q_lora_rank")
        direct: dict[str, Shape] = {"attn_q.weight": (query, width)}
        latent: dict[str, Shape] = {
            "attn_q_a.weight": (rank or 0, width),
            "attn_q_a_norm.weight": (rank or 0,),
            "attn_q_b.weight": (query, rank or 0),
        }
        return {
            "attn_norm.weight": (width,),
            **(latent if rank else direct),
            "attn_kv_a_mqa.weight": (self.latent + self.rope_part, width),
            "attn_kv_a_norm.weight": (self.latent,),
            "attn_k_b.weight": (heads, self.latent, self.key_part),
            "attn_v_b.weight": (heads, self.value_part, self.latent),
            "attn_output.weight": (width, heads * self.value_part),
        }

    def layers(self) -> list[tuple[dict[str, Shape], dict[str, Shape]]]:
        """Dense first layers, then such with routed and shared experts."""
        config, width = self.config, self.config.count("hidden_size")
        n_dense = min(self.n_layers, config.as_count("first_k_dense_replace", config.get("first_k_dense_replace")))
        layers: list[tuple[dict[str, Shape], dict[str, Shape]]] = [(self.layer(), {})] * n_dense
        if n_dense == self.n_layers:
            return layers
        config.count("num_experts_per_tok")
        inner = config.count("moe_intermediate_size")
        shared = inner * config.as_count("n_shared_experts", config.get("n_shared_experts") or 0)
        routed = {
            **self.attention(),
            **self.routed(inner),
            "ffn_gate_shexp.weight": (shared, width),
            "ffn_up_shexp.weight": (shared, width),
            "ffn_down_shexp.weight": (width, shared),
        }
        return layers + [(routed, {"exp_probs_b.bias": (self.n_experts,)})] * (self.n_layers - n_dense)

    # Metadata

    def common(self) -> dict[str, MetadataValue]:
        """For llama.cpp all heads share one key and value: the latent vector."""
        entries = super().common()
        entries["attention.head_count_kv"] = uint32(1)
        return entries

    @property
    def head_dim(self) -> int | None:
        return self.latent + self.rope_part

    def _expert_entries(self) -> dict[str, MetadataValue]:
        entries = {"expert_count": uint32(self.n_experts)}
        for key in (
            Key("expert_used_count", "num_experts_per_tok", optional=True),
            Key("expert_group_count", "n_group", optional=True),
            Key("expert_group_used_count", "topk_group", optional=True),
        ):
            entries |= key.entry(self.config)
        if (function := self.config.get("scoring_func")) is not None:
            if not isinstance(function, str) or function not in _GATING:
                raise self.config.wrong("scoring_func", function)
            entries["expert_gating_func"] = uint32(_GATING[function])
        return entries

    def entries(self, file_type: MetadataValue) -> dict[str, MetadataValue]:
        entries, config = super().entries(file_type), self.config
        entries |= {
            "attention.value_length": uint32(self.latent),
            "attention.key_length_mla": uint32(self.key_part + self.rope_part),
            "attention.value_length_mla": uint32(self.value_part),
            "expert_feed_forward_length": uint32(config.count("moe_intermediate_size")),
            "expert_shared_count": uint32(config.as_count("n_shared_experts", config.get("n_shared_experts") or 0)),
        }
        entries |= Key("expert_weights_scale", "routed_scaling_factor", "float32", optional=True).entry(config)
        if config.get("norm_topk_prob"):
            entries["expert_weights_norm"] = MetadataValue("bool", True)
        entries["rope.dimension_count"] = uint32(self.rope_part)
        if (scale := config.rope.get("mscale_all_dim")) is not None:
            entries["rope.scaling.yarn_log_multiplier"] = float32(0.1 * config.as_number("mscale_all_dim", scale))
        return entries


class DeepseekV3(DeepseekV2):
    """`DeepseekV3ForCausalLM`."""

    defaults = (
        DeepseekV2.defaults
        | assumed(vocab=129280, width=7168, feed_forward=18432, layers=61, heads=128, kv_heads=128, context=4096)
        | assumed(n_routed_experts=256, n_shared_experts=1, moe_intermediate_size=2048, first_k_dense_replace=3)
        | assumed(n_group=8, topk_group=4, num_experts_per_tok=8, routed_scaling_factor=2.5, norm_topk_prob=True)
    )
