"""SentencePiece vocabularies: tokenizer.model (a protocol buffer) and the files that amend it.

Only the message is parsed; SentencePiece's own loader would also build the normalizer that a stranger's file describes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from quantailor.errors import ModelFormatError
from quantailor.files import START_BYTES, stand_in_for_binary
from quantailor.models.convert.vocabulary.special_tokens import content, further_special
from quantailor.models.convert.vocabulary.tokens import (
    CONTROL,
    NORMAL,
    OTHER_TOKENIZER,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    looks_special,
    refuse_rowless,
)
from quantailor.models.json_files import INTACT, JsonObject, mapping, objects, read_bytes, read_json_if_there
from quantailor.present import words

_PIECE_USER_DEFINED = 4
_PAD_SCORE, _ADDED_SCORE = -10000.0, -1000.0
_MOST_SHOWN = 4


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

    model, data = ModelProto(), read_bytes(path)
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        found = stand_in_for_binary(data[:START_BYTES])
        but = "" if found is None else f", but {found.what}"
        raise ModelFormatError(f"{path} is not an intact SentencePiece model{but}", remedy=INTACT) from error
    pieces = [Piece(piece.piece, piece.score, piece.type) for piece in model.pieces]
    if not pieces:
        raise ModelFormatError(f"{path} holds no SentencePiece vocabulary", remedy=INTACT)
    if not all(isinstance(piece.text, str) for piece in pieces):
        raise ModelFormatError(f"{path} has a piece that is not UTF-8 text", remedy=INTACT)
    return pieces


def read_vocabulary(folder: Path, vocab_size: int, notes: list[str]) -> Vocabulary:
    """The vocabulary that llama.cpp calls "llama", padded to `vocab_size`, with the tokens that other files add.

    Added tokens without a row are left out and told in `notes`. Raises ModelFormatError where one of them has a role, where a
    piece has no row, and where two files name different tokens for one id.
    """
    decoder_path = folder / "tokenizer_config.json"
    added = [_added_tokens_json(folder), _tokens(_decoder(decoder_path), decoder_path, by_look=True)]
    return _vocabulary(folder, vocab_size, chain(*added), _further_tokens(folder, by_look=True), notes)


def read_phi3_vocabulary(folder: Path, vocab_size: int, notes: list[str]) -> Vocabulary:
    """Phi-3's: added tokens of tokenizer_config.json and tokenizer.json as they are, special where marked so."""
    decoder_path = folder / "tokenizer_config.json"
    added = [_added_tokens_json(folder), _tokens(_decoder(decoder_path), decoder_path)]
    return _vocabulary(folder, vocab_size, chain(*added, _further_tokens(folder)), (), notes)


Added = tuple[int, str, int]
"""Id, text and type of an added token."""


def _vocabulary(folder: Path, size: int, added: Iterable[Added], further: Iterable[Added], notes: list[str]) -> Vocabulary:
    """The pieces with `added` in their places, later ones before earlier ones, and `further` ones where nothing is yet."""
    pieces = read_pieces(folder / "tokenizer.model")
    refuse_rowless({number: piece.text for number, piece in enumerate(pieces)}, size, str(folder / "tokenizer.model"))
    entries = [(piece.text, piece.score, NORMAL if piece.kind == _PIECE_USER_DEFINED else piece.kind) for piece in pieces]
    entries += [(f"[PAD{number}]", _PAD_SCORE, UNUSED) for number in range(len(pieces), size)]
    rowless, named = dict[int, str](), dict[int, str]()
    for number, text, kind, only_unused in chain(((*token, False) for token in added), ((*token, True) for token in further)):
        if named.setdefault(number, text).replace("▁", " ") != text.replace("▁", " "):
            raise ModelFormatError(
                f"the files of {folder} disagree about token {number}: {named[number][:40]!r} and {text[:40]!r}",
                remedy="Make added_tokens.json, tokenizer_config.json (added_tokens_decoder) and tokenizer.json say the same",
            )
        if number >= size:
            rowless[number] = text
        elif not only_unused or entries[number][2] == UNUSED:
            entries[number] = (text, _ADDED_SCORE, kind)
    tokens, scores, kinds = zip(*entries, strict=True)
    settings = read_json_if_there(folder / "tokenizer_config.json")
    _refuse_roles(folder, settings, rowless, tokens, size)
    if rowless:
        shown = ", ".join(text[:40] for text in list(rowless.values())[:_MOST_SHOWN])
        were = "was" if len(rowless) == 1 else "were"
        notes.append(f"{words.plural(len(rowless), 'token')} without a row in the embedding {were} left out: {shown}")
    known = {*tokens, *rowless.values()}
    if unnumbered := [text for text in further_special(settings) if text not in known]:
        were, shown = "was" if len(unnumbered) == 1 else "were", ", ".join(text[:40] for text in unnumbered[:_MOST_SHOWN])
        told = f"{words.plural(len(unnumbered), 'special token')} of tokenizer_config.json {were} left out for want of an id: {shown}"
        notes.append(f"{told}; added_tokens.json can give it")
    return Vocabulary("llama", "default", tokens, kinds, scores)


def _refuse_roles(folder: Path, settings: JsonObject, rowless: Mapping[int, str], tokens: Collection[str], size: int) -> None:
    """Raise ModelFormatError where the begin or end of a text is a token that has no row, or is none at all."""
    known = {*tokens}
    for role in ("bos", "eos"):
        text = content(settings.get(f"{role}_token"))
        if text and text not in known:
            number = next((f" (id {number:,})" for number, other in rowless.items() if other == text), "")
            raise ModelFormatError(
                f"{folder / 'tokenizer_config.json'} names {text[:40]!r}{number} as {role} token, which is not among the {size:,} tokens "
                "that have a row in the embedding",
                remedy=OTHER_TOKENIZER,
            )


# Added tokens


def _further_tokens(folder: Path, *, by_look: bool = False) -> list[Added]:
    """tokenizer.json's added tokens."""
    path = folder / "tokenizer.json"
    return list(_tokens(objects(read_json_if_there(path).get("added_tokens")), path, by_look=by_look))


def _added_tokens_json(folder: Path) -> Iterator[Added]:
    path = folder / "added_tokens.json"
    for text, number in read_json_if_there(path).items():
        yield _id(number, path), text, USER_DEFINED


def _decoder(path: Path) -> Iterator[JsonObject]:
    """tokenizer_config.json's `added_tokens_decoder`, each with its id."""
    for key, entry in mapping(read_json_if_there(path).get("added_tokens_decoder")).items():
        is_number = key.isascii() and key.isdecimal() and len(key) < 10
        yield {**mapping(entry), "id": int(key) if is_number else key}


def _tokens(stored: Iterable[JsonObject], path: Path, *, by_look: bool = False) -> Iterator[Added]:
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
