"""Weights of a loaded model, replaced in place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from quantailor.errors import InferenceError, TensorNotFoundError, TypeUnavailableError
from quantailor.ggml import codec, library
from quantailor.ggml.swapping import WritableModel
from quantailor.models.opening import open_model

NAME = "blk.3.ffn_down.weight"
TOKENS = np.arange(1, 65, dtype=np.int32)


@pytest.fixture
def model(books_llama_base: Path) -> Iterator[WritableModel]:
    with WritableModel(books_llama_base, [NAME, "output.weight", "token_embd.weight", "no.such.weight"], n_ctx=64, n_threads=1) as opened:
        yield opened


def quantized(base: Path, type_name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    source = open_model(base)
    rows = source.rows(NAME, 0, source.tensor(NAME).n_rows)
    source.close()
    return codec.quantize(rows, library.types()[type_name])


def test_weights_of_the_graph_are_found_and_read(model: WritableModel, books_llama_base: Path) -> None:
    assert model.weights == {NAME, "output.weight", "token_embd.weight"}
    source = open_model(books_llama_base)
    stored = source.raw_rows(NAME, 0, source.tensor(NAME).n_rows).reshape(-1)
    source.close()
    assert np.array_equal(model.read(NAME, 0, stored.size), stored)
    assert np.array_equal(model.read(NAME, 100, 300), stored[100:300])


def test_another_content_changes_the_logits_and_the_first_brings_them_back(model: WritableModel, books_llama_base: Path) -> None:
    before, bf16 = model.logits(TOKENS), library.types()["BF16"]
    original = model.read(NAME, 0, 2 * 256 * 768)
    model.replace(NAME, bf16, [np.zeros_like(original)])
    assert not np.array_equal(model.logits(TOKENS), before)
    model.replace(NAME, bf16, [original[:1000], original[1000:]])
    assert np.array_equal(model.logits(TOKENS), before)


@pytest.mark.parametrize("type_name", ["Q2_K", "Q8_0", "F16"])
def test_another_type_runs_with_its_own_kernel(model: WritableModel, books_llama_base: Path, type_name: str) -> None:
    before, data = model.logits(TOKENS), quantized(books_llama_base, type_name).reshape(-1)
    original = model.read(NAME, 0, 2 * 256 * 768)
    model.replace(NAME, library.types()[type_name], [data])
    assert np.array_equal(model.read(NAME, 0, data.size), data)
    changed = model.logits(TOKENS)
    assert not np.array_equal(changed, before)
    assert np.abs(changed - before).max() < 5
    model.replace(NAME, library.types()["BF16"], [original])
    assert np.array_equal(model.logits(TOKENS), before)


def test_what_does_not_fit_is_refused(model: WritableModel) -> None:
    qtypes = library.types()
    with pytest.raises(TypeUnavailableError, match="its place in memory has 393216"):
        model.replace(NAME, qtypes["F32"], [])
    with pytest.raises(InferenceError, match="more were given"):
        model.replace(NAME, qtypes["Q8_0"], [np.zeros(10**6, dtype=np.uint8)])
    with pytest.raises(InferenceError, match="100 were given"):
        model.replace(NAME, qtypes["Q8_0"], [np.zeros(100, dtype=np.uint8)])
    with pytest.raises(InferenceError, match="has 393216 bytes"):
        model.read(NAME, 0, 393217)


def test_weights_that_are_not_there(model: WritableModel) -> None:
    with pytest.raises(TensorNotFoundError, match=r"no\.such\.weight"):
        model.read("no.such.weight", 0, 1)
    model.close()
    with pytest.raises(TensorNotFoundError, match="is closed"):
        model.read(NAME, 0, 1)
