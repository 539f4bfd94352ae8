"""A GLM 4.5 with a layer that predicts a further token, through llama.cpp's real converter: kept as it writes it, and loaded."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from commands import Command
from sdist_vocabularies import SdistVocabulary
from upstream import Upstream, llama_cpp_sources

from quantailor.ggml.runtime import LoadedModel
from quantailor.models.gguf_file import GGUFSource
from tiny_models import added_token, numbers, packed, safetensors_bytes

pytestmark = pytest.mark.oracle

WIDTH, INNER, N_EXPERTS = 64, 96, 4
CONFIG: dict[str, Any] = {
    "architectures": ["Glm4MoeForCausalLM"],
    "model_type": "glm4_moe",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_nextn_predict_layers": 1,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "n_routed_experts": N_EXPERTS,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
FEW = ("--types", "Q4_0,Q8_0", "--imatrix", "none", "--basis", "ranking", "--no-verify", "--threads", 1)


def shapes(n_tokens: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes as published: a dense layer, one with experts, and behind them one with experts for the further token."""
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (n_tokens, WIDTH),
        "model.norm.weight": (WIDTH,),
        "lm_head.weight": (n_tokens, WIDTH),
    }
    for layer in range(3):
        block = f"model.layers.{layer}"
        found |= {f"{block}.{norm}.weight": (WIDTH,) for norm in ("input_layernorm", "post_attention_layernorm")}
        for part, rows in (("q", WIDTH), ("k", WIDTH // 2), ("v", WIDTH // 2)):
            found |= {f"{block}.self_attn.{part}_proj.weight": (rows, WIDTH), f"{block}.self_attn.{part}_proj.bias": (rows,)}
        found[f"{block}.self_attn.o_proj.weight"] = (WIDTH, WIDTH)
        experts = [f"experts.{number}" for number in range(N_EXPERTS)]
        for place, inner in (
            [(f"{block}.mlp", INNER)] if layer == 0 else [(f"{block}.mlp.{name}", 32) for name in (*experts, "shared_experts")]
        ):
            found |= {f"{place}.{part}_proj.weight": (inner, WIDTH) for part in ("gate", "up")} | {
                f"{place}.down_proj.weight": (WIDTH, inner)
            }
        if layer:
            found |= {f"{block}.mlp.gate.weight": (N_EXPERTS, WIDTH), f"{block}.mlp.gate.e_score_correction_bias": (N_EXPERTS,)}
    found |= {f"model.layers.2.{norm}.weight": (WIDTH,) for norm in ("enorm", "hnorm", "shared_head.norm")}
    return found | {"model.layers.2.eh_proj.weight": (WIDTH, 2 * WIDTH)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights; Qwen 2's vocabulary, whose split llama.cpp knows, with GLM's special tokens."""
    folder = tmp_path_factory.mktemp("models") / "glm"
    folder.mkdir()
    vocabulary = SdistVocabulary("qwen2", llama_cpp_sources())
    vocabulary.write(folder, {})
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    specials = ("[gMASK]", "<|user|>", "<|observation|>")
    stored["added_tokens"] += [added_token(len(vocabulary) + number, text) for number, text in enumerate(specials)]
    (folder / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
    n_tokens = len(vocabulary) + len(specials)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": n_tokens}), encoding="utf-8")
    arrays = {name: ("BF16", shape, packed(numbers(name, shape), "BF16")) for name, shape in shapes(n_tokens).items()}
    (folder / "model.safetensors").write_bytes(safetensors_bytes(arrays))
    return folder


def test_the_layer_is_kept_as_the_converter_writes_it_and_goes_through_make(model: Path, quantailor: Command, tmp_path: Path) -> None:
    base, home = tmp_path / "base.gguf", ("--home", tmp_path / "home")
    assert quantailor("convert", model, "-o", base, *home).code == 0
    assert base.read_bytes() == Upstream(llama_cpp_sources(), tmp_path).convert({"by hand": model}, {})["by hand"].read_bytes()

    outcome = quantailor("make", model, "--bpw", 6, "-o", tmp_path / "out", *FEW, *home, "--json")
    assert outcome.code == 0, outcome.err
    file = Path(outcome.result["build"]["paths"][0])
    with closing(GGUFSource(file)) as made:
        types = {tensor.name: tensor.type_name for tensor in made.tensors}
        assert made.metadata["glm4moe.nextn_predict_layers"].value == 1
    assert types["blk.2.nextn.eh_proj.weight"] in ("Q4_0", "Q8_0")
    for path in (base, file):
        with LoadedModel(path, n_ctx=64, n_threads=1):
            pass
