"""The protocol of a model source, and a small in-memory source for tests and experiments.

Every source shows a model as llama.cpp would hold it: GGUF tensor names, GGUF metadata, rows as ggml stores
them. A Hugging Face directory is therefore converted on the way, row by row, and whoever reads rows need not
know where they come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from quantailor.numerics import Bytes, Floats
from quantailor.records import MetadataValue, TensorInfo


@runtime_checkable
class ModelSource(Protocol):
    """A model whose tensors can be read row by row, from any thread."""

    @property
    def name(self) -> str:
        """A short name for people: `general.name`, or the file or directory name."""

    @property
    def location(self) -> str:
        """The path it was opened from."""

    @property
    def architecture(self) -> str:
        """`general.architecture`, for example "llama"."""

    @property
    def metadata(self) -> Mapping[str, MetadataValue]:
        """All GGUF metadata in file order, without `GGUF.*` header fields."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold its weights, shards in order; empty where none do."""

    @property
    def config_files(self) -> tuple[str, ...]:
        """Names of the configuration and tokenizer files beside them."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of stored arrays that are not part of the model as llama.cpp runs it, a vision tower's for example."""

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        """All tensors in file order."""

    def tensor(self, name: str) -> TensorInfo:
        """One tensor's description; raises TensorNotFoundError."""

    def raw_rows(self, name: str, start: int, stop: int) -> Bytes:
        """Rows [start, stop) (counted over all slices) as stored: (stop - start, row_bytes)."""

    def rows(self, name: str, start: int, stop: int) -> Floats:
        """The same rows as weights: (stop - start, n_cols) float32, a fresh array."""

    def close(self) -> None:
        """Release files and maps."""


@runtime_checkable
class ConvertedSource(ModelSource, Protocol):
    """A source whose weights are stored in other types than they are shown in."""

    def lost_rows(self, name: str, start: int, stop: int) -> tuple[int, int]:
        """How many of rows [start, stop) the type that they are shown in does not hold, and how many are not zero.

        Next to nothing is left of the weights of a lost row. (0, 0) where that type is the one that they are stored in.
        """


_MAX_NAME = 200


def name_of(metadata: Mapping[str, MetadataValue], otherwise: str) -> str:
    """`general.name` as people may see it, short and without letters that steer a terminal, or `otherwise`."""
    stored = metadata.get("general.name")
    text = stored.value if stored is not None and isinstance(stored.value, str) else ""
    for candidate in (text, otherwise):
        if shown := "".join(letter for letter in candidate if letter.isprintable())[:_MAX_NAME].strip():
            return shown
    return "model"
