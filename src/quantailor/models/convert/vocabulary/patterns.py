"""Regular expressions of tokenizer.json for one text, tried only where they cannot take long.

The standard library knows no `\\p{L}`; such classes become lists of the text's own characters. It backtracks, so a
pattern of forty letters may take longer than anybody lives: `ways` counts, from above, in how many ways a pattern could
match from one place, with repetitions as long as the text allows.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_PROPERTY = re.compile(r"\\([pP])\{(\^?)(\w+)\}|\\([pP])([A-Z])")
_SETS = ("[[", "&&", "--", "~~", "||")
"""Sets within classes, which the standard library reads as plain characters."""
_ATOM = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]|\\.|[^\\]", re.DOTALL)
_GROUP = re.compile(r"\((?:\?(?:[a-zA-Z]*(?:-[a-zA-Z]+)?:|<?[=!]|>))?")
_QUANTIFIER = re.compile(r"(?:[*+]|(\?)|\{\d*,?\d*\})[?+]?")
_VERBOSE = re.compile(r"\(\?[a-zA-Z]*x")
"""Spaces would mean nothing, and what counts as one differs."""
_ABSENT = "\x00"
"""A character that the text does not have."""
_LONGEST, _LONGEST_WRITTEN_OUT = 4000, 100_000
MOST_WAYS = 20_000
_KEPT = 1000


class UnknownPatternError(Exception):
    """A pattern that could take long, or that means something else here."""


def compiled(pattern: str, text: str) -> re.Pattern[str]:
    """A pattern of the tokenizers library for parts of `text`. Raises UnknownPatternError, re.error."""
    if len(pattern) > _LONGEST or any(sign in pattern for sign in _SETS) or _VERBOSE.search(pattern):
        raise UnknownPatternError
    written = _written_out(pattern, text)
    if len(written) > _LONGEST_WRITTEN_OUT or ways(written, text) > MOST_WAYS:
        raise UnknownPatternError
    return re.compile(written)


def _written_out(pattern: str, text: str) -> str:
    out, inside, at = [], False, 0
    while at < len(pattern):
        if match := _PROPERTY.match(pattern, at):
            out.append(_characters(match, text, inside=inside))
            at = match.end()
            continue
        if pattern[at] == "\\":
            out.append(pattern[at : at + 2])
            at += 2
            continue
        inside = (inside or pattern[at] == "[") and pattern[at] != "]"
        out.append(pattern[at])
        at += 1
    return "".join(out)


def _characters(match: re.Match[str], text: str, *, inside: bool) -> str:
    """The text's characters of a class, as a class or as a part of one."""
    name, negated = match[3] or match[5], ((match[1] or match[4]) == "P") != bool(match[2])
    chosen = _chosen(name, text, negated=negated) or _ABSENT
    return chosen if inside else f"[{chosen}]"


@lru_cache(_KEPT)
def _chosen(name: str, text: str, *, negated: bool) -> str:
    return "".join(re.escape(letter) for letter in sorted(set(text)) if _belongs(letter, name) != negated)


def _belongs(letter: str, name: str) -> bool:
    if name == "Han":
        return "CJK UNIFIED" in unicodedata.name(letter, "")
    if len(name) > 2:
        raise UnknownPatternError
    return unicodedata.category(letter).startswith(name)


# How long a pattern could take


def ways(pattern: str, text: str) -> int:
    """In how many ways a pattern could match from one place of `text`, at most. Raises UnknownPatternError, re.error."""
    count, end = _alternatives(pattern, 0, text)
    if end != len(pattern):
        raise UnknownPatternError
    return count


def _alternatives(pattern: str, at: int, text: str) -> tuple[int, int]:
    """The ways of all alternatives up to the end of their group, and where that is."""
    total, current = 0, 1
    while at < len(pattern) and pattern[at] != ")":
        if pattern[at] == "|":
            total, current, at = total + current, 1, at + 1
        else:
            here, at = _part(pattern, at, text)
            current *= here
        if current > MOST_WAYS:
            raise UnknownPatternError
    return total + current, at


def _part(pattern: str, at: int, text: str) -> tuple[int, int]:
    """The ways of a group or a single character, with what repeats it."""
    if group := _GROUP.match(pattern, at):
        count, end = _alternatives(pattern, group.end(), text)
        if pattern[end : end + 1] != ")":
            raise UnknownPatternError
        end += 1
    elif single := _ATOM.match(pattern, at):
        count, end = 1, single.end()
    else:
        raise UnknownPatternError
    quantifier = _QUANTIFIER.match(pattern, end)
    if quantifier is None:
        return count, end
    if quantifier[1]:
        return count + 1, quantifier.end()
    if group:
        raise UnknownPatternError
    return count + _longest_run(pattern[at:end], text), quantifier.end()


@lru_cache(_KEPT)
def _longest_run(single: str, text: str) -> int:
    """How often a class can match in a row."""
    runs = re.finditer(f"(?:{single})+", text, re.IGNORECASE | re.DOTALL)
    return max((len(match[0]) for match in runs), default=0)
