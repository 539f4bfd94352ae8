"""A Hugging Face directory, shown as llama.cpp's converter would write it; rows are converted when they are asked for."""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from quantailor.errors import ConverterNeededError, ModelError, ModelFormatError, TensorNotFoundError, UnsupportedModelError
from quantailor.files import expanded
from quantailor.ggml import codec, library
from quantailor.models.convert.checkpoint import refuse_arrays, refuse_files
from quantailor.models.convert.description import described
from quantailor.models.convert.description.pooling import NAMES, pooling_of
from quantailor.models.convert.families import family_of
from quantailor.models.convert.families.family import outtype
from quantailor.models.convert.families.rows import PlannedTensor
from quantailor.models.convert.vocabulary.special_tokens import TEMPLATES
from quantailor.models.json_files import INTACT, OTHER_WAY, JsonObject, is_there, read_json
from quantailor.models.safetensors_file import SafetensorsFile, StoredArray
from quantailor.models.source import name_of
from quantailor.numerics import Bytes, Floats
from quantailor.records import MetadataValue, TensorInfo

INDEX_NAME = "model.safetensors.index.json"
CONFIG_NAMES = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json", INDEX_NAME),
)
QUANTIZATION_VERSION = 2
COMPARED_ROWS = 4096
"""Rows of the output that are compared with the embedding's: every one up to so many."""
MAX_NAME = 200
_MORE_NAMES = ("README.md", "merges.txt", "vocab.json")
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")
_SHARDS = ("global_step*", "*.distcp", "pytorch_model_fsdp*", "iter_[0-9]*", "mp_rank_*", "*/mp_rank_*")
_OTHER_FORMATS = (
    "*.pth",
    "*.pt",
    "*.ckpt",
    "*.bin",
    "*.h5",
    "*.msgpack",
    "*.npz",
    "*.nemo",
    "*.onnx",
    "*.ot",
    "*/*.onnx",
    "original/*.pth",
)
_UNFINISHED = ("*.safetensors.*", "*.crdownload", "*.aria2")
_INSIDE = ("*/model*.safetensors", "*/pytorch_model*.bin")
_INNER = ("*/config.json", "snapshots/*/config.json")
_MOST_NAMED = 3
_WHICH = "Keep the one that belongs to the model, and move the other out of the directory"


class HuggingFaceSource:
    """A directory of a family that `models.convert.families` lists; see `models.source.ModelSource`.

    Raises:
        ModelError: a file is missing, cannot be read or is damaged.
        UnsupportedModelError: another family, tokenizer or tensor type.
    """

    def __init__(self, path: Path | str) -> None:
        # Only made absolute: the name of a link is the name its owner chose.
        self.folder = Path(os.path.abspath(expanded(path)))  # noqa: PTH100 - resolve() would follow links
        self.config: JsonObject = checked_config(self.folder)
        self._files: list[SafetensorsFile] = []
        try:
            arrays = stored_arrays(self.folder, self._files)
            family = family_of(self.config, arrays, str(self.folder / "config.json"), str(self.folder))
            family.pooling = pooling_of(self.folder)
            if family.pooling is not None and not family.pools:
                family.notes.append(
                    f"it is an embedding model (modules.json), which a {family.architecture} file cannot say: give llama.cpp's programs "
                    f"`--pooling {NAMES[family.pooling]}`"
                )
            self.family = type(family).__name__
            """For people: "Llama"."""
            planned = family.plan(arrays)
            self.left_out = tuple(family.left_out)
            self.left_out_why = dict(Counter(family.left_out.values()))
            """Why arrays are left out, and how many."""
            self.left_out_bytes = sum(arrays[name].size_bytes for name in family.left_out)
            self._planned = {tensor.info.name: tensor for tensor in planned}
            if len(self._planned) != len(planned):
                raise ModelFormatError(f"{self.folder} has several tensors that would get the same name in GGUF", remedy=INTACT)
            self.metadata: Mapping[str, MetadataValue] = {
                "general.architecture": MetadataValue("string", family.architecture),
                **family.leading(),
                "general.type": MetadataValue("string", "model"),
                **described(self.folder, self.config, self.tensors),
                **family.metadata(outtype(arrays.values())),
                "general.quantization_version": MetadataValue("uint32", QUANTIZATION_VERSION),
                **family.vocabulary(self.folder, self.config),
            }
            if "tokenizer.ggml.eos_token_id" not in self.metadata:
                family.notes.append(
                    "no file names the token that ends a text: programs may not stop where the model does (name it as eos_token in "
                    "tokenizer_config.json, or as eos_token_id in config.json)"
                )
            if family.config.get("tie_word_embeddings") and self._has_another_output():
                family.notes.append(
                    "config.json ties the output to the embedding, but lm_head.weight differs from it: both are kept, while programs that "
                    "tie them run another model (set tie_word_embeddings to false, or take lm_head.weight out)"
                )
            self.notes = (*family.notes, *_unread_words(self.folder, [file.path.name for file in self._files]))
            """What of the checkpoint is not in the base, for people."""
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        return name_of(self.metadata, self.folder.name)

    @property
    def location(self) -> str:
        return str(self.folder)

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"].value)

    @property
    def files(self) -> tuple[Path, ...]:
        """The safetensors files."""
        return tuple(file.path for file in self._files)

    @property
    def config_files(self) -> tuple[str, ...]:
        """Names of the configuration and tokenizer files that are there."""
        return tuple(name for name in CONFIG_NAMES if (self.folder / name).is_file())

    @property
    def size_bytes(self) -> int:
        """Bytes of the safetensors files."""
        return sum(file.size_bytes for file in self._files)

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        return [tensor.info for tensor in self._planned.values()]

    def tensor(self, name: str) -> TensorInfo:
        return self._plan(name).info

    def raw_rows(self, name: str, start: int, stop: int) -> Bytes:
        """Rows as they are stored, (stop - start, row_bytes)."""
        return self._plan(name).raw_rows(start, stop)

    def lost_rows(self, name: str, start: int, stop: int) -> tuple[int, int]:
        """How many of these rows the base's type does not hold, and how many are not zero."""
        return self._plan(name).lost_rows(start, stop)

    def rows(self, name: str, start: int, stop: int) -> Floats:
        """Rows as weights, (stop - start, n_cols)."""
        info = self.tensor(name)
        return codec.dequantize(self.raw_rows(name, start, stop), library.types()[info.type_name], info.n_cols)

    def _has_another_output(self) -> bool:
        """Whether there is an output matrix with other values than the embedding's, as a part of their rows tells."""
        embedding, output = (self._planned.get(name) for name in ("token_embd.weight", "output.weight"))
        if embedding is None or output is None:
            return False
        if embedding.info.shape != output.info.shape or embedding.info.type_name != output.info.type_name:
            return True
        n_rows = output.info.n_rows
        step = max(1, n_rows // COMPARED_ROWS)
        n = 1 if step > 1 else n_rows
        starts = range(0, n_rows, step if step > 1 else n_rows)
        return any(not np.array_equal(embedding.raw_rows(start, start + n), output.raw_rows(start, start + n)) for start in starts)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _plan(self, name: str) -> PlannedTensor:
        try:
            return self._planned[name]
        except KeyError:
            raise TensorNotFoundError(
                f"{self.location} has no tensor {name}", remedy=f"`{shlex.join(('quantailor', 'inspect', self.location))}` lists them"
            ) from None


def stored_arrays(folder: Path, files: list[SafetensorsFile]) -> dict[str, StoredArray]:
    """All arrays of a directory in the order of the parts and, within one, of their names.

    `files` gets every file that is opened, for the caller to close. Raises ModelError where parts do not belong together.
    """
    arrays: dict[str, StoredArray] = {}
    index = folder / INDEX_NAME
    listed = _weight_map(index) if is_there(index) else None
    for name in _part_names(folder, listed):
        files.append(SafetensorsFile(folder / name))
        for array in files[-1].arrays.values():
            if array.name in arrays:
                others = f"{arrays[array.name].file.path.name} and {name}"
                raise ModelFormatError(f"{folder} holds the tensor {array.name} twice, in {others}", remedy=_WHICH)
            arrays[array.name] = array
    if listed is not None and listed.keys() != arrays.keys():
        odd = sorted(listed.keys() - arrays.keys()) or sorted(arrays.keys() - listed.keys())
        n_odd = len(listed.keys() ^ arrays.keys())
        raise ModelFormatError(f"{index} and its files differ in {n_odd} tensors, {odd[0][:120]!r} for one", remedy=INTACT)
    return arrays


def refuse_unconvertible(folder: Path) -> None:
    """Raise ModelError where a directory is not what llama.cpp's converter could take either."""
    config, files = checked_config(folder), list[SafetensorsFile]()
    try:
        refuse_arrays(config, stored_arrays(folder, files), str(folder), asked=True)
    except ConverterNeededError:
        return
    finally:
        for file in files:
            file.close()


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name. Raises ModelFormatError for a name that is more than a file's."""
    stored = read_json(index).get("weight_map")
    if not isinstance(stored, dict) or not stored:
        raise ModelFormatError(f"{index} has no weight_map", remedy=INTACT)
    # A value that is not a text does not end like a file either.
    for name in dict.fromkeys(map(str, stored.values())):
        plain = name == PurePosixPath(name).name == PureWindowsPath(name).name and name.isprintable()
        if not plain or not name.endswith(".safetensors") or len(name) > MAX_NAME:
            raise ModelFormatError(f"{index} names the file {name[:120]!r}", remedy=INTACT)
    return stored


def _part_names(folder: Path, listed: Mapping[str, str] | None) -> list[str]:
    """The files that hold the weights: those of the index, else `model*.safetensors`. Raises ModelError where one is missing."""
    found = sorted(path.name for path in folder.glob("model*.safetensors"))
    if listed is None:
        if not found:
            raise _no_weights(folder)
        parts = [(name, match) for name in found if (match := _PART.fullmatch(name))]
        for name, match in parts:
            wanted = [f"{match[1]}-{number:05d}-of-{match[3]}.safetensors" for number in range(1, min(int(match[3]), len(found) + 1) + 1)]
            if missing := next((other for other in wanted if other not in found), None):
                raise ModelFormatError(f"{folder} has {name}, but not {missing}", remedy=f"Download {missing} as well")
        return found
    names = sorted(set(listed.values()))
    gone = [name for name in names if not is_there(folder / name)]
    if gone:
        whole = [name for name in found if name not in names]
        remedy = f"To convert {whole[0]} instead, delete {INDEX_NAME}" if whole else f"Download {gone[0]} as well"
        beside, more = f", while {whole[0]} is" if whole else "", f" (and {len(gone) - 1} more)" if len(gone) > 1 else ""
        raise ModelError(f"{folder / INDEX_NAME} names {gone[0]}{more}, which is not there{beside}", remedy=remedy)
    return names


def checked_config(folder: Path) -> dict[str, Any]:
    """config.json of a directory whose small files are all there. Raises ModelError."""
    if is_there(folder / "config.json"):
        templates = folder / TEMPLATES
        refuse_files([*(folder / name for name in (*CONFIG_NAMES, *_MORE_NAMES)), templates, *sorted(templates.glob("*.jinja"))])
        return read_json(folder / "config.json")
    _refuse_adapter(folder)
    inner = sorted({str(path.parent.relative_to(folder)) for pattern in _INNER for path in folder.glob(pattern) if path.is_file()})
    if not inner:
        files = sorted(path.name for path in folder.glob("*.gguf") if path.is_file())
        shown = f", but {files[0][:120]}" + (f" and {len(files) - 1:,} more GGUF files" if len(files) > 1 else "") if files else ""
        remedy = f"Give the GGUF file: {folder / files[0]}" if files else "Give a GGUF file or a Hugging Face directory"
        raise ModelError(f"{folder} has no config.json{shown}", remedy=remedy)
    more = f" and {len(inner) - _MOST_NAMED:,} more" if len(inner) > _MOST_NAMED else ""
    raise ModelError(
        f"{folder} has no config.json, but there is one in {', '.join(inner[:_MOST_NAMED])}{more}",
        remedy=f"Give {folder / inner[0]}" if len(inner) == 1 else "Give one of these directories",
    )


def _refuse_adapter(folder: Path) -> None:
    if is_there(folder / "adapter_config.json"):
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        raise UnsupportedModelError(
            f"{folder} has only an adapter, for {str(base)[:120]}",
            remedy="Merge it into that model first (PEFT: merge_and_unload), and give what that saves",
        )


def _may_hold_weights(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(("optimizer", "scheduler", "rng_state", "training_args"))


def _unread_words(folder: Path, read: Sequence[str]) -> list[str]:
    """What of a directory looks like the model's and is not in its base, one sentence each."""
    beside = sorted(path.name for path in folder.glob("model*.safetensors") if path.name not in read)
    found = []
    if beside:
        shown = f"{beside[0][:120]} and {len(beside) - 1} more are" if len(beside) > 1 else f"{beside[0][:120]} is"
        other = ", while transformers takes model.safetensors where it is there" if "model.safetensors" in beside else ""
        found.append(f"{INDEX_NAME} names other files, so {shown} not read{other}")
    if (folder / "adapter_config.json").is_file():
        found.append(
            "an adapter lies beside the weights (adapter_config.json) and is not in them: merge it first if it belongs to the model"
        )
    return found


def _no_weights(folder: Path) -> ModelError:
    if any(folder.glob("pytorch_model*.bin")):
        return ConverterNeededError(f"{folder} stores its weights in pickle files", remedy=OTHER_WAY)
    _refuse_adapter(folder)
    if shards := [path.name for pattern in _SHARDS for path in folder.glob(pattern)]:
        return UnsupportedModelError(
            f"{folder} has the parts of sharded training ({shards[0][:120]}) and no weights that were gathered from them",
            remedy="Gather them first (DeepSpeed: zero_to_fp32.py; FSDP: a full state dict), and save the model",
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if any(name.startswith("adapter_model") for name in others) or (folder / "adapter_model.bin").is_file():
        return UnsupportedModelError(
            f"{folder} has only an adapter, and no adapter_config.json that names its model",
            remedy="Merge it into that model first (PEFT: merge_and_unload), and give what that saves",
        )
    return _other_weights(folder) if not others else _misnamed(folder, others)


def _other_weights(folder: Path) -> ModelError:
    """What a directory without a safetensors file has instead."""

    def found(patterns: Sequence[str]) -> list[str]:
        paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file() and _may_hold_weights(path)}
        return sorted(str(path.relative_to(folder)) for path in paths)

    if parts := [name for name in found(_UNFINISHED) if not name.endswith(".json")]:
        remedy = f"Run `dvc pull` for {parts[0][:120]}" if parts[0].endswith(".dvc") else "Finish the download, or download the file again"
        return ModelError(f"{folder} has {parts[0][:120]} and no model*.safetensors: the weights are not there yet", remedy=remedy)
    if inside := sorted({PurePosixPath(name).parts[0] for name in (Path(each).as_posix() for each in found(_INSIDE))}, key=_by_number):
        shown = ", ".join(inside[-_MOST_NAMED:]) + (f" and {len(inside) - _MOST_NAMED:,} more" if len(inside) > _MOST_NAMED else "")
        remedy = f"Give {folder / inside[0]}" if len(inside) == 1 else "Give one of these directories"
        return ModelError(f"{folder} has no weights, but there are some in {shown}", remedy=remedy)
    if gguf := found(["*.gguf"]):
        return ModelError(f"{folder} has {gguf[0][:120]} and no model*.safetensors", remedy=f"Give the GGUF file: {folder / gguf[0]}")
    if other := found(_OTHER_FORMATS):
        return ModelError(
            f"{folder} has {other[0][:120]}, which is in a program's own format, and no model*.safetensors",
            remedy="Download the model*.safetensors files, or save the model with save_pretrained",
        )
    return ModelError(f"{folder} has no model*.safetensors", remedy="Download the model's weights as well")


def _by_number(name: str) -> tuple[int, str]:
    """Order of folders of one training: checkpoint-500 before checkpoint-1000."""
    number = re.search(r"(\d{1,12})$", name)
    return (int(number[1]) if number else -1, name)


def _misnamed(folder: Path, others: Sequence[str]) -> ModelError:
    """Safetensors files whose names are not those of a model's weights."""
    shown = f"{others[0][:120]} and {len(others) - 1} more" if len(others) > 1 else others[0][:120]
    if any(name.startswith("consolidated") for name in others):
        return ModelError(
            f"{folder} has {shown}, in the makers' own format, and no model*.safetensors",
            remedy="Download the model*.safetensors files, which transformers reads",
        )
    return ModelError(
        f"{folder} has {shown}, but no model*.safetensors",
        remedy="If these are the model's weights, name them model.safetensors, or model-00001-of-00002.safetensors and so on",
    )
