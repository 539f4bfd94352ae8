"""Chunks that run side by side, layer by layer: each sees what it sees alone, to the last bit, in every family that we convert."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_families import SMALL, write_small

from quantailor.errors import InferenceError
from quantailor.ggml.observing import Activation, Enough
from quantailor.ggml.runtime import LoadedModel
from quantailor.models.convert.base import write_base
from quantailor.models.opening import open_model
from quantailor.numerics import Floats, Tokens

N_CTX, N_CHUNKS = 32, 5
Seen = dict[str, list[tuple[Floats, list[int] | None]]]


def seen(path: Path, chunks: Tokens, n_together: int) -> Seen:
    """What every matrix was given, chunk by chunk."""
    found: Seen = {}

    def see(activation: Activation) -> None:
        ids = None if activation.slice_ids is None else activation.slice_ids.ravel().tolist()
        found.setdefault(activation.name, []).append((activation.x.copy(), ids))

    with LoadedModel(path, n_ctx=chunks.shape[1], n_threads=1, capture=see, n_together=n_together) as model:
        for begin in range(0, len(chunks), n_together):
            model.decode_together(chunks[begin : begin + n_together])
    return found


def some_chunks(path: Path) -> Tokens:
    with LoadedModel(path, n_ctx=8) as model:
        return np.random.default_rng(7).integers(3, model.n_vocab, (N_CHUNKS, N_CTX)).astype(np.int32)


def assert_equal(one: Seen, other: Seen) -> None:
    assert list(one) == list(other)
    for name, ours in one.items():
        assert len(ours) == len(other[name]) == N_CHUNKS, name
        for (x, ids), (y, others) in zip(ours, other[name], strict=True):
            assert ids == others, name
            np.testing.assert_array_equal(x, y, err_msg=name)


@pytest.mark.parametrize("family", SMALL)
def test_every_chunk_sees_what_it_sees_alone(family: str, tmp_path: Path) -> None:
    source = open_model(write_small(family, tmp_path))
    base = tmp_path / "base.gguf"
    write_base(source, base)
    source.close()
    chunks = some_chunks(base)
    alone = seen(base, chunks, 1)
    assert alone
    assert_equal(alone, seen(base, chunks, 3))  # three, and the two that are left


def test_experts_and_trained_weights(books_moe_base: Path) -> None:
    chunks = some_chunks(books_moe_base)
    assert_equal(seen(books_moe_base, chunks, 1), seen(books_moe_base, chunks, N_CHUNKS))


def test_a_graph_ends_when_all_chunks_have_enough(books_llama_base: Path) -> None:
    names: list[tuple[str, int]] = []

    def see(activation: Activation) -> None:
        names.append((activation.name, activation.sequence))
        if activation.name == "blk.0.attn_output.weight":
            raise Enough

    chunks = some_chunks(books_llama_base)
    with LoadedModel(books_llama_base, n_ctx=N_CTX, n_threads=1, capture=see, n_together=2) as model:
        model.decode_together(chunks[:2])
    assert names[-2:] == [("blk.0.attn_output.weight", 0), ("blk.0.attn_output.weight", 1)]


def test_more_chunks_than_it_was_opened_for_are_refused(books_llama_base: Path) -> None:
    chunks = some_chunks(books_llama_base)
    with LoadedModel(books_llama_base, n_ctx=N_CTX, n_together=2) as model, pytest.raises(InferenceError, match="not opened for 3 chunks"):
        model.decode_together(chunks[:3])
