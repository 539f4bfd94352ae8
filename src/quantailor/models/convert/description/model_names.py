"""What a model's name tells: organization, base name, fine-tune, version and size."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_VERSION = re.compile(r"(v|iter)?\d+([.]\d+)*", re.IGNORECASE)
_TYPE = re.compile(r"i?q\d(_\w)*|b?fp?(16|32)", re.IGNORECASE)
_SIZE = re.compile(r"(([A]|\d+[x])?\d+([._]\d+)?[KMBT][\d]?|small|mini|medium|large|x?xl)", re.IGNORECASE)
_TUNE = re.compile(r"chat|instruct|vision|lora", re.IGNORECASE)
_UNTITLED = re.compile(r"^(v\d+(?:\.\d+)*|\d.*)$")

_LONGEST = 1000
"""Letters of a name that is taken apart."""


@dataclass(frozen=True, slots=True)
class ModelName:
    """The parts of a name; None where the name does not tell."""

    full: str
    organization: str | None = None
    basename: str | None = None
    finetune: str | None = None
    version: str | None = None
    size_label: str | None = None


@dataclass(slots=True)
class _Part:
    text: str
    kinds: set[str]

    def has(self, kind: str) -> bool:
        return kind in self.kinds


def given_name(folder: Path) -> str:
    """The folder's name; in huggingface_hub's cache it is a commit, and the model's name stands two levels above."""
    kept = folder.parent.parent.name
    if folder.parent.name == "snapshots" and kept.startswith("models--"):
        return kept.split("--")[-1]
    return folder.name


def title(text: str) -> str:
    """Words with capitals, "books-llama" -> "Books Llama"; versions, sizes and mixed case stay."""
    words = text.strip().replace("-", " ").split()
    return " ".join(word.title() if word.islower() and not _UNTITLED.match(word) else word for word in words)


def parse_model_name(text: str, n_parameters: int) -> ModelName:
    """Take "organization/Base-7B-tune-v1" apart.

    A size that is far from `n_parameters` is a context length and counts as fine-tune.
    """
    if " " in text or len(text) > _LONGEST:
        return ModelName(text)
    organization, separator, name = text.partition("/") if "/" in text else ("", "", text)
    owner = organization if separator and not organization.startswith(".") else None
    parts = [_kinds(part, number > 0, n_parameters) for number, part in enumerate(filter(None, name.split("-")))]
    _prefer_numbers(parts)
    _mark_basename(parts)
    sizes = dict.fromkeys(part.text for part in parts if part.has("size_label"))
    parts_of_name = {
        "size_label": "-".join(sizes) or None,
        "finetune": _joined(part for part in parts if part.has("finetune")),
        "version": _joined(part for part in parts if part.has("version") and not part.has("basename")),
    }
    # A name without any of these says too little to be taken apart.
    basename = _joined(part for part in parts if part.has("basename")) if any(parts_of_name.values()) else None
    return ModelName(name, owner, basename, **parts_of_name)


def _joined(parts: Iterable[_Part]) -> str | None:
    return "-".join(part.text for part in parts) or None


def _kinds(part: str, later: bool, n_parameters: int) -> _Part:
    if _VERSION.fullmatch(part):
        return _Part(part, {"version"})
    if _TYPE.fullmatch(part):
        return _Part(part.upper(), {"type"})
    if later and _SIZE.fullmatch(part):
        return _size(part, n_parameters)
    if later and _TUNE.fullmatch(part):
        return _Part(part, {"finetune"})
    return _Part(part, set())


def _size(part: str, n_parameters: int) -> _Part:
    text = part.replace("_", ".")
    if text[-1].isdecimal():  # "7b1" is 7.1B
        text = f"{text[:-2]}.{text[-1]}{text[-2]}"
    if len(text) > 1 and text[-2].isdecimal() and text[-1] in "kmbt":
        text = text[:-1] + text[-1].upper()
    try:
        size = float(text[:-1]) * 1000.0 ** " KMBT".find(text[-1])
    except ValueError:
        return _Part(text, {"size_label"})
    if n_parameters and abs(size - n_parameters) > 7 * n_parameters // 8:
        return _Part(text[:-1] + text[-1].lower(), {"finetune"})
    return _Part(text, {"size_label"})


def _prefer_numbers(parts: list[_Part]) -> None:
    """Words such as "large" are not sizes beside a number."""
    sizes = [part for part in parts if part.has("size_label")]
    if any(letter.isdecimal() for part in sizes for letter in part.text):
        for part in sizes:
            if part.text.isalpha():
                part.kinds.remove("size_label")


def _mark_basename(parts: list[_Part]) -> None:
    at_start = True
    for part in parts:
        if at_start and ((not part.kinds and part.text[0].isalpha()) or part.has("version")):
            part.kinds.add("basename")
        else:
            at_start = False
            part.kinds = part.kinds or {"finetune"}
    for part in reversed(parts):
        if not (part.has("basename") and len(part.kinds) > 1):
            break
        part.kinds.remove("basename")
