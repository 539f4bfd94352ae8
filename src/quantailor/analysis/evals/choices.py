"""Multiple choice by log-probabilities, as `llama-perplexity --multiple-choice`, `--hellaswag` and `--winogrande` compute it.

A file chooses what it finds likeliest: of each choice, written behind the question with a space between, the mean log-probability of the
tokens that are not common to all choices.

Where something follows the choices (Winogrande), it is what follows that counts, without its last token: a word may be rare and yet right.
Only where some choice leaves no more than three tokens that differ, these count, the choice's own among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantailor import numerics
from quantailor.analysis.evals.questions import Question, Questions
from quantailor.errors import CorpusError
from quantailor.ggml import runtime
from quantailor.ggml.generating import Writer
from quantailor.models.abilities import n_positions, trained_context
from quantailor.models.source import ModelSource
from quantailor.numerics import Tokens
from quantailor.processes import apart

_VERSION = "choices-1"
MIN_TRAILING = 3
"""Tokens; llama.cpp's k_min_trailing_ctx."""


@dataclass(frozen=True, eq=False)
class Choosing:
    """A question as tokens: its answer is each choice's mean log-probability, nats per token."""

    beginning: Tokens
    """What all choices have in common, (n_tokens,) int32."""
    ends: tuple[Tokens, ...]
    """What each choice has of its own, (n_end,) int32 each."""
    n_uncounted: tuple[int, ...] = ()
    """Tokens at the beginning of each end that do not count; none where this is empty."""

    @property
    def n_tokens(self) -> int:
        """Tokens of context that it takes."""
        return len(self.beginning) + sum(map(len, self.ends))

    @property
    def n_branches(self) -> int:
        """Sequences that it takes at once."""
        return len(self.ends)

    def answer(self, model: Writer) -> tuple[float, ...]:
        """The mean log-probabilities. Raises InferenceError."""
        found, all_logits = [], model.branches(self.beginning, self.ends)
        for end, logits, first in zip(self.ends, all_logits, self.n_uncounted or (0,) * len(self.ends), strict=True):
            logp = numerics.log_softmax(logits)[np.arange(len(end)), end]
            found.append(float(logp[first:].mean(dtype=np.float64)))
        return tuple(found)


def key_of(questions: Questions) -> str:
    """What answers to these questions are filed under."""
    return f"{_VERSION}:{questions.sha256}"


def tokenized(source: ModelSource, model_path: Path, questions: Questions) -> list[Choosing]:
    """The questions as a model reads them.

    Raises:
        CorpusError: choices that begin with one another, or a question that does not fit the model's context.
        InferenceError: llama.cpp cannot read the vocabulary.
    """
    room = min(filter(None, (n_positions(source), trained_context(source))), default=None)
    found = []
    for number, (tokens, n_until_after) in enumerate(apart.call(_tokenize, model_path, questions.items), 1):
        what, shortest = f"question {number} of {questions.name}", min(map(len, tokens))
        alike = np.all([each[:shortest] == tokens[0][:shortest] for each in tokens], axis=0)
        n_common = shortest if alike.all() else int(alike.argmin())
        if n_common == shortest:
            raise CorpusError(
                f"{what} has a choice that is the beginning of another", remedy="Make the choices differ, or take the question out"
            )
        if not n_common:
            raise CorpusError(f"{what} begins differently with each choice", remedy="Give a longer text before the choices")
        if room is not None and max(map(len, tokens)) > room:
            raise CorpusError(
                f"{what} has {max(map(len, tokens)):,} tokens, and the model a context of {room:,}", remedy="Shorten it, or take it out"
            )
        ends = tuple(each[n_common:] for each in tokens)
        beginning = tokens[0][:n_common]
        found.append(_counting_what_follows(beginning, ends, n_until_after) if n_until_after else Choosing(beginning, ends))
    return found


def _counting_what_follows(beginning: Tokens, ends: tuple[Tokens, ...], n_until_after: Sequence[int]) -> Choosing:
    """`n_until_after` is how many tokens each choice has with what stands before it.

    Same as winogrande_score in llama.cpp's perplexity.cpp, but where few tokens follow: there that takes, and says so, another position's
    prediction for the first token of the second choice.
    """
    firsts = [max(0, n_tokens - len(beginning)) for n_tokens in n_until_after]
    if min(map(len, ends)) <= MIN_TRAILING or any(first >= len(end) for first, end in zip(firsts, ends, strict=True)):
        firsts = [0] * len(ends)
    counted = tuple(end[:-1] if len(end) - first > 1 else end for first, end in zip(firsts, ends, strict=True))
    return Choosing(beginning, counted, tuple(firsts))


def _tokenize(model_path: Path, items: Sequence[Question]) -> list[tuple[list[Tokens], list[int]]]:
    """Each choice of each question with what stands around it, (n_tokens,) int32; and how many tokens it has without what follows, if any
    does.
    """
    with runtime.tokenizer(model_path) as vocabulary:
        return [
            (
                [vocabulary.tokenize(item.told(choice)) for choice in item.choices],
                [len(vocabulary.tokenize(f"{item.text}{choice}")) for choice in item.choices if item.after],
            )
            for item in items
        ]
