"""Greedy divergence: how long a file writes the same as its base, always taking the likeliest token.

The base writes once. Another file writes until its first other token: up to there its own text is the base's. Each token is run by
itself, as for whoever uses the file: llama.cpp's kernels for many tokens at once round otherwise, which would move the first difference
(METHODS 3).
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantailor.analysis import chats, texts
from quantailor.analysis.corpus import Corpus, tokenize_chat
from quantailor.errors import CorpusError
from quantailor.ggml.generating import Writer
from quantailor.models.abilities import n_positions, trained_context
from quantailor.models.source import ModelSource
from quantailor.numerics import Tokens
from quantailor.processes import apart

N_WRITTEN = 32
"""Tokens that the base writes after each prompt, unless it ends the text before."""
PROMPT_TOKENS, LEAST_PROMPT_TOKENS = 64, 8
"""Of a plain text's prompts."""
_VERSION = "greedy-1"


@dataclass(frozen=True, eq=False)
class Writing:
    """The base's part: its answer is what it writes, token by token."""

    prompt: Tokens
    """(n_tokens,) int32."""
    n_branches: int = 1

    @property
    def n_tokens(self) -> int:
        """Tokens of context that it takes."""
        return len(self.prompt) + N_WRITTEN

    def answer(self, model: Writer) -> tuple[float, ...]:
        """The tokens. Raises InferenceError."""
        return tuple(model.continuation(self.prompt, N_WRITTEN).tolist())


@dataclass(frozen=True, eq=False)
class Following:
    """A file's part: its answer is how many tokens of the base's text it would have written itself before the first other one.

    One that follows to the end of a text that the base ended early follows all the way.
    """

    prompt: Tokens
    """(n_tokens,) int32."""
    written: Tokens
    """What the base wrote, (n_written,) int32."""
    n_branches: int = 1

    @property
    def n_tokens(self) -> int:
        """Tokens of context that it takes."""
        return len(self.prompt) + N_WRITTEN

    def answer(self, model: Writer) -> tuple[float, ...]:
        """The number of tokens. Raises InferenceError."""
        followed = model.followed(self.prompt, self.written)
        return (float(N_WRITTEN if followed == len(self.written) else followed),)


def key_of(prompts: Sequence[Tokens]) -> str:
    """What answers to these prompts, (n_tokens,) each, are filed under."""
    digest = hashlib.sha256(f"{N_WRITTEN}".encode())
    for prompt in prompts:
        digest.update(f" {len(prompt)} ".encode() + prompt.astype("<i4").tobytes())
    return f"{_VERSION}:{digest.hexdigest()}"


def prompt_length(source: ModelSource) -> int:
    """Tokens of a plain text's prompts for a model. Raises CorpusError where its context has no room for one and what follows."""
    room = _room(source)
    length = PROMPT_TOKENS if room is None else min(PROMPT_TOKENS, room - N_WRITTEN)
    if length < LEAST_PROMPT_TOKENS:
        said = f"{source.name} has a context of {room} tokens, too short for a prompt of {LEAST_PROMPT_TOKENS} and {N_WRITTEN} that follow"
        raise CorpusError(said, remedy="Leave out --eval greedy")
    return length


def _room(source: ModelSource) -> int | None:
    return min(filter(None, (n_positions(source), trained_context(source))), default=None)


def prompts(source: ModelSource, model_path: Path, text: Path, corpus: Corpus, n_prompts: int) -> list[Tokens]:
    """Prompts from a text: `n_prompts` that lie evenly in it, fewer where it has no more; of a mix, as many of each text as its share says.

    A plain text gives pieces of `PROMPT_TOKENS` tokens that do not overlap, what is written after them included, each with BOS in place of
    its first token where the model adds one. A conversation gives all that stands before the assistant's last turn, as the model's template
    asks for an answer.

    Args:
        source: the base.
        model_path: its GGUF file.
        text: a text, conversations, or a mix, see `texts`.
        corpus: the same, tokenized.
        n_prompts: how many, at most.

    Returns:
        Of each its tokens, (n_tokens,) int32.

    Raises:
        CorpusError: a conversation that does not fit the model's context with what is to be written, or nothing to take prompts from.
    """
    room, length = _room(source), prompt_length(source)
    ends = [round(n_prompts * share) for share in itertools.accumulate(part.share for part in corpus.parts)]
    found = list[Tokens]()
    for part, tokenized, begin, end in zip(texts.parts_of(text), corpus.parts, [0, *ends], ends, strict=False):
        if texts.is_chat(part.path):
            found += _of_conversations(model_path, part.path, end - begin, room)
        else:
            found += _of_text(tokenized.tokens, corpus.bos, end - begin, length)
    if not found:
        raise CorpusError(f"{text.name} has no prompt of {length} tokens with {N_WRITTEN} that follow", remedy="Give a longer text")
    return found


def _of_text(tokens: Tokens, bos: int | None, wanted: int, length: int) -> list[Tokens]:
    there = min(wanted, tokens.size // (length + N_WRITTEN))
    found = [tokens[index * (tokens.size // there) :][:length].copy() for index in range(there)]
    if bos is not None:
        for prompt in found:
            prompt[0] = bos
    return found


def _of_conversations(model_path: Path, path: Path, wanted: int, room: int | None) -> list[Tokens]:
    content, _ = texts.read_text(path)
    asked = [question for each in chats.read_conversations(content, path.name) if (question := _before_last_answer(each)) is not None]
    if not asked:
        raise CorpusError(f"no conversation in {path.name} asks anything", remedy="Give some in which a user speaks")
    there = min(wanted, len(asked))
    chosen = [asked[index * len(asked) // there] for index in range(there)]
    found: list[Tokens] = apart.call(tokenize_chat, model_path, chosen, path.name, to_answer=True)[0] if chosen else []
    for prompt in found:
        if room is not None and len(prompt) + N_WRITTEN > room:
            said = f"a conversation of {path.name} is a prompt of {len(prompt):,} tokens, and with {N_WRITTEN} that follow too long for the"
            raise CorpusError(f"{said} model's context of {room:,}", remedy="Take it out, or leave out --eval greedy")
    return found


def _before_last_answer(conversation: chats.Conversation) -> chats.Conversation | None:
    """What an assistant is asked last; None where nobody asks."""
    last = max((number for number, each in enumerate(conversation.messages) if each["role"] == "assistant"), default=None)
    messages = conversation.messages[:last]
    return dataclasses.replace(conversation, messages=messages) if any(each["role"] == "user" for each in messages) else None
