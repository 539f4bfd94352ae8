"""What two files write after the same text: greedy, streamed, and where they part."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

from quantailor.app.products.trying import WrittenToken, answer, first_difference, serve_command
from quantailor.errors import InferenceError
from quantailor.ggml.runtime import LoadedModel
from small_base import write_small_base

TEXT = "The old house at the end of the lane had"


def test_an_answer_is_the_likeliest_token_every_time(books_llama_base: Path) -> None:
    written = list(answer(books_llama_base, TEXT, n_most=8))
    with LoadedModel(books_llama_base, n_ctx=64, n_threads=1) as model:
        tokens = model.tokenize(TEXT)
        for piece in written:
            assert piece.token == int(np.argmax(model.logits(tokens, first=len(tokens) - 1)[-1])), "as if all had been read anew"
            tokens = np.append(tokens, np.int32(piece.token))
    text = "".join(piece.text for piece in written)
    assert text.startswith(" ")
    assert text.isprintable()


@pytest.mark.slow
def test_an_answer_that_nobody_waits_for_ends(books_llama_base: Path) -> None:
    stream = answer(books_llama_base, TEXT, n_most=400)
    next(stream)
    stream.close()
    assert len(list(answer(books_llama_base, TEXT, n_most=3))) == 3, "and the next one is asked of a process that is free"


def test_a_text_that_is_too_long_is_refused(books_llama_base: Path) -> None:
    with pytest.raises(InferenceError, match="tokens long") as raised:
        next(answer(books_llama_base, "word " * 3000, n_most=40))
    assert "2,008 tokens" in str(raised.value)


def test_the_first_difference_is_where_tokens_part() -> None:
    def pieces(*tokens: int) -> list[WrittenToken]:
        return [WrittenToken(token, f" {token}") for token in tokens]

    assert first_difference(pieces(1, 2, 3), pieces(1, 2, 4, 5)) == 2
    assert first_difference(pieces(1, 2), pieces(1, 2, 4)) is None, "one is not as far yet"
    assert first_difference(pieces(7), pieces(8)) == 0


def test_the_line_for_other_programs_takes_any_name_and_no_more_context_than_the_model_has(tmp_path: Path) -> None:
    path = write_small_base(tmp_path / "a file's.gguf")
    assert shlex.split(serve_command(path)) == ["llama-server", "-m", str(path), "-c", "512", "--port", "8080"]
