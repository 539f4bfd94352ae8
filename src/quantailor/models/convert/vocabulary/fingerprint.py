"""The fingerprint of a tokenizer.json: what it makes of one text.

This is a byte-level BPE tokenizer for that text alone. Hugging Face's `tokenizers` would do the same for any text, but a
stranger's pattern makes its regular expressions search for minutes or end in a panic; those of `regex` have a time limit.
"""

from __future__ import annotations

import hashlib
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain

import regex

from quantailor.models.convert.vocabulary.fingerprints import NAMES, TEXT
from quantailor.models.json_files import JsonObject, mapping, objects

PATIENCE_S = 0.5
"""For all patterns of a tokenizer together; those of published ones take milliseconds."""
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_PUNCTUATION = r"[\p{P}$+<=>^`|~]"
_MOST_STEPS, _MOST_AROUND, _LONGEST = 10, 100, 4000
_RECURSION = regex.compile(r"\(\?(?:R|&|P>|[+-]?\d)")
"""Not known to tokenizers, and in `regex` limited by memory alone."""
_NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD")

Split = Callable[[str], Iterable[str]]


class _UnknownError(Exception):
    """A part of the tokenizer that is not imitated here."""


def known_name(tokenizer: JsonObject, byte_letters: Mapping[int, str], merges: Iterable[str]) -> str | None:
    """llama.cpp's name for this vocabulary's pre-tokenizer, "" where its converter knows no such vocabulary, None where that is not told.

    Args:
        tokenizer: tokenizer.json.
        byte_letters: the letter that stands for each byte.
        merges: "a b" in order.
    """
    try:
        ids = _encode(tokenizer, byte_letters, merges)
        before, after = _around(mapping(tokenizer.get("post_processor")))
    except (_UnknownError, regex.error, TimeoutError, LookupError, TypeError, ValueError, OverflowError, RecursionError, MemoryError):
        return None
    for candidate in ([*before, *ids, *after], ids, [*before, *ids]):
        if name := NAMES.get(hashlib.sha256(str(candidate).encode()).hexdigest()):
            return name
    return ""


def _encode(tokenizer: JsonObject, byte_letters: Mapping[int, str], merges: Iterable[str]) -> list[int]:
    model = mapping(tokenizer.get("model"))
    vocabulary, whole = mapping(model.get("vocab")), model.get("ignore_merges") is True
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    normalize = _normalizer(mapping(tokenizer.get("normalizer")))
    splits = _splits(mapping(tokenizer.get("pre_tokenizer")), byte_letters)
    ids: list[int] = []
    for text, number in _without_added(TEXT, objects(tokenizer.get("added_tokens"))):
        if number is not None:
            ids.append(number)
            continue
        words = [normalize(text)]
        for split in splits:
            words = [part for word in words for part in split(word) if part]
        for word in words:
            parts = [word] if whole and word in vocabulary else _merged(list(word), ranks)
            ids += [vocabulary[part] for part in parts]
    return ids


def _without_added(text: str, added: Sequence[JsonObject]) -> Iterable[tuple[str, int | None]]:
    """Pieces of the text, and the added tokens between them with their ids."""
    present = {str(token.get("content")): token for token in added if token.get("content") and str(token["content"]) in text}
    if any(token.get(flag) for token in present.values() for flag in ("lstrip", "rstrip", "single_word")):
        raise _UnknownError
    pattern = "|".join(regex.escape(content) for content in sorted(present, key=len, reverse=True))
    for piece in regex.split(f"({pattern})", text) if present else [text]:
        if piece:
            yield piece, int(present[piece]["id"]) if piece in present else None


def _merged(parts: list[str], ranks: Mapping[str, int]) -> list[str]:
    while len(parts) > 1:
        best = min(range(len(parts) - 1), key=lambda i: ranks.get(f"{parts[i]} {parts[i + 1]}", len(ranks)))
        if f"{parts[best]} {parts[best + 1]}" not in ranks:
            break
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


def _normalizer(stored: JsonObject) -> Callable[[str], str]:
    if not stored or (stored.get("type") == "Sequence" and not stored.get("normalizers")):
        return str
    if (kind := stored.get("type")) in _NORMALIZERS:
        return lambda text: unicodedata.normalize(kind, text)
    raise _UnknownError


def _around(stored: JsonObject) -> tuple[list[int], list[int]]:
    """Ids before and after a text."""
    for step in objects(stored.get("processors")) or ([dict(stored)] if stored else []):
        if step.get("type") == "TemplateProcessing":
            parts = objects(step.get("single"))
            place = next((number for number, part in enumerate(parts) if "Sequence" in part), None)
            if place is None or len(parts) > _MOST_AROUND:
                raise _UnknownError
            tokens = mapping(step.get("special_tokens"))
            ids = [
                [int(i) for i in tokens[str(mapping(part["SpecialToken"])["id"])]["ids"][:_MOST_AROUND]]
                for part in parts
                if "SpecialToken" in part
            ]
            return [*chain(*ids[:place])], [*chain(*ids[place:])]
        if step.get("type") != "ByteLevel":
            raise _UnknownError
    return [], []


# Pre-tokenizers


def _splits(stored: JsonObject, byte_letters: Mapping[int, str]) -> list[Split]:
    steps = objects(stored.get("pretokenizers")) if stored.get("type") == "Sequence" else [dict(stored)]
    if not 0 < len(steps) <= _MOST_STEPS:
        raise _UnknownError
    deadline = time.monotonic() + PATIENCE_S
    return [_step(step, byte_letters, deadline) for step in steps]


def _step(step: JsonObject, byte_letters: Mapping[int, str], deadline: float) -> Split:
    kind, behavior = step.get("type"), step.get("behavior", "Isolated")
    if kind == "Split":
        stored = mapping(step.get("pattern"))
        text = stored.get("Regex")
        pattern = text if isinstance(text, str) else regex.escape(str(stored["String"]))
        if behavior == "Isolated" or (behavior == "Removed" and step.get("invert") is True):
            return splitter(pattern, deadline, keep_rest=behavior == "Isolated")
    if kind == "Digits":
        return splitter(r"\p{N}" if step.get("individual_digits") else r"\p{N}+", deadline)
    if kind == "Punctuation" and behavior in ("Isolated", "Contiguous"):
        return splitter(_PUNCTUATION + ("+" if behavior == "Contiguous" else ""), deadline)
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        words = splitter(_GPT2, deadline) if step.get("use_regex", True) is True else lambda text: [text]
        return lambda text: ("".join(byte_letters[byte] for byte in word.encode()) for word in words(text))
    raise _UnknownError


def splitter(pattern: str, deadline: float, *, keep_rest: bool = True) -> Split:
    """What cuts a text into the matches of a pattern and, with `keep_rest`, what lies between them.

    It raises TimeoutError when `deadline` (seconds of the monotonic clock) passes. Raises regex.error for what is not a pattern.
    """
    if len(pattern) > _LONGEST or _RECURSION.search(pattern):
        raise _UnknownError
    compiled = regex.compile(pattern)

    def split(text: str) -> Iterator[str]:
        end = 0
        for match in compiled.finditer(text, timeout=max(1e-3, deadline - time.monotonic())):
            if keep_rest:
                yield text[end : match.start()]
            yield match[0]
            end = match.end()
        if keep_rest:
            yield text[end:]

    return split
