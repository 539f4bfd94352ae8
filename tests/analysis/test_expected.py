"""What is expected of tensors that nobody probed, on models small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.in_memory import MemorySource

from quantailor.analysis.expected import (
    EMBEDDING_ALPHA,
    MOST_SHARPNESS,
    OUTPUT_ALPHA,
    SHARPNESS_FACTOR,
    USUAL_LOGIT_SQUARE,
    USUAL_SHARE,
    WRITE_ALPHA,
    expected_alphas,
    expected_damage,
)
from quantailor.analysis.importance.imatrix import Imatrix, ImatrixEntry
from quantailor.ggml import library
from quantailor.numerics import Floats
from quantailor.records import MetadataValue

N = 32


def rows(energy: float, n_rows: int = N) -> Floats:
    """A matrix whose product with inputs of mean square 1 has this energy over all rows."""
    return np.full((n_rows, N), np.sqrt(energy / n_rows / N), np.float32)


def model() -> dict[str, Floats]:
    """Embeddings of energy 1, an attention that adds 1, a feed-forward network that adds 6."""
    return {
        "token_embd.weight": np.full((8, N), np.sqrt(1 / N), np.float32),
        "blk.0.attn_v.weight": rows(5.0),
        "blk.0.attn_output.weight": rows(1.0),
        "blk.0.ffn_up.weight": rows(3.0),
        "blk.0.ffn_down.weight": rows(6.0),
        "output.weight": rows(8 * 4.0, 8),
    }


def seen(arrays: dict[str, Floats]) -> Imatrix:
    """An importance matrix for which every input had a mean square of 1."""
    entries = {
        name: ImatrixEntry(
            np.full((array.shape[0] if array.ndim > 2 else 1, N), 10.0), np.full(array.shape[0] if array.ndim > 2 else 1, 10), None
        )
        for name, array in arrays.items()
    }
    return Imatrix(
        {name: entry for name, entry in entries.items() if name.startswith("blk.")},
        {name: entry for name, entry in entries.items() if name == "output.weight"},
    )


def test_a_tensor_counts_by_what_its_branch_adds_to_the_stream() -> None:
    arrays = model()
    alphas = expected_alphas(MemorySource(arrays), seen(arrays))
    assert alphas["blk.0.attn_output.weight"] == pytest.approx(WRITE_ALPHA * 1 / 2)
    assert alphas["blk.0.ffn_down.weight"] == pytest.approx(WRITE_ALPHA * 6 / 8)
    assert alphas["blk.0.attn_v.weight"] == alphas["blk.0.attn_output.weight"]
    assert alphas["blk.0.ffn_up.weight"] == alphas["blk.0.ffn_down.weight"]


def test_queries_and_keys_count_by_how_sharp_attention_is() -> None:
    n_heads, n_key_heads, n_cols = 4, 2, N // 4

    def counted(energy: float, **more: Floats) -> float:
        arrays = model() | {"blk.0.attn_q.weight": rows(energy), "blk.0.attn_k.weight": rows(2.0, N // 2)} | more
        heads = {"llama.attention.head_count": n_heads, "llama.attention.head_count_kv": n_key_heads}
        source = MemorySource(arrays, metadata={key: MetadataValue("uint32", value) for key, value in heads.items()})
        alphas = expected_alphas(source, seen(arrays))
        assert alphas["blk.0.attn_q.weight"] == alphas["blk.0.attn_k.weight"]
        return alphas["blk.0.attn_q.weight"] / alphas["blk.0.attn_v.weight"]

    square = (20.0 / n_heads) * (2.0 / n_key_heads) / n_cols**2
    assert counted(20.0) == pytest.approx(SHARPNESS_FACTOR * square)
    assert counted(40.0) == pytest.approx(2 * counted(20.0))
    assert counted(1e9) == MOST_SHARPNESS
    assert counted(1e-9) == 1 / MOST_SHARPNESS
    normalized = {"blk.0.attn_q_norm.weight": np.ones(n_cols, np.float32)}
    assert counted(20.0, **normalized) == 1


def test_the_output_counts_by_the_mean_square_of_its_logits() -> None:
    arrays = model()
    alphas = expected_alphas(MemorySource(arrays), seen(arrays))
    assert alphas["output.weight"] == pytest.approx(OUTPUT_ALPHA * 4.0)
    assert alphas["token_embd.weight"] == EMBEDDING_ALPHA
    scaled = MemorySource(arrays, "granite", metadata={"granite.logit_scale": MetadataValue("float32", 4.0)})
    assert expected_alphas(scaled, seen(arrays))["output.weight"] == pytest.approx(OUTPUT_ALPHA / 4)


def test_embeddings_that_are_the_output_too_count_as_both() -> None:
    arrays = {name: array for name, array in model().items() if name != "output.weight"}
    alphas = expected_alphas(MemorySource(arrays), seen(arrays))
    assert alphas["token_embd.weight"] == pytest.approx(EMBEDDING_ALPHA + OUTPUT_ALPHA * USUAL_LOGIT_SQUARE)


def test_outputs_that_are_normalized_first_add_what_the_norm_makes_of_them() -> None:
    norms = {
        f"blk.0.post_{what}_norm.weight": np.full(N, np.sqrt(energy / N), np.float32) for what, energy in (("attention", 3), ("ffw", 4))
    }
    arrays = model() | norms
    alphas = expected_alphas(MemorySource(arrays), seen(model()))
    assert alphas["blk.0.attn_output.weight"] == pytest.approx(WRITE_ALPHA * 3 / 4)
    assert alphas["blk.0.ffn_up.weight"] == pytest.approx(WRITE_ALPHA * 4 / 8)


def test_of_experts_each_adds_its_part() -> None:
    arrays = {name: array for name, array in model().items() if "ffn" not in name}
    arrays |= {"blk.0.ffn_down_exps.weight": np.stack([rows(8.0)] * 4), "blk.0.ffn_gate_exps.weight": np.stack([rows(1.0)] * 4)}
    source = MemorySource(arrays, metadata={"llama.expert_used_count": MetadataValue("uint32", 2)})
    alphas = expected_alphas(source, seen(arrays))
    assert alphas["blk.0.ffn_down_exps.weight"] == pytest.approx(WRITE_ALPHA * 4 / 6)
    assert alphas["blk.0.ffn_gate_exps.weight"] == alphas["blk.0.ffn_down_exps.weight"]


def test_without_an_importance_matrix_all_blocks_count_alike() -> None:
    alphas = expected_alphas(MemorySource(model()), None)
    assert {alphas[name] for name in alphas if name.startswith("blk.")} == {WRITE_ALPHA * USUAL_SHARE}
    assert alphas["output.weight"] == OUTPUT_ALPHA * USUAL_LOGIT_SQUARE


def test_what_adds_nothing_still_counts() -> None:
    arrays = model() | {"blk.0.attn_output.weight": np.zeros((N, N), np.float32)}
    assert 0 < expected_alphas(MemorySource(arrays), seen(arrays))["blk.0.attn_v.weight"] < 0.001
    nothing = {name: np.zeros_like(array) for name, array in arrays.items()}
    assert all(alpha > 0 for alpha in expected_alphas(MemorySource(nothing), seen(nothing)).values())


def test_kernels_with_large_blocks_cost_more_above_all_where_inputs_have_heavy_tails() -> None:
    types = library.types()
    small, large = (expected_damage("attn_v", types[name], 0.001, 0.1) for name in ("Q5_1", "Q5_K"))
    assert 0.1 * 0.001 < small < large < expected_damage("ffn_down", types["Q5_K"], 0.001, 0.1)
    assert expected_damage("token_embd", types["Q5_K"], 0.001, EMBEDDING_ALPHA) == EMBEDDING_ALPHA * 0.001
