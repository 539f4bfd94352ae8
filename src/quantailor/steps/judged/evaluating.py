"""Puts evaluations to the files of a verdict; answers that the store has are not asked for again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantailor.analysis.corpus import Corpus
from quantailor.analysis.evals import choices, greedy
from quantailor.analysis.evals.asking import Item, ask
from quantailor.analysis.evals.questions import Questions, read_questions
from quantailor.analysis.scores.fidelity import BASE
from quantailor.errors import OptionError
from quantailor.making.evals import Evaluated
from quantailor.models.source import ModelSource
from quantailor.numerics import Tokens
from quantailor.present import words
from quantailor.records import EvalItem
from quantailor.session import CHOICES, OpenedModel, Workspace, gguf_path
from quantailor.steps.options import Compute, Evals
from quantailor.steps.stages import Stages
from quantailor.store import EvalKey

LETTERS_PER_TOKEN = 4.0
WRITING_TOKENS = 8 * greedy.N_WRITTEN
"""What the tokens that are written after a prompt, each run alone, count as."""
WRITTEN = "base's text"
"""Under what the base's continuations are kept."""


@dataclass(frozen=True, slots=True)
class Files:
    """Files of a verdict, before there is one."""

    contents: Collection[str]
    """What those are filed under that are there."""
    n_new: int
    engine: str


@dataclass(frozen=True, slots=True)
class Enquiry:
    """Whom to ask, and how."""

    workspace: Workspace
    model: OpenedModel
    files: Mapping[str, Path]
    """Label -> file; the base is asked by itself."""
    contents: Mapping[str, str]
    """Label -> what the file is filed under."""
    compute: Compute
    stages: Stages

    def all(self, stage: str, evaluation: str, items: Sequence[Item], *, labels: Mapping[str, str]) -> dict[str, list[EvalItem]]:
        """The answers of these files (label -> what it is filed under) to all items. Raises InferenceError."""
        engine = self.compute.devices.engine
        keys = {label: EvalKey(self.model.fingerprint, evaluation, content, engine) for label, content in labels.items()}
        places = {label: self.files.get(label, gguf_path(self.model)) for label in labels}
        store = self.workspace.store
        answers = ask(
            places,
            items,
            done={label: [each.index for each in store.answers(key)] for label, key in keys.items()},
            control=self.stages.begin(stage),
            n_threads=self.compute.n_threads,
            devices=self.compute.devices,
        )
        for label, answer in answers:
            store.record_answers(keys[label], [answer])
        return {label: store.answers(key) for label, key in keys.items()}


def check_evals(evals: Evals) -> None:
    """Raise CorpusError where questions cannot be read, OptionError where nothing asks them."""
    if evals.choices is not None:
        if "choices" not in evals.names:
            raise OptionError("--choices names questions, but they are not asked", remedy="Add --eval choices")
        _questions(evals)


def check_room(source: ModelSource, evals: Evals) -> None:
    """Raise CorpusError where a model's context holds none of what is asked, whatever the text."""
    if "greedy" in evals.names:
        greedy.prompt_length(source)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is put to files, as a model reads it; whatever cannot be asked was refused before."""

    text: str
    """The name of the text that prompts are from."""
    prompts: Sequence[Tokens] | None
    """(n_tokens,) int32 each; None where greedy text is not asked for."""
    questions: Questions | None
    items: Sequence[choices.Choosing]
    """The questions in tokens."""


def prepared(model: OpenedModel, evals: Evals, text: Path, corpus: Corpus) -> Prepared:
    """Everything that is asked for. No weight of the model is read for it.

    Raises:
        CorpusError: nothing to take prompts from, or prompts or questions that cannot be read or are too long for the model.
        InferenceError: llama.cpp cannot read the vocabulary.
    """
    source, path, prompts, questions = model.source, gguf_path(model), None, None
    if "greedy" in evals.names:
        prompts = greedy.prompts(source, path, text, corpus, evals.prompts)
    if "choices" in evals.names:
        questions = _questions(evals)
    return Prepared(corpus.name, prompts, questions, [] if questions is None else choices.tokenized(source, path, questions))


def require_askable(workspace: Workspace, base: str, evals: Evals, text: Path) -> None:
    """Raise CorpusError, as `prepared` does, where a later part of a job could not ask them of a base."""
    if evals.names:
        with workspace.model(base) as model:
            prepared(model, evals, text, workspace.corpus(model, text))


def evaluate(enquiry: Enquiry, evals: Evals, asked: Prepared) -> list[Evaluated]:
    """What was asked for, in a fixed order. Raises InferenceError where llama.cpp cannot run a file."""
    found = []
    if asked.prompts is not None:
        if len(asked.prompts) < evals.prompts:
            there = words.plural(len(asked.prompts), "prompt")
            enquiry.stages.warn(f"{asked.text} gives {there}, fewer than the {evals.prompts:,} that were asked for.")
        found.append(_greedy(enquiry, asked.prompts, asked.text))
    if asked.questions is not None:
        found.append(_choices(enquiry, asked.questions, asked.items))
    return found


def _greedy(asked: Enquiry, prompts: Sequence[Tokens], text: str) -> Evaluated:
    key = greedy.key_of(prompts)
    written = asked.all("greedy, the base's text", key, [greedy.Writing(prompt) for prompt in prompts], labels={WRITTEN: WRITTEN})[WRITTEN]
    tokens = [np.array(each.values, dtype=np.int32) for each in written]
    items = [greedy.Following(prompt, continuation) for prompt, continuation in zip(prompts, tokens, strict=True)]
    answers = asked.all("greedy", key, items, labels=asked.contents)
    answers[BASE] = [EvalItem(index, (float(greedy.N_WRITTEN),)) for index in range(len(prompts))]
    return Evaluated("greedy", text, key.partition(":")[2], answers)


def _questions(evals: Evals) -> Questions:
    """Those that are asked. Raises CorpusError where they cannot be read."""
    return read_questions(Path(evals.choices) if evals.choices else CHOICES)


def _choices(asked: Enquiry, questions: Questions, items: Sequence[choices.Choosing]) -> Evaluated:
    answers = asked.all("choices", choices.key_of(questions), items, labels={BASE: BASE, **asked.contents})
    return Evaluated("choices", questions.name, questions.sha256, answers, tuple(each.right for each in questions.items))


def tokens_of_file(evals: Evals) -> float:
    """About how many tokens one file has to run for all of them, counted like `tokens_left`. Raises CorpusError for the questions."""
    greedily = evals.prompts * (greedy.PROMPT_TOKENS + WRITING_TOKENS) if "greedy" in evals.names else 0
    return greedily + (_tokens_of(_questions(evals)) if "choices" in evals.names else 0.0)


def _tokens_of(questions: Questions) -> float:
    return sum(len(item.text) + sum(map(len, item.choices)) for item in questions.items) / LETTERS_PER_TOKEN


def tokens_left(workspace: Workspace, model: OpenedModel, evals: Evals, text: Path, corpus: Corpus, files: Files) -> float:
    """About how many tokens files, those too that are still to be made, have to run for what is not answered yet.

    A token that is run alone counts as eight (`WRITING_TOKENS`).

    Raises CorpusError, as `prepared` does; questions are not looked at as tokens.
    """
    asked = list[tuple[str, str, int, float]]()
    if "greedy" in evals.names:
        prompts = greedy.prompts(model.source, gguf_path(model), text, corpus, evals.prompts)
        asked.append((greedy.key_of(prompts), WRITTEN, len(prompts), sum(map(len, prompts)) / len(prompts) + WRITING_TOKENS))
    if "choices" in evals.names:
        questions = _questions(evals)
        asked.append((choices.key_of(questions), BASE, len(questions.items), _tokens_of(questions) / len(questions.items)))
    total = 0.0
    for key, of_base, n_items, n_tokens in asked:
        names = (of_base, *files.contents)
        kept = (len(workspace.store.answers(EvalKey(model.fingerprint, key, name, files.engine))) for name in names)
        total += n_tokens * (n_items * (len(names) + files.n_new) - sum(kept))
    return total
