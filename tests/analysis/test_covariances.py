"""Input covariances: what they are, that they are resumed and split into turns to the bit, and how experts lean on each other."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantailor.analysis.corpus import chunks, load_corpus
from quantailor.analysis.covariances.calibrating import compute_calibration
from quantailor.analysis.covariances.capture import Calibration, forget_run
from quantailor.analysis.covariances.covariance_file import LEAN_COLUMNS, CovarianceFile
from quantailor.analysis.importance.computing import ImatrixWork, compute_imatrix
from quantailor.analysis.importance.imatrix import Imatrix
from quantailor.control import QUIET, Control
from quantailor.errors import Paused
from quantailor.ggml.observing import Activation
from quantailor.ggml.runtime import LoadedModel
from quantailor.models.gguf_file import GGUFSource
from quantailor.models.gguf_writer import GGUFWriter, layout
from quantailor.models.opening import open_model
from quantailor.numerics import Doubles, Tokens
from quantailor.processes.crews import ModelFiles
from quantailor.records import TensorInfo

MODEL = "m" * 64
EMBEDDINGS = "token_embd.weight"
UP, GATE, DOWN = (f"blk.1.ffn_{role}.weight" for role in ("up", "gate", "down"))
UP_EXPERTS, DOWN_EXPERTS = (f"blk.1.ffn_{role}_exps.weight" for role in ("up", "down"))


@pytest.fixture(scope="module")
def tokens(books_llama_base: Path, calibration_text: Path) -> Tokens:
    return chunks(load_corpus(books_llama_base, calibration_text), 64, limit=3)


@pytest.fixture(scope="module")
def dense(books_llama_base: Path, tokens: Tokens, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Imatrix]:
    place = tmp_path_factory.mktemp("dense") / "covariances.gguf"
    return place, compute(books_llama_base, tokens, place)


@pytest.fixture(scope="module")
def experts(books_moe_base: Path, tokens: Tokens, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Imatrix]:
    place = tmp_path_factory.mktemp("experts") / "covariances.gguf"
    return place, compute(books_moe_base, tokens, place)


def compute(base: Path, tokens: Tokens, place: Path, control: Control = QUIET, **options: Any) -> Imatrix:
    given: dict[str, Any] = {"n_threads": 1, "dataset": "calibration.txt", **options}
    return compute_calibration(Calibration(base, MODEL, place, **given), tokens, control=control)


def info(base: Path, name: str) -> TensorInfo:
    with closing(open_model(base)) as source:
        return source.tensor(name)


class Inputs:
    """X^T X and counts of some tensors, by their definition: a token at a time."""

    def __init__(self, *names: str) -> None:
        self.sums: dict[tuple[str, int], Doubles] = {}
        self.counts: dict[tuple[str, int], int] = {}
        self._names = names

    def see(self, activation: Activation) -> None:
        if activation.name not in self._names:
            return
        x = activation.x.astype(np.float64)
        for token in range(len(x)):
            slices = [0] if activation.slice_ids is None else activation.slice_ids[token].tolist()
            for used, index in enumerate(slices):
                row, key = x[token, used % x.shape[1]], (activation.name, index)
                self.sums[key] = self.sums.get(key, 0) + np.outer(row, row)
                self.counts[key] = self.counts.get(key, 0) + 1


def inputs_of(base: Path, tokens: Tokens, *names: str) -> Inputs:
    inputs = Inputs(*names)
    with LoadedModel(base, n_ctx=tokens.shape[1], n_threads=1, capture=inputs.see) as model:
        for chunk in tokens:
            model.decode(chunk)
    return inputs


def test_covariances_of_a_dense_model_are_the_products_of_its_inputs(
    books_llama_base: Path, tokens: Tokens, dense: tuple[Path, Imatrix]
) -> None:
    inputs = inputs_of(books_llama_base, tokens, UP, DOWN, "output.weight")
    with CovarianceFile(dense[0]) as file:
        for (name, _), products in inputs.sums.items():
            found = file.of(info(books_llama_base, name))
            assert found is not None
            expected = products / tokens.size
            scale = np.sqrt(np.diagonal(expected))
            assert found.n_tokens == tokens.size
            assert np.array_equal(found.matrix, found.matrix.T)
            np.testing.assert_allclose(found.matrix / np.outer(scale, scale), expected / np.outer(scale, scale), atol=3e-4)


def test_covariances_of_experts_lean_on_all_of_their_layer(books_moe_base: Path, tokens: Tokens, experts: tuple[Path, Imatrix]) -> None:
    inputs = inputs_of(books_moe_base, tokens, UP_EXPERTS, DOWN_EXPERTS)
    with CovarianceFile(experts[0]) as file:
        for name in (UP_EXPERTS, DOWN_EXPERTS):
            tensor = info(books_moe_base, name)
            routed = [(name, index) for index in range(8) if (name, index) in inputs.sums]
            common = np.sum([inputs.sums[key] for key in routed], axis=0) / sum(inputs.counts[key] for key in routed)
            lean = LEAN_COLUMNS * tensor.n_cols
            for index in range(8):
                found = file.of(tensor, index)
                assert found is not None
                count = inputs.counts.get((name, index), 0)
                expected = (inputs.sums.get((name, index), 0) + lean * common) / (count + lean)
                scale = np.sqrt(np.diagonal(expected))
                assert found.n_tokens == min(round(count + lean), tokens.size * (1 if name == UP_EXPERTS else 2))
                np.testing.assert_allclose(found.matrix / np.outer(scale, scale), expected / np.outer(scale, scale), atol=4e-4)


def test_the_diagonal_is_the_importance_matrix(books_llama_base: Path, dense: tuple[Path, Imatrix]) -> None:
    place, imatrix = dense
    with CovarianceFile(place) as file:
        for name, entry in {**imatrix.entries, **imatrix.error_only}.items():
            found = file.of(info(books_llama_base, name))
            assert found is not None
            np.testing.assert_allclose(np.diagonal(found.matrix), entry.sum2[0] / entry.counts[0], rtol=1e-6)


def test_the_importance_matrix_is_that_of_imatrix(books_moe_base: Path, tokens: Tokens, experts: tuple[Path, Imatrix]) -> None:
    plain = compute_imatrix(ImatrixWork(ModelFiles(books_moe_base), tokens, 1), dataset="calibration.txt")
    assert experts[1].fingerprint == plain.fingerprint
    assert experts[1].datasets == plain.datasets


def test_matrices_that_share_an_input_share_its_covariance(books_llama_base: Path, dense: tuple[Path, Imatrix]) -> None:
    with CovarianceFile(dense[0]) as file:
        keys = {name: file.key_of(info(books_llama_base, name)) for name in (UP, GATE, DOWN, "output.weight", EMBEDDINGS)}
    assert keys[UP] == keys[GATE] != keys[DOWN] != keys["output.weight"]
    assert None not in (keys[UP], keys[DOWN], keys["output.weight"])
    assert keys[EMBEDDINGS] == EMBEDDINGS


def readers_metric(base: Path, shares: dict[str, Doubles], gains: dict[str, str]) -> Doubles:
    """sum diag(g) W^T W diag(g) over the first layer's readers, each slice times its share, and 0.3 of the mean diagonal beside."""
    total: Doubles = np.zeros(())
    with closing(open_model(base)) as source:
        for name, parts in shares.items():
            gain = source.rows(f"blk.0.{gains[name]}.weight", 0, 1)[0].astype(np.float64)
            tensor = source.tensor(name)
            slices = source.rows(name, 0, tensor.n_rows).astype(np.float64).reshape(len(parts), -1, tensor.n_cols) * gain
            total = total + np.einsum("s,sij,sik->jk", parts, slices, slices, optimize=True)
    damped: Doubles = total + 0.3 * np.diagonal(total).mean() * np.eye(len(total))
    return damped


def test_embeddings_have_the_metric_of_the_matrices_that_read_them(books_llama_base: Path, dense: tuple[Path, Imatrix]) -> None:
    gains = {f"blk.0.attn_{role}.weight": "attn_norm" for role in "qkv"}
    gains |= {f"blk.0.ffn_{role}.weight": "ffn_norm" for role in ("gate", "up")}
    expected = readers_metric(books_llama_base, {name: np.ones(1) for name in gains}, gains)
    with CovarianceFile(dense[0]) as file:
        found = file.of(info(books_llama_base, EMBEDDINGS))
    assert found is not None
    np.testing.assert_allclose(found.matrix, expected, atol=3e-4 * np.diagonal(expected).max())
    assert found.n_tokens == sum(info(books_llama_base, name).n_rows for name in gains)


def test_experts_read_embeddings_as_often_as_tokens_reach_them(books_moe_base: Path, experts: tuple[Path, Imatrix]) -> None:
    gains = {f"blk.0.attn_{role}.weight": "attn_norm" for role in "qkv"}
    gains |= {f"blk.0.ffn_{role}_exps.weight": "ffn_norm" for role in ("gate", "up")}
    shares = {name: experts[1].entries[name].counts / (3 * 64) for name in gains}
    assert {len(parts) for parts in shares.values()} == {1, 8}
    expected = readers_metric(books_moe_base, shares, gains)
    with CovarianceFile(experts[0]) as file:
        found = file.of(info(books_moe_base, EMBEDDINGS))
    assert found is not None
    np.testing.assert_allclose(found.matrix, expected, atol=3e-4 * np.diagonal(expected).max())


@pytest.fixture
def tied_base(books_llama_base: Path, tmp_path: Path) -> Path:
    """Without its own output, so that llama.cpp takes the embeddings."""
    with closing(GGUFSource(books_llama_base)) as source:
        tensors = [tensor for tensor in source.tensors if tensor.name != "output.weight"]
        with GGUFWriter(tmp_path / "tied.gguf", layout(source.metadata, tensors)) as writer:
            for tensor in tensors:
                writer.write(source.raw_rows(tensor.name, 0, tensor.n_rows))
    return tmp_path / "tied.gguf"


@pytest.mark.parametrize("has_readers", [True, False])
def test_tied_embeddings_are_the_output_and_are_looked_up(
    books_llama_base: Path, tied_base: Path, tokens: Tokens, dense: tuple[Path, Imatrix], tmp_path: Path, *, has_readers: bool
) -> None:
    compute(tied_base, tokens, tmp_path / "covariances.gguf", names=None if has_readers else frozenset([EMBEDDINGS]))
    with closing(open_model(tied_base)) as source:
        embeddings = source.rows(EMBEDDINGS, 0, source.tensor(EMBEDDINGS).n_rows).astype(np.float64)
    with CovarianceFile(dense[0]) as file:  # the output's input does not depend on the output
        output = file.of(info(books_llama_base, "output.weight"))
        looked_up = file.of(info(tied_base, EMBEDDINGS))
    with CovarianceFile(tmp_path / "covariances.gguf") as file:
        found = file.of(info(tied_base, EMBEDDINGS))
    assert output is not None
    assert looked_up is not None
    assert found is not None
    assert found.n_tokens == tokens.size

    def energy(metric: Doubles) -> float:
        return float(np.einsum("ij,jk,ik->", embeddings, metric, embeddings, optimize=True))

    product, stream = output.matrix.astype(np.float64), looked_up.matrix.astype(np.float64) if has_readers else np.eye(len(output.matrix))
    expected = product + 0.25 * energy(product) / energy(stream) * stream
    scale = np.sqrt(np.diagonal(expected))
    np.testing.assert_allclose(found.matrix / np.outer(scale, scale), expected / np.outer(scale, scale), atol=2e-3)


def test_long_chunks_run_in_several_graphs(small_base: Path, calibration_text: Path, tmp_path: Path) -> None:
    long = chunks(load_corpus(small_base, calibration_text), 1024, limit=1)
    for n_ctx in (512, 1024):
        compute(small_base, long.reshape(-1, n_ctx), tmp_path / f"{n_ctx}.gguf", names=frozenset(["blk.0.attn_q.weight"]), budget_bytes=1)
    first = info(small_base, "blk.0.attn_q.weight")  # its input depends on the token alone
    with CovarianceFile(tmp_path / "512.gguf") as one, CovarianceFile(tmp_path / "1024.gguf") as two:
        short, whole = one.of(first), two.of(first)
    assert short is not None
    assert whole is not None
    assert np.array_equal(short.matrix, whole.matrix)


def test_only_wanted_tensors_have_covariances(books_llama_base: Path, tokens: Tokens, tmp_path: Path) -> None:
    compute(books_llama_base, tokens[:1], tmp_path / "few.gguf", names=frozenset([UP]))
    with CovarianceFile(tmp_path / "few.gguf") as file:
        assert [file.key_of(info(books_llama_base, name)) for name in (UP, GATE, DOWN)] == [UP, None, None]


class StopAfter:
    """Asks to pause once so many chunks are done."""

    def __init__(self, n_chunks: int) -> None:
        self.n_chunks, self.done = n_chunks, 0.0

    def check(self) -> None:
        if self.done >= self.n_chunks:
            raise Paused("paused")

    def advance(self, done: float, total: float, message: str = "") -> None:
        self.done = done


@pytest.mark.parametrize(
    "options",
    [{"budget_bytes": 5 << 20}, {"n_threads": 2}, {"n_together": 3}, {"n_together": 2, "budget_bytes": 5 << 20}],
    ids=["in turns", "two threads", "side by side", "side by side, in turns"],
)
def test_turns_threads_and_chunks_side_by_side_change_no_byte(
    options: dict[str, Any], books_moe_base: Path, tokens: Tokens, experts: tuple[Path, Imatrix], tmp_path: Path
) -> None:
    place, imatrix = experts
    again = compute(books_moe_base, tokens, tmp_path / "again.gguf", **options)
    assert again.fingerprint == imatrix.fingerprint
    assert (tmp_path / "again.gguf").read_bytes() == place.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [1, 2, 4, 6])
def test_interrupted_and_resumed_is_uninterrupted(
    stop_after: int, books_moe_base: Path, tokens: Tokens, experts: tuple[Path, Imatrix], tmp_path: Path
) -> None:
    place, imatrix = experts
    output, control = tmp_path / "resumed.gguf", StopAfter(stop_after)
    with pytest.raises(Paused):
        compute(books_moe_base, tokens, output, budget_bytes=5 << 20, save_seconds=0.0, control=control)
    assert not output.exists()
    resumed = compute(books_moe_base, tokens, output, budget_bytes=5 << 20, save_seconds=0.0)
    assert resumed.fingerprint == imatrix.fingerprint
    assert output.read_bytes() == place.read_bytes()
    forget_run(output)
    assert [path.name for path in tmp_path.iterdir()] == ["resumed.gguf"]
