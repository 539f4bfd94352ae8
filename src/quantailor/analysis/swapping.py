"""Mixes of types set in a loaded model, without a file.

A *mix* names tensors and the types they are to have; every other tensor stays as it is. Its weights are quantized from
the source exactly as `build` would write them, and put into the loaded model in place of the originals:

    as built    the quantized bytes with their type: the kernels of a built file run, and the logits are that file's
    values      the dequantized weights in the base's own type: what rounding weights does, and nothing else

What is put back is read from the source again, so that memory is the model and a few blocks, and compared with what the
model then holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from quantailor.analysis.imatrix import Imatrix
from quantailor.analysis.quantize import quantized_blocks
from quantailor.errors import InferenceError
from quantailor.ggml import codec, library
from quantailor.ggml.runtime import DEFAULT_N_CTX
from quantailor.ggml.swapping import WritableModel
from quantailor.models.source import ModelSource
from quantailor.records import TensorInfo

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int32]
Kernels = Literal["as built", "values"]

_BLOCK_WEIGHTS = 1 << 16
"""Small, so that a single tensor keeps all threads busy."""


class Swapper:
    """A model in memory that can be made to hold any mix. Use as a context manager.

    Args:
        source: the base, where original weights come from.
        path: the same base as a file that llama.cpp loads.
        names: the tensors that mixes will name.
        imatrix: importances for the quantizers.
        n_ctx: the longest chunk, tokens.
        n_threads: None takes all processors.
        n_gpu_layers: layers on a GPU, -1 for all.
        kernels: "as built" or "values", see the module docstring.

    Raises:
        InferenceError: llama.cpp cannot load the model.
    """

    def __init__(
        self,
        source: ModelSource,
        path: Path,
        names: Collection[str],
        *,
        imatrix: Imatrix | None,
        n_ctx: int = DEFAULT_N_CTX,
        n_threads: int | None = None,
        n_gpu_layers: int = 0,
        kernels: Kernels = "as built",
    ) -> None:
        self._source, self._imatrix, self._n_threads, self._kernels = source, imatrix, n_threads, kernels
        self._model = WritableModel(path, names, n_ctx=n_ctx, n_threads=n_threads, n_gpu_layers=n_gpu_layers)
        self._mix: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._model.close()

    @property
    def model(self) -> WritableModel:
        """The loaded model, as it is now."""
        return self._model

    @property
    def weights(self) -> frozenset[str]:
        """Tensors that take part in the model's graph; only these can be swapped."""
        return self._model.weights

    @property
    def mix(self) -> dict[str, str]:
        """What the model holds now: tensor -> type, of those that are not as in the source."""
        return dict(self._mix)

    def set_mix(self, mix: Mapping[str, str]) -> None:
        """Make the model hold this mix, and the originals everywhere else. Only what differs is touched.

        Raises:
            TensorNotFoundError: the model's graph does not use a tensor.
            TypeUnavailableError, ImatrixError, NonFiniteWeightError: a tensor cannot take its type.
        """
        wanted = {name: type_name for name, type_name in mix.items() if type_name != self._source.tensor(name).type_name}
        for name in [name for name in self._mix if name not in wanted]:
            self._restore(name)
        for name, type_name in wanted.items():
            if self._mix.get(name) != type_name:
                self._swap(name, type_name)

    def logits(self, tokens: Tokens, *, first: int = 0) -> Floats:
        """Logits of one chunk as the model is now; see `LoadedModel.logits`."""
        return self._model.logits(tokens, first=first)

    def _swap(self, name: str, type_name: str) -> None:
        stored, qtypes = self._source.tensor(name), library.types()
        size = qtypes[type_name].tensor_bytes(stored)
        tensor = dataclasses.replace(stored, type_name=type_name, size_bytes=size)
        self._mix[name] = type_name  # before the first byte: what fails half-way must be put back
        if self._kernels == "as built":
            self._model.replace(name, qtypes[type_name], self._quantized(tensor))
        else:
            self._model.replace(name, qtypes[stored.type_name], self._rounded(tensor, stored.type_name))

    def _restore(self, name: str) -> None:
        tensor = self._source.tensor(name)
        self._model.replace(name, library.types()[tensor.type_name], self._quantized(tensor))
        at = 0
        for part in self._quantized(tensor):
            if not np.array_equal(self._model.read(name, at, at + part.size), part):
                raise InferenceError(f"{name} could not be put back into the model", remedy="Check that the base file has not changed")
            at += part.size
        del self._mix[name]

    def _quantized(self, tensor: TensorInfo) -> Iterator[Bytes]:
        blocks = quantized_blocks(self._source, [tensor], self._imatrix, n_threads=self._n_threads, block_weights=_BLOCK_WEIGHTS)
        return (data for _, data in blocks)

    def _rounded(self, tensor: TensorInfo, base_type: str) -> Iterator[Bytes]:
        """The dequantized weights, rounded to the base's type."""
        qtypes = library.types()
        for data in self._quantized(tensor):
            values = codec.dequantize(data, qtypes[tensor.type_name], tensor.n_cols)
            yield codec.quantize(values, qtypes[base_type]).reshape(-1)
