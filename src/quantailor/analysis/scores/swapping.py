"""Mixes of types set in a loaded model, without a file.

A *mix* names tensors and the types they are to have; every other tensor stays as it is. Its weights are quantized from
the source exactly as `build` would write them, and put into the loaded model in place of the originals:

    as built    the quantized bytes with their type: the kernels of a built file run, and the logits are that file's
    values      the dequantized weights in the type of the originals: what rounding weights does, and nothing else

What the originals rest in matters too. BF16 kernels round the *inputs* of every product to 8 bits of mantissa, and any
change in the model, however small, makes other roundings downstream: a floor of about 1e-5 nats under every
divergence, in which the better types of most tensors drown. F16 holds BF16 weights without loss and rounds inputs eight
times more finely, which lowers that floor 64 times; it takes the same room. So originals can *rest* in F16.

What is put back is read from the source again, so that memory is the model and a few blocks, and compared with what the
model then holds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from quantailor.analysis.quantize import quantized_blocks
from quantailor.analysis.rounding.rounding import PLAIN, Rounding
from quantailor.errors import InferenceError
from quantailor.ggml import codec, library
from quantailor.ggml.devices import PROCESSOR, Devices
from quantailor.ggml.runtime import DEFAULT_N_CTX
from quantailor.ggml.swapping import WritableModel
from quantailor.models.source import ModelSource
from quantailor.numerics import Bytes
from quantailor.processes.heap import give_back

Kernels = Literal["as built", "values"]

FINER_REST: Mapping[str, str] = {"BF16": "F16"}
"""Types that originals may rest in instead of their own."""
_BLOCK_WEIGHTS = 1 << 16
"""Small, so that a single tensor keeps all threads busy."""


class Swapper(WritableModel):
    """A model in memory that can be made to hold any mix. Use as a context manager.

    Args:
        source: the base, where original weights come from.
        path: the same base as a file that llama.cpp loads.
        names: the tensors that mixes will name.
        rounding: how weights become codes.
        n_ctx: the longest chunk, tokens.
        n_threads: None takes all processors.
        devices: what takes layers from the processor.
        kernels: "as built" or "values", see the module docstring.
        resting: tensor -> type, of those that the file has, rounded plainly, in another than the source's.

    Raises:
        InferenceError: llama.cpp cannot load the model.
    """

    def __init__(
        self,
        source: ModelSource,
        path: Path,
        names: Collection[str],
        *,
        rounding: Rounding,
        n_ctx: int = DEFAULT_N_CTX,
        n_threads: int | None = None,
        devices: Devices = PROCESSOR,
        kernels: Kernels = "as built",
        resting: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(path, names, n_ctx=n_ctx, n_threads=n_threads, devices=devices)
        self._source, self._rounding, self._kernels = source, rounding, kernels
        self._loaded = {name: (resting or {}).get(name, source.tensor(name).type_name) for name in self.weights}
        self._rest = dict(self._loaded)
        self._mix: dict[str, str] = {}

    def rest_finer(self, *, back: bool = False) -> None:
        """Let the originals rest in a type whose kernels round inputs more finely; `back` undoes it."""
        for name, resting in self._rest.items():
            loaded = self._loaded[name]
            wanted = loaded if back else FINER_REST.get(loaded, loaded)
            if resting != wanted:
                self._rest[name] = wanted
                self._put_back(name)
                self._mix.pop(name, None)

    def set_mix(self, mix: Mapping[str, str]) -> None:
        """Make the model hold this mix, and the originals everywhere else. Only what differs is touched.

        A type that a tensor already has is set all the same where the tensor rests in another.

        Raises:
            TensorNotFoundError: the model's graph does not use a tensor.
            TypeUnavailableError, ImatrixError, NonFiniteWeightError: a tensor cannot take its type.
        """
        wanted = {name: type_name for name, type_name in mix.items() if type_name != self._rest.get(name)}
        for name in [name for name in self._mix if name not in wanted]:
            self._put_back(name)
            del self._mix[name]
        for name, type_name in wanted.items():
            if self._mix.get(name) != type_name:
                self._mix[name] = type_name  # before the first byte: what fails half-way must be put back
                self._swap(name, type_name)
        if wanted:
            give_back()

    def _swap(self, name: str, type_name: str) -> None:
        qtypes = library.types()
        if self._kernels == "as built":
            self.replace(name, qtypes[type_name], self._quantized(name, type_name, self._rounding))
        else:
            self.replace(name, qtypes[self._rest[name]], self._rounded(name, type_name))

    def _put_back(self, name: str) -> None:
        resting = self._rest[name]
        self.replace(name, library.types()[resting], self._quantized(name, resting, PLAIN))
        start = 0
        for part in self._quantized(name, resting, PLAIN):
            if not np.array_equal(self.read(name, start, start + part.size), part):
                raise InferenceError(f"{name} could not be put back into the model", remedy="Check that the base file has not changed")
            start += part.size

    def _quantized(self, name: str, type_name: str, rounding: Rounding) -> Iterator[Bytes]:
        tensor = library.types()[type_name].retyped(self._source.tensor(name))
        blocks = quantized_blocks(self._source, [tensor], rounding, n_threads=self.n_threads, block_weights=_BLOCK_WEIGHTS)
        return (data for _, data in blocks)

    def _rounded(self, name: str, type_name: str) -> Iterator[Bytes]:
        """The dequantized weights, rounded to the type that the tensor rests in."""
        qtypes, n_cols = library.types(), self._source.tensor(name).n_cols
        for data in self._quantized(name, type_name, self._rounding):
            yield codec.quantize(codec.dequantize(data, qtypes[type_name], n_cols), qtypes[self._rest[name]]).reshape(-1)
