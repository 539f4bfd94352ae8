"""A text as chunks of tokens, cut exactly as llama-imatrix and llama-perplexity cut it.

The whole text is tokenized at once, with BOS in front where the model adds one; one trailing newline is dropped
first. Chunks of n_ctx tokens follow each other without overlap, an incomplete last one is left out, and the first
token of every chunk is replaced by BOS where the model adds one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from quantailor import files
from quantailor.analysis.threads import LEAST_STACK_BYTES, with_stack
from quantailor.errors import CorpusError, CrashError
from quantailor.files import FilesState
from quantailor.ggml import runtime
from quantailor.ggml.runtime import DEFAULT_N_CTX
from quantailor.models.abilities import BY_WEIGHT_ERRORS, n_positions
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


@dataclass(frozen=True, eq=False)
class Corpus:
    """A tokenized text."""

    name: str
    """The file's name, for people."""
    sha256: str
    """Of the file's bytes."""
    tokens: Tokens
    """(n_tokens,) int32."""
    bos: int | None
    """The token that begins every chunk, or None where the model adds none."""


def load_corpus(model_path: Path, text_path: Path) -> Corpus:
    """Read a text and tokenize it with a model's vocabulary.

    Raises:
        CorpusError: the text cannot be read, is empty or not UTF-8.
        InferenceError: llama.cpp cannot read the model's vocabulary.
    """
    text, sha256 = read_text(text_path)
    try:
        tokens, bos = _tokenized(model_path, _version(model_path), text)
    except CrashError as error:
        if error.doing != _TOKENIZING:
            raise
        raise CorpusError(
            f"llama.cpp cannot tokenize {text_path} with {model_path.name} ({error.reason}); {_longest_run(text)}",
            remedy="Break it up with spaces or lines, or take it out",
        ) from error
    return Corpus(text_path.name, sha256, tokens, bos)


def read_text(text_path: Path) -> tuple[str, str]:
    """The text without its last newline, and the SHA-256 of its bytes. Raises CorpusError, as `load_corpus` does."""
    try:
        data = text_path.read_bytes()
    except OSError as error:
        raise CorpusError(f"cannot read {text_path}: {error.strerror or error}") from error
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise CorpusError(f"{text_path} is not UTF-8 (byte {error.start})", remedy="Save it as UTF-8 text") from error
    if not text.strip():
        raise CorpusError(f"{text_path} is empty", remedy="Give a text of some hundred kilobytes")
    return text.removesuffix("\n"), hashlib.sha256(data).hexdigest()


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
        stack_bytes = max(LEAST_STACK_BYTES, min(STACK_BYTES_PER_BYTE * len(text.encode()), max_stack_bytes))
        tokens = with_stack(stack_bytes, lambda: vocabulary.tokenize(text))
        return tokens, vocabulary.bos_token if vocabulary.adds_bos else None


def _version(path: Path) -> FilesState:
    """The state of a file; empty where it cannot be read, which is reported when it is opened."""
    try:
        return files.state_of([path])
    except OSError:
        return ()


def chunks(corpus: Corpus, n_ctx: int, *, limit: int | None = None) -> Tokens:
    """The chunks of a corpus, at most `limit` of them: (n_chunks, n_ctx) int32.

    Raises:
        CorpusError: chunks below `MIN_N_CTX` tokens, or a text that does not fill one.
    """
    if n_ctx < MIN_N_CTX:
        raise CorpusError(f"chunks of {n_ctx} tokens are too short", remedy=f"Take at least {MIN_N_CTX}")
    n_chunks = corpus.tokens.size // n_ctx
    if not n_chunks:
        raise CorpusError(
            f"{corpus.name} has {corpus.tokens.size} tokens and fills no chunk of {n_ctx}", remedy="Give a longer text or a smaller context"
        )
    if limit is not None:
        if limit < 1:
            raise CorpusError(f"{limit} chunks were asked for", remedy="Ask for at least one")
        n_chunks = min(n_chunks, limit)
    rows = corpus.tokens[: n_chunks * n_ctx].reshape(n_chunks, n_ctx).copy()
    if corpus.bos is not None:
        rows[:, 0] = corpus.bos
    return rows


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
