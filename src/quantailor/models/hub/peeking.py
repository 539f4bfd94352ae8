"""The structure of a model on the hub, from headers alone: range requests, no weights, nothing kept on disk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from quantailor.errors import ConverterNeededError, HubError, ModelError, ModelFormatError, UnsupportedModelError
from quantailor.models.convert.checkpoint import refuse_arrays
from quantailor.models.convert.families import family_of
from quantailor.models.convert.families.family import Family, outtype
from quantailor.models.gguf_format import MAGIC, Header, parse_header
from quantailor.models.hub.choice import Choice, RepoFile
from quantailor.models.hub.client import RepoAtCommit, shown
from quantailor.models.json_files import JsonObject, parse_json
from quantailor.models.safetensors_file import MAX_HEADER_BYTES, SafetensorsFile, StoredArray
from quantailor.models.upstream.projector import speaks_of_tower, without_tower
from quantailor.numerics import Bytes
from quantailor.records import MetadataValue, TensorInfo

Item = TypeVar("Item")

_SAFETENSORS_START = 128 << 10
"""Bytes of the first request; most headers fit."""
_GGUF_START = 1 << 20
_GGUF_GROWTH = 4
_GGUF_MOST = 64 << 20
_N_REQUESTS = 8
"""Headers that are read at the same time."""


@dataclass(frozen=True, slots=True)
class Structure:
    """What headers tell of a model."""

    architecture: str
    tensors: tuple[TensorInfo, ...] = ()
    """As GGUF tensors where we can convert the model, else as they are stored; empty where a header is unreadable."""
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    n_vocab: int | None = None
    converts: bool = True
    why_not: str | None = None
    """Why our own conversion cannot take it."""


def structure_of(repo: RepoAtCommit, choice: Choice) -> Structure:
    """Read the headers of what was chosen.

    Raises:
        HubError: the hub refuses.
        ModelError: a GGUF header or config.json is damaged.
    """
    return _of_gguf(repo, choice) if choice.kind == "gguf" else _of_checkpoint(repo, choice)


# Safetensors


class RemoteSafetensors(SafetensorsFile):
    """The header of a safetensors file on the hub. Its arrays can be described, not read.

    Raises:
        ModelFormatError: the header is not a safetensors header.
    """

    def __init__(self, repo: RepoAtCommit, file: RepoFile) -> None:
        self.path = Path(file.name)
        self.size_bytes = file.size_bytes
        self._fetched = repo.read(file, 0, _SAFETENSORS_START)
        length = 8 + int.from_bytes(self._fetched[:8], "little")
        if len(self._fetched) < length <= min(self.size_bytes, MAX_HEADER_BYTES):
            self._fetched += repo.read(file, len(self._fetched), length)
        self.arrays = self._read_header()
        self._fetched = b""

    def read(self, start: int, stop: int) -> Bytes:
        """Bytes [start, stop) of the header, (stop - start,)."""
        return np.frombuffer(self._fetched[start:stop], dtype=np.uint8)

    def close(self) -> None:
        """Nothing is open."""


def weight_names(repo: RepoAtCommit, index: RepoFile) -> set[str]:
    """The files that a safetensors index names. Raises ModelFormatError."""
    stored = parse_json(repo.read_small(index), f"{index.name} of {repo.repo_id}").get("weight_map")
    if not isinstance(stored, dict) or not stored or not all(isinstance(name, str) for name in stored.values()):
        raise ModelFormatError(f"{index.name} of {repo.repo_id} has no weight_map", remedy="Tell the repository's authors")
    return set(stored.values())


def _of_checkpoint(repo: RepoAtCommit, choice: Choice) -> Structure:
    config = _config(repo, choice)
    names = config.get("architectures")
    architecture = shown(str(names[0] if isinstance(names, list) and names else config.get("model_type", "unknown")))
    n_vocab = config.get("vocab_size")
    vocab = n_vocab if type(n_vocab) is int and n_vocab > 0 else None
    try:
        arrays = _arrays(repo, choice.weights)
    except UnsupportedModelError as error:
        return Structure(architecture, n_vocab=vocab, converts=False, why_not=_why_not(error))
    try:
        family, tensors = _planned(repo, config, arrays)
        entries = family.metadata(outtype(arrays.values()))
        return Structure(family.architecture, tensors, entries, vocab)
    except ModelError as error:
        stored = tuple(TensorInfo(array.name, array.shape, array.dtype, array.size_bytes) for array in arrays.values())
        return Structure(architecture, stored, {}, vocab, converts=False, why_not=_why_not(error))


def refuse_unconvertible(repo: RepoAtCommit, choice: Choice, *, converter: bool) -> None:
    """Raise ModelError where headers tell that neither way of conversion can take a checkpoint that is still to be fetched.

    `converter` says that llama.cpp's converter was asked for. What cannot be read is left to the download to tell.
    """
    if choice.kind != "safetensors" or any(repo.cached(file) for file in choice.weights):
        return
    try:
        config, arrays = _config(repo, choice), _arrays(repo, choice.weights)
    except (HubError, ModelFormatError):
        return
    if converter:
        refuse_arrays(config, arrays, repo.repo_id, asked=True)
        return
    with contextlib.suppress(ConverterNeededError):
        _planned(repo, config, arrays)


def refuse_without_tower(repo: RepoAtCommit, choice: Choice) -> None:
    """Raise UnsupportedModelError where a repository whose projector is wanted has no tower, before its weights are fetched.

    What cannot be read is left to the download to tell.
    """
    if choice.kind != "safetensors":
        said = f"{repo.repo_id} is used as GGUF, but a projector is made from safetensors"
        raise UnsupportedModelError(said, remedy="Give the repository of the checkpoint, or leave out --mmproj")
    if any(repo.cached(file) for file in choice.weights):
        return
    try:
        config, arrays = _config(repo, choice), _arrays(repo, choice.weights)
    except (HubError, ModelFormatError):
        return
    if not speaks_of_tower(config, arrays):
        raise without_tower(repo.repo_id)


def _planned(repo: RepoAtCommit, config: JsonObject, arrays: Mapping[str, StoredArray]) -> tuple[Family, tuple[TensorInfo, ...]]:
    family = family_of(config, arrays, f"config.json of {repo.repo_id}", repo.repo_id)
    return family, tuple(tensor.info for tensor in family.plan(arrays))


def _why_not(error: ModelError) -> str:
    """What stops our own conversion, and what comes then."""
    return f"{error.message}; llama.cpp's own converter will be tried" if isinstance(error, ConverterNeededError) else str(error)


def _config(repo: RepoAtCommit, choice: Choice) -> dict[str, Any]:
    found = next((file for file in choice.companions if file.name == "config.json"), None)
    if found is None:
        raise ModelError(f"{repo.repo_id} has no config.json", remedy="Give the repository of a language model")
    return parse_json(repo.read_small(found), f"config.json of {repo.repo_id}")


def _arrays(repo: RepoAtCommit, files: Sequence[RepoFile]) -> dict[str, StoredArray]:
    arrays: dict[str, StoredArray] = {}
    for stored in _at_once(lambda file: RemoteSafetensors(repo, file), files):
        arrays |= stored.arrays
    return arrays


# GGUF


def _of_gguf(repo: RepoAtCommit, choice: Choice) -> Structure:
    headers = _at_once(lambda file: gguf_header(repo, file), choice.weights)
    metadata = headers[0].metadata
    stored = metadata.get("general.architecture")
    tokens = metadata.get("tokenizer.ggml.tokens")
    return Structure(
        architecture=shown(str(stored.value)) if stored else "unknown",
        tensors=tuple(tensor.info for header in headers for tensor in header.tensors),
        metadata={key: value for key, value in metadata.items() if not key.startswith("tokenizer.ggml")},
        n_vocab=len(tokens.value) if tokens and isinstance(tokens.value, tuple) else None,
    )


def gguf_header(repo: RepoAtCommit, file: RepoFile) -> Header:
    """The header of a GGUF file on the hub. Raises ModelError where it is damaged or longer than any known."""
    data, name = repo.read(file, 0, _GGUF_START), f"{file.name} of {repo.repo_id}"
    while True:
        try:
            return parse_header(memoryview(data), file.size_bytes, name)
        except ModelFormatError:
            whole = len(data) >= min(file.size_bytes, _GGUF_MOST)
            if whole or data[: len(MAGIC)] != MAGIC:
                raise
        data += repo.read(file, len(data), min(file.size_bytes, len(data) * _GGUF_GROWTH))


def _at_once(read: Callable[[RepoFile], Item], files: Sequence[RepoFile]) -> list[Item]:
    with ThreadPoolExecutor(_N_REQUESTS) as pool:
        return list(pool.map(read, files))
