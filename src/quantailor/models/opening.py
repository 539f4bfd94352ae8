"""From a path to a source."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from quantailor.errors import AlreadyQuantizedError, ModelError
from quantailor.files import expanded
from quantailor.ggml.library import quantized_types
from quantailor.models.gguf_file import GGUFSource
from quantailor.models.gguf_shards import SHARD_NAME
from quantailor.models.random_access import refuse_missing, unreadable
from quantailor.models.source import ModelSource

_ADDRESS = re.compile(r"(?:.*/)?(?:(?:https?:/+)?(?:www\.)?(?:huggingface\.co|hf\.co)|hf:)/+([\w.-]+/[\w.-]+)(?:[/?#].*)?")
"""A repository's address on the hub, whose slashes a path may have merged."""


def open_model(path: Path | str, *, with_arrays: bool = True) -> ModelSource:
    """Open a GGUF file (any shard of a split one) or a Hugging Face directory.

    Args:
        path: the file or the directory.
        with_arrays: whether a GGUF file's metadata keep arrays: whoever wants its tensors alone need not wait for a large vocabulary.

    Raises:
        ModelError: there is nothing, nothing that is a model, or a damaged one.
        UnsupportedModelError: a model that this version cannot read.
    """
    try:
        place = expanded(path)
        is_folder, exists = place.is_dir(), place.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise unreadable(path, error) from error
    if is_folder:
        from quantailor.models.huggingface import HuggingFaceSource

        return HuggingFaceSource(place)
    if not exists:
        refuse_missing(place)
        pasted = _ADDRESS.fullmatch(str(path))
        remedy = (
            "Give a GGUF file or a Hugging Face directory" if pasted is None else f"Give a repository on the hub by its name: {pasted[1]}"
        )
        raise ModelError(f"there is no model at {place}", remedy=remedy)
    if place.suffix == ".json" and (place.parent / "config.json").is_file():
        raise ModelError(f"{place} is one file of a Hugging Face directory", remedy=f"Give the directory: {place.parent}")
    return GGUFSource(place, with_arrays=with_arrays)


def model_files(path: Path) -> list[Path]:
    """The files that a model at a path is read from, as far as they are there: all shards, or whatever a directory holds of it.

    Raises OSError where the directory cannot be read.
    """
    path = expanded(path)
    if path.is_dir():
        from quantailor.models.convert.vocabulary.special_tokens import TEMPLATES

        folder = Path(os.path.abspath(path))  # noqa: PTH100 - as HuggingFaceSource calls it, whatever ".." the path was typed with
        listed = (*folder.iterdir(), *folder.glob("*_Pooling/config.json"), *folder.glob(f"{TEMPLATES}/*.jinja"))
        found = sorted(file for file in listed if not file.name.startswith(".") and file.suffix.lower() != ".gguf")
    elif shard := SHARD_NAME.match(path.name):
        found = sorted(path.parent.glob(f"{glob.escape(shard['stem'])}-*-of-{shard['count']}.gguf"))
    else:
        found = [path]
    return [file for file in found if file.is_file()]


def require_unquantized(source: ModelSource, *, allow_requantize: bool = False) -> None:
    """Raise AlreadyQuantizedError when weights are quantized already, unless that is allowed."""
    quantized = quantized_types(source.tensors)
    if quantized and not allow_requantize:
        raise AlreadyQuantizedError(
            f"{source.location} is quantized already ({', '.join(quantized)}); quantizing it again loses quality twice",
            remedy="Start from the 16-bit model, or give --allow-requantize",
        )
