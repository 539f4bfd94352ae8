"""Fidelity against the base: llama-perplexity's figures, any order and any blocks, honest comparisons.

The golden figures are llama-perplexity's, from the same commit of llama.cpp as llama-cpp-python 0.3.36; the commands
are in the file.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from elsewhere import Elsewhere
from quantailor.analysis.corpus import chunks, load_corpus
from quantailor.analysis.scores.fidelity import BASE, NULL_CHUNKS, NULL_CONTROL, FidelityWork, compare, score, score_chunks, statistics_of
from quantailor.control import QUIET, Control, NullControl
from quantailor.errors import InferenceError, Paused
from quantailor.ggml.reference import quantize_reference
from quantailor.numerics import Tokens
from quantailor.processes.crews import HERE, Executor, ModelFiles
from quantailor.records import ChunkScore

GOLDEN = Path(__file__).parent.parent / "golden" / "perplexity-books-llama.json"
Scores = dict[str, dict[int, ChunkScore]]


@pytest.mark.slow
def test_figures_are_those_of_llama_perplexity(books_llama_base: Path, tmp_path: Path, heldout_text: Path) -> None:
    q4_k_m = quantize_reference(books_llama_base, tmp_path / "Q4_K_M.gguf", preset="Q4_K_M")
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    tokens = chunks(load_corpus(books_llama_base, heldout_text), golden["n_ctx"], limit=golden["n_chunks"])
    scores = collect(books_llama_base, {"ours": q4_k_m}, tokens)
    base = statistics_of(list(scores[BASE].values()), list(scores[BASE].values()))
    found = statistics_of(list(scores["ours"].values()), list(scores[BASE].values()))
    assert base.perplexity.value == pytest.approx(golden["base_perplexity"], rel=5e-3)
    assert found.perplexity.value == pytest.approx(golden["perplexity"], rel=5e-3)
    assert found.ln_ppl_ratio.value == pytest.approx(golden["ln_ppl_ratio"], abs=1e-4)
    assert found.kld_mean.value == pytest.approx(golden["kld_mean"], rel=5e-3)
    assert found.kld_p99 == pytest.approx(golden["kld_p99"], rel=5e-3)
    assert found.kld_max == pytest.approx(golden["kld_max"], rel=5e-3)
    assert found.rms_dp.value == pytest.approx(golden["rms_dp"], rel=5e-3)
    assert found.top_agreement.value == pytest.approx(golden["top_agreement"], abs=1e-3)


def test_every_file_is_scored_on_every_chunk(books_llama_base: Path, quantized: Path, short_chunks: Tokens) -> None:
    scores = collect(books_llama_base, {"ours": quantized}, short_chunks)
    assert {label: sorted(chunk) for label, chunk in scores.items()} == {label: [0, 1, 2] for label in (BASE, NULL_CONTROL, "ours")}
    for index in range(3):
        base, ours = scores[BASE][index], scores["ours"][index]
        assert base.n_tokens == ours.n_tokens == len(ours.klds) == 31
        assert (base.kld_sum, base.top_agreement, base.klds) == (0, 31, ())
        assert 0 < ours.kld_sum == pytest.approx(sum(ours.klds))
        assert scores[NULL_CONTROL][index].kld_sum == pytest.approx(0, abs=1e-5)
        assert scores[NULL_CONTROL][index].nll_sum == base.nll_sum


def test_the_null_control_takes_the_first_chunks_alone(books_llama_base: Path, quantized: Path, heldout_text: Path) -> None:
    tokens = chunks(load_corpus(books_llama_base, heldout_text), 32, limit=NULL_CHUNKS + 2)
    scores = collect(books_llama_base, {"ours": quantized}, tokens)
    assert len(scores[BASE]) == len(scores["ours"]) == NULL_CHUNKS + 2
    assert sorted(scores[NULL_CONTROL]) == list(range(NULL_CHUNKS))
    assert collect(books_llama_base, {"ours": quantized}, tokens, done=scores) == {}


@pytest.mark.slow
def test_blocks_and_resumption_do_not_change_a_score(books_llama_base: Path, quantized: Path, short_chunks: Tokens) -> None:
    whole = collect(books_llama_base, {"ours": quantized}, short_chunks)
    assert collect(books_llama_base, {"ours": quantized}, short_chunks, block_bytes=1) == whole

    stored: Scores = defaultdict(dict)
    with pytest.raises(Paused):
        collect(books_llama_base, {"ours": quantized}, short_chunks, block_bytes=1, control=StopAfter(4), into=stored)
    assert sum(map(len, stored.values())) == 4
    resumed = collect(books_llama_base, {"ours": quantized}, short_chunks, done=stored)
    assert sum(map(len, resumed.values())) == 5
    for label, found in resumed.items():
        stored[label].update(found)
    assert stored == whole


def test_chunks_that_are_scored_elsewhere_in_any_order_score_the_same(small_base: Path, heldout_text: Path, tmp_path: Path) -> None:
    file = quantize_reference(small_base, tmp_path / "Q4_0.gguf", preset="Q4_0")
    tokens = chunks(load_corpus(small_base, heldout_text), 32, limit=6)
    work = FidelityWork(ModelFiles(small_base), {"ours": ModelFiles(file)}, tokens, n_threads=1, block_bytes=900_000)
    assert 1 < work.n_held(1 + int(tokens.max())) < 6
    elsewhere = Elsewhere()
    here, there = (dict(score_chunks_by_task(work, executor)) for executor in (HERE, elsewhere))
    assert here == there
    assert len(here) == len(elsewhere.done) == 18


def test_what_is_held_in_files_scores_the_same(
    small_base: Path, heldout_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = quantize_reference(small_base, tmp_path / "Q4_0.gguf", preset="Q4_0")
    tokens = chunks(load_corpus(small_base, heldout_text), 32, limit=2)
    work = FidelityWork(ModelFiles(small_base), {"ours": ModelFiles(file)}, tokens, n_threads=1)
    found = []
    for n_bytes in (0, 1 << 30):
        monkeypatch.setattr("quantailor.analysis.scores.fidelity.IN_MEMORY_BYTES", n_bytes)
        with closing(work.bench()) as bench:
            found.append(list(bench.do([(label, index) for label in (BASE, "ours") for index in (0, 1)], control=QUIET)))
    assert found[0] == found[1]
    assert all(score.kld_sum > 0 for label, score in found[0] if label == "ours")


def test_what_is_done_needs_no_model(tmp_path: Path, short_chunks: Tokens) -> None:
    done = dict.fromkeys((BASE, NULL_CONTROL, "ours"), range(3))
    gone = ModelFiles(tmp_path / "gone")
    assert not list(score_chunks(FidelityWork(gone, {"ours": gone}, short_chunks), done=done))


def test_labels_of_the_base_are_taken(books_llama_base: Path, short_chunks: Tokens) -> None:
    for label in (BASE, NULL_CONTROL):
        with pytest.raises(InferenceError, match="no file can be called"):
            next(score_chunks(FidelityWork(ModelFiles(books_llama_base), {label: ModelFiles(books_llama_base)}, short_chunks)))


def test_a_file_that_is_no_model(books_llama_base: Path, short_chunks: Tokens, tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(InferenceError, match=r"cannot load .*broken\.gguf"):
        list(score_chunks(FidelityWork(ModelFiles(books_llama_base), {"ours": ModelFiles(path)}, short_chunks, n_threads=1)))


# Statistics on plain figures


def test_a_chunks_sums() -> None:
    base = np.log(np.array([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]], dtype=np.float32))
    model = np.log(np.array([[0.25, 0.5, 0.25], [0.7, 0.2, 0.1]], dtype=np.float32))
    found = score(7, base, [model[:1], model[1:]], np.array([0, 0], dtype=np.int32))
    klds = [0.5 * np.log(2) - 0.25 * np.log(2), 0.8 * np.log(8 / 7) - 0.1 * np.log(2)]
    assert (found.index, found.n_tokens, found.top_agreement) == (7, 2, 1)
    assert found.nll_sum == pytest.approx(-np.log(0.25) - np.log(0.7))
    assert found.klds == pytest.approx(klds, rel=1e-5)
    assert found.kld_sum == pytest.approx(sum(klds), rel=1e-5)
    assert found.dp_square_sum == pytest.approx(0.25**2 + 0.1**2, rel=1e-5)


def test_statistics_pair_chunks_by_number() -> None:
    base = [chunk(index, nll=100 + index) for index in (2, 0, 1)]
    ours = [chunk(index, nll=101 + index, kld=1 + index) for index in (0, 1, 2, 9)]
    found = statistics_of(ours, base)
    assert (found.n_chunks, found.n_tokens) == (3, 30)
    assert found.ln_ppl_ratio.value == pytest.approx(0.1)
    assert found.ln_ppl_ratio.se == pytest.approx(0)
    assert found.perplexity.value == pytest.approx(np.exp(10.2))
    assert found.perplexity.se == pytest.approx(np.exp(10.2) * 0.1 / np.sqrt(3))
    assert found.kld_mean.value == pytest.approx(0.2)
    assert found.kld_mean.se == pytest.approx(0.1 / np.sqrt(3))
    assert (found.kld_median, found.kld_max) == pytest.approx((0.2, 0.3))


def test_scores_without_a_common_chunk() -> None:
    with pytest.raises(InferenceError, match="no scored chunks"):
        statistics_of([chunk(0)], [chunk(1)])
    with pytest.raises(InferenceError, match="no scored chunks"):
        compare([], [chunk(1)], reference="Q4_K_M", size_ratio=1)


@pytest.mark.parametrize(("factor", "outcome"), [(0.8, "better"), (1.0, "no better"), (1.25, "worse")])
def test_a_comparison_says_only_what_the_interval_allows(factor: float, outcome: str) -> None:
    rng = np.random.default_rng(5)
    difficulty = rng.gamma(4, size=200)
    ours = [
        chunk(index, kld=float(factor * value * noise)) for index, (value, noise) in enumerate(zip(difficulty, noises(rng), strict=True))
    ]
    theirs = [chunk(index, kld=float(value * noise)) for index, (value, noise) in enumerate(zip(difficulty, noises(rng), strict=True))]
    found = compare(ours, theirs, reference="Q4_K_M", size_ratio=0.99)
    assert (found.reference, found.size_ratio, found.outcome) == ("Q4_K_M", 0.99, outcome)
    assert found.interval[0] < found.ln_kld_ratio < found.interval[1]
    assert found.interval[0] < np.log(factor) < found.interval[1]
    assert compare(ours, theirs, reference="Q4_K_M", size_ratio=0.99) == found


def test_a_file_equal_to_the_base_can_be_compared() -> None:
    same, other = [chunk(index) for index in range(5)], [chunk(index, kld=0.5) for index in range(5)]
    assert compare(same, same, reference="itself", size_ratio=1).outcome == "no better"
    found = compare(same, other, reference="Q8_0", size_ratio=1)
    assert found.outcome == "better"
    assert np.isfinite(found.ln_kld_ratio)


class StopAfter:
    """Asks to pause once so many chunks were scored."""

    def __init__(self, n_scores: int) -> None:
        self.n_scores = n_scores
        self.done = 0.0

    def check(self) -> None:
        if self.done >= self.n_scores:
            raise Paused("paused")

    def advance(self, done: float, total: float, message: str = "") -> None:
        assert total == 9
        self.done = done


def score_chunks_by_task(work: FidelityWork, executor: Executor) -> Iterator[tuple[tuple[str, int], ChunkScore]]:
    for label, found in score_chunks(work, executor=executor):
        yield (label, found.index), found


def noises(rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return rng.gamma(20, size=200) / 20


def chunk(index: int, *, nll: float = 100.0, kld: float = 0.0) -> ChunkScore:
    return ChunkScore(index, 10, nll, kld, 9, 0.1, (kld / 10,) * 10)


def collect(
    base: Path,
    candidates: dict[str, Path],
    tokens: Tokens,
    *,
    done: Scores | None = None,
    block_bytes: int = 2**29,
    control: Control | None = None,
    into: Scores | None = None,
) -> Scores:
    found: Scores = defaultdict(dict) if into is None else into
    control = control or NullControl()
    files = {label: ModelFiles(path) for label, path in candidates.items()}
    work = FidelityWork(ModelFiles(base), files, tokens, n_threads=1, block_bytes=block_bytes)
    for label, result in score_chunks(work, done=done, control=control):
        found[label][result.index] = result
    return found


@pytest.fixture(scope="module")
def quantized(books_llama_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dense model as llama.cpp's fastest preset."""
    return quantize_reference(books_llama_base, tmp_path_factory.mktemp("reference") / "Q4_0.gguf", preset="Q4_0")


@pytest.fixture(scope="module")
def short_chunks(books_llama_base: Path, heldout_text: Path) -> Tokens:
    """Three chunks of 64 tokens."""
    return chunks(load_corpus(books_llama_base, heldout_text), 64, limit=3)
