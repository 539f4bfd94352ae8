"""A vocabulary as GGUF holds it, and the rule that tells control tokens by their look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quantailor.errors import ModelFormatError
from quantailor.records import MetadataValue

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

OTHER_TOKENIZER = "Use the tokenizer that the model was trained with, or give the embedding the missing rows (resize_token_embeddings)"
_SPECIAL = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
_SPECIAL_FRAMES = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens by id with their types, and scores where the model has them."""

    model: str
    pre: str
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    scores: tuple[float, ...] | None = None

    def metadata(self, folder: Path) -> dict[str, MetadataValue]:
        """`tokenizer.ggml.*` up to the token types, in file order. Raises ModelFormatError where two tokens have the same text."""
        if len(set(self.tokens)) < len(self.tokens):
            text, count = Counter(self.tokens).most_common(1)[0]
            raise ModelFormatError(
                f"the vocabulary of {folder} has the token {text[:40]!r} {count} times, which llama.cpp cannot load",
                remedy="Download the tokenizer again",
            )
        entries = {
            "tokenizer.ggml.model": MetadataValue("string", self.model),
            "tokenizer.ggml.pre": MetadataValue("string", self.pre),
            "tokenizer.ggml.tokens": MetadataValue("array", self.tokens, "string"),
        }
        if self.scores is not None:
            entries["tokenizer.ggml.scores"] = MetadataValue("array", self.scores, "float32")
        entries["tokenizer.ggml.token_type"] = MetadataValue("array", self.kinds, "int32")
        return entries


def refuse_rowless(ids: Mapping[int, str], vocab_size: int, place: str) -> None:
    """Raise ModelFormatError where a token has no row in the embedding."""
    if ids and max(ids) >= vocab_size:
        raise ModelFormatError(
            f"{place} has {len(ids):,} tokens with ids up to {max(ids):,}, but the embedding has {vocab_size:,} rows: "
            f"{ids[max(ids)][:80]!r} has none",
            remedy=OTHER_TOKENIZER,
        )


def looks_special(text: str) -> bool:
    """Whether a token is a control token by its look, for models that do not mark theirs."""
    return text in _SPECIAL or any(text.startswith(start) and text.endswith(end) for start, end in _SPECIAL_FRAMES)
