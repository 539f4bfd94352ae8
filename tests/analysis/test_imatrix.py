"""Importance matrices: equal to llama-imatrix's, resumable to the bit, and what others make of them.

The golden files are llama-imatrix's own, from the same commit of llama.cpp as llama-cpp-python 0.3.36:

    llama-imatrix -m books-llama.gguf -f tests/data/calibration.txt -c 512 -o imatrix-books-llama.gguf
    llama-imatrix -m books-moe.gguf -f tests/data/calibration.txt -c 512 -o imatrix-books-moe.gguf
    llama-imatrix -m books-llama.gguf -f tests/data/calibration.txt -c 512 --chunks 2 -o imatrix-books-llama-2-chunks.gguf
    llama-imatrix -m books-llama.gguf --in-file imatrix-books-llama-2-chunks.gguf --output-format dat -o imatrix-books-llama-2-chunks.dat

It ran with the libraries of a portable build (GGML_NATIVE=OFF), as `make` installs them. Kernels for other processors round
differently, by up to 0.2 % in single elements of two chunks; that is no difference between the two programs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantailor.analysis.corpus import chunks, load_corpus
from quantailor.analysis.importance.computing import ImatrixState, ImatrixWork, compute_imatrix
from quantailor.analysis.importance.imatrix import Imatrix, ImatrixEntry, error_weights, quantizer_importance
from quantailor.analysis.importance.imatrix_file import read_imatrix
from quantailor.analysis.importance.statistics import statistics
from quantailor.control import QUIET, Control
from quantailor.errors import ImatrixError, Paused
from quantailor.ggml.observing import Activation
from quantailor.models.gguf_file import GGUFSource
from quantailor.models.gguf_writer import GGUFWriter, layout
from quantailor.numerics import Tokens
from quantailor.processes.crews import HERE, Crew, Item, ModelFiles, Task, Work
from quantailor.records import TensorInfo

GOLDEN = Path(__file__).parent.parent / "golden"
ELEMENT_TOLERANCE = 5e-3
"""Room for another processor's kernels; with the same build single elements agree to 1e-3."""
MATRIX = TensorInfo("blk.0.ffn_up.weight", (6, 4), "F16", 48)
EXPERTS = TensorInfo("blk.0.ffn_up_exps.weight", (3, 6, 4), "F16", 144)
EMBEDDINGS = TensorInfo("token_embd.weight", (5, 4), "F16", 40)
OUTPUT = TensorInfo("output.weight", (5, 4), "F16", 40)


def work_on(base: Path, tokens: Tokens) -> ImatrixWork:
    return ImatrixWork(ModelFiles(base), tokens, 1)


def compute(base: Path, tokens: Tokens, *, process_output: bool = False) -> Imatrix:
    return compute_imatrix(work_on(base, tokens), process_output=process_output, dataset="calibration.txt")


def assert_same_as_llama_imatrix(ours: Imatrix, golden: Imatrix) -> None:
    assert list(ours.entries) == list(golden.entries)
    assert (ours.chunk_count, ours.chunk_size) == (golden.chunk_count, golden.chunk_size)
    for name, entry in golden.entries.items():
        assert ours.entries[name].counts.tolist() == entry.counts.tolist(), name
        ours_sum2 = ours.entries[name].sum2
        assert np.linalg.norm(ours_sum2 - entry.sum2) < 1e-3 * np.linalg.norm(entry.sum2), name
        np.testing.assert_allclose(ours_sum2, entry.sum2, rtol=ELEMENT_TOLERANCE, err_msg=name)


def test_two_chunks_as_llama_imatrix(books_llama_base: Path, calibration_text: Path) -> None:
    tokens = chunks(load_corpus(books_llama_base, calibration_text), 512, limit=2)
    assert_same_as_llama_imatrix(compute(books_llama_base, tokens), read_imatrix(GOLDEN / "imatrix-books-llama-2-chunks.gguf"))


@pytest.mark.slow
def test_a_mixture_of_experts_as_llama_imatrix(books_moe_base: Path, calibration_text: Path) -> None:
    tokens = chunks(load_corpus(books_moe_base, calibration_text), 512)
    assert_same_as_llama_imatrix(compute(books_moe_base, tokens), read_imatrix(GOLDEN / "imatrix-books-moe.gguf"))


def test_the_output_weighs_errors_and_only_on_request_the_quantizer(books_llama_base: Path, short_chunks: Tokens) -> None:
    quiet, asked = (compute(books_llama_base, short_chunks[:1], process_output=wish) for wish in (False, True))
    assert (list(quiet.error_only), "output.weight" in quiet.entries) == (["output.weight"], False)
    assert (list(asked.error_only), "output.weight" in asked.entries) == ([], True)
    assert np.array_equal(quiet.error_only["output.weight"].sum2, asked.entries["output.weight"].sum2)
    assert quiet.fingerprint != asked.fingerprint


def test_token_counts_are_those_of_the_chunks(books_llama_base: Path, short_chunks: Tokens) -> None:
    counts = compute(books_llama_base, short_chunks).token_counts
    assert counts is not None
    assert counts.tolist() == np.bincount(short_chunks.reshape(-1), minlength=counts.size).tolist()


def test_a_tied_output_weighs_the_errors_of_the_embeddings(books_llama_base: Path, short_chunks: Tokens, tmp_path: Path) -> None:
    found = compute(tied(books_llama_base, tmp_path / "tied.gguf"), short_chunks[:1])
    assert list(found.error_only) == ["token_embd.weight"]
    assert found.error_only["token_embd.weight"].counts.tolist() == [64]


def test_long_chunks_run_in_several_graphs(small_base: Path, calibration_text: Path) -> None:
    long = chunks(load_corpus(small_base, calibration_text), 1024, limit=1)
    one, two = compute(small_base, long), compute(small_base, long.reshape(2, 512))
    for name, entry in one.entries.items():
        assert entry.counts.tolist() == two.entries[name].counts.tolist() == [1024]
    first = "blk.0.attn_q.weight"  # its input depends on the token alone
    np.testing.assert_allclose(one.entries[first].sum2, two.entries[first].sum2, rtol=1e-6)


def test_chunks_that_run_side_by_side_change_no_bit(books_moe_base: Path, short_chunks: Tokens) -> None:
    alone, together = list[bytes](), list[bytes]()
    one = compute_imatrix(work_on(books_moe_base, short_chunks), on_chunk=lambda state: alone.append(state.to_bytes()))
    work = replace(work_on(books_moe_base, short_chunks), n_together=2)
    other = compute_imatrix(work, on_chunk=lambda state: together.append(state.to_bytes()))
    assert alone == together != []
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize("stop_after", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_interrupted_and_resumed_is_uninterrupted(books_moe_base: Path, short_chunks: Tokens, stop_after: int) -> None:
    whole: list[bytes] = []
    expected = compute_imatrix(work_on(books_moe_base, short_chunks), on_chunk=lambda state: whole.append(state.to_bytes()))

    saved: list[bytes] = []
    with pytest.raises(Paused):
        compute_imatrix(
            work_on(books_moe_base, short_chunks),
            on_chunk=lambda state: saved.append(state.to_bytes()),
            control=StopAfter(stop_after),
        )
    assert saved == whole[:stop_after]
    state = ImatrixState.from_bytes(saved[-1])
    resumed = compute_imatrix(work_on(books_moe_base, short_chunks), state=state, on_chunk=lambda state: saved.append(state.to_bytes()))
    assert saved == whole
    assert resumed.fingerprint == expected.fingerprint


def test_a_finished_state_needs_no_model(books_llama_base: Path, short_chunks: Tokens, tmp_path: Path) -> None:
    states: list[ImatrixState] = []
    found = compute_imatrix(work_on(books_llama_base, short_chunks), on_chunk=states.append)
    again = compute_imatrix(work_on(tmp_path / "gone.gguf", short_chunks), state=states[-1])
    assert again.fingerprint == found.fingerprint


def test_a_state_of_another_run_is_refused(books_llama_base: Path, short_chunks: Tokens) -> None:
    for state in (ImatrixState(chunk_size=512, process_output=False), ImatrixState(chunk_size=64, process_output=True)):
        with pytest.raises(ImatrixError, match="another run"):
            compute_imatrix(work_on(books_llama_base, short_chunks), state=state)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x93NUMPY" + bytes(100)])
def test_a_damaged_state_is_refused(data: bytes) -> None:
    with pytest.raises(ImatrixError, match="cannot be read"):
        ImatrixState.from_bytes(data)


def test_a_state_that_stopped_within_a_chunk_is_not_saved() -> None:
    state = ImatrixState(chunk_size=2, process_output=False)
    state.add(Activation("blk.0.attn_q.weight", np.ones((2, 1, 3), dtype=np.float32), None, 1, (1, 0)))
    with pytest.raises(ImatrixError, match="within a chunk"):
        state.to_bytes()
    state.finish_chunk(np.array([0, 1], dtype=np.int32), 4)
    assert state.to_bytes()


def test_experts_sum_what_was_routed_to_them() -> None:
    rng = np.random.default_rng(3)
    ids = np.array([[0, 2], [2, 3], [0, 3], [3, 2], [2, 0]], dtype=np.int32)  # expert 1 is never chosen
    for n_inputs in (1, 2):
        x = rng.standard_normal((5, n_inputs, 4)).astype(np.float32)
        expected, totals = np.zeros((4, 4)), np.zeros((4, 4))
        for token in range(5):
            for used in range(2):
                row = x[token, used % n_inputs].astype(np.float64)
                expected[ids[token, used]] += row**2
                totals[ids[token, used]] += row
        entry = entry_of(Activation("blk.0.ffn_up_exps.weight", x, ids, 4, (1, 2)))
        assert entry.counts.tolist() == [3, 0, 4, 3]
        np.testing.assert_allclose(entry.sum2, expected, rtol=1e-6)
        assert entry.sum is not None
        np.testing.assert_allclose(entry.sum, totals, rtol=1e-5, atol=1e-6)


def test_matrices_that_share_an_input_are_summed_alike() -> None:
    x = np.random.default_rng(4).standard_normal((7, 1, 3)).astype(np.float32)
    state = ImatrixState(chunk_size=7, process_output=False)
    for _ in range(2):
        for role in ("attn_q", "attn_k"):
            state.add(Activation(f"blk.0.{role}.weight", x, None, 1, (11, 0)))
        state.finish_chunk(np.zeros(7, dtype=np.int32), 4)
    found = state.result("").entries
    for entry in found.values():
        np.testing.assert_allclose(entry.sum2[0], 2 * (x[:, 0].astype(np.float64) ** 2).sum(axis=0), rtol=1e-6)
        assert entry.counts.tolist() == [14]


def test_inputs_that_are_not_finite_name_the_tensor() -> None:
    x = np.full((2, 1, 3), np.nan, dtype=np.float32)
    with pytest.raises(ImatrixError, match=r"blk\.7\.attn_q\.weight are NaN"):
        entry_of(Activation("blk.7.attn_q.weight", x, None, 1, (1, 0)))


# What others make of it


def test_quantizer_importance_is_the_mean_square() -> None:
    imatrix = Imatrix({MATRIX.name: entry([[2, 4, 6, 8]], [2])})
    found = quantizer_importance(imatrix, MATRIX)
    assert found is not None
    assert found.dtype == np.float32
    assert found.tolist() == [[1, 2, 3, 4]]
    assert quantizer_importance(imatrix, OUTPUT) is None


def test_unseen_experts_get_ones_and_are_counted() -> None:
    imatrix = Imatrix({EXPERTS.name: entry([[2, 2, 4, 4], [0, 0, 0, 0], [3, 3, 3, 3]], [2, 0, 6], sums=[[2, 0, 0, 0], [0] * 4, [6] * 4])})
    weights = error_weights(imatrix, EXPERTS)
    assert weights.columns is not None
    assert weights.columns.tolist() == [[1, 1, 2, 2], [1, 1, 1, 1], [0.5] * 4]
    assert weights.quantizer is not None
    assert weights.quantizer.tolist() == weights.columns.tolist()
    assert weights.means is not None
    assert weights.means.tolist() == [[1, 0, 0, 0], [0] * 4, [1] * 4]
    assert weights.slice_shares is not None
    assert weights.slice_shares.tolist() == [0.25, 0, 0.75]
    assert weights.n_unseen_slices == 1


def test_one_count_may_stand_for_all_experts() -> None:
    flat = Imatrix({EXPERTS.name: entry([list(range(2, 26, 2))], [2])})
    weights = error_weights(flat, EXPERTS)
    assert weights.columns is not None
    assert weights.columns.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    assert weights.slice_shares is None


def test_token_embeddings_count_by_frequency_plus_one() -> None:
    imatrix = Imatrix({MATRIX.name: entry([[1] * 4], [1])}, token_counts=np.array([0, 3, 1, 0, 9]))
    weights = error_weights(imatrix, EMBEDDINGS)
    assert weights.row_weights is not None
    assert weights.row_weights.tolist() == [1, 4, 2, 1, 10]
    assert weights.quantizer is None
    assert weights.columns is None
    with pytest.raises(ImatrixError, match="counts 5 tokens"):
        error_weights(imatrix, replace(EMBEDDINGS, shape=(6, 4)))


@pytest.mark.parametrize("tensor", [EMBEDDINGS, OUTPUT], ids=["tied embeddings", "output"])
def test_the_output_weighs_errors_but_not_the_quantizer(tensor: TensorInfo) -> None:
    imatrix = Imatrix({MATRIX.name: entry([[1] * 4], [1])}, {tensor.name: entry([[2, 4, 6, 8]], [2])}, np.zeros(5, dtype=np.int64))
    weights = error_weights(imatrix, tensor)
    assert weights.columns is not None
    assert weights.columns.tolist() == [[1, 2, 3, 4]]
    assert weights.quantizer is None
    assert weights.row_weights is None
    assert quantizer_importance(imatrix, tensor) is None


def test_without_a_matrix_nothing_is_weighted() -> None:
    for weights in (error_weights(None, MATRIX), error_weights(Imatrix({}), MATRIX)):
        assert weights.columns is None
        assert weights.row_weights is None
        assert weights.quantizer is None


def test_a_wrong_length_names_the_tensor() -> None:
    imatrix = Imatrix({name: entry([[1, 2, 3]], [1]) for name in (MATRIX.name, EMBEDDINGS.name)})
    with pytest.raises(ImatrixError, match=r"3 values for blk\.0\.ffn_up\.weight, which needs 4"):
        quantizer_importance(imatrix, MATRIX)
    with pytest.raises(ImatrixError, match="which needs 4"):
        error_weights(imatrix, MATRIX)
    assert quantizer_importance(imatrix, EMBEDDINGS) is None  # as llama-quantize, which ignores it there


def test_importances_too_large_for_the_quantizer_are_refused() -> None:
    with pytest.raises(ImatrixError, match="has the value"):
        quantizer_importance(Imatrix({MATRIX.name: entry([[1e30] * 4], [1])}), MATRIX)


def test_the_fingerprint_covers_figures_not_names() -> None:
    imatrix = Imatrix({MATRIX.name: entry([[1, 2, 3, 4]], [1])}, datasets=("a.txt",), chunk_count=1, chunk_size=512)
    assert replace(imatrix, datasets=("b.txt",)).fingerprint == imatrix.fingerprint
    others = [
        replace(imatrix, chunk_count=2),
        replace(imatrix, entries={}, error_only=imatrix.entries),
        replace(imatrix, entries={MATRIX.name: entry([[1, 2, 3, 5]], [1])}),
        replace(imatrix, entries={MATRIX.name: entry([[1, 2, 3, 4]], [1], sums=[[0] * 4])}),
        replace(imatrix, token_counts=np.zeros(4, dtype=np.int64)),
    ]
    assert len({other.fingerprint for other in (imatrix, *others)}) == 6


# Statistics


def test_statistics_are_those_of_llama_imatrix() -> None:
    golden = json.loads((GOLDEN / "imatrix-statistics.json").read_text(encoding="utf-8"))
    found = {item.tensor: item for item in statistics(read_imatrix(GOLDEN / "imatrix-books-llama-2-chunks.gguf"))}
    assert len(found) == len(golden["rows"]) == 56
    for tensor, *row in golden["rows"]:
        item = found[tensor]
        ours = (
            *(item.sum_of_squares, item.minimum, item.maximum, item.mean, item.standard_deviation, 100 * item.active_share, item.n_values),
            *(item.entropy_bits, 100 * item.normalized_entropy, 100 * item.zd_share, item.cosine or 0.0),
        )
        assert ours == pytest.approx(row, abs=0.0051, rel=1e-4), tensor


def test_statistics_leave_unseen_experts_out() -> None:
    imatrix = Imatrix(
        {
            "blk.0.ffn_up_exps.weight": entry([[1, 1], [0, 0]], [1, 0]),
            "blk.1.ffn_up_exps.weight": entry([[3, 1], [3, 1]], [1, 1]),
            "blk.2.ffn_up_exps.weight": entry([[0, 0], [0, 0]], [0, 0]),
        }
    )
    first, second = statistics(imatrix)
    assert (first.sum_of_squares, first.n_values, first.normalized_entropy, first.zd_share) == (2, 2, 1, 0)
    assert (first.n_experts, first.n_unseen_experts, first.cosine) == (2, 1, None)
    assert second.cosine == pytest.approx(4 / np.sqrt(2 * 20))


class StopAfter:
    """Asks to pause once so many chunks are done."""

    def __init__(self, n_chunks: int) -> None:
        self.n_chunks = n_chunks
        self.done = 0.0

    def check(self) -> None:
        if self.done >= self.n_chunks:
            raise Paused("paused")

    def advance(self, done: float, total: float, message: str = "") -> None:
        self.done = done


def entry(sum2: list[list[float]], counts: list[int], *, sums: list[list[float]] | None = None) -> ImatrixEntry:
    return ImatrixEntry(
        np.array(sum2, dtype=np.float32), np.array(counts, dtype=np.int64), None if sums is None else np.array(sums, dtype=np.float32)
    )


def tied(base: Path, path: Path) -> Path:
    """The same model with its token embeddings as output matrix."""
    source = GGUFSource(base)
    tensors = [tensor for tensor in source.tensors if tensor.name != "output.weight"]
    with GGUFWriter(path, layout(source.metadata, tensors)) as writer:
        for tensor in tensors:
            writer.write(source.raw_rows(tensor.name, 0, tensor.n_rows))
    source.close()
    return path


def entry_of(activation: Activation) -> ImatrixEntry:
    state = ImatrixState(chunk_size=len(activation.x), process_output=False)
    state.add(activation)
    return state.result("").entries[activation.name]


@pytest.fixture(scope="module")
def short_chunks(books_llama_base: Path, calibration_text: Path) -> Tokens:
    """Three chunks of 64 tokens, for both models: they share a vocabulary."""
    return chunks(load_corpus(books_llama_base, calibration_text), 64, limit=3)


class Backwards:
    """An executor whose crew gives the last items first, as workers of a cluster may."""

    @contextmanager
    def on(self, work: Work[Task, Item]) -> Iterator[Crew[Task, Item]]:
        with HERE.on(work) as crew:
            yield _BackwardsCrew(crew)


class _BackwardsCrew(Crew[Task, Item]):
    def __init__(self, crew: Crew[Task, Item]) -> None:
        self._crew, self.facts = crew, crew.facts

    def do(self, tasks: Sequence[Task], *, control: Control = QUIET) -> Iterator[Item]:
        return iter(list(self._crew.do(tasks, control=control))[::-1])


def test_the_order_in_which_chunks_are_run_changes_no_bit(books_moe_base: Path, short_chunks: Tokens) -> None:
    states: list[bytes] = []
    for executor in (HERE, Backwards()):
        compute_imatrix(work_on(books_moe_base, short_chunks), on_chunk=lambda state: states.append(state.to_bytes()), executor=executor)
    assert states[: len(short_chunks)] == states[len(short_chunks) :]
