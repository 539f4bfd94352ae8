"""Files of multiple-choice questions: JSON Lines, or what `llama-perplexity` reads for `--multiple-choice`, `--hellaswag`, `--winogrande`.

    {"question": "The sky is", "choices": ["blue", "green"], "answer": 0}

`answer` counts from 0, or is one of the choices. A question is what stands before each choice, with a space between.

The binary format is little-endian: the number of questions, the position of each (both uint32), then of each its text and two lists of
choices, the second of which is read past. A text is its length in bytes (uint32) and UTF-8; a list is their number (uint32), that many
texts, and for each an int32 that is 1 where it is right.

HellaSwag is a text (`.txt`) of six lines a question: what stands before the choices, the number of the right one from 0, four choices.
Winogrande is a table (`.csv`): number, a sentence with `_` where the choices go, two choices, the right one as 1 or 2. A file of such a
name that begins with `{` is JSON Lines all the same.
"""

from __future__ import annotations

import csv
import hashlib
import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantailor.analysis.chats import json_of
from quantailor.errors import CorpusError
from quantailor.files import read_bytes

LINES_OF_HELLASWAG = 6
_WINOGRANDE = ("number", "sentence", "choice", "choice", "answer")
MOST_CHOICES = 100
"""Of a question; llama.cpp's own limit."""
_REMEDY = 'Write one per line: {"question": "...", "choices": ["...", "..."], "answer": 0}, or give a file of llama.cpp\'s own format'


@dataclass(frozen=True, slots=True)
class Question:
    """What stands before every choice, the choices, and which of them are right."""

    text: str
    choices: tuple[str, ...]
    right: tuple[int, ...]
    after: str | None = None
    """What follows every choice, and is to tell which is right; None where the choices themselves are."""

    def told(self, choice: str) -> str:
        """The text with a choice in it."""
        return f"{self.text} {choice}" if self.after is None else f"{self.text}{choice}{self.after}"


@dataclass(frozen=True, slots=True)
class Questions:
    """A file of them."""

    name: str
    sha256: str
    """Of the file's bytes."""
    items: tuple[Question, ...]


def read_questions(path: Path) -> Questions:
    """Read a file of either format.

    Raises:
        CorpusError: it cannot be read or is empty; a question that cannot be read, or whose answer is not among its choices.
    """
    try:
        data = read_bytes(path)
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror or error}", remedy=_REMEDY) from error
    items = _of_binary(data, path) if b"\0" in data[:4] else _of_text(data, path)
    if not items:
        raise CorpusError(f"{path} has no questions", remedy=_REMEDY)
    for number, item in enumerate(items, 1):
        _check(item, f"question {number} of {path}")
    return Questions(path.name, hashlib.sha256(data).hexdigest(), items)


def _check(item: Question, what: str) -> None:
    if not item.text or not all(item.choices):
        raise CorpusError(f"{what} has an empty {'choice' if item.text else 'text'}", remedy="Fill it in, or take the question out")
    if not 2 <= len(item.choices) <= MOST_CHOICES:
        raise CorpusError(f"{what} has a list of {len(item.choices)} choices", remedy=f"Give from 2 to {MOST_CHOICES}")
    if not item.right:
        raise CorpusError(f"{what} has no right choice", remedy="Mark one, or take the question out")
    if outside := [each for each in item.right if not 0 <= each < len(item.choices)]:
        raise CorpusError(
            f"{what} has the answer {outside[0]}, and {len(item.choices)} choices", remedy=f"Give one from 0 to {len(item.choices) - 1}"
        )


def _of_text(data: bytes, path: Path) -> tuple[Question, ...]:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 (byte {error.start})", remedy=_REMEDY) from error
    ending = "" if text.lstrip().startswith("{") else path.suffix.lower()
    if ending == ".csv":
        return _of_winogrande(text, path)
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return _of_hellaswag(lines, path) if ending == ".txt" else _of_lines(lines, path)


def _of_hellaswag(lines: Sequence[str], path: Path) -> tuple[Question, ...]:
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    if len(lines) % LINES_OF_HELLASWAG:
        raise CorpusError(
            f"{path} has {len(lines):,} lines, and HellaSwag six for each question",
            remedy="Give one that llama-perplexity takes, or .jsonl",
        )
    found = []
    for at in range(0, len(lines), LINES_OF_HELLASWAG):
        text, answer, *choices = lines[at : at + LINES_OF_HELLASWAG]
        if not answer.strip().isdecimal():
            said = f"line {at + 2} of {path} is {answer.strip()[:20]!r}, not the number of the right choice"
            raise CorpusError(said, remedy="Give one from 0 to 3, as HellaSwag's text for llama-perplexity has it")
        found.append(Question(text, tuple(choices), (int(answer),)))
    return tuple(found)


def _of_winogrande(text: str, path: Path) -> tuple[Question, ...]:
    found = []
    rows = csv.reader(io.StringIO(text))
    try:
        for row in rows:
            if row:
                if len(row) != len(_WINOGRANDE) or row[1].count("_") != 1 or row[4].strip() not in ("1", "2"):
                    said = f"line {rows.line_num} of {path} is no Winogrande question"
                    raise CorpusError(said, remedy=f"Write {','.join(_WINOGRANDE)}, with one _ in the sentence and 1 or 2 as the answer")
                before, after = row[1].split("_")
                found.append(Question(before, (row[2], row[3]), (int(row[4]) - 1,), after))
    except csv.Error as error:
        raise CorpusError(f"line {rows.line_num} of {path} cannot be read: {error}", remedy=_REMEDY) from error
    return tuple(found)


def _of_lines(lines: Sequence[str], path: Path) -> tuple[Question, ...]:
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(_of_line(json_of(line), f"line {number} of {path}"))
            except (ValueError, TypeError, KeyError, RecursionError):
                raise CorpusError(f"line {number} of {path} is not a question with choices and an answer", remedy=_REMEDY) from None
    return tuple(found)


def _of_line(value: object, what: str) -> Question:
    if not isinstance(value, dict):
        raise TypeError
    text, choices, answer = value["question"], value["choices"], value["answer"]
    if not (isinstance(text, str) and isinstance(choices, list) and all(isinstance(each, str) for each in choices)):
        raise TypeError
    if isinstance(answer, str):
        if answer not in choices:
            raise CorpusError(
                f"{what} has the answer {answer}, which is none of its choices", remedy="Write its number, from 0, or its words"
            )
        return Question(text, tuple(choices), (choices.index(answer),))
    if isinstance(answer, bool) or not isinstance(answer, int):
        raise TypeError
    return Question(text, tuple(choices), (answer,))


def _of_binary(data: bytes, path: Path) -> tuple[Question, ...]:
    reader, found = _Reader(data), list[Question]()
    try:
        n_questions = reader.number()
        reader.skip(4 * n_questions)
        for _ in range(n_questions):
            text, (choices, right), _ = reader.text(), reader.choices(), reader.choices()
            found.append(Question(text, choices, right))
    except (ValueError, struct.error):
        said = f"{path} cannot be read as llama.cpp's multiple-choice format: question {len(found) + 1} is cut off or damaged"
        raise CorpusError(said, remedy=_REMEDY) from None
    return tuple(found)


class _Reader:
    """Goes through bytes; raises ValueError or struct.error where they end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def skip(self, n_bytes: int) -> bytes:
        begin, self._at = self._at, self._at + n_bytes
        if self._at > len(self._data):
            raise ValueError
        return self._data[begin : self._at]

    def number(self) -> int:
        return int(struct.unpack("<I", self.skip(4))[0])

    def text(self) -> str:
        return self.skip(self.number()).decode()

    def choices(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        n_choices = self.number()
        if n_choices > MOST_CHOICES:
            raise ValueError
        texts = tuple(self.text() for _ in range(n_choices))
        labels = struct.unpack(f"<{n_choices}i", self.skip(4 * n_choices))
        return texts, tuple(index for index, label in enumerate(labels) if label == 1)
