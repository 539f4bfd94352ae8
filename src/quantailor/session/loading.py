"""Why llama.cpp does not load a model's file, from what it says of the header, in words that name the tensor or the key."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from quantailor.errors import InferenceError, ModelFormatError, QuantailorError, UnsupportedModelError
from quantailor.ggml.headers import read_header
from quantailor.ggml.runtime import NOT_LOADED
from quantailor.qtypes import UNTOUCHED
from quantailor.records import TensorInfo

_TENSOR = re.compile(r"tensor '(?P<name>[^']+)' (?:(?P<missing>not found)|has wrong shape; expected +(?P<wanted>.+), got +(?P<found>.+))")
_MISSING_KEY = re.compile(r"key not found in model: (?P<key>\S+)")
_ODD_KEY = re.compile(r"key (?P<key>\S+) has wrong type (?P<found>\S+) but expected type (?P<wanted>\S+)")
_MORE_TENSORS = re.compile(r"wrong number of tensors; expected (?P<stored>\d+), got (?P<known>\d+)")
_WEIGHTS = re.compile(
    r"(token_embd|output|output_norm|blk\.\d+\.((attn|ffn)_norm|attn_(q|k|v|qkv|output)(_norm)?|ffn_(gate|up|down|gate_up)(_exps|_shexp)?))"
    r"\.(weight|bias)"
)
"""Names of tensors that architectures share and that a graph multiplies by or adds."""
_REMEDY = "Convert the model again, or get an intact copy of the file"


@dataclass(frozen=True, slots=True)
class LoadRefusal:
    """Why llama.cpp does not load a file."""

    error: QuantailorError
    is_of_tensors: bool
    """A tensor is missing or has another shape: the file is damaged, whatever llama.cpp knows of its kind."""


def refusal(path: Path) -> LoadRefusal | None:
    """Why llama.cpp does not load a GGUF file: a tensor, a metadata key, an architecture or a vocabulary. None where it does.

    Args:
        path: the file, or the first of its shards.
    """
    try:
        read_header(path)
    except InferenceError as error:
        of_tensor, of_key, more = _tensor_words(error.message), _key_words(error.message), _MORE_TENSORS.search(error.message)
        if words := of_tensor or of_key:
            return LoadRefusal(ModelFormatError(f"{path} {words}", remedy=_REMEDY), of_tensor is not None)
        if more:
            what = f"{path} holds {more['stored']} tensors, of which llama.cpp knows {more['known']}"
            return LoadRefusal(UnsupportedModelError(what, remedy=NOT_LOADED), False)
        return LoadRefusal(error, False)
    return None


def not_computable(path: Path, tensors: Iterable[TensorInfo]) -> LoadRefusal | None:
    """Why llama.cpp would end its process over a file that it loads: weights in a type that it only stores. None where there are none."""
    for tensor in tensors:
        if tensor.type_name in UNTOUCHED and _WEIGHTS.fullmatch(tensor.name):
            what = f"{path} holds {tensor.name} as {tensor.type_name}, with which llama.cpp cannot compute"
            return LoadRefusal(UnsupportedModelError(what, remedy="Convert the model again, with these weights in F32, F16 or BF16"), False)
    return None


def _tensor_words(said: str) -> str | None:
    if (found := _TENSOR.search(said)) is None:
        return None
    if found["missing"]:
        return f"lacks the tensor {found['name']}, which llama.cpp needs"
    wanted, stored = (" ".join(found[key].split()) for key in ("wanted", "found"))
    return f"has the tensor {found['name']} in the shape {stored}, where llama.cpp needs {wanted}"


def _key_words(said: str) -> str | None:
    if missing := _MISSING_KEY.search(said):
        return f"lacks the metadata key {missing['key']}, which llama.cpp needs"
    if odd := _ODD_KEY.search(said):
        return f"has the metadata key {odd['key']} as {odd['found']}, where llama.cpp needs {odd['wanted']}"
    return None
