"""Families of models: what a small directory of each becomes, spelled out."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantailor.errors import ModelError, UnsupportedModelError
from quantailor.models.convert.base import write_base
from quantailor.models.convert.families import FAMILIES, family_of
from quantailor.models.huggingface import HuggingFaceSource
from quantailor.models.opening import open_model
from quantailor.models.safetensors_file import SafetensorsFile
from tiny_models import LLAMA3_SPLIT, SENTENCEPIECE_SIZE, bpe_tokenizer, numbers, packed, safetensors_bytes, sentencepiece_tokenizer, split

Shape = tuple[int, ...]
HIDDEN, INNER, N_LAYERS, HEADS, KV_HEADS, HEAD_DIM = 64, 96, 2, 4, 2, 16
BPE = "bpe"
PIECES = "sentencepiece"
_CONFIG: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vocab_size": SENTENCEPIECE_SIZE,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ATTENTION: dict[str, Shape] = {
    "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
}
_DENSE: dict[str, Shape] = {"mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER)}
_NORMS: dict[str, Shape] = {"input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,)}
_QK: dict[str, Shape] = {"self_attn.q_norm": (HEAD_DIM,), "self_attn.k_norm": (HEAD_DIM,)}
_AROUND: dict[str, Shape] = {"pre_feedforward_layernorm": (HIDDEN,), "post_feedforward_layernorm": (HIDDEN,)}
_FUSED: dict[str, Shape] = {"mlp.experts.gate_up_proj": (4, 64, HIDDEN), "mlp.experts.down_proj": (4, HIDDEN, 32)}
_EXPERTS: dict[str, Shape] = {
    f"mlp.experts.{number}.{part}_proj": (HIDDEN, 32) if part == "down" else (32, HIDDEN)
    for number in range(4)
    for part in ("gate", "up", "down")
}
_MLA: dict[str, Shape] = {
    "self_attn.q_a_proj": (32, HIDDEN),
    "self_attn.q_a_layernorm": (32,),
    "self_attn.q_b_proj": (HEADS * 48, 32),
    "self_attn.kv_a_proj_with_mqa": (32 + 16, HIDDEN),
    "self_attn.kv_a_layernorm": (32,),
    "self_attn.kv_b_proj": (HEADS * (32 + 64), 32),
    "self_attn.o_proj": (HIDDEN, HEADS * 64),
}
_LATENT = "attn_norm attn_q_a attn_q_a_norm attn_q_b attn_kv_a_mqa attn_kv_a_norm attn_k_b attn_v_b attn_output ffn_norm"
_BASIC = "attn_norm attn_q attn_k attn_v attn_output ffn_norm"


class Small:
    """One family: what its layers hold, and what is expected."""

    def __init__(
        self,
        architecture: str,
        layer: Mapping[str, Shape],
        names: str,
        config: Mapping[str, Any],
        metadata: Mapping[str, Any],
        tokenizer: str = PIECES,
    ) -> None:
        self.architecture, self.layer, self.names = architecture, layer, names
        self.config, self.metadata, self.tokenizer = config, metadata, tokenizer


_MOE = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
_MLA_CONFIG = {
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 64,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 0,
    "scoring_func": "sigmoid",
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
}
SMALL: Mapping[str, Small] = {
    "Qwen2ForCausalLM": Small(
        "qwen2", {**_ATTENTION, **_DENSE, **_NORMS}, f"{_BASIC} ffn_gate ffn_up ffn_down", {}, {"qwen2.attention.head_count_kv": 2}
    ),
    "Qwen3ForCausalLM": Small(
        "qwen3",
        {**_ATTENTION, **_DENSE, **_NORMS, **_QK},
        f"{_BASIC} attn_q_norm attn_k_norm ffn_gate ffn_up ffn_down",
        {"head_dim": HEAD_DIM},
        {"qwen3.attention.key_length": HEAD_DIM, "qwen3.attention.value_length": HEAD_DIM},
    ),
    "Qwen2MoeForCausalLM": Small(
        "qwen2moe",
        {
            **_ATTENTION,
            **_NORMS,
            **_EXPERTS,
            "mlp.gate": (4, HIDDEN),
            "mlp.shared_expert_gate": (1, HIDDEN),
            **{f"mlp.shared_expert.{part}_proj": (64, HIDDEN) for part in ("gate", "up")},
            "mlp.shared_expert.down_proj": (HIDDEN, 64),
        },
        f"{_BASIC} ffn_gate_inp ffn_gate_inp_shexp ffn_gate_exps ffn_up_exps ffn_down_exps ffn_gate_shexp ffn_up_shexp ffn_down_shexp",
        {**_MOE, "shared_expert_intermediate_size": 64},
        {
            "qwen2moe.expert_count": 4,
            "qwen2moe.expert_used_count": 2,
            "qwen2moe.expert_feed_forward_length": 32,
            "qwen2moe.expert_shared_feed_forward_length": 64,
        },
        BPE,
    ),
    "Qwen3MoeForCausalLM": Small(
        "qwen3moe",
        {**_ATTENTION, **_NORMS, **_QK, **_FUSED, "mlp.gate": (4, HIDDEN)},
        f"{_BASIC} attn_q_norm attn_k_norm ffn_gate_inp ffn_gate_exps ffn_up_exps ffn_down_exps",
        {**_MOE, "head_dim": HEAD_DIM},
        {"qwen3moe.expert_count": 4, "qwen3moe.attention.key_length": HEAD_DIM},
        BPE,
    ),
    "Gemma2ForCausalLM": Small(
        "gemma2",
        {**_ATTENTION, **_DENSE, **_NORMS, **_AROUND},
        f"{_BASIC} post_attention_norm post_ffw_norm ffn_gate ffn_up ffn_down",
        {"head_dim": HEAD_DIM},
        {
            "gemma2.attn_logit_softcapping": 50.0,
            "gemma2.final_logit_softcapping": 30.0,
            "gemma2.attention.sliding_window": 4096,
            "tokenizer.ggml.add_space_prefix": False,
        },
    ),
    "Gemma3ForCausalLM": Small(
        "gemma3",
        {**_ATTENTION, **_DENSE, **_NORMS, **_AROUND, **_QK},
        f"{_BASIC} attn_q_norm attn_k_norm post_attention_norm post_ffw_norm ffn_gate ffn_up ffn_down",
        {
            "head_dim": HEAD_DIM,
            "rope_theta": 1e6,
            "rope_local_base_freq": 5000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "sliding_window": 128,
        },
        {
            "gemma3.rope.freq_base": 1e6,
            "gemma3.rope.freq_base_swa": 5000.0,
            "gemma3.rope.scaling.factor": 8.0,
            "gemma3.attention.sliding_window": 128,
        },
    ),
    "Phi3ForCausalLM": Small(
        "phi3",
        {
            **_NORMS,
            "self_attn.qkv_proj": ((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_up_proj": (2 * INNER, HIDDEN),
            "mlp.down_proj": (HIDDEN, INNER),
        },
        "attn_norm attn_qkv attn_output ffn_norm ffn_up ffn_down",
        {
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 1024,
            "rope_scaling": {"type": "longrope", "long_factor": [2.0] * 8, "short_factor": [1.0] * 8},
        },
        {
            "phi3.rope.scaling.original_context_length": 1024,
            "phi3.rope.dimension_count": HEAD_DIM,
            "phi3.rope.scaling.attn_factor": pytest.approx((1 + 2 / 10) ** 0.5),
            "phi3.attention.sliding_window": 0,
        },
    ),
    "GraniteForCausalLM": Small(
        "granite",
        {**_ATTENTION, **_DENSE, **_NORMS},
        f"{_BASIC} ffn_gate ffn_up ffn_down",
        {"attention_multiplier": 0.5, "embedding_multiplier": 12, "residual_multiplier": 0.25, "logits_scaling": 8.0},
        {"granite.attention.scale": 0.5, "granite.embedding_scale": 12.0, "granite.residual_scale": 0.25, "granite.logit_scale": 8.0},
    ),
    "Olmo2ForCausalLM": Small(
        "olmo2",
        {
            **_ATTENTION,
            **_DENSE,
            "post_attention_layernorm": (HIDDEN,),
            "post_feedforward_layernorm": (HIDDEN,),
            "self_attn.q_norm": (HIDDEN,),
            "self_attn.k_norm": (KV_HEADS * HEAD_DIM,),
        },
        "attn_q attn_k attn_v attn_output attn_q_norm attn_k_norm post_attention_norm post_ffw_norm ffn_gate ffn_up ffn_down",
        {},
        {"olmo2.attention.head_count": HEADS},
        BPE,
    ),
    "SmolLM3ForCausalLM": Small(
        "smollm3",
        {**_ATTENTION, **_DENSE, **_NORMS},
        f"{_BASIC} ffn_gate ffn_up ffn_down",
        {"no_rope_layers": [1, 1]},
        {"smollm3.rope.dimension_count": HEAD_DIM},
    ),
    "DeepseekV2ForCausalLM": Small(
        "deepseek2",
        {**_MLA, **_NORMS, **_DENSE},
        f"{_LATENT} ffn_gate ffn_up ffn_down",
        {**_MLA_CONFIG, "first_k_dense_replace": N_LAYERS, "scoring_func": None},
        {"deepseek2.leading_dense_block_count": N_LAYERS, "deepseek2.attention.kv_lora_rank": 32},
        BPE,
    ),
    "DeepseekV3ForCausalLM": Small(
        "deepseek2",
        {
            **_MLA,
            **_NORMS,
            **_EXPERTS,
            "mlp.gate": (4, HIDDEN),
            "mlp.gate.e_score_correction_bias": (4,),
            **{f"mlp.shared_experts.{part}_proj": (32, HIDDEN) for part in ("gate", "up")},
            "mlp.shared_experts.down_proj": (HIDDEN, 32),
        },
        f"{_LATENT} ffn_gate_inp exp_probs_b.bias ffn_gate_exps ffn_up_exps ffn_down_exps ffn_gate_shexp ffn_up_shexp ffn_down_shexp",
        _MLA_CONFIG,
        {
            "deepseek2.attention.head_count_kv": 1,
            "deepseek2.attention.key_length": 48,
            "deepseek2.attention.value_length": 32,
            "deepseek2.attention.key_length_mla": 48,
            "deepseek2.attention.value_length_mla": 64,
            "deepseek2.expert_gating_func": 2,
            "deepseek2.expert_group_count": 2,
            "deepseek2.expert_weights_scale": 2.5,
            "deepseek2.expert_weights_norm": True,
        },
        BPE,
    ),
    "GptOssForCausalLM": Small(
        "gpt-oss",
        {
            **_ATTENTION,
            **_NORMS,
            "self_attn.o_proj.bias": (HIDDEN,),
            "self_attn.sinks": (HEADS,),
            "mlp.router": (4, HIDDEN),
            "mlp.router.bias": (4,),
            "mlp.experts.gate_up_proj": (4, HIDDEN, 2 * INNER),
            "mlp.experts.gate_up_proj_bias": (4, 2 * INNER),
            "mlp.experts.down_proj": (4, INNER, HIDDEN),
            "mlp.experts.down_proj_bias": (4, HIDDEN),
        },
        "attn_norm attn_q attn_k attn_v attn_output attn_output.bias attn_sinks post_attention_norm ffn_gate_inp ffn_gate_inp.bias "
        "ffn_gate_exps ffn_gate_exps.bias ffn_up_exps ffn_up_exps.bias ffn_down_exps ffn_down_exps.bias",
        {"head_dim": HEAD_DIM, "num_local_experts": 4, "num_experts_per_tok": 2},
        {"gpt-oss.attention.sliding_window": 128, "gpt-oss.expert_feed_forward_length": INNER, "gpt-oss.rope.scaling.type": "yarn"},
        BPE,
    ),
}
_BARE = ("sinks", "_bias", ".bias", "experts.gate_up_proj", "experts.down_proj")
"""Ends of names that have no `.weight`."""

Arrays = dict[str, tuple[str, Sequence[int], bytes]]
Edit = Callable[[dict[str, Any]], object]


def small_arrays(family: str) -> dict[str, Shape]:
    """Names and shapes of a checkpoint."""
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (SENTENCEPIECE_SIZE, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(N_LAYERS):
        for name, shape in SMALL[family].layer.items():
            shapes[f"model.layers.{layer}.{name}" + ("" if name.endswith(_BARE) else ".weight")] = shape
    if not family.startswith("Gemma"):
        shapes["lm_head.weight"] = (SENTENCEPIECE_SIZE, HIDDEN)
    return shapes


def write_small(family: str, place: Path, *, more: Arrays | None = None, without: Sequence[str] = (), **config: Any) -> Path:
    """Write a directory of that family."""
    small = SMALL[family]
    place.mkdir(parents=True, exist_ok=True)
    arrays: Arrays = {
        name: ("BF16", shape, packed(numbers(name, shape), "BF16")) for name, shape in small_arrays(family).items() if name not in without
    }
    (place / "model.safetensors").write_bytes(safetensors_bytes({**arrays, **(more or {})}))
    (place / "config.json").write_text(json.dumps({**_CONFIG, "architectures": [family], **small.config, **config}), encoding="utf-8")
    if small.tokenizer == PIECES:
        sentencepiece_tokenizer(place)
    else:
        bpe_tokenizer(split(LLAMA3_SPLIT), added=(("<|end|>", True),), settings={"bos_token": "<|end|>", "eos_token": "<|end|>"})(place)
    return place


@pytest.mark.parametrize("family", SMALL)
def test_names_and_metadata_of_a_family(family: str, tmp_path: Path) -> None:
    source = open_model(write_small(family, tmp_path))
    small = SMALL[family]

    names = {name if "." in name else f"{name}.weight" for name in small.names.split()}
    outer = {"token_embd.weight", "output_norm.weight", "output.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
    found = {tensor.name for tensor in source.tensors} - outer
    assert found == {f"blk.{layer}.{name}" for layer in range(N_LAYERS) for name in names}
    assert source.architecture == small.architecture
    expected = {f"{small.architecture}.block_count": N_LAYERS, f"{small.architecture}.context_length": None, **small.metadata}
    for key, value in expected.items():
        assert key in source.metadata
        assert value is None or source.metadata[key].value == value
    source.close()


@pytest.mark.parametrize("family", SMALL)
def test_any_range_of_rows_is_a_part_of_the_whole(family: str, tmp_path: Path) -> None:
    source = open_model(write_small(family, tmp_path))
    for tensor in source.tensors:
        whole = source.raw_rows(tensor.name, 0, tensor.n_rows)
        assert whole.nbytes == tensor.size_bytes
        for start, stop in ((0, 1), (0, 0), (tensor.n_rows // 3, tensor.n_rows), (tensor.n_rows // 2, tensor.n_rows // 2 + 1)):
            assert np.array_equal(source.raw_rows(tensor.name, start, stop), whole[start:stop])
    source.close()


@pytest.mark.parametrize("family", ["Qwen3ForCausalLM", "DeepseekV3ForCausalLM", "GptOssForCausalLM"])
def test_a_base_is_read_again(family: str, tmp_path: Path) -> None:
    source = open_model(write_small(family, tmp_path / "model"))
    base = open_model(write_base(source, tmp_path / "base.gguf"))

    assert list(base.tensors) == list(source.tensors)
    source.close()
    base.close()


def bf16(name: str, shape: Shape) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The checkpoint's numbers as they are stored."""
    return (numbers(name, shape).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def test_gemma_norms_are_one_larger(tmp_path: Path) -> None:
    source = open_model(write_small("Gemma2ForCausalLM", tmp_path))

    stored = bf16("model.layers.1.post_feedforward_layernorm.weight", (HIDDEN,))
    assert np.array_equal(source.rows("blk.1.post_ffw_norm.weight", 0, 1)[0], stored + np.float32(1))
    source.close()


def test_rows_of_qwen_are_not_rotated(tmp_path: Path) -> None:
    source = open_model(write_small("Qwen2ForCausalLM", tmp_path))

    stored = bf16("model.layers.0.self_attn.q_proj.weight", (HIDDEN, HIDDEN))
    assert np.array_equal(source.rows("blk.0.attn_q.weight", 0, HIDDEN), stored)
    source.close()


def test_fused_experts_are_halved(tmp_path: Path) -> None:
    source = open_model(write_small("Qwen3MoeForCausalLM", tmp_path))

    fused = bf16("model.layers.1.mlp.experts.gate_up_proj", (4, 64, HIDDEN))
    assert np.array_equal(source.rows("blk.1.ffn_gate_exps.weight", 0, 128), fused[:, :32].reshape(128, HIDDEN))
    assert np.array_equal(source.rows("blk.1.ffn_up_exps.weight", 0, 128), fused[:, 32:].reshape(128, HIDDEN))
    source.close()


def test_latent_attention_is_split_per_head(tmp_path: Path) -> None:
    source = open_model(write_small("DeepseekV2ForCausalLM", tmp_path))

    stored = bf16("model.layers.0.self_attn.kv_b_proj.weight", (HEADS * 96, 32)).reshape(HEADS, 96, 32)
    assert source.tensor("blk.0.attn_k_b.weight").shape == (HEADS, 32, 32)
    assert np.array_equal(source.rows("blk.0.attn_k_b.weight", 0, HEADS * 32), stored[:, :32].transpose(0, 2, 1).reshape(-1, 32))
    assert np.array_equal(source.rows("blk.0.attn_v_b.weight", 0, HEADS * 64), stored[:, 32:].reshape(-1, 32))
    source.close()


def test_layers_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    more: Arrays = {
        "model.layers.2.eh_proj.weight": ("BF16", (4, 4), bytes(32)),
        "model.layers.2.embed_tokens.weight": ("BF16", (4, 4), bytes(32)),
    }
    source = HuggingFaceSource(write_small("DeepseekV3ForCausalLM", tmp_path, more=more))

    assert source.left_out == ("model.layers.2.eh_proj.weight", "model.layers.2.embed_tokens.weight")
    ((reason, n_arrays),) = source.left_out_why.items()
    assert (reason.where, n_arrays) == ("model.layers.2", 2)
    assert "predict further tokens (MTP, NextN), and llama.cpp's converter leaves them out of DeepSeek V2 and V3 as well" in reason.why
    source.close()


def test_a_vision_tower_is_left_out_and_listed(tmp_path: Path) -> None:
    """Gemma 3's text model below `language_model`, its configuration in `text_config`."""
    place = write_small("Gemma3ForCausalLM", tmp_path)
    text = {**_CONFIG, **SMALL["Gemma3ForCausalLM"].config}
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text, "vision_config": {"hidden_size": 8}}
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    arrays: Arrays = {
        f"language_model.{name}": ("BF16", shape, packed(numbers(name, shape), "BF16"))
        for name, shape in small_arrays("Gemma3ForCausalLM").items()
    }
    tower = ("multi_modal_projector.mm_input_projection_weight", "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight")
    (place / "model.safetensors").write_bytes(safetensors_bytes({**arrays, **{name: ("BF16", (2, 2), bytes(8)) for name in tower}}))
    source = HuggingFaceSource(place)

    assert source.left_out == tower
    assert source.architecture == "gemma3"
    assert "blk.1.post_ffw_norm.weight" in {tensor.name for tensor in source.tensors}
    source.close()


# Quantized checkpoints


def test_float8_is_multiplied_by_the_scale_of_its_block(tmp_path: Path) -> None:
    """0x38 is 1, 0xC0 is -2, 0x01 the smallest number, 2^-9, 0x7E the largest, 448."""
    name = "model.layers.0.mlp.down_proj.weight"
    codes = np.resize(np.array([0x38, 0xC0, 0x01, 0x7E], np.uint8), (HIDDEN, INNER))
    scales = numbers(name + "_scale_inv", (2, 3))
    more: Arrays = {name: ("F8_E4M3", codes.shape, codes.tobytes()), name + "_scale_inv": ("F32", (2, 3), scales.tobytes())}
    quantization = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    source = open_model(write_small("Qwen2ForCausalLM", tmp_path, more=more, quantization_config=quantization))

    exact = np.resize(np.array([1, -2, 2**-9, 448], np.float32), (HIDDEN, INNER)) * np.kron(scales, np.ones((32, 32), np.float32))
    assert source.tensor("blk.0.ffn_down.weight").type_name == "BF16"
    assert np.allclose(source.rows("blk.0.ffn_down.weight", 40, 50), exact[40:50], rtol=2**-8)
    source.close()


@pytest.mark.parametrize("family", [family for family, small in SMALL.items() if any(".experts.0." in name for name in small.layer)])
def test_every_expert_s_scale_is_its_own(family: str, tmp_path: Path) -> None:
    more: Arrays = {}
    for name, shape in small_arrays(family).items():
        if ".experts." in name:
            number = int(name.split(".experts.")[1].split(".")[0])
            more[name] = ("F8_E4M3", shape, b"\x38" * int(np.prod(shape)))
            more[name + "_scale_inv"] = ("F32", (1, 1), np.float32(number + 1).tobytes())
    source = open_model(
        write_small(family, tmp_path, more=more, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    )
    tensor = source.tensor("blk.1.ffn_down_exps.weight")
    per_expert = source.rows(tensor.name, 0, tensor.n_rows).reshape(4, -1)
    assert [sorted(set(expert.tolist())) for expert in per_expert] == [[1.0], [2.0], [3.0], [4.0]]
    source.close()


@pytest.mark.parametrize(
    ("shape", "config", "message"),
    [
        ((2, 2), {"weight_block_size": [32, 32]}, "down_proj.weight_scale_inv"),
        ((2, 3), {"weight_block_size": [0, 32]}, "weight_block_size"),
        ((2, 3), {"weight_block_size": ["a", 32]}, "weight_block_size"),
        (None, {"weight_block_size": [32, 32]}, "without scales"),
    ],
)
def test_odd_scales_are_told(shape: Shape | None, config: dict[str, Any], message: str, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    more: Arrays = {name: ("F8_E4M3", (HIDDEN, INNER), bytes(HIDDEN * INNER))}
    if shape is not None:
        more[name + "_scale_inv"] = ("F32", shape, bytes(4 * int(np.prod(shape))))
    place = write_small("Qwen2ForCausalLM", tmp_path, more=more, quantization_config={"quant_method": "fp8", **config})

    with pytest.raises(ModelError, match=message):
        HuggingFaceSource(place)


def _mxfp4(blocks: int = 2, dtype: str = "U8") -> Arrays:
    """Experts of both layers: every byte 0x21, weights 0.5 and 1 in turn; exponents 127 and up."""
    arrays: Arrays = {}
    for layer in range(N_LAYERS):
        for part, rows in (("gate_up", 2 * INNER), ("down", HIDDEN)):
            place, n_blocks = f"model.layers.{layer}.mlp.experts.{part}_proj", blocks if part == "gate_up" else 3
            arrays[f"{place}_blocks"] = (dtype, (4, rows, n_blocks, 16), bytes([0x21]) * (4 * rows * n_blocks * 16))
            exponents = np.resize(np.arange(127, 131, dtype=np.uint8), (4, rows, n_blocks))
            arrays[f"{place}_scales"] = ("U8", exponents.shape, exponents.tobytes())
    return arrays


_SIXTEEN_BITS = [f"model.layers.{layer}.mlp.experts.{part}_proj" for layer in range(N_LAYERS) for part in ("gate_up", "down")]
_PACKED: dict[str, Any] = {"quantization_config": {"quant_method": "mxfp4"}}


def test_mxfp4_experts_stay_as_they_are(tmp_path: Path) -> None:
    source = open_model(write_small("GptOssForCausalLM", tmp_path, more=_mxfp4(), without=_SIXTEEN_BITS, **_PACKED))

    info = source.tensor("blk.0.ffn_up_exps.weight")
    assert (info.type_name, info.shape) == ("MXFP4", (4, INNER, HIDDEN))
    assert source.metadata["general.file_type"].value == 38
    # Gate and up alternate; each row has two blocks, and exponents run 127, 128 | 129, 130 over gate and up.
    rows = source.rows("blk.0.ffn_up_exps.weight", 1, 3)
    assert np.array_equal(rows[0], np.concatenate([np.tile([2.0, 4.0], 16), np.tile([4.0, 8.0], 16)]))
    whole = source.raw_rows("blk.0.ffn_up_exps.weight", 0, info.n_rows)
    assert np.array_equal(source.raw_rows("blk.0.ffn_up_exps.weight", 5, 9), whole[5:9])
    source.close()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (_mxfp4(dtype="I8"), "does not fit its blocks"),
        ({name: entry for name, entry in _mxfp4().items() if not name.endswith("1.mlp.experts.down_proj_scales")}, "blocks and 3 scales"),
    ],
)
def test_odd_mxfp4_is_told(more: Arrays, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        HuggingFaceSource(write_small("GptOssForCausalLM", tmp_path, more=more, without=_SIXTEEN_BITS, **_PACKED))


# Vocabularies


@pytest.mark.parametrize(
    "pattern", [r"(=+)+$", r"=*=*=*=*=*=*x", r"(=*|a)(=*|b)(=*|c)(=*|d)x", "(" * 5000, "(?x)(=+)\v+\x01", "(?ix:(=+)\v+)x"]
)
def test_a_slow_pattern_is_told_at_once(pattern: str, tmp_path: Path) -> None:
    """The fingerprint's text has long runs of one letter: a pattern that backtracks would never come to an end."""
    place = write_small("Olmo2ForCausalLM", tmp_path)
    bpe_tokenizer(split(pattern), added=(("<|end|>", True),), settings={})(place)
    with pytest.raises(UnsupportedModelError, match="pre-tokenizer"):
        HuggingFaceSource(place)


def test_a_text_that_two_tokens_share_is_told(tmp_path: Path) -> None:
    """llama.cpp would end the process."""
    place = write_small("Olmo2ForCausalLM", tmp_path)
    path = place / "tokenizer.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["model"]["vocab"]["[PAD4000]"] = 4095
    path.write_text(json.dumps(stored), encoding="utf-8")

    with pytest.raises(ModelError, match=r"\[PAD4000\]"):
        HuggingFaceSource(place)


# Bad configurations


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("Qwen3ForCausalLM", {"head_dim": "wide"}, "head_dim"),
        ("Qwen2MoeForCausalLM", {"num_experts": 0}, "num_experts"),
        ("Qwen2MoeForCausalLM", {"num_experts": 5}, "12 expert matrices, not 15"),
        ("Qwen3MoeForCausalLM", {"num_experts": 3}, "gate_up_proj|down_proj"),
        ("Gemma2ForCausalLM", {"attn_logit_softcapping": None}, "attn_logit_softcapping"),
        ("Gemma3ForCausalLM", {"rope_parameters": {"full_attention": 3}, "rope_scaling": None}, "rope_parameters"),
        ("Gemma3ForCausalLM", {"sliding_window": None}, "sliding_window"),
        ("Phi3ForCausalLM", {"rope_scaling": {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}}, "long_factor"),
        ("Phi3ForCausalLM", {"rope_scaling": {"type": "spiral"}}, "spiral"),
        ("GraniteForCausalLM", {"embedding_multiplier": "twelve"}, "embedding_multiplier"),
        ("SmolLM3ForCausalLM", {"no_rope_layers": [0, 1]}, "rope"),
        ("DeepseekV3ForCausalLM", {"kv_lora_rank": 31}, "kv_b_proj"),
        ("DeepseekV3ForCausalLM", {"scoring_func": "cosine"}, "scoring_func"),
        ("GptOssForCausalLM", {"num_local_experts": 5}, "the shape"),
        ("GptOssForCausalLM", {"quantization_config": {"quant_method": "mxfp4"}}, "MXFP4"),
        ("Qwen2ForCausalLM", {"quantization_config": {"quant_method": "mxfp4"}}, "quantized by MXFP4"),
    ],
)
def test_an_odd_configuration_is_told_in_one_line(family: str, config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message) as told:
        HuggingFaceSource(write_small(family, tmp_path, **config))
    assert "\n" not in str(told.value)


_ODD: tuple[Any, ...] = (None, -1, 0, 1, 3, 2**40, 0.5, 1e300, True, "x", [], [1, 2], {}, {"rope_type": "llama3"}, {"rope_theta": None})


@pytest.mark.parametrize("family", SMALL)
def test_any_value_of_a_key_converts_or_is_told_in_one_line(family: str, tmp_path: Path) -> None:
    place = write_small(family, tmp_path)
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    stored = SafetensorsFile(place / "model.safetensors")
    keys = [
        key
        for key in (*config, *FAMILIES[family].defaults, "rope_parameters", "rope_scaling", "quantization_config")
        if key != "architectures"
    ]
    for key, value in itertools.product(dict.fromkeys(keys), _ODD):
        assert "\n" not in _told({**config, key: value}, stored)
    stored.close()


def _told(config: dict[str, Any], stored: SafetensorsFile) -> str:
    """What is said of a configuration; empty where it converts."""
    try:
        found = family_of(config, stored.arrays, "config.json", "the model")
        tensors = found.plan(stored.arrays)
        found.metadata("BF16")
        found.leading()
    except ModelError as error:
        return str(error)
    assert all(len(tensor.raw_rows(0, 1)) == 1 for tensor in tensors)
    return ""


def test_every_family_is_tested() -> None:
    elsewhere = {"LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "Gemma3ForConditionalGeneration"}

    assert set(FAMILIES) == {*SMALL, *elsewhere}
