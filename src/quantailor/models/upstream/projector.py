"""Vision towers and audio encoders, which llama.cpp runs from a file of their own beside the text model: a projector (`--mmproj`)."""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from quantailor.errors import ConverterError, ConverterNeededError, ModelError, QuantailorError, UnsupportedModelError
from quantailor.models.contents import is_projector
from quantailor.models.gguf_file import GGUFSource
from quantailor.models.huggingface import stored_arrays
from quantailor.models.json_files import JsonObject, is_there, mapping, read_json_if_there
from quantailor.models.safetensors_file import SafetensorsFile
from quantailor.models.upstream.converting import Product
from quantailor.models.upstream.failures import NEWER, FailedRun, failure
from quantailor.models.upstream.locating import Converter

ProjectorType = Literal["f16", "bf16", "q8_0"]
"""What the projector's matrices are stored in; norms and biases stay F32."""
ProjectorWish = Literal["none", "f16", "bf16", "q8_0"]
"""The same where it may be left out."""
MARK = "mmproj"
"""What llama.cpp's own programs look for in a projector's name."""
WITHOUT = "Leave out --mmproj: the text model is made without it"
_CONFIGS = re.compile(r"(vision|visual|audio|whisper|sound|speech|speaker|image|img|encoder)(_\w+)?|embd_layer")
_NAMED_TOWER = re.compile(r"mm_(vision|audio)\w*tower")
_ARRAYS = re.compile(r"(^|[._])(vision|visual|audio|image|img|vit|vpm|siglip2?|speech|whisper|mm_projector|multi_modal_projector)([._]|$)")
_PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
_NO_TOWER = re.compile(r"vision_config / audio_config not found")
_NO_KEY = re.compile(r"KeyError: '(image_\w+|size|\w*pixels|patch_size)'")
_NO_OPTION = re.compile(r"unrecognized arguments:.*--mmproj")


def require_tower(folder: Path) -> None:
    """Raise UnsupportedModelError where nothing in a directory is a vision tower or an audio encoder, by config.json and names of arrays.

    Raises ModelError where the directory is damaged, or is no directory.
    """
    if not folder.is_dir():
        raise UnsupportedModelError(
            f"{folder} is not a Hugging Face directory, which a projector is made from", remedy="Give the directory, or leave out --mmproj"
        )
    if not has_tower(folder):
        raise without_tower(str(folder))


def without_tower(place: str) -> UnsupportedModelError:
    """The error for a model at a place that has no tower."""
    said = "config.json names none, and no array is part of one"
    return UnsupportedModelError(f"{place} has no vision tower and no audio encoder ({said})", remedy="Leave out --mmproj")


def has_tower(folder: Path) -> bool:
    """Whether config.json or the name of an array speaks of a vision tower or an audio encoder. Raises ModelError."""
    try:
        return speaks_of_tower(read_json_if_there(folder / "config.json"), _names(folder))
    except ConverterNeededError:
        return False


def speaks_of_tower(config: JsonObject, names: Iterable[str]) -> bool:
    """The same of a configuration and the names of arrays."""
    levels = (config, mapping(config.get("thinker_config")))
    is_configured = any(_says_tower(key, value) for level in levels for key, value in level.items())
    return is_configured or any(_ARRAYS.search(name) for name in names)


def _says_tower(key: str, value: object) -> bool:
    """Whether an entry of config.json describes a tower; a number of layers does where there are any."""
    if isinstance(value, dict):
        return bool(value) and _CONFIGS.fullmatch(key) is not None
    return bool(value) and (_NAMED_TOWER.fullmatch(key) is not None or key == "vision_n_layers")


def _names(folder: Path) -> Iterator[str]:
    files: list[SafetensorsFile] = []
    try:
        yield from stored_arrays(folder, files)
    finally:
        for file in files:
            file.close()


def refuse_unknown_tower(folder: Path, converter: Converter) -> None:
    """Raise UnsupportedModelError where the converter makes no projector of this architecture: before an interpreter is set up for it.

    Raises ConverterError where it makes none at all, ModelError where a file cannot be read.
    """
    config = read_json_if_there(folder / "config.json")
    stored = _first(mapping(config.get("vision_config"))) or _first(config)
    script, modules = converter.sources()
    if f'--{MARK}"' not in script and f"--{MARK}'" not in script:
        raise _too_old(converter.name)
    known = _listed(modules)
    if stored and known and stored not in known:
        raise _unknown(folder, stored, converter.name)


def _first(config: object) -> str | None:
    names = mapping(config).get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None


def _listed(text: str) -> set[str]:
    """The architectures in the converter's own list of projectors; none where it has no such list."""
    found = re.search(r"^MMPROJ_MODEL_MAP\b[^=\n]*=\s*(\{.*?^\})", text, re.MULTILINE | re.DOTALL)
    with contextlib.suppress(ValueError, SyntaxError):
        return set(ast.literal_eval(found[1])) if found else set()
    return set()


def product(type_name: ProjectorType) -> Product:
    """A projector of that type, for `convert_directory`."""
    return Product((f"--{MARK}", "--outtype", type_name), _check, _failure, MARK)


def _check(source: GGUFSource, folder: Path, name: str) -> None:
    if not source.tensors:
        raise ModelError(
            f"config.json of {folder} names a vision tower or an audio encoder, and the directory holds no array of it",
            remedy="Download the model again, or leave out --mmproj",
        )
    if not is_projector(source):
        raise ConverterError(f"the file that {name} wrote for {folder} is not a projector", remedy="Check that it is convert_hf_to_gguf.py")


def _failure(run: FailedRun) -> QuantailorError:
    text = "\n".join([*run.lines[-40:], run.last])
    if match := re.search(r"Model (\S+) is not supported", text):
        return _unknown(run.folder, match[1], run.name)
    if _NO_TOWER.search(text):
        said = f"{run.folder} has no vision_config and no audio_config, without which {run.name} makes no projector"
        return UnsupportedModelError(said, remedy=WITHOUT)
    if _NO_OPTION.search(text):
        return _too_old(run.name)
    if (match := _NO_KEY.search(run.last)) and not any(is_there(run.folder / name) for name in _PREPROCESSORS):
        return ModelError(
            f"{run.folder} has no {_PREPROCESSORS[0]}, where {run.name} looks for {match[1]} (its output is in {run.log})",
            remedy="Download the model again, that file included",
        )
    return failure(run)


def _unknown(folder: Path, architecture: str, name: str) -> UnsupportedModelError:
    what = f"{folder} has a tower of the architecture {architecture[:80]!r}, for which {name} makes no projector"
    return UnsupportedModelError(what, remedy=f"{WITHOUT}. {NEWER}")


def _too_old(name: str) -> ConverterError:
    return ConverterError(f"{name} makes no projectors: it has no option --{MARK}", remedy="Give a newer llama.cpp with --converter")
