"""A Hugging Face directory, shown as llama.cpp's converter would write it; rows are converted when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from quantailor.errors import ModelError, ModelFormatError, TensorNotFoundError, UnsupportedModelError
from quantailor.ggml import codec, library
from quantailor.models.convert.description import described
from quantailor.models.convert.families import family_of
from quantailor.models.convert.families.family import outtype
from quantailor.models.convert.families.rows import PlannedTensor
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
MAX_NAME = 200


class HuggingFaceSource:
    """A directory of a family that `models.convert.families` lists; see `models.source.ModelSource`.

    Raises:
        ModelError: a file is missing, cannot be read or is damaged.
        UnsupportedModelError: another family, tokenizer or tensor type.
    """

    def __init__(self, path: Path | str) -> None:
        # Only made absolute: the name of a link is the name its owner chose.
        self.folder = Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100 - resolve() would follow links
        if not is_there(self.folder / "config.json"):
            raise ModelError(f"{self.folder} has no config.json", remedy="Give a GGUF file or a Hugging Face directory")
        self.config: JsonObject = read_json(self.folder / "config.json")
        family = family_of(self.config, str(self.folder / "config.json"))
        self.family = type(family).__name__
        """For people: "Llama"."""
        self._files: list[SafetensorsFile] = []
        try:
            arrays = self._arrays()
            planned = family.plan(arrays)
            self.left_out = family.left_out
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
        except BaseException:
            self.close()
            raise

    def _arrays(self) -> dict[str, StoredArray]:
        """All arrays in the order of the parts and, within one, of their names."""
        index = self.folder / INDEX_NAME
        listed = _weight_map(index) if index.is_file() else None
        names = sorted(set(listed.values())) if listed is not None else sorted(path.name for path in self.folder.glob("model*.safetensors"))
        if not names:
            raise _no_weights(self.folder)
        arrays: dict[str, StoredArray] = {}
        for name in names:
            self._files.append(SafetensorsFile(self.folder / name))
            for array in self._files[-1].arrays.values():
                if array.name in arrays:
                    raise ModelFormatError(f"{self.folder} holds the tensor {array.name} twice", remedy=INTACT)
                arrays[array.name] = array
        if listed is not None and listed.keys() != arrays.keys():
            odd = sorted(listed.keys() ^ arrays.keys())
            raise ModelFormatError(f"{index} and its files differ in {len(odd)} tensors, {odd[0][:120]!r} for one", remedy=INTACT)
        return arrays

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

    def rows(self, name: str, start: int, stop: int) -> Floats:
        """Rows as weights, (stop - start, n_cols)."""
        info = self.tensor(name)
        return codec.dequantize(self.raw_rows(name, start, stop), library.types()[info.type_name], info.n_cols)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _plan(self, name: str) -> PlannedTensor:
        try:
            return self._planned[name]
        except KeyError:
            raise TensorNotFoundError(f"{self.location} has no tensor {name}", remedy="`quantailor inspect` lists them") from None


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


def _no_weights(folder: Path) -> ModelError:
    if any(folder.glob("pytorch_model*.bin")):
        return UnsupportedModelError(f"{folder} stores its weights in pickle files", remedy=OTHER_WAY)
    return ModelError(f"{folder} has no model*.safetensors", remedy="Download the model's weights as well")
