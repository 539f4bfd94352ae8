"""SentencePiece vocabularies: tokenizer.model (a protocol buffer) and the files that amend it.

Only what a GGUF vocabulary needs is read: field 1 of the model is a piece, with its text in field 1, its score in
field 2 (float) and its type in field 3 (https://github.com/google/sentencepiece, sentencepiece_model.proto).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantailor.errors import ModelFormatError
from quantailor.models.convert.vocabulary.tokens import CONTROL, NORMAL, UNUSED, USER_DEFINED, Vocabulary, looks_special
from quantailor.models.json_files import mapping, objects, read_bytes, read_json_if_there

INTACT = "Download the model again"
_PIECE_USER_DEFINED = 4
_PIECE_TYPES = range(1, 7)
_PAD_SCORE, _ADDED_SCORE = -10000.0, -1000.0


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of the model."""

    text: str
    score: float
    kind: int


def read_pieces(path: Path) -> list[Piece]:
    """All pieces in the order of their ids. Raises ModelFormatError."""
    data = memoryview(read_bytes(path))
    try:
        pieces = [_piece(value) for number, value in _fields(data) if number == 1 and isinstance(value, memoryview)]
    except (IndexError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise ModelFormatError(f"{path} is no intact SentencePiece model", remedy=INTACT) from error
    if not pieces:
        raise ModelFormatError(f"{path} holds no SentencePiece vocabulary", remedy=INTACT)
    return pieces


def read_vocabulary(folder: Path, vocab_size: int) -> Vocabulary:
    """The vocabulary that llama.cpp calls "llama", padded to `vocab_size`."""
    pieces = read_pieces(folder / "tokenizer.model")[:vocab_size]
    tokens = [piece.text for piece in pieces]
    scores = [piece.score for piece in pieces]
    kinds = [NORMAL if piece.kind == _PIECE_USER_DEFINED else piece.kind for piece in pieces]
    missing = range(len(pieces), vocab_size)
    tokens += [f"[PAD{number}]" for number in missing]
    scores += [_PAD_SCORE] * len(missing)
    kinds += [UNUSED] * len(missing)
    for number, text, kind in _added(folder):
        if number < vocab_size:
            tokens[number], scores[number], kinds[number] = text, _ADDED_SCORE, kind
    return Vocabulary("llama", "default", tuple(tokens), tuple(kinds), tuple(scores))


def read_phi3_vocabulary(folder: Path, vocab_size: int) -> Vocabulary:
    """Phi-3's: added tokens of tokenizer_config.json and tokenizer.json as they are, special where marked so."""
    pieces = read_pieces(folder / "tokenizer.model")
    size = max(vocab_size, len(pieces))
    entries = [(piece.text, piece.score, NORMAL if piece.kind == _PIECE_USER_DEFINED else piece.kind) for piece in pieces]
    entries += [(f"[PAD{number}]", _PAD_SCORE, UNUSED) for number in range(len(pieces), size)]
    for number, text, kind in _phi3_added(folder):
        if number < size:
            entries[number] = (text, _ADDED_SCORE, kind)
    tokens, scores, kinds = zip(*entries, strict=True)
    return Vocabulary("llama", "default", tokens, kinds, scores)


def _phi3_added(folder: Path) -> Iterator[tuple[int, str, int]]:
    path = folder / "added_tokens.json"
    for text, number in read_json_if_there(path).items():
        yield _id(number, path), text, USER_DEFINED
    path = folder / "tokenizer_config.json"
    for key, entry in mapping(read_json_if_there(path).get("added_tokens_decoder")).items():
        yield _decoder_id(key, mapping(entry), path), mapping(entry)["content"], CONTROL if mapping(entry).get("special") else USER_DEFINED
    path = folder / "tokenizer.json"
    for token in objects(read_json_if_there(path).get("added_tokens")):
        if not isinstance(token.get("content"), str):
            raise ModelFormatError(f"{path} has an added token without text", remedy=INTACT)
        yield _id(token.get("id"), path), token["content"], CONTROL if token.get("special") else USER_DEFINED


def _decoder_id(key: str, entry: Mapping[str, Any], path: Path) -> int:
    if not isinstance(entry.get("content"), str) or not key.isascii() or not key.isdecimal() or len(key) > 9:
        raise ModelFormatError(f"{path} has the odd added token {key[:40]!r}", remedy=INTACT)
    return int(key)


def _added(folder: Path) -> Iterator[tuple[int, str, int]]:
    """Tokens of added_tokens.json, then of tokenizer_config.json: id, text, type."""
    path = folder / "added_tokens.json"
    for text, number in read_json_if_there(path).items():
        yield _id(number, path), text, USER_DEFINED
    path = folder / "tokenizer_config.json"
    for key, entry in mapping(read_json_if_there(path).get("added_tokens_decoder")).items():
        number, content = _decoder_id(key, mapping(entry), path), str(mapping(entry)["content"])
        if mapping(entry).get("special") or looks_special(content):
            yield number, content, CONTROL
        else:
            yield number, content.replace("▁", " "), USER_DEFINED


def _id(value: Any, path: Path) -> int:
    if type(value) is not int or value < 0:
        raise ModelFormatError(f"{path} has the token id {str(value)[:40]!r}", remedy=INTACT)
    return value


def _piece(data: memoryview) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for number, value in _fields(data):
        if number == 1 and isinstance(value, memoryview):
            text = str(value, "utf-8")
        elif number == 2 and isinstance(value, bytes):
            score = struct.unpack("<f", value)[0]
        elif number == 3 and isinstance(value, int):
            kind = value
    if kind not in _PIECE_TYPES:
        raise ValueError(kind)
    return Piece(text, score, kind)


def _fields(data: memoryview) -> Iterator[tuple[int, int | bytes | memoryview]]:
    """Field numbers and values of a protocol buffer: int for varints, bytes for fixed widths, a view for the rest."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(wire)
        if size > len(data) - at:
            raise ValueError(size)
        part = data[at : at + size]
        at += size
        yield number, part if wire == 2 else bytes(part)


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(value)
