"""Which vocabulary a family's directory holds, and its metadata in file order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from quantailor.errors import ModelError, UnsupportedModelError
from quantailor.models.convert.vocabulary import sentencepiece
from quantailor.models.convert.vocabulary.bpe import BpeTokenizer
from quantailor.models.convert.vocabulary.special_tokens import special_metadata
from quantailor.models.convert.vocabulary.tokens import Vocabulary
from quantailor.models.json_files import JsonObject, is_there, mapping, read_json_if_there
from quantailor.records import MetadataValue

Entries = dict[str, MetadataValue]

NEEDS_PIECES = "Put the tokenizer.model of the model that it was made from beside it"
_CODE_LLAMA_SIZE = 32016
_CODE_LLAMA_IDS = {"prefix": 32007, "suffix": 32008, "middle": 32009, "eot": 32010}
_GRANITE_SIZE = 49152
_PIECES = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model.")
_OTHER_TOKENIZERS = (
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model.*",
    "tekken.json",
    "*.tiktoken",
    "vocab.json",
    "merges.txt",
)
"""What a tokenizer is stored in beside tokenizer.model and tokenizer.json, the first of them what SentencePiece writes."""


def bpe_or_sentencepiece(folder: Path, config: JsonObject, vocab_size: int, notes: list[str]) -> Entries:
    """tokenizer.model where there is one, else tokenizer.json. Raises ModelError where there is none that we know."""
    if is_there(folder / "tokenizer.model"):
        return _sentencepiece(folder, config, vocab_size, notes)
    return bpe_vocabulary(folder, config, vocab_size)


def bpe_vocabulary(folder: Path, config: JsonObject, vocab_size: int) -> Entries:
    """A byte-level BPE tokenizer.json. Raises ModelError where there is none, UnsupportedModelError where it is of another kind."""
    if not is_there(folder / "tokenizer.json"):
        raise no_tokenizer(folder)
    tokenizer = BpeTokenizer(folder)
    if tokenizer.byte_fallback:
        raise UnsupportedModelError(f"{tokenizer.path} is not a byte-level vocabulary, which this family uses", remedy=NEEDS_PIECES)
    return tokenizer.vocabulary(vocab_size).metadata(folder) | tokenizer.merges() | special_metadata(folder, config, None)


def llama_vocabulary(folder: Path, config: JsonObject, vocab_size: int, notes: list[str]) -> Entries:
    """Either kind; also SentencePiece's vocabulary as tokenizer.json holds it. Raises ModelError where there is none."""
    entries: Entries = {}
    prefix = read_json_if_there(folder / "tokenizer_config.json").get("add_prefix_space")
    if isinstance(prefix, bool):
        entries["tokenizer.ggml.add_space_prefix"] = MetadataValue("bool", prefix)
    if is_there(folder / "tokenizer.model"):
        entries |= _sentencepiece(folder, config, vocab_size, notes)
    elif is_there(folder / "tokenizer.json"):
        tokenizer = BpeTokenizer(folder)
        vocabulary, byte_level = tokenizer.vocabulary(vocab_size), not tokenizer.byte_fallback
        entries |= vocabulary.metadata(folder) | (tokenizer.merges() if byte_level else {})
        entries |= special_metadata(folder, config, None if byte_level else len(vocabulary.tokens))
    else:
        raise no_tokenizer(folder)
    if vocab_size == _CODE_LLAMA_SIZE:
        for role, number in _CODE_LLAMA_IDS.items():
            entries[f"tokenizer.ggml.{role}_token_id"] = MetadataValue("uint32", number)
    if vocab_size == _GRANITE_SIZE:
        entries["tokenizer.ggml.add_bos_token"] = MetadataValue("bool", False)
    return entries


def no_tokenizer(folder: Path) -> ModelError:
    """The error for a directory without a tokenizer that conversion reads, which names what there is in its place."""
    if found := next((path.name for pattern in _OTHER_TOKENIZERS for path in sorted(folder.glob(pattern))), None):
        return ModelError(
            f"{folder} has neither tokenizer.model nor tokenizer.json, but {found[:120]}",
            remedy="Name it tokenizer.model"
            if found.startswith(_PIECES)
            else "Save the tokenizer as tokenizer.json: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
        )
    return ModelError(f"{folder} has neither tokenizer.model nor tokenizer.json", remedy="Download the model's tokenizer as well")


def gemma_vocabulary(folder: Path, config: JsonObject, vocab_size: int, notes: list[str]) -> Entries:
    """SentencePiece without a space before the text. Raises ModelError where there is no tokenizer.model."""
    return _sentencepiece(folder, config, vocab_size, notes) | {"tokenizer.ggml.add_space_prefix": MetadataValue("bool", False)}


def phi3_vocabulary(folder: Path, config: JsonObject, vocab_size: int, notes: list[str]) -> Entries:
    """Phi-4 has byte-level BPE, which tokenizer.json tells; Phi-3 has SentencePiece with tokens of tokenizer.json.

    Raises ModelError where there is neither.
    """
    stored = read_json_if_there(folder / "tokenizer.json")
    if mapping(stored.get("model")).get("byte_fallback") is True if stored else is_there(folder / "tokenizer.model"):
        return _sentencepiece(folder, config, vocab_size, notes, read=sentencepiece.read_phi3_vocabulary)
    return bpe_vocabulary(folder, config, vocab_size)


def _sentencepiece(
    folder: Path,
    config: JsonObject,
    vocab_size: int,
    notes: list[str],
    *,
    read: Callable[[Path, int, list[str]], Vocabulary] = sentencepiece.read_vocabulary,
) -> Entries:
    if not is_there(folder / "tokenizer.model"):
        raise ModelError(f"{folder} has no tokenizer.model, which this family needs", remedy=NEEDS_PIECES)
    vocabulary = read(folder, vocab_size, notes)
    return vocabulary.metadata(folder) | special_metadata(folder, config, len(vocabulary.tokens))


VOCABULARIES: Mapping[str, Callable[[Path, JsonObject, int, list[str]], Entries]] = {
    "either": bpe_or_sentencepiece,
    "bpe": lambda folder, config, vocab_size, _: bpe_vocabulary(folder, config, vocab_size),
    "llama": llama_vocabulary,
    "gemma": gemma_vocabulary,
    "phi3": phi3_vocabulary,
}
