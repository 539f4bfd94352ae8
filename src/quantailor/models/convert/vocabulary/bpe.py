"""BPE vocabularies: tokenizer.json, read without the library that wrote it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from quantailor.errors import ModelFormatError, UnsupportedModelError
from quantailor.models.convert.vocabulary.fingerprint import known_name
from quantailor.models.convert.vocabulary.pretokenizers import pretokenizer_name
from quantailor.models.convert.vocabulary.special_tokens import ROLES, content, further_special
from quantailor.models.convert.vocabulary.tokens import (
    BYTE,
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    looks_special,
    refuse_rowless,
)
from quantailor.models.json_files import INTACT, JsonObject, mapping, objects, read_json, read_json_if_there, read_text
from quantailor.records import MetadataValue

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_UNSCORED = -1000.0
_LLAMA_NAMED = frozenset({"<unk>", "<s>", "</s>"})
"""The tokens with a role where no tokenizer_config.json names any."""
_SPACE = chr(256 + ord(" "))
"""How byte-level vocabularies write a space."""


@dataclass(frozen=True, slots=True)
class _Added:
    """A token beside the merges."""

    text: str
    special: bool
    normalized: bool


class BpeTokenizer:
    """A checked tokenizer.json of BPE type.

    Raises:
        ModelFormatError: the file is damaged.
        UnsupportedModelError: another kind of tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tokenizer.json"
        self._folder = folder
        stored = read_json(self.path)
        self._model = mapping(stored.get("model"))
        self._stored = stored
        if self._model.get("type", "BPE") != "BPE" or not isinstance(self._model.get("vocab"), dict):
            raise UnsupportedModelError(
                f"{self.path} is a tokenizer of type {str(self._model.get('type'))[:40]!r}, which llama.cpp cannot use for this family",
                remedy="Where it was made from a SentencePiece tokenizer.model, put that beside it; else use a model with a BPE tokenizer",
            )
        self.base = {text: self._id(number) for text, number in self._model["vocab"].items()}
        self._refuse_unusable()
        settings = read_json_if_there(folder / "tokenizer_config.json")
        roles = (content(settings.get(f"{role}_token")) for role in ROLES)
        self._roles, self._extra = tuple(text for text in roles if text is not None), further_special(settings)
        self.added = self._added([*objects(stored.get("added_tokens")), *_repeated(settings)])
        self._add_further(read_json_if_there(folder / "added_tokens.json"))
        self.byte_fallback = self._model.get("byte_fallback") is True

    def _refuse_unusable(self) -> None:
        """Raise ModelFormatError where the merges' vocabulary is empty, or gives two texts one id."""
        if not self.base:
            raise ModelFormatError(f"{self.path} has no token", remedy=INTACT)
        texts = {number: text for text, number in self.base.items()}
        if len(texts) < len(self.base):
            first, number = next((text, number) for text, number in self.base.items() if texts[number] != text)
            raise ModelFormatError(
                f"{self.path} has two tokens with the id {number}: {first[:40]!r} and {texts[number][:40]!r}",
                remedy="Keep the one that belongs to the model",
            )

    def _id(self, value: Any) -> int:
        if type(value) is not int or not 0 <= value < 2**24:
            raise ModelFormatError(f"{self.path} has the token id {str(value)[:40]!r}", remedy=INTACT)
        return value

    def _added(self, stored: Sequence[JsonObject]) -> dict[int, _Added]:
        """Added tokens by id. A token with a role is special whatever else is said; named tokens that are nowhere get new ids."""
        ids: dict[str, int] = {}
        added: dict[int, _Added] = {}
        highest = -1
        for token in stored:
            text = token.get("content")
            if not isinstance(text, str):
                raise ModelFormatError(f"{self.path} has an added token without text", remedy=INTACT)
            special = token.get("special") is True
            number = ids.get(text)
            if number is None:
                number = ids[text] = self._id(token["id"]) if "id" in token else self._new_id(text, highest)
            if number in added and added[number].text != text:
                raise ModelFormatError(
                    f"{self.path} has two added tokens with the id {number}: {added[number].text[:40]!r} and {text[:40]!r}",
                    remedy="Keep the one that belongs to the model",
                )
            highest = max(highest, number)
            normalized = token.get("normalized", not special) is True
            added[number] = _Added(text, special or text in self._roles, normalized)
        for text in (*self._roles, *self._extra):
            if text not in ids:
                number = ids[text] = self._new_id(text, highest)
                highest = max(highest, number)
                added[number] = _Added(text, True, False)
        return added

    def _add_further(self, stored: JsonObject) -> None:
        """Take tokens that added_tokens.json alone has. Raises ModelFormatError where it contradicts tokenizer.json."""
        ids = self.base | {token.text: number for number, token in self.added.items()}
        texts = {number: text for text, number in ids.items()}
        for text, value in stored.items():
            number = self._id(value)
            if ids.get(text, number) != number or texts.get(number, text) != text:
                raise ModelFormatError(
                    f"{self._folder} has the token {text[:40]!r} as {number} in added_tokens.json, and tokenizer.json has "
                    + (f"it as {ids[text]}" if text in ids else f"{texts[number][:40]!r} there"),
                    remedy="Keep the one of the two files that belongs to the model",
                )
            if text not in ids:
                self.added[number] = _Added(text, text in self._roles, normalized=False)

    def _new_id(self, text: str, highest: int) -> int:
        """The id of a token that is added without one, after `highest`."""
        return self.base.get(text, max(len(self.base), highest + 1))

    def vocabulary(self, vocab_size: int) -> Vocabulary:
        """The vocabulary under the name that llama.cpp gives its kind. Raises ModelFormatError for ids beyond `vocab_size`."""
        if self.byte_fallback:
            return self._llama_vocabulary(vocab_size)
        texts = {number: text for text, number in self.base.items()} | {number: token.text for number, token in self.added.items()}
        refuse_rowless(texts, vocab_size, str(self.path))
        # Published vocabularies are known by their fingerprint, others by how they split.
        letters = {byte: letter for letter, byte in byte_letters().items()}
        known = known_name(self._stored, letters, self._merge_texts())
        pre = known or pretokenizer_name(
            self._stored.get("pre_tokenizer"), self._stored.get("normalizer"), str(self.path), converter_may=known is None
        )
        tokens, kinds = [], []
        for number in range(vocab_size):
            text, kind = self._token(number, texts.get(number))
            tokens.append(text)
            kinds.append(kind)
        return Vocabulary("gpt2", pre, tuple(tokens), tuple(kinds))

    def _token(self, number: int, text: str | None) -> tuple[str, int]:
        if text is None:
            return f"[PAD{number}]", UNUSED
        token = self.added.get(number)
        if token is None:
            return text, NORMAL
        shown = text if token.normalized else decoded(text)
        if token.special or looks_special(shown):
            return shown, CONTROL
        return shown.replace("▁", " "), USER_DEFINED

    def _llama_vocabulary(self, vocab_size: int) -> Vocabulary:
        """A SentencePiece vocabulary in BPE clothing (Llama 2 without tokenizer.model); only tokens with a role are control tokens.

        Rows of the embedding beyond the vocabulary get unused tokens.
        """
        special = {*self._roles, *self._extra} or _LLAMA_NAMED
        texts = {number: text for text, number in self.base.items()}
        if sorted(texts) != list(range(len(self.base))):
            raise ModelFormatError(f"{self.path} has token ids with gaps", remedy=INTACT)
        tokens, kinds = [], []
        for number in range(len(texts)):
            tokens.append(texts[number])
            kinds.append(BYTE if _BYTE_TOKEN.fullmatch(texts[number]) else CONTROL if texts[number] in special else NORMAL)
        refuse_rowless(texts | {number: token.text for number, token in self.added.items()}, vocab_size, str(self.path))
        for number in range(len(texts), vocab_size):
            added = self.added.get(number)
            tokens.append(f"[PAD{number}]" if added is None else added.text)
            kinds.append(UNUSED if added is None else CONTROL if added.text in special else USER_DEFINED)
        return Vocabulary("llama", "default", tuple(tokens), tuple(kinds), (_UNSCORED,) * len(tokens))

    def merges(self) -> dict[str, MetadataValue]:
        """`tokenizer.ggml.merges`. Raises ModelFormatError where there are none, or one that is not of the vocabulary's tokens."""
        texts = self._merge_texts()
        if not texts:
            raise ModelFormatError(f"{self.path} has no merges, which llama.cpp needs to load its vocabulary", remedy=INTACT)
        return {"tokenizer.ggml.merges": MetadataValue("array", tuple(texts), "string")}

    def _merge_texts(self) -> list[str]:
        """ "a b", whichever of its two formats tokenizer.json uses; merges.txt where it has none."""
        stored = self._model.get("merges")
        if not isinstance(stored, list) or not stored:
            path = self._folder / "merges.txt"
            lines = read_text(path).splitlines() if path.is_file() else []
            pairs = [line.split() for line in (lines[1:] if lines and lines[0].startswith("#") else lines)]
            return [" ".join(pair) for pair in pairs if len(pair) == 2]
        return [self._merge(merge, pairs=isinstance(stored[0], list)) for merge in stored]

    def _merge(self, merge: Any, *, pairs: bool) -> str:
        parts = merge.split(" ") if not pairs and isinstance(merge, str) else merge if pairs and isinstance(merge, list) else []
        if len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise ModelFormatError(f"{self.path} has the merge {str(merge)[:80]!r}", remedy=INTACT)
        # The library that wrote the file takes no others: both parts and what they give are tokens.
        if not self._model.get("continuing_subword_prefix") and not {*parts, "".join(parts)} <= self._model["vocab"].keys():
            raise ModelFormatError(f"{self.path} has the merge {str(merge)[:80]!r}, which its vocabulary does not have", remedy=INTACT)
        return " ".join(part.replace(" ", _SPACE) for part in parts)


def decoded(text: str) -> str:
    """What a byte-level decoder makes of a token: bytes where every letter stands for one, else the text itself."""
    letters = byte_letters()
    if not all(letter in letters for letter in text):
        return text
    return bytes(letters[letter] for letter in text).decode("utf-8", "replace")


@cache
def byte_letters() -> Mapping[str, int]:
    """Byte-level BPE's alphabet: printable Latin-1 letters stand for themselves, the other bytes for U+0100 and up."""
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _repeated(settings: JsonObject) -> list[dict[str, Any]]:
    """tokenizer_config.json's `added_tokens_decoder`, which overrides tokenizer.json where both know a token."""
    stored = mapping(settings.get("added_tokens_decoder"))
    numbered = {int(key): mapping(entry) for key, entry in stored.items() if key.isascii() and key.isdecimal() and len(key) < 10}
    keys = ("content", "special", "normalized")
    return [{key: entry[key] for key in keys if key in entry} for _, entry in sorted(numbered.items(), key=lambda item: item[0])]
