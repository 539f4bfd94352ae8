"""The base's log-probabilities in 16 bits on disk: scores as exact as those from memory, resumed, and refused when damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.in_memory import MemorySource
from large_vocabulary import FAMILIES, HIDDEN, write_model
from large_vocabulary import N_VOCAB as LARGE_VOCAB
from scipy import special

from quantailor import numerics
from quantailor.analysis.scores import fidelity
from quantailor.analysis.scores.base_logp import LARGE_BYTES, BaseChunk, BaseLogp
from quantailor.analysis.scores.output_stage import OutputStage
from quantailor.control import NullControl
from quantailor.errors import InferenceError, Paused
from quantailor.ggml.runtime import LoadedModel
from quantailor.models.opening import open_model
from quantailor.numerics import Floats, Tokens
from quantailor.records import ChunkScore

N_CTX, N_VOCAB, N_SCORED = 64, 2000, 31


class FakeModel:
    """Logits that depend on the tokens alone, `apart` from those of the base; remembers what it was asked."""

    n_threads = 1

    def __init__(self, apart: float = 0.0) -> None:
        self.apart = apart
        self.asked: list[Tokens] = []

    def logits(self, tokens: Tokens, *, first: int = 0, view: bool = False) -> Floats:
        self.asked.append(tokens)
        rng = np.random.default_rng(tokens.astype(np.uint32))
        base, noise = rng.standard_normal((2, len(tokens), N_VOCAB))
        found: Floats = (3 * base + self.apart * noise).astype(np.float32)[first:]
        return found

    def logit_parts(self, tokens: Tokens, *, first: int = 0) -> Iterator[Floats]:
        yield from np.array_split(self.logits(tokens, first=first), 3)

    @property
    def n_vocab(self) -> int:
        return N_VOCAB


class PauseAfter(NullControl):
    """Pauses when so many chunks are done."""

    def __init__(self, n_chunks: int) -> None:
        self.n_chunks, self.seen = n_chunks, list[tuple[float, float]]()

    def check(self) -> None:
        if len(self.seen) >= self.n_chunks:
            raise Paused("paused")

    def advance(self, done: float, total: float, message: str = "") -> None:
        self.seen.append((done, total))


def of(index: int, tokens: Tokens, logits: Floats) -> BaseChunk:
    """What a base with these logits, (n_tokens / 2, n_vocab), says of a chunk."""
    return BaseChunk.of(index, tokens[33:], logits.shape[1], [logits])


# Scores


@pytest.mark.parametrize("apart", [0.0, 0.01, 0.3, 2.0])
def test_a_score_is_that_of_exact_log_probabilities(tokens: Tokens, apart: float) -> None:
    base, logits = FakeModel().logits(tokens, first=32), FakeModel(apart).logits(tokens, first=32)
    found = of(3, tokens, base).score([logits])
    expected = fidelity.score(3, numerics.log_softmax(base[:-1]), [logits], tokens[33:])
    assert (found.index, found.n_tokens, found.klds) == (3, N_SCORED, ())
    assert found.top_agreement == expected.top_agreement
    assert found.nll_sum == pytest.approx(expected.nll_sum, rel=1e-6)
    assert found.dp_square_sum == pytest.approx(expected.dp_square_sum, rel=1e-4, abs=1e-9)
    assert found.kld_sum / N_SCORED == pytest.approx(expected.kld_sum / N_SCORED, rel=1e-5, abs=1e-6)


def test_the_bases_own_score_is_its_perplexity(tokens: Tokens) -> None:
    logits = FakeModel().logits(tokens, first=32)
    found = of(3, tokens, logits).base_score
    exact = special.log_softmax(logits.astype(np.float64), axis=1)[np.arange(N_SCORED), tokens[33:]]
    assert found == ChunkScore(3, N_SCORED, found.nll_sum, kld_sum=0.0, top_agreement=N_SCORED, dp_square_sum=0.0)
    assert found.nll_sum == pytest.approx(-exact.sum(), rel=1e-6)


def test_the_last_position_has_no_target_and_does_not_count(tokens: Tokens) -> None:
    chunk, logits = of(0, tokens, FakeModel().logits(tokens, first=32)), FakeModel(0.3).logits(tokens, first=32)
    shorter, changed = chunk.score([logits[:-1]]), logits.copy()
    changed[-1] = 0
    assert chunk.score([logits]) == chunk.score([changed]) == chunk.score([logits[:7], logits[7:30], logits[30:]]) == shorter


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_model_that_gives_no_numbers_is_refused(tokens: Tokens, broken: float) -> None:
    base = FakeModel().logits(tokens, first=32)
    logits = base.copy()
    logits[5, 17] = broken
    with pytest.raises(InferenceError, match="NaN or Inf"):
        of(0, tokens, base).score([logits])


def test_a_model_with_another_vocabulary_is_refused(tokens: Tokens) -> None:
    base = FakeModel().logits(tokens, first=32)
    with pytest.raises(InferenceError, match=r"has 1990 tokens, the base has 2000.*the same model"):
        of(0, tokens, base).score([base[:, :1990]])


# Files


def test_a_chunk_comes_back_as_it_was(chunks: Tokens, tmp_path: Path) -> None:
    kept, logits = BaseLogp(tmp_path / "new", chunks), FakeModel(0.3).logits(chunks[2], first=32)
    kept.compute(model(), [2])
    found, fresh = kept.chunk(2), of(2, chunks[2], FakeModel().logits(chunks[2], first=32))
    assert found.score([logits]) == fresh.score([logits])
    assert found.base_score == fresh.base_score


def test_codes_stay_on_disk_until_they_are_used(chunks: Tokens, tmp_path: Path) -> None:
    kept = BaseLogp(tmp_path, chunks)
    kept.compute(model(), [0])
    codes = kept.chunk(0).codes
    assert isinstance(codes, np.memmap)
    assert codes.shape == (N_SCORED, N_VOCAB)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2 * N_SCORED * (N_VOCAB + 50)


def test_a_run_goes_on_with_the_chunk_that_is_missing(chunks: Tokens, tmp_path: Path) -> None:
    kept, control, fake = BaseLogp(tmp_path, chunks), PauseAfter(2), FakeModel()
    with pytest.raises(Paused):
        kept.compute(model(fake), [4, 0, 2, 1], control=control)
    assert control.seen == [(1, 4), (2, 4)]
    assert kept.missing(range(5)) == [1, 2, 3]

    again, rest = BaseLogp(tmp_path, chunks), FakeModel()
    again.compute(model(rest), [4, 0, 2, 1])
    assert [tokens.tolist() for tokens in rest.asked] == chunks[[2, 1]].tolist()
    assert again.missing([4, 0, 2, 1]) == []
    again.compute(model(rest), [4, 0, 2, 1])
    assert len(rest.asked) == 2


def test_a_model_that_fails_leaves_no_file(chunks: Tokens, tmp_path: Path) -> None:
    class Broken(FakeModel):
        def logits(self, tokens: Tokens, *, first: int = 0, view: bool = False) -> Floats:
            raise InferenceError("out of memory")

    kept = BaseLogp(tmp_path, chunks)
    with pytest.raises(InferenceError, match="out of memory"):
        kept.compute(model(Broken()), [0])
    assert list(tmp_path.iterdir()) == []


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def a_text(path: Path) -> None:
    path.write_text("not at all an array")


def another_array(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, np.zeros(N_SCORED))


def an_archive(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, codes=np.zeros(N_SCORED))


def one_of_another_context(path: Path) -> None:
    chunks = np.arange(32, dtype=np.int32)[None, :]
    other = BaseLogp(path.parent / "other", chunks)
    other.compute(model(), [0])
    path.write_bytes(next((path.parent / "other").iterdir()).read_bytes())


def one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [one_bit, truncated, emptied, a_text, another_array, an_archive, one_of_another_context, Path.unlink])
def test_a_damaged_file_is_named(chunks: Tokens, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    kept = BaseLogp(tmp_path, chunks)
    kept.compute(model(), [1])
    (path,) = tmp_path.iterdir()
    damage(path)
    with pytest.raises(InferenceError, match=rf"{path.name} cannot be read .*Delete it"):
        kept.chunk(1)


def model(fake: FakeModel | None = None) -> Any:
    """As what `BaseLogp` is told: a loaded model."""
    return fake or FakeModel()


@pytest.fixture
def chunks() -> Tokens:
    return np.random.default_rng(1).integers(N_VOCAB, size=(5, N_CTX), dtype=np.int32)


@pytest.fixture
def tokens(chunks: Tokens) -> Tokens:
    found: Tokens = chunks[0]
    return found


# Large vocabularies


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("plain", "F16"),
        *(pytest.param(name, "F16", marks=pytest.mark.slow) for name in FAMILIES if name != "plain"),
        ("plain", "BF16"),
        ("tied", "F32"),
    ],
)
def test_a_large_vocabulary_keeps_what_the_output_matrix_was_given_and_scores_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, kind: str
) -> None:
    monkeypatch.setattr("quantailor.analysis.scores.base_logp.LARGE_BYTES", 1 << 20)
    path, tokens = write_model(tmp_path, family, kind), large_chunks(n_ctx=128)
    with closing(open_model(path)) as source, loaded(path) as base:
        kept, codes = BaseLogp(tmp_path / "kept", tokens, source), BaseLogp(tmp_path / "codes", tokens)
        kept.compute(base, [0])
        codes.compute(base, [0])
        n_scored = tokens.shape[1] // 2 - 1
        assert written(tmp_path / "codes") > 2 * n_scored * LARGE_VOCAB
        assert written(tmp_path / "kept") < n_scored * (HIDDEN * (4 if kind == "F32" else 2) + 24) + 1000
        logits = base.logits(tokens[0], first=tokens.shape[1] // 2)
        noise = np.random.default_rng(0).standard_normal(logits.shape).astype(np.float32)
        exact = codes.chunk(0)
        for again in (kept, BaseLogp(tmp_path / "kept", tokens, source)):
            for apart in (0.0, 0.1, 1.0):
                found, expected = again.chunk(0).score([logits + apart * noise]), exact.score([logits + apart * noise])
                assert found.kld_sum / n_scored == pytest.approx(expected.kld_sum / n_scored, abs=1e-6)
                assert (found.nll_sum, found.dp_square_sum, found.n_tokens) == (expected.nll_sum, expected.dp_square_sum, expected.n_tokens)
                assert found.top_agreement == expected.top_agreement
            assert again.chunk(0).base_score == exact.base_score
        assert base.logits(tokens[0], first=tokens.shape[1] // 2).tobytes() == logits.tobytes()


def test_a_model_whose_last_stage_is_another_keeps_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantailor.analysis.scores.base_logp.LARGE_BYTES", 1 << 20)
    path, tokens = write_model(tmp_path, "capped"), large_chunks(n_ctx=128)
    with closing(open_model(path)) as source, loaded(path) as base:
        uncapped = MemorySource({"token_embd.weight": source.rows("token_embd.weight", 0, LARGE_VOCAB)}, architecture="gemma2")
        kept = BaseLogp(tmp_path / "kept", tokens, uncapped)
        kept.compute(base, [0])
        assert written(tmp_path / "kept") > (tokens.shape[1] // 2 - 1) * 2 * LARGE_VOCAB
        assert kept.chunk(0).codes.shape[1] == LARGE_VOCAB


def test_what_an_earlier_version_kept_is_read(tmp_path: Path) -> None:
    path, tokens = write_model(tmp_path), large_chunks()
    with closing(open_model(path)) as source, loaded(path) as base:
        BaseLogp(tmp_path / "logp", tokens).compute(base, [0])
        later = BaseLogp(tmp_path / "logp", tokens, source)
        assert later.missing([0, 1]) == [1]
        assert later.chunk(0).codes.shape[1] == LARGE_VOCAB


@pytest.mark.slow
def test_chunks_that_do_not_fit_into_memory_are_computed_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, tokens = write_model(tmp_path), large_chunks(3)
    assert (tokens.shape[1] - 2) * LARGE_VOCAB > LARGE_BYTES  # the codes of one chunk
    monkeypatch.setattr("quantailor.analysis.scores.base_logp.CACHE_BYTES", int(1.5 * tokens.shape[1] * LARGE_VOCAB))
    with closing(open_model(path)) as source, loaded(path) as base:
        kept = BaseLogp(tmp_path / "kept", tokens, source)
        kept.compute(base, range(3))
        again = BaseLogp(tmp_path / "kept", tokens, source)
        codes = [[part.chunk(index).codes for index in (0, 1, 2, 1, 0)] for part in (kept, again)]
    for first, second, third, another_second, another_first in codes:
        assert first is another_first
        assert second is not another_second
        assert np.array_equal(second, another_second)
        assert first.shape == third.shape


def large_chunks(count: int = 1, n_ctx: int = 512) -> Tokens:
    return np.random.default_rng(2).integers(LARGE_VOCAB, size=(count, n_ctx), dtype=np.int32)


def loaded(path: Path) -> LoadedModel:
    return LoadedModel(path, n_ctx=512, n_threads=1)


def written(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_inputs_are_kept_in_numbers_that_fit_every_position() -> None:
    rng = np.random.default_rng(2)
    matrix = rng.standard_normal((50, 8)).astype(np.float32)
    stage = OutputStage(MemorySource({"token_embd.weight": matrix}, architecture="llama"))
    fine, large = (
        np.full((3, 8), 1 + 2**-9, dtype=np.float32),
        np.full((3, 8), 2.0**17, dtype=np.float32),
    )  # BF16 has no such, F16 none so large
    keeping, n_looks = stage.keeping(), 0
    while n_looks == 0 or keeping.needs_another_look:
        for _ in keeping.watch((inputs @ matrix.T, inputs) for inputs in (fine, large)):
            pass
        n_looks += 1
    kept = keeping.kept(5)
    assert kept is not None
    assert n_looks == 2, "the first half fits 16 bits"
    assert np.array_equal(kept.inputs, np.concatenate([fine, large])[:5])
    assert kept.inputs.dtype == np.float32


def test_parts_of_a_chunk_are_scored_as_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, tokens = write_model(tmp_path, "plain"), large_chunks(n_ctx=128)
    scores = []
    for name, n_bytes in (("whole", 1 << 30), ("parts", 40 * LARGE_VOCAB)):
        monkeypatch.setattr("quantailor.ggml.runtime.PART_BYTES", n_bytes)
        with closing(open_model(path)) as source, loaded(path) as base:
            kept = BaseLogp(tmp_path / name, tokens, source)
            kept.compute(base, [0])
            scores.append(kept.chunk(0).base_score)
            again = kept.chunk(0).score(base.logit_parts(tokens[0], first=64))
            assert again.kld_sum == pytest.approx(0, abs=1e-4)
    assert scores[1].nll_sum == pytest.approx(scores[0].nll_sum, rel=1e-4), "kernels round inputs to F16"
