"""A text as chunks of tokens, cut exactly as llama-imatrix and llama-perplexity cut it.

The whole text is tokenized at once, with BOS in front where the model adds one; one trailing newline is dropped
first. Chunks of n_ctx tokens follow each other without overlap, an incomplete last one is left out, and the first
token of every chunk is replaced by BOS where the model adds one.

Conversations are rendered with the model's own template, tokenized one by one with their special tokens, as transformers does it,
and put one behind the other. The chunks of a mix come from its texts by their shares, so that every beginning has about these shares,
and so has every second, fourth or eighth chunk; it ends where one of the texts does.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from quantailor import files
from quantailor.analysis import chats, texts
from quantailor.analysis.chats import Conversation
from quantailor.analysis.texts import Part
from quantailor.analysis.threads import LEAST_STACK_BYTES, with_stack
from quantailor.errors import CorpusError, CrashError
from quantailor.files import FilesState
from quantailor.ggml import runtime
from quantailor.ggml.runtime import DEFAULT_N_CTX
from quantailor.models.abilities import BY_WEIGHT_ERRORS, n_positions
from quantailor.models.opening import open_model
from quantailor.models.source import ModelSource
from quantailor.numerics import Tokens
from quantailor.present import words
from quantailor.processes import apart
from quantailor.processes.messages import doing

MIN_N_CTX = 32
"""Shorter chunks would leave next to nothing to score, and llama.cpp skips inputs of fewer than 16 tokens."""

STACK_BYTES_PER_BYTE = 1024
"""Stack for each byte of a text: some of llama.cpp's pre-tokenizers call themselves for every letter of an unbroken run (400 bytes)."""
MAX_STACK_BYTES = 4 << 30
_UNBROKEN = re.compile(r"[^\W_]+|\s+|(?:[^\w\s]|_)+")
_TOKENIZING = "tokenizing"
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, eq=False)
class CorpusPart:
    """One text of a corpus, tokenized."""

    name: str
    share: float
    tokens: Tokens
    """(n_tokens,) int32."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """A tokenized text, or several."""

    name: str
    """The file's name, for people."""
    sha256: str
    """Of the file's bytes; of conversations with the template that they were put into; of a mix, of its texts and shares."""
    parts: tuple[CorpusPart, ...]
    bos: int | None
    """The token that begins every chunk, or None where the model adds none."""

    @property
    def tokens(self) -> Tokens:
        """All of them, text after text: (n_tokens,) int32."""
        return np.concatenate([part.tokens for part in self.parts])

    def n_chunks(self, n_ctx: int) -> int:
        """How many chunks it fills."""
        return len(self.chunk_parts(n_ctx))

    def chunk_parts(self, n_ctx: int) -> list[int]:
        """For each chunk, which part it is of."""
        there = [part.tokens.size // n_ctx for part in self.parts]
        if len(self.parts) == 1:
            return [0] * there[0]
        found, ends = list[int](), list(itertools.accumulate(part.share for part in self.parts))[:-1]
        while all(there) or found:
            part = bisect.bisect_right(ends, (len(found) + 0.5) * _GOLDEN % 1.0)
            if not there[part]:
                return found
            there[part] -= 1
            found.append(part)
        return found


def load_corpus(model_path: Path, text_path: Path) -> Corpus:
    """Read a text, see `texts`, and tokenize it with a model's vocabulary.

    Raises:
        CorpusError: the text cannot be read, is empty or not UTF-8; conversations that the model has no template for.
        InferenceError: llama.cpp cannot read the model's vocabulary.
    """
    read = [_load(model_path, part) for part in texts.parts_of(text_path)]
    parts = tuple(part for part, _, _ in read)
    sha256 = texts.mixed_digest([(part.share, each) for part, each, _ in read]) if texts.is_mix(text_path) else read[0][1]
    return Corpus(text_path.name, sha256, parts, read[0][2])


def _load(model_path: Path, part: Part) -> tuple[CorpusPart, str, int | None]:
    """A text's tokens, what they are filed under, and BOS."""
    text, sha256 = part.read()
    try:
        if texts.is_chat(part.path):
            tokens, bos, template = _tokenized_chat(model_path, _version(model_path), text, part.path.name)
            sha256 = hashlib.sha256(f"{sha256}\n{template}".encode()).hexdigest()
        else:
            tokens, bos = _tokenized(model_path, _version(model_path), text)
    except CrashError as error:
        if error.doing != _TOKENIZING:
            raise
        raise CorpusError(
            f"llama.cpp cannot tokenize {part.path} with {model_path.name} ({error.reason}); {_longest_run(text)}",
            remedy="Break it up with spaces or lines, or take it out",
        ) from error
    return CorpusPart(part.name, part.share, tokens), sha256, bos


def _longest_run(text: str) -> str:
    """Where the longest run of letters, of spaces or of other signs lies, in words."""
    run = max(_UNBROKEN.finditer(text), key=lambda match: len(match[0]))
    kind = "letters" if run[0][0].isalnum() else "spaces and newlines" if run[0][0].isspace() else "signs"
    line, before = text.count("\n", 0, run.start()) + 1, len(text[: run.start()].encode())
    return f"its longest unbroken run, {words.count(len(run[0]))} {kind}, begins in line {words.count(line)} (byte {words.count(before)})"


@lru_cache(maxsize=4)
def _tokenized(model_path: Path, version: FilesState, text: str) -> tuple[Tokens, int | None]:
    """The tokens (read only, because they are kept for the next call) and BOS; `version` distinguishes a file from its successor."""
    del version
    tokens, bos = apart.call(_tokenize, model_path, text, MAX_STACK_BYTES)
    tokens.flags.writeable = False
    return tokens, bos


def _tokenize(model_path: Path, text: str, max_stack_bytes: int) -> tuple[Tokens, int | None]:
    """Tokens and BOS."""
    with runtime.tokenizer(model_path) as vocabulary:
        doing(_TOKENIZING)
        tokens = with_stack(_stack_bytes(text, max_stack_bytes), lambda: vocabulary.tokenize(text))
        return tokens, vocabulary.bos_token if vocabulary.adds_bos else None


@lru_cache(maxsize=4)
def _tokenized_chat(model_path: Path, version: FilesState, text: str, name: str) -> tuple[Tokens, int | None, str]:
    """The same for conversations, with all that their rendering depends on."""
    del version
    tokens, bos, template = apart.call(tokenize_chat, model_path, chats.read_conversations(text, name), name, MAX_STACK_BYTES)
    joined = np.concatenate(tokens)
    joined.flags.writeable = False
    return joined, bos, template


def tokenize_chat(
    model_path: Path, said: Sequence[Conversation], name: str, max_stack_bytes: int = MAX_STACK_BYTES, *, to_answer: bool = False
) -> tuple[list[Tokens], int | None, str]:
    """Each conversation's tokens, (n_tokens,) int32, BOS, and what else rendering depends on; `to_answer` as of `chats.rendered`.

    Raises CorpusError, InferenceError.
    """
    source = open_model(model_path)
    try:
        template = chats.chat_template(source.metadata, model_path.name)
    finally:
        source.close()
    rendered = chats.rendered(template, said, name, to_answer=to_answer)
    with runtime.tokenizer(model_path) as vocabulary:
        doing(_TOKENIZING)

        def tokens_of_all() -> list[Tokens]:
            return [vocabulary.tokenize(each, add_special=False, special=True) for each in rendered]

        tokens = with_stack(_stack_bytes(max(rendered, key=len), max_stack_bytes), tokens_of_all)
        return tokens, vocabulary.bos_token if vocabulary.adds_bos else None, template.text()


def _stack_bytes(text: str, max_stack_bytes: int) -> int:
    return max(LEAST_STACK_BYTES, min(STACK_BYTES_PER_BYTE * len(text.encode()), max_stack_bytes))


def _version(path: Path) -> FilesState:
    """The state of a file; empty where it cannot be read, which is reported when it is opened."""
    try:
        return files.state_of([path])
    except OSError:
        return ()


def chunks(corpus: Corpus, n_ctx: int, *, limit: int | None = None) -> Tokens:
    """The chunks of a corpus, at most `limit` of them: (n_chunks, n_ctx) int32.

    Raises:
        CorpusError: chunks below `MIN_N_CTX` tokens, or a text that does not fill one or that the vocabulary has no tokens for.
    """
    if n_ctx < MIN_N_CTX:
        raise CorpusError(f"chunks of {n_ctx} tokens are too short", remedy=f"Take at least {MIN_N_CTX}")
    order = corpus.chunk_parts(n_ctx)
    if not order and not sum(part.tokens.size for part in corpus.parts):
        raise CorpusError(
            f"the model's vocabulary has no token for anything in {corpus.name}", remedy="Convert the model again, with its own tokenizer"
        )
    if not order:
        raise CorpusError(f"{_too_short(corpus)} and fills no chunk of {n_ctx}", remedy="Give a longer text or a smaller context")
    if limit is not None:
        if limit < 1:
            raise CorpusError(f"{limit} chunks were asked for", remedy="Ask for at least one")
        order = order[:limit]
    rows = np.empty((len(order), n_ctx), dtype=np.int32)
    for number, part in enumerate(corpus.parts):
        chosen = [row for row, each in enumerate(order) if each == number]
        rows[chosen] = part.tokens[: len(chosen) * n_ctx].reshape(-1, n_ctx)
    if corpus.bos is not None:
        rows[:, 0] = corpus.bos
    return rows


def _too_short(corpus: Corpus) -> str:
    part = min(corpus.parts, key=lambda each: each.tokens.size)
    return f"{corpus.name if len(corpus.parts) == 1 else f'{part.name} of {corpus.name}'} has {part.tokens.size} tokens"


def domains(corpus: Corpus, n_ctx: int, n_chunks: int) -> dict[str, list[int]]:
    """The first `n_chunks` chunks of a mix by the name of their text; empty for one text."""
    if len(corpus.parts) == 1:
        return {}
    order = corpus.chunk_parts(n_ctx)[:n_chunks]
    return {part.name: [index for index, each in enumerate(order) if each == number] for number, part in enumerate(corpus.parts)}


def chunk_length(source: ModelSource, n_ctx: int, tell: Callable[[str], None] | None = None) -> int:
    """Tokens in a chunk for this model: `n_ctx`, or all positions of a model that has learned fewer than the default.

    The second is told to `tell`. Raises CorpusError where another length was asked for than the model has positions.
    """
    positions = n_positions(source)
    if positions is None or n_ctx <= positions:
        return n_ctx
    if positions < MIN_N_CTX:
        raise CorpusError(
            f"{source.name} has {positions} positions, too few to run it: chunks have at least {MIN_N_CTX} tokens", remedy=BY_WEIGHT_ERRORS
        )
    if n_ctx != DEFAULT_N_CTX:
        raise CorpusError(
            f"{source.name} has {positions} positions, too few for chunks of {n_ctx} tokens", remedy=f"Give --n-ctx {positions} or less"
        )
    if tell is not None:
        tell(f"{source.name} has {positions} positions: chunks have {positions} tokens instead of {DEFAULT_N_CTX}")
    return positions


def spread(n_chunks: int) -> list[int]:
    """All chunk indexes in an order whose every beginning is spread over the whole text.

    A text is often several works in a row; the first chunks would speak of the first work alone. The order is that of
    the van der Corput sequence in base 2 (bits reversed), so that the same beginnings serve any number of chunks.
    """
    n_bits = max(1, (n_chunks - 1).bit_length())
    order = (int(f"{index:0{n_bits}b}"[::-1], 2) for index in range(1 << n_bits))
    return [index for index in order if index < n_chunks]
