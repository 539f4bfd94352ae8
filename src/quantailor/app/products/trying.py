"""What a model and a file of it write after the same text, each in a process of its own: what a quantization does, to be read."""

from __future__ import annotations

import os
import shlex
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path

from quantailor.control import QUIET, Control
from quantailor.ggml.generating import WrittenToken, pieces
from quantailor.models.abilities import trained_context
from quantailor.models.opening import open_model
from quantailor.processes import apart

__all__ = ["WrittenToken", "answer", "first_difference", "serve_command"]
N_TOKENS = 120
"""Tokens of an answer, unless another number is asked for."""
SERVED_N_CTX = 4096
"""Tokens of context that a served file gets, at most."""


def answer(path: Path, text: str, *, n_most: int = N_TOKENS, as_chat: bool = False, control: Control = QUIET) -> Generator[WrittenToken]:
    """Each token as soon as it is written, the likeliest every time.

    Raises:
        InferenceError: llama.cpp cannot run the file, or the text is too long.
        CrashError: its process ended.
    """
    n_threads = max(1, (os.cpu_count() or 2) // 2)  # two files write at once
    yield from apart.stream(pieces, path, text, n_most=n_most, n_threads=n_threads, as_chat=as_chat, control=control)


def first_difference(one: Sequence[WrittenToken], other: Sequence[WrittenToken]) -> int | None:
    """The place of the first token in which two answers differ, as far as both have come; None where there is none yet."""
    return next((at for at, (mine, theirs) in enumerate(zip(one, other, strict=False)) if mine.token != theirs.token), None)


def serve_command(path: Path) -> str:
    """The line that serves a file to chat programs, with no more context than its model was made for. Raises ModelError."""
    with closing(open_model(path)) as source:
        n_ctx = min(SERVED_N_CTX, trained_context(source) or SERVED_N_CTX)
    return f"llama-server -m {shlex.quote(str(path))} -c {n_ctx} --port 8080"
