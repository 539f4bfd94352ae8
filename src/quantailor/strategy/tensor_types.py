"""Reads a file for `--tensor-type-file` as llama-quantize does, and comments as published recipes have them."""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Iterator

from quantailor.errors import StrategyFormatError

_WORD = re.compile(r"[^ \t\v\f\r]+")
COMMENTS = ("#", "//")
_LOWER = {ord(letter): letter.lower() for letter in string.ascii_uppercase}
"""C++ parts words at ASCII spaces, and lower-cases ASCII letters, only."""
_NOT_SHARED = re.compile(r"\(\?(?![:=!])|\[[:.=]")
"""What Python's expressions and those of C++ (ECMAScript) read differently."""


def from_tensor_types(
    text: str, tensor_names: Collection[str], *, name: str = "the tensor types", known_types: Collection[str] | None = None
) -> dict[str, str]:
    """The types that a file for `--tensor-type-file` gives these tensors, as llama-quantize would read it without its comments.

    A word that begins with "#" or "//" begins a comment, which llama-quantize itself does not take.

    Args:
        text: the file's content.
        tensor_names: the model's tensors.
        name: how messages call the text, usually the file name.
        known_types: names of the types there are; others are refused. None accepts any name.

    Returns:
        Tensor -> type, in the order of `tensor_names`, for those that some pattern is found in.

    Raises:
        StrategyFormatError: names the line, the value and what to do.
    """
    rules = [_rule(word, f"{name}, line {line}", known_types) for line, word in _words(text)]
    kinds = ((tensor, next((kind for pattern, kind in rules if pattern.search(tensor)), None)) for tensor in tensor_names)
    return {tensor: kind for tensor, kind in kinds if kind is not None}


def _words(text: str) -> Iterator[tuple[int, str]]:
    """Line number and word; words are parted by spaces and newlines."""
    for number, line in enumerate(text.split("\n"), start=1):
        for word in _WORD.findall(line):
            if word.startswith(COMMENTS):
                break
            yield number, word


def _rule(word: str, where: str, known_types: Collection[str] | None) -> tuple[re.Pattern[str], str]:
    pattern, separator, type_name = word.partition("=")
    if not (pattern and separator and type_name):
        raise StrategyFormatError(f"{where}: {word} is not of the form PATTERN=TYPE", remedy="Write for example attn_v=q6_K")
    if known_types is not None and type_name.upper() not in known_types:
        raise StrategyFormatError(f"{where}: there is no type {type_name}", remedy=f"Known: {', '.join(known_types)}")
    return _compiled(pattern.translate(_LOWER), where), type_name.upper()


def _compiled(pattern: str, where: str) -> re.Pattern[str]:
    if _NOT_SHARED.search(pattern):
        raise StrategyFormatError(f"{where}: the expression {pattern} cannot be read here", remedy="Write a simpler one")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise StrategyFormatError(f"{where}: {pattern} is not a regular expression: {error}", remedy="Correct it") from None
