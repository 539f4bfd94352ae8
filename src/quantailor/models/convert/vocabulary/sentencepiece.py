"""SentencePiece vocabularies: tokenizer.model (a protocol buffer) and the files that amend it.

Only the message is parsed; SentencePiece's own loader would also build the normalizer that a stranger's file describes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantailor.errors import ModelFormatError
from quantailor.models.convert.vocabulary.tokens import CONTROL, NORMAL, UNUSED, USER_DEFINED, Vocabulary, looks_special
from quantailor.models.json_files import INTACT, JsonObject, mapping, objects, read_bytes, read_json_if_there

_PIECE_USER_DEFINED = 4
_PAD_SCORE, _ADDED_SCORE = -10000.0, -1000.0


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of the model."""

    text: str
    score: float
    kind: int


def read_pieces(path: Path) -> list[Piece]:
    """All pieces in the order of their ids. Raises ModelFormatError."""
    from google.protobuf.message import DecodeError
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    model = ModelProto()
    try:
        model.ParseFromString(read_bytes(path))
    except DecodeError as error:
        raise ModelFormatError(f"{path} is not an intact SentencePiece model", remedy=INTACT) from error
    pieces = [Piece(piece.piece, piece.score, piece.type) for piece in model.pieces]
    if not pieces:
        raise ModelFormatError(f"{path} holds no SentencePiece vocabulary", remedy=INTACT)
    if not all(isinstance(piece.text, str) for piece in pieces):
        raise ModelFormatError(f"{path} has a piece that is not UTF-8 text", remedy=INTACT)
    return pieces


def read_vocabulary(folder: Path, vocab_size: int) -> Vocabulary:
    """The vocabulary that llama.cpp calls "llama", cut or padded to `vocab_size`, with the tokens that other files add."""
    decoder_path = folder / "tokenizer_config.json"
    added = [*_added_tokens_json(folder), *_tokens(_decoder(decoder_path), decoder_path, by_look=True)]
    return _vocabulary(read_pieces(folder / "tokenizer.model")[:vocab_size], vocab_size, added)


def read_phi3_vocabulary(folder: Path, vocab_size: int) -> Vocabulary:
    """Phi-3's: added tokens of tokenizer_config.json and tokenizer.json as they are, special where marked so."""
    pieces = read_pieces(folder / "tokenizer.model")
    decoder_path, path = folder / "tokenizer_config.json", folder / "tokenizer.json"
    added = [
        *_added_tokens_json(folder),
        *_tokens(_decoder(decoder_path), decoder_path),
        *_tokens(objects(read_json_if_there(path).get("added_tokens")), path),
    ]
    return _vocabulary(pieces, max(vocab_size, len(pieces)), added)


def _vocabulary(pieces: list[Piece], size: int, added: Iterable[tuple[int, str, int]]) -> Vocabulary:
    entries = [(piece.text, piece.score, NORMAL if piece.kind == _PIECE_USER_DEFINED else piece.kind) for piece in pieces]
    entries += [(f"[PAD{number}]", _PAD_SCORE, UNUSED) for number in range(len(pieces), size)]
    for number, text, kind in added:
        if number < size:
            entries[number] = (text, _ADDED_SCORE, kind)
    tokens, scores, kinds = zip(*entries, strict=True)
    return Vocabulary("llama", "default", tokens, kinds, scores)


# Added tokens: id, text, type


def _added_tokens_json(folder: Path) -> Iterator[tuple[int, str, int]]:
    path = folder / "added_tokens.json"
    for text, number in read_json_if_there(path).items():
        yield _id(number, path), text, USER_DEFINED


def _decoder(path: Path) -> Iterator[JsonObject]:
    """tokenizer_config.json's `added_tokens_decoder`, each with its id."""
    for key, entry in mapping(read_json_if_there(path).get("added_tokens_decoder")).items():
        is_number = key.isascii() and key.isdecimal() and len(key) < 10
        yield {**mapping(entry), "id": int(key) if is_number else key}


def _tokens(stored: Iterable[JsonObject], path: Path, *, by_look: bool = False) -> Iterator[tuple[int, str, int]]:
    """Tokens as `stored`; with `by_look` those that look special are so too, and others get their spaces back."""
    for token in stored:
        number, content = _id(token.get("id"), path), token.get("content")
        if not isinstance(content, str):
            raise ModelFormatError(f"{path} has an added token without text", remedy=INTACT)
        if token.get("special") or (by_look and looks_special(content)):
            yield number, content, CONTROL
        else:
            yield number, content.replace("▁", " ") if by_look else content, USER_DEFINED


def _id(value: Any, path: Path) -> int:
    if type(value) is not int or value < 0:
        raise ModelFormatError(f"{path} has the token id {str(value)[:40]!r}", remedy=INTACT)
    return value
