"""A loaded model whose weights can be replaced in place: the ground on which probes stand.

llama.cpp has no call that gives out its weights, but its graph callback shows every node, and a matrix product's
first factor is the weight itself. One token therefore finds them all; the model then runs in a context without a
callback, at full speed. Weights lie where the backend keeps them: `ggml_backend_tensor_get` and `_set` copy from and to
a GPU as well.

A weight may also change its type: where the new bytes need no more room than the old, they take its place, and the
tensor's type and strides are set to match. The graph then runs the very kernel that a file with this type would run, so
that its logits are that file's, bit for bit, rounding of the inputs included.

Two settings make weights writable: no memory mapping (mapped pages are read-only) and no extra buffer types (repacked
weights cannot be read back). See `LoadedModel(writable=True)`. On a GPU two more keep what was settled for one type from
serving another: llama.cpp builds its graph anew for every chunk, and CUDA records none (see `library.NO_CUDA_GRAPHS`).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from quantailor.errors import InferenceError, TensorNotFoundError, TypeUnavailableError
from quantailor.ggml import library
from quantailor.ggml.devices import PROCESSOR, Devices
from quantailor.ggml.library import GGML_MAX_DIMS, GgmlTensor, TensorPointer
from quantailor.ggml.runtime import DEFAULT_N_CTX, LoadedModel
from quantailor.numerics import Bytes
from quantailor.qtypes import QType

_PADDING_BYTES = 1024
"""Zeros behind a shorter weight, where there is room: GPU kernels read whole blocks of 512 beyond the last row."""

_NO_KEPT_GRAPHS = "LLAMA_GRAPH_REUSE_DISABLE"
"""llama.cpp reads it when a context is made."""


@dataclass
class _Place:
    """One tensor object that holds a weight, and how it was loaded."""

    tensor: GgmlTensor
    type_id: int = field(init=False)
    strides: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.type_id, self.strides = self.tensor.type, tuple(self.tensor.nb)

    def shape_as(self, type_id: int, strides: tuple[int, ...]) -> None:
        self.tensor.type = type_id
        for index, stride in enumerate(strides):
            self.tensor.nb[index] = stride


class WritableModel(LoadedModel):
    """A loaded model with access to the weights that its graph uses.

    Args:
        path: a GGUF file, or the first part of a split one.
        names: the tensors that may be replaced.
        n_ctx: the longest chunk, tokens.
        n_threads: None takes all processors.
        devices: what takes layers from the processor.

    Raises:
        InferenceError: llama.cpp cannot load the model or has no memory for the context.
    """

    def __init__(
        self, path: Path, names: Collection[str], *, n_ctx: int = DEFAULT_N_CTX, n_threads: int | None = None, devices: Devices = PROCESSOR
    ) -> None:
        self._places: dict[str, dict[int, _Place]] = {}
        super().__init__(path, n_ctx=n_ctx, n_threads=n_threads, devices=devices, writable=True)
        self._ggml = library.load().ggml
        try:
            self._find(frozenset(names))
        except BaseException:
            self.close()
            raise
        self._sizes = {name: self._n_bytes(next(iter(places.values()))) for name, places in self._places.items()}

    @property
    def weights(self) -> frozenset[str]:
        """Names of the weights that can be replaced: those of the names asked for that take part in the model's graph."""
        return frozenset(self._places)

    def replace(self, name: str, qtype: QType, parts: Iterable[Bytes]) -> None:
        """Give a weight another content, and the type of that content.

        Args:
            name: the tensor.
            qtype: what the bytes are.
            parts: the whole tensor's bytes, piece by piece, each (n_bytes,), so that large tensors need little memory.

        Raises:
            TensorNotFoundError: the graph does not use such a tensor, or the model is closed.
            TypeUnavailableError: the type needs more room than the weight has in memory.
            InferenceError: the parts are not the tensor's size; it must be replaced again before the model runs.
        """
        places = self._known(name)
        ne = tuple(int(length) for length in places[0].tensor.ne)
        strides = _strides(qtype, ne)
        size, room = strides[-1] * ne[-1], self._sizes[name]
        if size > room:
            raise TypeUnavailableError(f"{name} at {qtype.name} takes {size} bytes, its place in memory has {room}")
        for place in places:
            place.shape_as(place.type_id, place.strides)
        start = 0
        for part in parts:
            if start + part.size > size:
                raise InferenceError(f"{name} at {qtype.name} takes {size} bytes; more were given")
            self._set(places, start, part)
            start += part.size
        if start != size:
            raise InferenceError(f"{name} at {qtype.name} takes {size} bytes; {start} were given")
        self._set(places, start, np.zeros(min(_PADDING_BYTES, room - size), dtype=np.uint8))
        for place in places:
            place.shape_as(qtype.id, strides)

    def read(self, name: str, start: int, stop: int) -> Bytes:
        """Bytes [start, stop) of a weight as the model holds it, (n_bytes,).

        Raises:
            TensorNotFoundError: as `replace` does.
            InferenceError: the weight has fewer bytes.
        """
        place = self._known(name)[0]
        if not 0 <= start <= stop <= self._n_bytes(place):
            raise InferenceError(f"{name} has {self._n_bytes(place)} bytes, not {start} to {stop}")
        out = np.empty(stop - start, dtype=np.uint8)
        self._ggml.ggml_backend_tensor_get(ctypes.byref(place.tensor), out.ctypes.data, start, out.size)
        return out

    def _set(self, places: Iterable[_Place], start: int, data: Bytes) -> None:
        flat = np.ascontiguousarray(data).reshape(-1)
        for place in places:
            self._ggml.ggml_backend_tensor_set(ctypes.byref(place.tensor), flat.ctypes.data, start, flat.size)

    def _n_bytes(self, place: _Place) -> int:
        return int(self._ggml.ggml_nbytes(ctypes.byref(place.tensor)))

    def _known(self, name: str) -> list[_Place]:
        if not self._context:
            raise TensorNotFoundError(f"{self.path} is closed")
        if name not in self._places:
            raise TensorNotFoundError(f"{self.path} has no weight {name} in its graph")
        return list(self._places[name].values())

    def _open_context(self, callback: object) -> None:
        """On a GPU, without the graph of the chunk before: which backend multiplies a weight is settled when a graph is built."""
        if not self._offload_kqv:
            super()._open_context(callback)
            return
        before = os.environ.get(_NO_KEPT_GRAPHS)
        os.environ[_NO_KEPT_GRAPHS] = "1"
        try:
            super()._open_context(callback)
        finally:
            if before is None:
                del os.environ[_NO_KEPT_GRAPHS]
            else:
                os.environ[_NO_KEPT_GRAPHS] = before

    # Finding the weights

    def _find(self, names: frozenset[str]) -> None:
        """Run one token with a callback that notes the weights, then go on in a context without one."""
        failures: list[BaseException] = []

        def visit(address: int, ask: bool, _: object) -> bool:
            try:
                if ask:
                    self._note(ctypes.cast(address, TensorPointer).contents, names)
            except BaseException as error:  # ctypes would print and drop it
                failures.append(error)
            return not ask

        callback = self._llama.ggml_backend_sched_eval_callback(visit)
        self._close_context()
        self._open_context(callback)
        self.decode(np.zeros(1, dtype=np.int32))
        self._close_context()
        if failures:
            raise failures[0]
        self._open_context(None)

    def _note(self, node: GgmlTensor, names: frozenset[str]) -> None:
        for source in node.src:
            if not source:
                continue
            tensor = source.contents.view_src.contents if source.contents.view_src else source.contents
            name = tensor.name.decode(errors="replace")
            if name in names and tensor.buffer:
                self._places.setdefault(name, {}).setdefault(ctypes.addressof(tensor), _Place(tensor))


def _strides(qtype: QType, ne: tuple[int, ...]) -> tuple[int, ...]:
    """ggml's `nb` of a contiguous tensor of this type."""
    strides = [qtype.type_size, qtype.row_bytes(ne[0])]
    for length in ne[1 : GGML_MAX_DIMS - 1]:
        strides.append(strides[-1] * length)
    return tuple(strides)
