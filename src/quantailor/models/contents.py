"""What a GGUF file holds where it holds no language model: a projector, an adapter, an importance matrix, ..."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from quantailor.errors import ModelFormatError, UnsupportedModelError
from quantailor.models.gguf_file import GGUFSource
from quantailor.models.source import ModelSource


@dataclass(frozen=True, slots=True)
class Contents:
    """Something other than a language model."""

    what: str
    """With its article: "an importance matrix"."""
    remedy: str
    """What to do with it, one sentence without its full stop."""


_PROJECTOR = Contents(
    "a projector for images or sound", "It goes beside a language model as it is (llama-server's --mmproj): give the language model's file"
)
_ADAPTER = Contents("an adapter (LoRA)", "Merge it into its model with llama-export-lora, and give the merged 16-bit file")
_CONTROL_VECTOR = Contents("a control vector", "It is added while a model runs: give the model's file")
_IMATRIX = Contents("an importance matrix", "Give a model's file, and this one beside it with `--imatrix`")
_COVARIANCES = Contents("a file of input covariances", "Give a model's file; `quantailor calibrate` computes covariances for it")
_VOCABULARY = Contents("a vocabulary without weights", "Give the file that holds the model's weights")
_EMPTY = Contents("an empty file (no tensors)", "Get an intact copy of the file, or the file that holds the weights")
_IMAGES = Contents("a model for images, video or sound", "Give a language model's file; only those can be measured here")
_PARTS = Contents("a file of other tensors (no token embeddings, no blocks)", "Give the file of a language model that llama.cpp can run")

_BY_TYPE = {
    "adapter": _ADAPTER,
    "mmproj": _PROJECTOR,
    "imatrix": _IMATRIX,
    "covariances": _COVARIANCES,
    "vocab": _VOCABULARY,
    "vocabulary": _VOCABULARY,
}
_BY_ARCHITECTURE = {"clip": _PROJECTOR, "controlvector": _CONTROL_VECTOR, "imatrix": _IMATRIX} | dict.fromkeys(
    (
        *("flux", "sd1", "sd2", "sd3", "sdxl", "aura", "auraflow", "hidream", "cosmos", "ltxv", "hyvid", "wan", "lumina2"),
        *("qwen_image", "z_image", "pig", "whisper", "wavtokenizer-dec", "vae", "diffusion"),
    ),
    _IMAGES,
)
_EMBEDDINGS = "token_embd.weight"
MOST_BLOCKS = 512
"""llama.cpp's own limit."""


def contents(source: ModelSource) -> Contents | None:
    """What a file holds instead of a language model; None for a language model, and for what is no GGUF file."""
    if not isinstance(source, GGUFSource):
        return None
    names = [tensor.name for tensor in source.tensors]
    stored = source.metadata.get("general.type")
    stated = stored.value.lower() if stored is not None and isinstance(stored.value, str) else ""
    if _EMBEDDINGS in names and stated in ("", "model") and source.architecture not in _BY_ARCHITECTURE:
        return None
    if found := _BY_TYPE.get(stated) or _BY_ARCHITECTURE.get(source.architecture) or _by_names(names):
        return found
    if not names:
        return _VOCABULARY if "tokenizer.ggml.tokens" in source.metadata else _EMPTY
    return None if _EMBEDDINGS in names or any(name.startswith("blk.") for name in names) else _PARTS


def is_projector(source: ModelSource) -> bool:
    """Whether a file holds a vision tower or an audio encoder for a language model that is another file."""
    return contents(source) == _PROJECTOR


def _by_names(names: list[str]) -> Contents | None:
    if names and all(name.endswith((".lora_a", ".lora_b")) for name in names):
        return _ADAPTER
    if any(name.endswith(".in_sum2") for name in names):
        return _IMATRIX
    if names and all(name.startswith("direction.") for name in names):
        return _CONTROL_VECTOR
    if names and all(name.startswith(("v.", "a.", "mm.", "resampler.")) for name in names):
        return _PROJECTOR
    if any(name.startswith(("double_blocks.", "single_blocks.", "model.diffusion_model.", "transformer_blocks.")) for name in names):
        return _IMAGES
    return None


def require_language_model(source: ModelSource) -> None:
    """Raise UnsupportedModelError, naming the kind and what to do, where a file holds something else.

    Raises ModelFormatError where two tokens have the same text, and for a hyperparameter that no model can have: llama.cpp ends its
    process on these.
    """
    found = contents(source)
    if found is not None:
        raise UnsupportedModelError(f"{source.location} is {found.what}, not a language model", remedy=found.remedy)
    _require_possible_hyperparameters(source)
    tokens = source.metadata.get("tokenizer.ggml.tokens")
    if tokens is None or not isinstance(tokens.value, tuple):
        return
    texts = [text for text in tokens.value if text != ""]  # llama.cpp numbers the empty ones itself
    if len(set(texts)) < len(texts):
        text, count = Counter(texts).most_common(1)[0]
        raise ModelFormatError(
            f"the vocabulary of {source.location} has the token {str(text)[:40]!r} {count} times, {tokens.value.index(text)} for one, "
            "which llama.cpp cannot load",
            remedy="Convert the model again, from a tokenizer whose tokens all differ",
        )


def _require_possible_hyperparameters(source: ModelSource) -> None:
    prefix = f"{source.architecture}."
    values = {key.removeprefix(prefix): entry.value for key, entry in source.metadata.items() if key.startswith(prefix)}
    for key, value in values.items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not (math.isfinite(number) and (number >= 0 or not key.endswith("epsilon"))):
                raise _impossible(source, key, number)
    if (n_blocks := values.get("block_count", 1)) in (0, False) or (isinstance(n_blocks, int) and n_blocks > MOST_BLOCKS):
        raise _impossible(source, "block_count", n_blocks)
    n_experts, n_used = values.get("expert_count", 0), values.get("expert_used_count", 0)
    if isinstance(n_experts, int) and isinstance(n_used, int) and not (0 < n_used <= n_experts or n_used == n_experts == 0):
        raise _impossible(source, "expert_used_count", n_used, f" where {prefix}expert_count is {n_experts}")


def _impossible(source: ModelSource, key: str, value: object, beside: str = "") -> ModelFormatError:
    what = f"{source.location} has {source.architecture}.{key} = {value}{beside}, which no model can have"
    return ModelFormatError(what, remedy="Convert the model again, or get an intact copy of the file")
