"""The name that llama.cpp gives a BPE pre-tokenizer, from its definition in tokenizer.json.

llama.cpp's converter knows a tokenizer by a hash over the ids of a test string (`fingerprint`). Where that is unknown,
this comes next: the name only chooses how text is split before merging, and that is what the definition states; so equal
definitions get equal names, fine-tunes with changed vocabularies included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantailor.errors import ConverterNeededError, UnsupportedModelError
from quantailor.models.json_files import INSIST, OTHER_WAY, JsonObject, mapping, objects

_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_SPLITS: Mapping[str, str] = {
    rf"{_ENGLISH}|{_LEAD}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}": "llama-bpe",
    rf"{_ENGLISH}|{_LEAD}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}": "qwen2",
    rf"{_LEAD}[{_UPPER}]*[{_LOWER}]+|{_LEAD}[{_UPPER}]+[{_LOWER}]*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}": "tekken",
}
_MOST_SHOWN = 3


def pretokenizer_name(stored: object, normalizer: object, place: str, *, converter_may: bool) -> str:
    """The value of `tokenizer.ggml.pre`.

    Args:
        stored: `pre_tokenizer` of tokenizer.json.
        normalizer: `normalizer` of tokenizer.json.
        place: how messages call the file.
        converter_may: whether llama.cpp's converter may know the vocabulary nevertheless.

    Raises:
        UnsupportedModelError: a definition we do not know; a wrong name would make llama.cpp split texts wrongly.
    """
    outer = mapping(stored)
    steps = objects(outer.get("pretokenizers")) if outer.get("type") == "Sequence" else [dict(outer)]
    name = _name(steps) if not normalizer or mapping(normalizer).get("type") == "NFC" else None
    if name is None:
        more = f" and {len(steps) - _MOST_SHOWN} more" if len(steps) > _MOST_SHOWN else ""
        text = (", ".join(_described(step) for step in steps[:_MOST_SHOWN]) or "none") + more
        message = f"{place} has the pre-tokenizer {text}, which this version does not know"
        raise ConverterNeededError(message, remedy=OTHER_WAY) if converter_may else UnsupportedModelError(message, remedy=INSIST)
    return name


def _name(steps: list[dict[str, Any]]) -> str | None:
    if not steps or steps[-1].get("type") != "ByteLevel":
        return None
    splits, own_regex = steps[:-1], steps[-1].get("use_regex", True) is True
    if not splits and own_regex:
        return "gpt-2"
    if len(splits) != 1:
        return None
    if own_regex:
        digits = splits[0].get("type") == "Digits" and splits[0].get("individual_digits") is True
        return "smollm" if digits else None
    pattern = mapping(splits[0].get("pattern")).get("Regex")
    plain = splits[0].get("type") == "Split" and splits[0].get("behavior") in ("Isolated", "Removed")
    return _SPLITS.get(pattern) if plain and isinstance(pattern, str) else None


def _described(step: JsonObject) -> str:
    pattern = mapping(step.get("pattern")).get("Regex")
    return f"{str(step.get('type'))[:40]}({str(pattern)[:60]})" if pattern is not None else str(step.get("type"))[:40]
