"""What a model writes after a text, token by token, always the likeliest: two files' texts then differ only where the files do."""

from __future__ import annotations

import codecs
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantailor.control import Control
from quantailor.errors import InferenceError
from quantailor.ggml.runtime import LoadedModel
from quantailor.numerics import Floats, Tokens

N_CTX = 2048
"""Tokens of a question and its answer together."""
_PIECE_BYTES = 256


@dataclass(frozen=True, slots=True)
class WrittenToken:
    """One token that a model wrote."""

    token: int
    text: str
    """Empty where a character's last byte is still to come."""


def pieces(path: Path, text: str, *, n_most: int, n_threads: int, as_chat: bool, control: Control) -> Iterator[WrittenToken]:
    """What the model in a file writes after a text, or answers to it where it has a chat template that llama.cpp knows.

    Args:
        path: a GGUF file, or the first part of a split one.
        text: what to go on from, or to answer.
        n_most: tokens at most.
        n_threads: of the CPU.
        as_chat: use the file's chat template, where it has one.
        control: asked before each token.

    Raises:
        InferenceError: llama.cpp cannot run the file, or the text is too long.
    """
    with Writer(path, n_ctx=N_CTX, n_threads=n_threads) as writer:
        tokens = writer.asked(text, as_chat=as_chat)
        room = min(n_most, N_CTX - len(tokens))
        if room <= 0 or not len(tokens):
            what = f"the text is {len(tokens):,} tokens long" if len(tokens) else "the text is empty"
            raise InferenceError(what, remedy=f"Give one of at most {N_CTX - n_most:,} tokens")
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        logits = writer.logits(tokens, first=len(tokens) - 1, view=True)
        for position in range(len(tokens), len(tokens) + room):
            control.check()
            token = int(np.argmax(logits[-1]))
            if writer.ends(token):
                return
            yield WrittenToken(token, decoder.decode(writer.piece(token)))
            logits = writer.after(token, position)


class Writer(LoadedModel):
    """A model that keeps what it has read, one token after the other."""

    def asked(self, text: str, *, as_chat: bool) -> Tokens:
        """A text as tokens, (n_tokens,), as a user's turn where the file has a template for one."""
        chat = self._as_turn(text) if as_chat else None
        return self.tokenize(text if chat is None else chat, special=chat is not None)

    def _as_turn(self, text: str) -> str | None:
        llama = self._llama
        template = llama.llama_model_chat_template(self._model, None)
        if not template:
            return None
        turn = (llama.llama_chat_message * 1)(llama.llama_chat_message(b"user", text.encode()))
        buffer = ctypes.create_string_buffer(2 * len(text.encode()) + 4096)
        length = int(llama.llama_chat_apply_template(template, turn, 1, True, buffer, len(buffer)))
        return buffer.raw[:length].decode(errors="replace") if 0 < length <= len(buffer) else None

    def continuation(self, prompt: Tokens, n_most: int) -> Tokens:
        """What follows tokens, (n_tokens,), one token after the other: (n_written,), up to and with one that ends the text.

        Raises InferenceError as `logits` does.
        """
        logits, written = self.logits(prompt, first=len(prompt) - 1, view=True), list[int]()
        while len(written) < n_most:
            written.append(int(np.argmax(logits[-1])))
            if self.ends(written[-1]) or len(written) == n_most:
                break
            logits = self.after(written[-1], len(prompt) + len(written) - 1)
        return np.array(written, dtype=np.int32)

    def followed(self, prompt: Tokens, written: Tokens) -> int:
        """How many tokens it would write as they are `written`, (n_written,), after a prompt, (n_tokens,), before its first other one.

        Raises InferenceError as `logits` does.
        """
        logits = self.logits(prompt, first=len(prompt) - 1, view=True)
        for number, token in enumerate(written.tolist()):
            if int(np.argmax(logits[-1])) != token:
                return number
            if number + 1 < len(written):
                logits = self.after(token, len(prompt) + number)
        return len(written)

    def ends(self, token: int) -> bool:
        """Whether a token ends the text."""
        return bool(self._llama.llama_vocab_is_eog(self._open_vocab(), token))

    def piece(self, token: int) -> bytes:
        """A token's bytes; they need not be whole characters."""
        buffer = ctypes.create_string_buffer(_PIECE_BYTES)
        length = int(self._llama.llama_token_to_piece(self._open_vocab(), token, buffer, _PIECE_BYTES, 0, False))
        return buffer.raw[: max(0, length)]

    def after(self, token: int, position: int) -> Floats:
        """The logits, (1, n_vocab), after one more token at that place; llama.cpp's memory, which the next call overwrites.

        Raises InferenceError where llama.cpp fails.
        """
        batch = self._batch
        if batch is None:
            raise InferenceError(f"{self.path} is closed")
        self._fill(np.array([token], dtype=np.int32), 0)
        np.ctypeslib.as_array(batch.pos, (1,))[:] = position
        if status := self._llama.llama_decode(self._context, batch):
            raise InferenceError(f"llama.cpp cannot run {self.path} (status {status}): {self._log.last_error()}")
        return np.ctypeslib.as_array(self._llama.llama_get_logits(self._context), (1, self.n_vocab))
