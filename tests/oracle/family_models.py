"""Tiny random models of every family, built by transformers, with published vocabularies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantized_checkpoints import REFERENCE, quantize_float8, quantize_mxfp4
from sdist_vocabularies import SdistVocabulary

_SMALL: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_TEMPLATE = {"chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}"}
_GEMMA = {"tokenizer_class": "GemmaTokenizer", "add_prefix_space": False}
_LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 32.0, "beta_slow": 1.0}

_DEEPSEEK: Mapping[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
}
_GPT_OSS: Mapping[str, Any] = {
    "intermediate_size": 64,
    "head_dim": 64,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 128,
    "rope_parameters": {**_YARN, "rope_theta": 150000.0, "truncate": False},
}
_SIGMOID = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}


@dataclass(frozen=True)
class Made:
    """One model: transformers' class without `ForCausalLM`, what differs from `_SMALL`, and its vocabulary."""

    family: str
    config: Mapping[str, Any]
    vocabulary: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of tokenizer_config.json."""
    added: Mapping[str, Any] = field(default_factory=dict)
    """Put into config.json afterwards: keys that published checkpoints have."""
    n_extra_rows: int = 0
    """Rows of the embedding beyond the vocabulary."""
    float8: bool = False
    mxfp4: bool = False
    vision: bool = False
    """A vision tower beside the text model, as in Gemma 3 from 4B up."""


MADE: Mapping[str, Made] = {
    "llama3": Made(
        "Llama",
        {
            "rope_parameters": {**_LLAMA3_ROPE, "rope_theta": 500000.0, "original_max_position_embeddings": 64},
            "rms_norm_eps": 1e-5,
            "initializer_range": 0.05,
        },
        "llama-bpe",
        _TEMPLATE,
    ),
    "llama3-tied": Made(
        "Llama",
        {
            "head_dim": 32,
            "tie_word_embeddings": True,
            "rope_parameters": {**_LLAMA3_ROPE, "factor": 32.0, "rope_theta": 500000.0, "original_max_position_embeddings": 128},
        },
        "llama-bpe",
        n_extra_rows=64,
    ),
    "qwen2": Made("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}, "qwen2", _TEMPLATE),
    "qwen2-tied": Made(
        "Qwen2", {"tie_word_embeddings": True, "rope_parameters": {**_YARN, "rope_theta": 10000.0}}, "qwen2", n_extra_rows=15
    ),
    "qwen3": Made("Qwen3", {"head_dim": 32}, "qwen2"),
    "qwen3-tied": Made("Qwen3", {"head_dim": 64, "tie_word_embeddings": True, "num_key_value_heads": 1}, "qwen2"),
    "qwen2-moe": Made("Qwen2Moe", {**_MOE, "num_experts": 4, "shared_expert_intermediate_size": 64}, "qwen2"),
    "qwen2-moe-dense-first": Made(
        "Qwen2Moe",
        {**_MOE, "num_experts": 6, "shared_expert_intermediate_size": 32, "num_hidden_layers": 3, "norm_topk_prob": False},
        "qwen2",
    ),
    "qwen3-moe": Made("Qwen3Moe", {**_MOE, "num_experts": 8, "head_dim": 32, "norm_topk_prob": True}, "qwen2"),
    "qwen3-moe-other": Made(
        "Qwen3Moe", {**_MOE, "num_experts": 4, "head_dim": 16, "norm_topk_prob": True, "tie_word_embeddings": True}, "qwen2"
    ),
    "gemma2": Made("Gemma2", {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 256}, "llama-spm", _GEMMA),
    "gemma2-other": Made(
        "Gemma2",
        {"head_dim": 256, "query_pre_attn_scalar": 256, "num_attention_heads": 2, "num_key_value_heads": 1},
        "phi-3",
        _GEMMA,
        n_extra_rows=32,
    ),
    "gemma3": Made(
        "Gemma3", {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 128, "num_hidden_layers": 7}, "llama-spm", _GEMMA
    ),
    "gemma3-linear": Made(
        "Gemma3",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 256,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        "llama-spm",
        _GEMMA,
        n_extra_rows=64,
    ),
    "gemma3-vision": Made(
        "Gemma3", {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 128}, "llama-spm", _GEMMA, vision=True
    ),
    "phi3": Made("Phi3", {"sliding_window": 256, "original_max_position_embeddings": 512}, "phi-3", _TEMPLATE),
    "phi3-long": Made(
        "Phi3",
        {
            "max_position_embeddings": 2048,
            "original_max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0, 1.05, 1.1, 1.25, 1.4, 1.5, 1.7, 2.0],
                "long_factor": [1.0, 1.5, 2.5, 4.0, 6.0, 9.0, 14.0, 20.0],
            },
        },
        "phi-3",
    ),
    "phi4": Made("Phi3", {"original_max_position_embeddings": 512}, "gpt-2"),
    "granite": Made(
        "Granite",
        {"attention_multiplier": 0.1, "embedding_multiplier": 6.0, "residual_multiplier": 0.3, "logits_scaling": 4.0},
        "gpt-2",
        _TEMPLATE,
    ),
    "granite-tied": Made(
        "Granite",
        {"attention_multiplier": 0.25, "embedding_multiplier": 2.0, "logits_scaling": 2.0, "tie_word_embeddings": True},
        "llama-bpe",
    ),
    "olmo2": Made("Olmo2", {"rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}, "gpt-2"),
    "olmo2-other": Made("Olmo2", {"num_key_value_heads": 4}, "llama-bpe"),
    "smollm3": Made("SmolLM3", {"num_hidden_layers": 5, "tie_word_embeddings": True}, "llama-bpe", _TEMPLATE),
    "smollm3-untied": Made("SmolLM3", {"num_hidden_layers": 4, "tie_word_embeddings": False, "num_key_value_heads": 4}, "gpt-2"),
    "deepseek2": Made("DeepseekV2", {**_DEEPSEEK, "n_shared_experts": 2, "routed_scaling_factor": 1.0}, "deepseek-coder"),
    "deepseek2-lite": Made(
        "DeepseekV2",
        {
            **_DEEPSEEK,
            "q_lora_rank": None,
            "n_shared_experts": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            # llama.cpp knows models without a latent query by their number of layers.
            "num_hidden_layers": 27,
            "first_k_dense_replace": 25,
        },
        "deepseek-coder",
    ),
    "deepseek3": Made(
        "DeepseekV3",
        {**_DEEPSEEK, "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 2.5, "norm_topk_prob": True},
        "deepseek-coder",
        added=_SIGMOID,
    ),
    "deepseek3-yarn": Made(
        "DeepseekV3",
        {
            **_DEEPSEEK,
            "n_shared_experts": 2,
            "n_group": 1,
            "topk_group": 1,
            "rope_parameters": {**_YARN, "rope_theta": 10000.0, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
        "gpt-2",
        added=_SIGMOID,
    ),
    "gpt-oss": Made("GptOss", _GPT_OSS, "gpt-2"),
    "gpt-oss-mxfp4": Made("GptOss", {**_GPT_OSS, "num_local_experts": 6, "num_hidden_layers": 3}, "gpt-2", mxfp4=True),
    "float8-llama": Made("Llama", {"hidden_size": 96, "head_dim": 32}, "llama-spm", float8=True),
    "float8-deepseek3": Made(
        "DeepseekV3", {**_DEEPSEEK, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}, "gpt-2", added=_SIGMOID, float8=True
    ),
}
"""Names begin with their family."""


def write_made(made: Made, vocabulary: SdistVocabulary, folder: Path) -> None:
    """Write the model's directory: seeded weights in BF16, config.json, the tokenizer's files."""
    import torch
    import transformers

    torch.manual_seed(20260)
    size = len(vocabulary) + made.n_extra_rows
    ids = {f"{role}_token_id": vocabulary.id(role) for role in ("bos", "eos")} | {"pad_token_id": None}
    values = {**_SMALL, "initializer_range": 0.04, **made.config, **ids, "vocab_size": size}
    kind = "Gemma3Text" if made.family == "Gemma3" else made.family
    config = getattr(transformers, f"{kind}Config")(**values)
    if made.vision:
        tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 56}
        model = transformers.Gemma3ForConditionalGeneration(transformers.Gemma3Config(text_config=config.to_dict(), vision_config=tower))
    else:
        model = getattr(transformers, f"{made.family}ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif name.endswith("bias"):
                parameter.copy_(torch.randn_like(parameter) * 0.05)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                # Far apart, so that rounding does not choose other experts.
                buffer.copy_(torch.randn_like(buffer))
    model.to(torch.bfloat16).save_pretrained(folder)
    if made.float8 or made.mxfp4:
        # What the quantized weights stand for, in 16 bits, for transformers.
        model.save_pretrained(folder / REFERENCE)
        quantized = quantize_float8(folder) if made.float8 else quantize_mxfp4(folder)
    else:
        quantized = {}
    vocabulary.write(folder, made.settings)
    path = folder / "config.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**stored, **made.added, **quantized}, indent=1), encoding="utf-8")
