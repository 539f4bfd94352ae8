"""Types that others chose, as strategies: llama.cpp's presets by name, files for llama-quantize's `--tensor-type-file`, and GGUF files
that other programs made.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from quantailor.errors import ModelError, StrategyError, TypeUnavailableError
from quantailor.evidence.presets import types_of_preset
from quantailor.evidence.strategies import STRATEGY_KEY, is_gguf, strategy_of
from quantailor.files import expanded, read_bytes
from quantailor.ggml import library
from quantailor.ggml.reference import preset_name
from quantailor.models.opening import open_model
from quantailor.records import Strategy, TensorChoice, TensorInfo
from quantailor.session import OpenedModel, Workspace, quantizable_tensors
from quantailor.strategy.tensor_types import COMMENTS, from_tensor_types

PRESET = "preset:"
_TENSOR_TYPE = re.compile(r"\s*[^\s=:#{]+=\w+(\s|$)")
_HEAD_BYTES = 4096


def reference_of(text: str) -> str:
    """What a build step calls the strategy, preset or file that was named: "preset:NAME", or an absolute path."""
    place = expanded(text)
    if not place.exists() and place.name == text:
        try:
            return f"{PRESET}{preset_name(text)}"
        except TypeUnavailableError:
            pass
    return str(place.absolute())


def is_recipe(reference: str) -> bool:
    """Whether a reference names types alone, which take a model to become a strategy."""
    return reference.startswith(PRESET) or _names_tensor_types(Path(reference)) or _is_others(Path(reference))


def recipe_of(workspace: Workspace, model: OpenedModel, reference: str, imatrix: str, *, types_alone: bool = False) -> Strategy:
    """The strategy of a reference, where `imatrix` is what presets are made with: "auto", "none", or a file.

    Of a GGUF file that carries a strategy it is that one, or with `types_alone` no more than the types that the file has.

    Raises:
        StrategyError: there is none, or it cannot be read.
        ImatrixError: an importance matrix that cannot be used.
    """
    if not is_recipe(reference) and not (types_alone and is_gguf(Path(reference))):
        return strategy_of(workspace, reference)
    matrix = workspace.imatrices.choose(model, imatrix)
    tensors = quantizable_tensors(model.source)
    if reference.startswith(PRESET):
        preset = reference.removeprefix(PRESET)
        types, method, reason = dict(types_of_preset(model, preset, matrix)), "preset", f"llama.cpp's {preset}"
        types = {tensor.name: types[tensor.name] for tensor in tensors}
    elif is_gguf(Path(reference)):
        path, method = Path(reference), "manual"
        if path.samefile(model.source.location):
            raise StrategyError(
                f"{path} is the base itself, which chooses no types", remedy="Give a strategy, a preset, or a quantized file"
            )
        types, reason = _types_in(path, model, tensors), f"as in {path.name}"
    else:
        path, method = Path(reference), "manual"
        text = read_bytes(path).decode("utf-8", errors="replace")
        types = from_tensor_types(text, [tensor.name for tensor in tensors], name=str(path), known_types=library.types())
        reason = f"as {path.name} says"
    if not types:
        raise StrategyError(f"{reference} names no tensor of {model.source.name}", remedy="Give a file that was made for this model")
    return Strategy(
        model_fingerprint=model.fingerprint,
        model_name=model.source.name,
        architecture=model.source.architecture,
        method=method,
        tensors=tuple(TensorChoice(name, type_name, reason) for name, type_name in types.items()),
        target={"like": reference.removeprefix(PRESET)} if method == "preset" else {},
        inputs={"imatrix": None if matrix is None else matrix.fingerprint},
    )


def _is_others(path: Path) -> bool:
    """Whether it is a GGUF file that carries no strategy; one that cannot be read is told by who reads it."""
    if not is_gguf(path):
        return False
    try:
        with closing(open_model(path)) as source:
            return STRATEGY_KEY not in source.metadata
    except ModelError:
        return False


def _types_in(path: Path, model: OpenedModel, tensors: Sequence[TensorInfo]) -> dict[str, str]:
    """The types that a file's tensors have, where the model has them too. Raises StrategyError for another model's file."""
    with closing(open_model(path)) as source:
        there = {tensor.name: tensor for tensor in source.tensors}
    for tensor in tensors:
        other = there.get(tensor.name)
        if other is not None and other.shape != tensor.shape:
            shapes = " and ".join(" x ".join(map(str, each)) for each in (other.shape, tensor.shape))
            raise StrategyError(
                f"{path} is of another model than {model.source.name}: {tensor.name} has other sizes ({shapes})",
                remedy="Give a file that was made from this model",
            )
    return {tensor.name: there[tensor.name].type_name for tensor in tensors if tensor.name in there}


def _names_tensor_types(path: Path) -> bool:
    if not path.is_file() or is_gguf(path):
        return False
    with path.open("rb") as stream:
        lines = stream.read(_HEAD_BYTES).decode("utf-8", "replace").split("\n")
    first = next((line for line in lines if line.strip() and not line.lstrip().startswith(COMMENTS)), "")
    return _TENSOR_TYPE.match(first) is not None
