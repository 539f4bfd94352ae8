"""A text cut into chunks as llama-perplexity cuts it."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import pytest

from gguf_models import write_llama
from quantailor.analysis import corpus as corpus_module
from quantailor.analysis.corpus import chunks, load_corpus, spread
from quantailor.errors import CorpusError, InferenceError

GOLDEN = Path(__file__).parent.parent / "golden" / "perplexity-books-llama.json"


def test_tokens_are_those_of_llama_perplexity(books_llama_base: Path, heldout_text: Path) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    corpus = load_corpus(books_llama_base, heldout_text)
    assert corpus.sha256 == golden["text_sha256"]
    first = corpus.tokens[: golden["n_chunks"] * golden["n_ctx"]]
    assert hashlib.sha256(first.astype("<i4").tobytes()).hexdigest() == golden["tokens_sha256"]


def test_chunks_follow_each_other_and_begin_with_bos(books_llama_base: Path, calibration_text: Path) -> None:
    corpus = load_corpus(books_llama_base, calibration_text)
    found = chunks(corpus, 512)
    assert found.shape == (corpus.tokens.size // 512, 512)
    assert set(found[:, 0].tolist()) == {corpus.bos}
    assert found[3, 1:].tolist() == corpus.tokens[3 * 512 + 1 : 4 * 512].tolist()
    assert chunks(corpus, 512, limit=2).tolist() == found[:2].tolist()
    assert chunks(corpus, 512, limit=10**6).shape == found.shape


def test_one_trailing_newline_does_not_count(books_llama_base: Path, tmp_path: Path) -> None:
    texts = [tmp_path / name for name in ("with.txt", "without.txt")]
    texts[0].write_bytes(b"the quick brown fox\n")
    texts[1].write_bytes(b"the quick brown fox")
    first, second = (load_corpus(books_llama_base, text) for text in texts)
    assert first.tokens.tolist() == second.tokens.tolist()
    assert first.sha256 != second.sha256


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b" \n\t\n", "holds nothing but white space"), (b"caf\xe9 au lait", r"is not UTF-8 \(byte 3\)")],
)
def test_texts_that_are_refused(books_llama_base: Path, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        load_corpus(books_llama_base, path)


def test_a_missing_text(books_llama_base: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="cannot read"):
        load_corpus(books_llama_base, tmp_path / "none.txt")
    with pytest.raises(CorpusError, match="cannot read"):
        load_corpus(books_llama_base, tmp_path)


def test_a_short_text_fills_no_chunk(books_llama_base: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("A dozen words or so are not nearly enough for a chunk.", encoding="utf-8")
    corpus = load_corpus(books_llama_base, path)
    with pytest.raises(CorpusError, match="fills no chunk of 512"):
        chunks(corpus, 512)


@pytest.mark.parametrize(("n_ctx", "limit"), [(0, None), (-5, None), (8, None), (512, 0), (512, -1)])
def test_impossible_chunks(books_llama_base: Path, calibration_text: Path, n_ctx: int, limit: int | None) -> None:
    with pytest.raises(CorpusError):
        chunks(load_corpus(books_llama_base, calibration_text), n_ctx, limit=limit)


def test_a_model_without_vocabulary(tmp_path: Path, calibration_text: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(InferenceError):
        load_corpus(path, calibration_text)


def text_with_a_run(folder: Path, run: str) -> Path:
    path = folder / "run.txt"
    path.write_text(f"One line.\nAnd another one.\n{run}\nThe last.\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("pre", ["gpt-4o", "tekken", "deepseek-v3"])
@pytest.mark.parametrize("letter", ["Q", " ", "\n", ".", "\u6f22"])
def test_a_long_run_of_one_letter_is_tokenized(tmp_path: Path, pre: str, letter: str) -> None:
    corpus = load_corpus(write_llama(tmp_path / f"{pre}.gguf", pre=pre), text_with_a_run(tmp_path, letter * 100_000))
    assert corpus.tokens.size == len((tmp_path / "run.txt").read_bytes()) - 1, "the vocabulary has nothing but bytes"


@pytest.mark.slow
def test_a_run_that_no_stack_holds_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_module, "MAX_STACK_BYTES", 8 << 20)
    model, text = write_llama(tmp_path / "tiny.gguf", pre="gpt-4o"), text_with_a_run(tmp_path, "Q" * 100_000)
    for _ in range(2):
        with pytest.raises(CorpusError) as caught:
            load_corpus(model, text)
        expected = (
            f"llama.cpp cannot tokenize {text} with tiny.gguf (segmentation fault, SIGSEGV); "
            "its longest unbroken run, 100,000 letters, begins in line 3 (byte 27). Break it up with spaces or lines, or take it out"
        )
        assert str(caught.value) == expected
    text.write_text("One line.\n" * 9, encoding="utf-8")
    assert load_corpus(model, text).tokens.size == 89


@pytest.mark.parametrize("n_chunks", [0, 1, 2, 3, 5, 16, 100, 257])
def test_a_spread_takes_every_chunk_once(n_chunks: int) -> None:
    assert sorted(spread(n_chunks)) == list(range(n_chunks))


@pytest.mark.parametrize("n_chunks", [7, 64, 100, 129])
def test_every_beginning_of_a_spread_reaches_all_of_the_text(n_chunks: int) -> None:
    for n_first in range(1, n_chunks + 1):
        seen = [-1, *sorted(spread(n_chunks)[:n_first]), n_chunks]
        assert max(later - earlier for earlier, later in itertools.pairwise(seen)) <= 1 + 4 * n_chunks / n_first


def test_a_spread_halves_what_is_left() -> None:
    assert spread(8) == [0, 4, 2, 6, 1, 5, 3, 7]
    assert spread(6) == [0, 4, 2, 1, 5, 3]
