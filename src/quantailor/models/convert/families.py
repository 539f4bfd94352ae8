"""Which family a configuration belongs to, and the vocabulary of its directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantailor.errors import ModelError, UnsupportedModelError
from quantailor.models.convert import sentencepiece
from quantailor.models.convert.bpe import BpeTokenizer
from quantailor.models.convert.json_files import read_json_if_there
from quantailor.models.convert.llama import Llama
from quantailor.models.convert.mistral import Mistral
from quantailor.models.convert.mixtral import Mixtral
from quantailor.models.convert.special_tokens import special_metadata
from quantailor.records import MetadataValue

FAMILIES: Mapping[str, type[Llama]] = {
    "LlamaForCausalLM": Llama,
    "LLaMAForCausalLM": Llama,
    "MistralForCausalLM": Mistral,
    "MixtralForCausalLM": Mixtral,
}
_CODE_LLAMA_SIZE = 32016
_CODE_LLAMA_IDS = {"prefix": 32007, "suffix": 32008, "middle": 32009, "eot": 32010}
_GRANITE_SIZE = 49152


def family_of(config: Mapping[str, Any], place: str) -> Llama:
    """The family of config.json. Raises UnsupportedModelError naming the ones we know."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise UnsupportedModelError(
            f"{place} has the architecture {str(name)[:80]!r}; known are {', '.join(FAMILIES)}",
            remedy="Convert it with llama.cpp's converter and give the GGUF file",
        )
    if config.get("quantization_config") is not None:
        raise UnsupportedModelError(f"{place} describes a quantized checkpoint", remedy="Start from the 16-bit model")
    return family(config, place)


def vocabulary_metadata(folder: Path, config: Mapping[str, Any], vocab_size: int) -> dict[str, MetadataValue]:
    """`tokenizer.*` in file order. Raises ModelError where there is no tokenizer that we know."""
    entries: dict[str, MetadataValue] = {}
    prefix = read_json_if_there(folder / "tokenizer_config.json").get("add_prefix_space")
    if isinstance(prefix, bool):
        entries["tokenizer.ggml.add_space_prefix"] = MetadataValue("bool", prefix)
    if (folder / "tokenizer.model").is_file():
        vocabulary = sentencepiece.read_vocabulary(folder, vocab_size)
        entries |= vocabulary.metadata() | special_metadata(folder, config, len(vocabulary.tokens))
    elif (folder / "tokenizer.json").is_file():
        tokenizer = BpeTokenizer(folder)
        vocabulary = tokenizer.vocabulary(vocab_size)
        entries |= vocabulary.metadata()
        if tokenizer.byte_fallback:
            entries |= special_metadata(folder, config, len(vocabulary.tokens))
        else:
            entries |= tokenizer.merges() | special_metadata(folder, config, None)
    else:
        raise ModelError(f"{folder} has neither tokenizer.model nor tokenizer.json", remedy="Download the model's tokenizer as well")
    if vocab_size == _CODE_LLAMA_SIZE:
        for role, number in _CODE_LLAMA_IDS.items():
            entries[f"tokenizer.ggml.{role}_token_id"] = MetadataValue("uint32", number)
    if vocab_size == _GRANITE_SIZE:
        entries["tokenizer.ggml.add_bos_token"] = MetadataValue("bool", False)
    return entries
