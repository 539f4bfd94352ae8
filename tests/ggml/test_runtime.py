"""A loaded model: tokens, logits, captured inputs, and what happens when something is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quantailor.errors import ImatrixError, InferenceError
from quantailor.ggml import library
from quantailor.ggml.observing import Activation, is_weight, weight_name
from quantailor.ggml.runtime import LoadedModel, tokenizer
from quantailor.numerics import Floats

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 4


def test_text_becomes_tokens_with_bos_in_front(books_llama_base: Path) -> None:
    with tokenizer(books_llama_base) as vocabulary:
        tokens = vocabulary.tokenize(TEXT)
        assert vocabulary.adds_bos
        assert tokens[0] == vocabulary.bos_token
        assert tokens[1:].tolist() == vocabulary.tokenize(TEXT, add_special=False).tolist()
        assert tokens.max() < vocabulary.n_vocab


def test_special_tokens_in_a_text_are_plain_text(books_llama_base: Path) -> None:
    with tokenizer(books_llama_base) as vocabulary:
        assert len(vocabulary.tokenize("<s>", add_special=False)) > 1


def test_any_characters_can_be_tokenized(books_llama_base: Path) -> None:
    with tokenizer(books_llama_base) as vocabulary:
        assert len(vocabulary.tokenize("naïve 中文 \U0001f600 \0 end")) > 10
        assert len(vocabulary.tokenize("", add_special=False)) == 0


def test_logits_do_not_depend_on_what_ran_before(books_llama_base: Path) -> None:
    with LoadedModel(books_llama_base, n_ctx=64, n_threads=1) as model:
        tokens = model.tokenize(TEXT)[:64]
        before = model.logits(tokens)
        model.logits(tokens[::-1].copy())
        assert before.shape == (64, model.n_vocab)
        assert np.array_equal(before, model.logits(tokens))


def test_logits_from_a_position_on(books_llama_base: Path) -> None:
    with LoadedModel(books_llama_base, n_ctx=64, n_threads=1) as model:
        tokens = model.tokenize(TEXT)[:64]
        whole, half = model.logits(tokens), model.logits(tokens, first=32)
        assert half.shape == (32, model.n_vocab)
        np.testing.assert_allclose(half, whole[32:], atol=1e-4)


@pytest.mark.parametrize("name", ["books_llama_base", "books_moe_base"])
@pytest.mark.parametrize("n_ctx", [64, 600])
def test_what_matrices_are_given_is_seen_without_the_output_s_product(name: str, n_ctx: int, request: pytest.FixtureRequest) -> None:
    seen: dict[bool, list[tuple[str, bytes]]] = {}
    for ends in (False, True):
        found = seen[ends] = list[tuple[str, bytes]]()

        def capture(activation: Activation, found: list[tuple[str, bytes]] = found) -> None:
            found.append((activation.name, activation.x.tobytes()))

        path = request.getfixturevalue(name)
        with LoadedModel(path, n_ctx=n_ctx, n_threads=1, capture=capture, ends_before_output=ends) as model:
            tokens = model.tokenize(8 * TEXT)[:n_ctx]
            assert not found, "a look at the graph is no input"
            for _ in range(2):
                model.decode(tokens)
    assert seen[True] == seen[False]
    assert [name for name, _ in seen[True]].count("output.weight") == 2 * -(-n_ctx // 512)


def test_room_for_logits_that_nobody_asks_for_is_limited(books_llama_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, dict[str, list[Floats]]] = {}
    for n_rows in (1000, 23):
        found = seen[n_rows] = {}

        def capture(activation: Activation, found: dict[str, list[Floats]] = found) -> None:
            found.setdefault(activation.name, []).append(activation.x[:, 0].copy())

        with LoadedModel(books_llama_base, n_ctx=64, n_threads=1, capture=capture, ends_before_output=True) as model:
            monkeypatch.setattr("quantailor.ggml.runtime.ROOM_BYTES", 4 * model.n_vocab * n_rows)
            model.decode_together(model.tokenize(TEXT)[None, :64])
    assert seen[1000].keys() == seen[23].keys()
    for name, (whole,) in seen[1000].items():
        assert [len(part) for part in seen[23][name]] == [22, 22, 20], name
        scale = float(np.abs(whole).max())
        np.testing.assert_allclose(np.concatenate(seen[23][name]), whole, atol=0.05 * scale)  # BF16 kernels round inputs


@pytest.mark.parametrize(("n_ctx", "first", "n_rows"), [(64, 32, 10), (64, 0, 7), (600, 300, 130), (64, 63, 5), (64, 32, 1000)])
def test_logits_come_in_parts_that_fit_a_limit(
    books_llama_base: Path, monkeypatch: pytest.MonkeyPatch, n_ctx: int, first: int, n_rows: int
) -> None:
    with LoadedModel(books_llama_base, n_ctx=n_ctx, n_threads=1) as model:
        tokens = model.tokenize(8 * TEXT)[:n_ctx]
        assert len(tokens) == n_ctx
        whole = model.logits(tokens, first=first)
        monkeypatch.setattr("quantailor.ggml.runtime.PART_BYTES", 4 * model.n_vocab * n_rows)
        parts = [part.copy() for part in model.logit_parts(tokens, first=first)]
        assert len(parts) == -(-(n_ctx - first) // n_rows)
        assert max(map(len, parts)) <= n_rows
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=0.1)  # BF16 kernels round inputs
        assert np.array_equal(model.logits(tokens, first=first), whole), "nothing is left of parts in the next chunk"


def test_capture_sees_every_matrix_of_a_dense_model(books_llama_base: Path) -> None:
    seen: dict[str, tuple[int, ...]] = {}

    def capture(activation: Activation) -> None:
        assert activation.slice_ids is None
        seen[activation.name] = activation.x.shape

    with LoadedModel(books_llama_base, n_ctx=64, n_threads=1, capture=capture) as model:
        model.decode(model.tokenize(TEXT)[:64])
    roles = {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}
    assert {name.split(".")[2] for name in seen if name.startswith("blk.0.")} == roles
    assert seen["blk.0.attn_q.weight"] == (64, 1, 256)
    assert seen["blk.0.ffn_down.weight"] == (64, 1, 768)
    assert "output.weight" in seen


def test_inputs_on_a_gpu_are_copied_once_for_all_that_share_them(books_moe_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def captured() -> list[tuple[str, bytes, bytes]]:
        found: list[tuple[str, bytes, bytes]] = []

        def capture(activation: Activation) -> None:
            ids = b"" if activation.slice_ids is None else activation.slice_ids.tobytes()
            found.append((activation.name, activation.x.tobytes(), ids))

        with LoadedModel(books_moe_base, n_ctx=1024, n_threads=1, capture=capture) as model:
            model.decode(np.arange(600, dtype=np.int32))  # two graphs
        return found

    expected, ggml = captured(), library.load().ggml
    n_copied, copy = 0, ggml.ggml_backend_tensor_get

    def counted(*arguments: object) -> object:
        nonlocal n_copied
        n_copied += 1
        return copy(*arguments)

    monkeypatch.setattr(ggml, "ggml_backend_buffer_is_host", lambda _: False)
    monkeypatch.setattr(ggml, "ggml_backend_tensor_get", counted)
    assert captured() == expected
    # A layer: the inputs of q, k and v, of the attention's output, of the router, of gate and up, of down; the experts chosen, twice.
    n_layers = len({name for name, *_ in expected if "attn_q" in name})
    assert n_copied == 2 * (7 * n_layers + 1)


def test_capture_sees_which_experts_a_token_takes(books_moe_base: Path) -> None:
    seen: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {}

    def capture(activation: Activation) -> None:
        if activation.slice_ids is not None:
            seen[activation.name] = (activation.x.shape, activation.slice_ids.shape, activation.n_slices)
            assert all(len(set(row)) == len(row) for row in activation.slice_ids.tolist())

    with LoadedModel(books_moe_base, n_ctx=64, n_threads=1, capture=capture) as model:
        model.decode(model.tokenize(TEXT)[:64])
    assert seen["blk.0.ffn_up_exps.weight"] == ((64, 1, 256), (64, 2), 8)
    assert seen["blk.0.ffn_down_exps.weight"] == ((64, 2, 256), (64, 2), 8)


@pytest.mark.parametrize("failure", [ImatrixError("not finite"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_what_a_capture_raises_comes_out_of_decode(books_llama_base: Path, failure: BaseException) -> None:
    calls = []

    def capture(activation: Activation) -> None:
        calls.append(activation.name)
        if len(calls) == 3:
            raise failure

    with LoadedModel(books_llama_base, n_ctx=64, n_threads=1, capture=capture) as model:
        tokens = model.tokenize(TEXT)[:64]
        with pytest.raises(type(failure)):
            model.decode(tokens)
        assert len(calls) == 3
        model.decode(tokens)
    assert len(calls) > 10


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model" * 100], ids=["empty", "magic only", "text"])
def test_a_file_that_is_no_model(tmp_path: Path, capfd: pytest.CaptureFixture[str], content: bytes) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(InferenceError, match="cannot load"):
        LoadedModel(path)
    with pytest.raises(InferenceError, match="cannot load"):
        tokenizer(path)
    assert capfd.readouterr() == ("", "")


def test_the_reason_is_llama_cpps_own(books_llama_base: Path, tmp_path: Path) -> None:
    path = tmp_path / "truncated.gguf"
    path.write_bytes(books_llama_base.read_bytes()[:1_000_000])
    with pytest.raises(InferenceError, match="not within the file bounds"):
        LoadedModel(path)


def test_loading_says_nothing_on_the_terminal(books_llama_base: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with LoadedModel(books_llama_base, n_ctx=64, n_threads=1) as model:
        model.logits(model.tokenize(TEXT)[:64])
    assert capfd.readouterr() == ("", "")


def test_chunks_that_do_not_fit_are_refused(books_llama_base: Path) -> None:
    with LoadedModel(books_llama_base, n_ctx=64, n_threads=1) as model:
        with pytest.raises(InferenceError, match="does not fit a context of 64"):
            model.logits(np.ones(65, dtype=np.int32))
        with pytest.raises(InferenceError, match="does not fit"):
            model.logits(np.ones(0, dtype=np.int32))
        for foreign in (-1, model.n_vocab):
            with pytest.raises(InferenceError, match="does not have"):
                model.logits(np.full(8, foreign, dtype=np.int32))


def test_a_closed_model_says_so(books_llama_base: Path) -> None:
    model = LoadedModel(books_llama_base, n_ctx=64, n_threads=1)
    model.close()
    model.close()
    with pytest.raises(InferenceError, match="is closed"):
        model.logits(np.ones(8, dtype=np.int32))
    with pytest.raises(InferenceError, match="is closed"):
        model.tokenize("text")


def test_names_of_graph_nodes() -> None:
    assert weight_name(b"blk.0.attn_k.weight") == "blk.0.attn_k.weight"
    assert weight_name(b"CUDA0#blk.0.attn_k.weight#0") == "blk.0.attn_k.weight"
    assert [name for name in ("blk.1.ffn_up.weight", "output.weight", "cache_k_l0", "kq-0") if is_weight(name)] == [
        "blk.1.ffn_up.weight",
        "output.weight",
    ]


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ({}, library.SPIN_COUNT),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None))),
    ],
)
def test_threads_sleep_soon_unless_the_user_wants_another_way(given: dict[str, str], count: str | None) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    script = "import os; from quantailor.ggml import library; library.load(); print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run([sys.executable, "-c", script], env=clean | given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(count)


def test_cuda_records_no_graphs_because_it_would_not_see_that_a_weight_changed_its_type() -> None:
    script = "import os; from quantailor.ggml import library; library.load(); print(os.environ.get('GGML_CUDA_DISABLE_GRAPHS'))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip()
