"""Tokenizer files of published vocabularies, from the vocabulary files that llama.cpp ships for its own tests."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantailor.models.gguf_file import GGUFSource
from tiny_models import LLAMA3_SPLIT, added_token, split, template

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_PLAIN_BYTES = {**_BYTES, "use_regex": False}
_USER_DEFINED, _CONTROL = 4, 3
_PATTERNS = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")


def _splits(*patterns: str) -> list[dict[str, Any]]:
    return [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False} for pattern in patterns]


@dataclass(frozen=True)
class Published:
    """How a published byte-level tokenizer.json splits text, and whether it puts a token before it."""

    pre_tokenizer: dict[str, Any]
    begins_with_bos: bool = False
    normalizer: dict[str, Any] | None = None
    ignore_merges: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    normalizes_added: bool = False
    """Added tokens that are not special are found after normalizing; their text is in byte letters."""


BYTE_LEVEL: Mapping[str, Published] = {
    "llama-bpe": Published(split(LLAMA3_SPLIT), begins_with_bos=True, ignore_merges=True),
    "qwen2": Published(split(LLAMA3_SPLIT.replace("{1,3}", "")), normalizer={"type": "NFC"}),
    "gpt-2": Published(_BYTES, settings={"tokenizer_class": "GPT2Tokenizer"}),
    "deepseek-coder": Published(
        {
            "type": "Sequence",
            "pretokenizers": [*_splits(*_PATTERNS), {"type": "Digits", "individual_digits": True}, _PLAIN_BYTES],
        },
        begins_with_bos=True,
        normalizes_added=True,
        settings={"add_bos_token": True, "add_eos_token": False},
    ),
}
SENTENCEPIECE = ("llama-spm", "phi-3")


class SdistVocabulary:
    """One of the vocabulary files, read once."""

    def __init__(self, name: str, llama_cpp: Path) -> None:
        self.name = name
        source = GGUFSource(llama_cpp / "models" / f"ggml-vocab-{name}.gguf")
        self.values = {key.removeprefix("tokenizer.ggml."): entry.value for key, entry in source.metadata.items()}
        source.close()
        self.tokens: Sequence[str] = self.values["tokens"]  # type: ignore[assignment]
        self.kinds: Sequence[int] = self.values["token_type"]  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self.tokens)

    def id(self, role: str) -> int | None:
        value = self.values.get(f"{role}_token_id")
        return value if isinstance(value, int) else None

    def write(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Write the tokenizer's files."""
        if self.name in SENTENCEPIECE:
            self._write_sentencepiece(folder, settings)
        else:
            self._write_byte_level(folder, settings)

    def _write_byte_level(self, folder: Path, settings: Mapping[str, Any]) -> None:
        stored, tokens = BYTE_LEVEL[self.name], self.tokens
        added = {number for number, kind in enumerate(self.kinds) if kind not in (1, 5)}
        bos = self.id("bos")
        assert bos is not None
        tokenizer = {
            "version": "1.0",
            "added_tokens": [self._added(number, normalized=stored.normalizes_added) for number in sorted(added)],
            "normalizer": stored.normalizer,
            "pre_tokenizer": stored.pre_tokenizer,
            "post_processor": template(bos=(tokens[bos], bos)) if stored.begins_with_bos else None,
            "decoder": _BYTES,
            "model": {
                "type": "BPE",
                "ignore_merges": stored.ignore_merges,
                "byte_fallback": False,
                "vocab": {text: number for number, text in enumerate(tokens) if number not in added},
                "merges": self.values["merges"],
            },
        }
        named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": tokens[bos], "eos_token": tokens[self.id("eos") or bos]}
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
        _write_json(folder / "tokenizer_config.json", {**named, **stored.settings, **settings})

    def _added(self, number: int, *, normalized: bool) -> dict[str, Any]:
        special = self.kinds[number] != _USER_DEFINED
        return {**added_token(number, self.tokens[number], special=special), "normalized": normalized and not special}

    def _write_sentencepiece(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """tokenizer.model as SentencePiece writes it; control tokens beyond the first three are added tokens."""
        n_pieces = 32000
        scores: Sequence[float] = self.values["scores"]  # type: ignore[assignment]
        data = b"".join(_piece(self.tokens[i], scores[i], self.kinds[i]) for i in range(n_pieces))
        # Trainer: BPE, with byte fallback; normalizer: the text as it is, after a space or not.
        trainer = _number(3, 2) + _number(4, n_pieces) + _number(35, 1)
        normalizer = _bytes(1, b"identity") + _number(3, int(settings.get("add_prefix_space", True))) + _number(4, 0) + _number(5, 1)
        (folder / "tokenizer.model").write_bytes(data + _bytes(2, trainer) + _bytes(3, normalizer))
        added = {
            str(number): {"content": self.tokens[number], "special": self.kinds[number] == _CONTROL, "normalized": False}
            | dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
            for number in (0, 1, 2, *(i for i in range(n_pieces, len(self)) if self.kinds[i] in (_CONTROL, _USER_DEFINED)))
        }
        added["0"]["special"] = True
        named = {
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": "<s>",
            "eos_token": self.tokens[self.id("eos") or 2],
            "unk_token": "<unk>",
        }
        _write_json(
            folder / "tokenizer_config.json",
            {**named, "add_bos_token": True, "add_eos_token": False, "legacy": False, "added_tokens_decoder": added, **settings},
        )


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field_number: int, value: int) -> bytes:
    return _varint(field_number << 3) + _varint(value)


def _bytes(field_number: int, data: bytes) -> bytes:
    return _varint(field_number << 3 | 2) + _varint(len(data)) + data


def _piece(text: str, score: float, kind: int) -> bytes:
    body = _bytes(1, text.encode()) + _varint(2 << 3 | 5) + struct.pack("<f", score) + _number(3, kind)
    return _bytes(1, body)
