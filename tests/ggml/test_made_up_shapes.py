"""Made-up models with the shapes of real ones run like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.llama_shapes import SHAPES, Shape, write_shape

from quantailor.ggml.runtime import LoadedModel
from quantailor.models.opening import open_model

TINY = Shape(n_layers=2, n_hidden=256, n_inner=512, n_heads=4, n_heads_kv=2, n_vocab=4200)


@pytest.mark.parametrize(
    ("of", "type_name"), [("books_llama_base", "BF16"), pytest.param("books_moe_base", "Q8_0", marks=pytest.mark.slow)]
)
def test_a_made_up_model_runs_with_the_vocabulary_of_another(
    of: str, type_name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    vocabulary = open_model(request.getfixturevalue(of))
    path = write_shape(tmp_path / "tiny.gguf", "tiny", type_name, vocabulary, shape=TINY)
    vocabulary.close()
    with LoadedModel(path, n_ctx=64, n_threads=1) as model:
        logits = model.logits(model.tokenize("It is a truth universally acknowledged"))
        assert model.n_vocab == TINY.n_vocab
    assert np.isfinite(logits).all()
    source = open_model(path)
    assert {tensor.type_name for tensor in source.tensors} == {type_name, "F32"}
    first, second = (source.rows(f"blk.{layer}.ffn_up.weight", 0, 8) for layer in (0, 1))
    assert not np.array_equal(first, second)
    source.close()


def test_the_shapes_have_the_weights_of_their_names() -> None:
    counts = {name: sum(tensor.n_elements for tensor in shape.tensors("BF16")) for name, shape in SHAPES.items()}
    assert counts["1B"] == pytest.approx(1.5e9, rel=0.01)
    assert counts["8B"] == pytest.approx(8.03e9, rel=0.01)
