"""Multiple choice by log-probabilities, as `llama-perplexity --multiple-choice` computes it.

A file chooses what it finds likeliest: of each choice, written behind the question with a space between, the mean log-probability of the
tokens that are not common to all choices.
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


@dataclass(frozen=True, eq=False)
class Choosing:
    """A question as tokens: its answer is each choice's mean log-probability, nats per token."""

    beginning: Tokens
    """What all choices have in common, (n_tokens,) int32."""
    ends: tuple[Tokens, ...]
    """What each choice has of its own, (n_end,) int32 each."""

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
        found = []
        for end, logits in zip(self.ends, model.branches(self.beginning, self.ends), strict=True):
            logp = numerics.log_softmax(logits)[np.arange(len(end)), end]
            found.append(float(logp.mean(dtype=np.float64)))
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
    for number, tokens in enumerate(apart.call(_tokenize, model_path, questions.items), 1):
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
        found.append(Choosing(tokens[0][:n_common], tuple(each[n_common:] for each in tokens)))
    return found


def _tokenize(model_path: Path, items: Sequence[Question]) -> list[list[Tokens]]:
    """Each choice of each question with what stands before it, (n_tokens,) int32."""
    with runtime.tokenizer(model_path) as vocabulary:
        return [[vocabulary.tokenize(f"{item.text} {choice}") for choice in item.choices] for item in items]
