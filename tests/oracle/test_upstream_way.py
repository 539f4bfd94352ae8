"""Three families that our own conversion does not know, through llama.cpp's real converter: `convert`, and `make` to a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from commands import Command
from sdist_vocabularies import SdistVocabulary
from upstream import Upstream, llama_cpp_sources

pytestmark = pytest.mark.oracle

_SMALL: Mapping[str, Any] = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512}
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "StableLm": {"intermediate_size": 512, "num_key_value_heads": 2},
    "Falcon": {"num_kv_heads": 2, "new_decoder_architecture": True},
    "Starcoder2": {"intermediate_size": 512, "num_key_value_heads": 2, "sliding_window": None},
}
"""transformers' class without `ForCausalLM`, and what differs from `_SMALL`."""
FEW = ("--types", "Q4_K,Q6_K", "--imatrix-chunks", 2, "--chunks", 2, "--against", "Q8_0", "--basis", "ranking", "--threads", 1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Random weights in BF16 with GPT-2's vocabulary."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("models")
    vocabulary = SdistVocabulary("gpt-2", llama_cpp_sources())
    ids = {"bos_token_id": vocabulary.id("bos"), "eos_token_id": vocabulary.id("eos"), "vocab_size": len(vocabulary)}
    for name, values in FAMILIES.items():
        torch.manual_seed(20260)
        config = getattr(transformers, f"{name}Config")(**{**_SMALL, **values, **ids})
        getattr(transformers, f"{name}ForCausalLM")(config).to(torch.bfloat16).save_pretrained(folder / name)
        vocabulary.write(folder / name, {})
    return {name: folder / name for name in FAMILIES}


@pytest.fixture(scope="module")
def by_hand(models: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The files as llama.cpp's converter writes them by itself."""
    return Upstream(llama_cpp_sources(), tmp_path_factory.mktemp("upstream")).convert(models, {})


@pytest.fixture
def text(calibration_text: Path, tmp_path: Path) -> Path:
    path = tmp_path / "short.txt"
    path.write_text(calibration_text.read_text(encoding="utf-8")[:12_000], encoding="utf-8")
    return path


@pytest.mark.parametrize("name", FAMILIES)
def test_such_a_model_goes_to_a_verdict_and_is_converted_once(
    name: str, models: Mapping[str, Path], by_hand: Mapping[str, Path], text: Path, quantailor: Command, tmp_path: Path
) -> None:
    model, base, home = models[name], tmp_path / "base.gguf", ("--home", tmp_path / "home")

    outcome = quantailor("convert", model, "-o", base, *home, "--json")
    assert outcome.code == 0, outcome.err
    converted = outcome.result
    assert (converted["way"], f"architecture '{name}ForCausalLM'" in converted["why"]) == ("llama.cpp", True)
    assert base.read_bytes() == by_hand[name].read_bytes()
    written = base.stat().st_mtime_ns

    made = quantailor(
        "make", model, "--like", "Q4_K_M", "-o", tmp_path / "out", *FEW, "-f", text, "--verify-text", text, *home, "--json"
    ).result
    assert made["base"] == str(base)
    assert made["verify"]["verdict"]["rows"]
    assert Path(made["build"]["paths"][0]).stat().st_size == made["build"]["predicted_size_bytes"]

    again = quantailor(
        "make", model, "--like", "Q4_K_M", "-o", tmp_path / "out", *FEW, "-f", text, "--verify-text", text, *home, "--json"
    ).result
    assert again["verify"]["verdict"] == made["verify"]["verdict"]
    assert base.stat().st_mtime_ns == written
    assert not (tmp_path / "out" / "base.gguf").exists()
