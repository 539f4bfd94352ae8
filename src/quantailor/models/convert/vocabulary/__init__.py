"""Which vocabulary a family's directory holds, and its metadata in file order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from quantailor.errors import ModelError, UnsupportedModelError
from quantailor.models.convert.vocabulary import sentencepiece
from quantailor.models.convert.vocabulary.bpe import BpeTokenizer
from quantailor.models.convert.vocabulary.special_tokens import special_metadata
from quantailor.models.convert.vocabulary.tokens import Vocabulary
from quantailor.models.json_files import OTHER_WAY, JsonObject, read_json_if_there
from quantailor.records import MetadataValue

Entries = dict[str, MetadataValue]

_CODE_LLAMA_SIZE = 32016
_CODE_LLAMA_IDS = {"prefix": 32007, "suffix": 32008, "middle": 32009, "eot": 32010}
_GRANITE_SIZE = 49152


def bpe_or_sentencepiece(folder: Path, config: JsonObject, vocab_size: int) -> Entries:
    """tokenizer.model where there is one, else tokenizer.json. Raises ModelError where there is none that we know."""
    if (folder / "tokenizer.model").is_file():
        return _sentencepiece(folder, config, vocab_size)
    return bpe_vocabulary(folder, config, vocab_size)


def bpe_vocabulary(folder: Path, config: JsonObject, vocab_size: int) -> Entries:
    """A byte-level BPE tokenizer.json. Raises ModelError where there is none, UnsupportedModelError where it is of another kind."""
    tokenizer = BpeTokenizer(folder)
    if tokenizer.byte_fallback:
        raise UnsupportedModelError(f"{tokenizer.path} is not a byte-level vocabulary, which this family uses", remedy=OTHER_WAY)
    return tokenizer.vocabulary(vocab_size).metadata(folder) | tokenizer.merges() | special_metadata(folder, config, None)


def llama_vocabulary(folder: Path, config: JsonObject, vocab_size: int) -> Entries:
    """Either kind; also SentencePiece's vocabulary as tokenizer.json holds it. Raises ModelError where there is none."""
    entries: Entries = {}
    prefix = read_json_if_there(folder / "tokenizer_config.json").get("add_prefix_space")
    if isinstance(prefix, bool):
        entries["tokenizer.ggml.add_space_prefix"] = MetadataValue("bool", prefix)
    if (folder / "tokenizer.model").is_file():
        entries |= _sentencepiece(folder, config, vocab_size)
    elif (folder / "tokenizer.json").is_file():
        tokenizer = BpeTokenizer(folder)
        vocabulary, byte_level = tokenizer.vocabulary(vocab_size), not tokenizer.byte_fallback
        entries |= vocabulary.metadata(folder) | (tokenizer.merges() if byte_level else {})
        entries |= special_metadata(folder, config, None if byte_level else len(vocabulary.tokens))
    else:
        raise ModelError(f"{folder} has neither tokenizer.model nor tokenizer.json", remedy="Download the model's tokenizer as well")
    if vocab_size == _CODE_LLAMA_SIZE:
        for role, number in _CODE_LLAMA_IDS.items():
            entries[f"tokenizer.ggml.{role}_token_id"] = MetadataValue("uint32", number)
    if vocab_size == _GRANITE_SIZE:
        entries["tokenizer.ggml.add_bos_token"] = MetadataValue("bool", False)
    return entries


def gemma_vocabulary(folder: Path, config: JsonObject, vocab_size: int) -> Entries:
    """SentencePiece without a space before the text. Raises ModelError where there is no tokenizer.model."""
    return _sentencepiece(folder, config, vocab_size) | {"tokenizer.ggml.add_space_prefix": MetadataValue("bool", False)}


def phi3_vocabulary(folder: Path, config: JsonObject, vocab_size: int) -> Entries:
    """Phi-4 has byte-level BPE, which its tokenizer's class tells; Phi-3 has SentencePiece with tokens of tokenizer.json.

    Raises ModelError where there is neither.
    """
    if read_json_if_there(folder / "tokenizer_config.json").get("tokenizer_class") == "GPT2Tokenizer":
        return bpe_vocabulary(folder, config, vocab_size)
    return _sentencepiece(folder, config, vocab_size, read=sentencepiece.read_phi3_vocabulary)


def _sentencepiece(
    folder: Path,
    config: JsonObject,
    vocab_size: int,
    *,
    read: Callable[[Path, int], Vocabulary] = sentencepiece.read_vocabulary,
) -> Entries:
    vocabulary = read(folder, vocab_size)
    return vocabulary.metadata(folder) | special_metadata(folder, config, len(vocabulary.tokens))


VOCABULARIES: Mapping[str, Callable[[Path, JsonObject, int], Entries]] = {
    "either": bpe_or_sentencepiece,
    "bpe": bpe_vocabulary,
    "llama": llama_vocabulary,
    "gemma": gemma_vocabulary,
    "phi3": phi3_vocabulary,
}
