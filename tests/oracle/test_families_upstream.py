"""Every family against llama.cpp's converter and against transformers.

Exceptions to equality with llama.cpp's converter: none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from family_models import MADE, write_made
from quantized_checkpoints import reference_of
from sdist_vocabularies import SENTENCEPIECE, SdistVocabulary
from texts import varied_texts
from upstream import Upstream, llama_cpp_sources

from gguf_description import describe
from quantailor.ggml.runtime import LoadedModel, tokenizer
from quantailor.models.convert.base import write_base
from quantailor.models.opening import open_model

pytestmark = pytest.mark.oracle

N_TOKENS = 48
TOLERANCE = 2e-2
"""Largest difference of log-probabilities: llama.cpp multiplies in BF16, transformers in float32."""


@pytest.fixture(scope="module")
def llama_cpp() -> Path:
    return llama_cpp_sources()


@pytest.fixture(scope="module")
def wanted(request: pytest.FixtureRequest) -> list[str]:
    """The models that the selected tests look at."""
    chosen = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
    return [name for name in MADE if name in chosen]


@pytest.fixture(scope="module")
def models(wanted: list[str], llama_cpp: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    vocabularies = {name: SdistVocabulary(name, llama_cpp) for name in {MADE[key].vocabulary for key in wanted}}
    for name in wanted:
        write_made(MADE[name], vocabularies[MADE[name].vocabulary], folder / name)
    return {name: folder / name for name in wanted}


@pytest.fixture(scope="module")
def upstreams(models: Mapping[str, Path], llama_cpp: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return Upstream(llama_cpp, tmp_path_factory.mktemp("upstream")).convert(models, {})


@pytest.fixture(scope="module")
def converted(models: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Our bases, each written once."""
    folder, done = tmp_path_factory.mktemp("ours"), dict[str, Path]()
    for name, place in models.items():
        source = open_model(place)
        done[name] = write_base(source, folder / f"{name}.gguf")
        source.close()
    return done


@pytest.mark.parametrize("name", MADE)
def test_the_base_is_the_file_that_llama_cpp_writes(name: str, converted: Mapping[str, Path], upstreams: Mapping[str, Path]) -> None:
    if converted[name].read_bytes() != upstreams[name].read_bytes():
        assert describe(converted[name]) == describe(upstreams[name])
        pytest.fail("the files differ")


@pytest.mark.parametrize("name", MADE)
def test_probabilities_are_those_of_transformers(name: str, models: Mapping[str, Path], converted: Mapping[str, Path]) -> None:
    import torch
    import transformers

    reference = transformers.AutoModelForCausalLM.from_pretrained(reference_of(models[name]), dtype=torch.float32).eval()
    tokens = np.random.default_rng(5).integers(0, 30_000, N_TOKENS).astype(np.int32)
    with torch.no_grad():
        expected = torch.log_softmax(reference(torch.tensor(tokens[None].astype(np.int64))).logits[0].float(), dim=-1).numpy()
    with LoadedModel(converted[name], n_ctx=N_TOKENS, n_threads=2) as model:
        logits = model.logits(tokens).astype(np.float64)
    found = (
        logits - np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True)) - logits.max(axis=1, keepdims=True)
    )

    difference = float(np.abs(found - expected).max())
    print(f"{name}: largest difference of log-probabilities {difference:.2e}, spread {float(np.std(expected)):.2f}")
    assert difference < TOLERANCE
    assert np.std(expected) > 0.05


@pytest.mark.parametrize("name", MADE)
def test_texts_become_the_tokens_of_the_original_tokenizer(name: str, models: Mapping[str, Path], converted: Mapping[str, Path]) -> None:
    """For tokenizer.model that is the SentencePiece library: transformers 5 splits runs of spaces differently when it reads such a file."""
    encode = _reference_tokenizer(models[name], pieces=MADE[name].vocabulary in SENTENCEPIECE)
    with tokenizer(converted[name]) as ours:
        differing = [text for text in varied_texts() if ours.tokenize(text).tolist() != encode(text)]

    assert differing == []


def _reference_tokenizer(folder: Path, *, pieces: bool) -> Callable[[str], list[int]]:
    import transformers
    from sentencepiece import SentencePieceProcessor

    if not pieces:
        reference = transformers.AutoTokenizer.from_pretrained(folder)
        return lambda text: list(reference.encode(text))
    library = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return lambda text: [library.bos_id(), *library.encode(text)]
