"""The fingerprint of a tokenizer.json: what it makes of one text.

This is a byte-level BPE tokenizer for that text alone: classes such as `\\p{L}` become lists of the text's own
characters (`patterns`), which the standard library's regular expressions can match. Patterns that could take long are
not tried.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

from quantailor.models.convert.vocabulary.fingerprints import NAMES, TEXT
from quantailor.models.convert.vocabulary.patterns import UnknownPatternError, compiled
from quantailor.models.json_files import mapping, objects

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_MOST_STEPS, _MOST_AROUND = 10, 100
_ABSENT = "\x00"
"""A character that the text does not have."""
_NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD")

Split = Callable[[list[str]], list[str]]


class _UnknownError(Exception):
    """A part of the tokenizer that is not imitated here."""


def known_name(tokenizer: Mapping[str, Any], byte_letters: Mapping[int, str], merges: Iterable[str]) -> str | None:
    """llama.cpp's name for this vocabulary's pre-tokenizer, None where its converter knows no such vocabulary.

    Args:
        tokenizer: tokenizer.json.
        byte_letters: the letter that stands for each byte.
        merges: "a b" in order.
    """
    try:
        ids = _encode(tokenizer, byte_letters, merges)
        before, after = _around(mapping(tokenizer.get("post_processor")))
    except (_UnknownError, UnknownPatternError, re.error, LookupError, TypeError, ValueError, OverflowError, RecursionError):
        return None
    for candidate in ([*before, *ids, *after], ids, [*before, *ids]):
        if name := NAMES.get(hashlib.sha256(str(candidate).encode()).hexdigest()):
            return name
    return None


def _encode(tokenizer: Mapping[str, Any], byte_letters: Mapping[int, str], merges: Iterable[str]) -> list[int]:
    model = mapping(tokenizer.get("model"))
    vocabulary, whole = mapping(model.get("vocab")), model.get("ignore_merges") is True
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    splits = _splits(mapping(tokenizer.get("pre_tokenizer")), byte_letters)
    normalize = _normalizer(mapping(tokenizer.get("normalizer")))
    ids: list[int] = []
    for text, number in _without_added(TEXT, objects(tokenizer.get("added_tokens"))):
        if number is not None:
            ids.append(number)
            continue
        for word in _split(normalize(text), splits):
            parts = [word] if whole and word in vocabulary else _merged(list(word), ranks)
            ids += [vocabulary[part] for part in parts]
    return ids


def _without_added(text: str, added: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, int | None]]:
    """Pieces of the text, and the added tokens between them with their ids."""
    found = {str(token.get("content")): token for token in added if token.get("content") and str(token["content"]) in text}
    if any(token.get(flag) for token in found.values() for flag in ("lstrip", "rstrip", "single_word")):
        raise _UnknownError
    pattern = "|".join(re.escape(content) for content in sorted(found, key=len, reverse=True))
    for piece in re.split(f"({pattern})", text) if found else [text]:
        if piece:
            yield piece, int(found[piece]["id"]) if piece in found else None


def _merged(parts: list[str], ranks: Mapping[str, int]) -> list[str]:
    while len(parts) > 1:
        best = min(range(len(parts) - 1), key=lambda i: ranks.get(f"{parts[i]} {parts[i + 1]}", len(ranks)))
        if f"{parts[best]} {parts[best + 1]}" not in ranks:
            break
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


def _normalizer(stored: Mapping[str, Any]) -> Callable[[str], str]:
    if not stored or (stored.get("type") == "Sequence" and not stored.get("normalizers")):
        return str
    if (kind := stored.get("type")) in _NORMALIZERS:
        return lambda text: unicodedata.normalize(kind, text)
    raise _UnknownError


def _around(stored: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Ids before and after a text."""
    for step in objects(stored.get("processors")) or ([dict(stored)] if stored else []):
        if step.get("type") == "TemplateProcessing":
            parts = objects(step.get("single"))
            place = next((number for number, part in enumerate(parts) if "Sequence" in part), None)
            if place is None:
                raise _UnknownError
            known = mapping(step.get("special_tokens"))
            if len(parts) > _MOST_AROUND:
                raise _UnknownError
            ids = [
                [int(i) for i in known[str(mapping(part["SpecialToken"])["id"])]["ids"][:_MOST_AROUND]]
                for part in parts
                if "SpecialToken" in part
            ]
            return [*chain(*ids[:place])], [*chain(*ids[place:])]
        if step.get("type") != "ByteLevel":
            raise _UnknownError
    return [], []


# Pre-tokenizers


def _splits(stored: Mapping[str, Any], byte_letters: Mapping[int, str]) -> list[Split]:
    steps = objects(stored.get("pretokenizers")) if stored.get("type") == "Sequence" else [dict(stored)]
    if not 0 < len(steps) <= _MOST_STEPS:
        raise _UnknownError
    # A step after the one that makes letters of bytes splits those.
    text = f"{TEXT}{_ABSENT}{''.join(byte_letters[byte] for byte in TEXT.encode())}"
    return [_step(step, byte_letters, partial(compiled, text=text)) for step in steps]


def _split(text: str, splits: Sequence[Split]) -> list[str]:
    pieces = [text]
    for split in splits:
        pieces = split(pieces)
    return pieces


def _step(step: Mapping[str, Any], byte_letters: Mapping[int, str], pattern: Callable[[str], re.Pattern[str]]) -> Split:
    kind = step.get("type")
    if kind == "Split" and step.get("behavior") in ("Isolated", "Removed", "MergedWithPrevious"):
        return _by_pattern(step, pattern)
    if kind == "Digits":
        return _isolated(pattern(r"\p{N}" if step.get("individual_digits") else r"\p{N}+"))
    if kind == "Punctuation" and step.get("behavior", "Isolated") == "Isolated":
        return _isolated(pattern(r"[\p{P}$+<=>^`|~]"))
    if kind == "Punctuation" and step.get("behavior") == "Contiguous":
        return _isolated(pattern(r"[\p{P}$+<=>^`|~]+"))
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return _byte_level(byte_letters, pattern(_GPT2) if step.get("use_regex", True) is True else None)
    raise _UnknownError


def _by_pattern(step: Mapping[str, Any], compile: Callable[[str], re.Pattern[str]]) -> Split:
    stored = mapping(step.get("pattern"))
    text, behavior = stored.get("Regex"), step["behavior"]
    pattern = compile(text if isinstance(text, str) else re.escape(str(stored["String"])))
    if behavior == "Isolated":
        return _isolated(pattern)
    if behavior == "Removed" and step.get("invert") is True:
        return lambda pieces: [match[0] for piece in pieces for match in pattern.finditer(piece) if match[0]]
    raise _UnknownError


def _isolated(pattern: re.Pattern[str]) -> Split:
    """Every match and everything between matches is a piece."""

    def split(pieces: list[str]) -> list[str]:
        out = []
        for piece in pieces:
            end = 0
            for match in pattern.finditer(piece):
                out += [piece[end : match.start()], match[0]]
                end = match.end()
            out.append(piece[end:])
        return [part for part in out if part]

    return split


def _byte_level(byte_letters: Mapping[int, str], pattern: re.Pattern[str] | None) -> Split:
    words = _isolated(pattern) if pattern else list

    def split(pieces: list[str]) -> list[str]:
        return ["".join(byte_letters[byte] for byte in piece.encode()) for piece in words(pieces)]

    return split
