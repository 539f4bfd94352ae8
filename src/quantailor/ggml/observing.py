"""What a model multiplies its weights with while a chunk runs: ggml's graph callback as calls of a `Capture`, as llama-imatrix sees it.

GPU tensors are copied to host memory for it. What a capture raises stops the graph.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from quantailor.errors import InferenceError
from quantailor.ggml import library
from quantailor.ggml.library import GgmlTensor, TensorPointer
from quantailor.numerics import Floats, Tokens

OUTPUT_MATRICES = ("output.weight", "token_embd.weight")
"""What may give the logits: a matrix of its own, or the token embeddings."""
_F32_ID = 0


@dataclass(frozen=True, slots=True)
class Activation:
    """The input of one weight matrix for the tokens of one graph.

    `x` may be a view of llama.cpp's memory: it is valid during the call only.
    """

    name: str
    """The weight's tensor name."""
    x: Floats
    """(n_tokens, n_inputs, n_cols). `n_inputs` is 1 where all slices of a token share one input."""
    slice_ids: Tokens | None
    """Which slices each token goes through, (n_tokens, n_used), for stacked weights; None for a plain matrix."""
    n_slices: int
    source: tuple[int, int]
    """Equal for consecutive activations of one graph that have the same `x` and `slice_ids`."""
    sequence: int = 0
    """Whose tokens they are, where several chunks run side by side."""


Capture = Callable[[Activation], None]


class Enough(Exception):
    """What a capture raises where it needs nothing of what follows in this graph: the rest is not computed.

    Only for a model that runs on the CPU as a whole, and where nobody asks for its logits.
    """


@dataclass(slots=True)
class OutputSeen:
    """What a graph was seen to multiply its output matrix with."""

    matrix: str = ""
    """The output matrix."""
    name: bytes = b""
    """Of the node that it is multiplied with."""
    is_last: bool = False
    """Whether no other weight is multiplied after it."""
    names: list[bytes] = field(default_factory=list)
    """Of all nodes."""

    @property
    def is_clear(self) -> bool:
        """Whether a graph can be ended at the node of that name."""
        return self.is_last and bool(self.name) and self.names.count(self.name) == 1


class Observer:
    """Turns ggml's graph callback into calls of a `Capture`, for all weights or those of some names."""

    def __init__(self, capture: Capture, names: Collection[str] = ()) -> None:
        self._capture, self._names = capture, names
        self._failure: BaseException | None = None
        self._ops = _operations()
        self._ggml = library.load().ggml
        self.n_sequences = 1
        """As many chunks of the same length run side by side,"""
        self.n_tokens = 0
        """of so many tokens together."""
        self._source, self._sharing = 0, set[str]()
        self._copies: dict[int, Any] = {}
        """What was copied from a GPU for the weights in `_sharing`, which are multiplied with the same `_source`."""
        self._looking: OutputSeen | None = None
        self._output: OutputSeen | None = None
        self.callback = library.load().llama.ggml_backend_sched_eval_callback(self._on_node)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Inside the block a graph is only looked at, for what its output matrix is multiplied with; graphs after it stop there.

        That is seen as all inputs are, and the product, which may be the largest of the model, is left out. Only for a model that
        runs on the CPU as a whole, and where nobody asks for its logits.
        """
        seen = self._looking = OutputSeen()
        try:
            yield
        finally:
            self._looking = None
        self._output = seen if seen.is_clear else None

    def reraise(self) -> None:
        """Raise what the capture raised during the last graph, if anything."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _on_node(self, address: int, ask: bool, _: object) -> bool:
        try:
            return self._visit(ctypes.cast(address, TensorPointer).contents, ask)
        except Enough:
            return False
        except BaseException as error:  # ctypes would print and drop it; `reraise` hands it on
            self._failure = error
            return False

    def _visit(self, node: GgmlTensor, ask: bool) -> bool:
        if self._looking is not None:
            self._look(self._looking, node)
            return False
        if self._output is not None and node.name == self._output.name and node.type == _F32_ID:
            return ask or self._stop(self._output.matrix, node)
        if node.op not in self._ops:
            return False
        weight, source = node.src[0].contents, node.src[1].contents
        if ask:
            name = weight_name(weight.name)
            return source.type == _F32_ID and is_weight(name) and (not self._names or name in self._names)
        self._show(self._activations(node, weight, source))
        return self._failure is None

    def _show(self, activations: Iterable[Activation]) -> None:
        """Hand over all of them, then raise Enough where one was."""
        enough: Enough | None = None
        for activation in activations:
            try:
                self._capture(activation)
            except Enough as error:
                enough = error
        if enough is not None:
            raise enough

    def _look(self, seen: OutputSeen, node: GgmlTensor) -> None:
        seen.names.append(node.name)
        if node.op in self._ops and is_weight(name := weight_name(node.src[0].contents.name)):
            seen.is_last = name in OUTPUT_MATRICES
            if seen.is_last:
                seen.matrix, seen.name = name, node.src[1].contents.name

    def _stop(self, name: str, inputs: GgmlTensor) -> bool:
        """Show what the output matrix is multiplied with, and end the graph."""
        if not self._names or name in self._names:
            parts, origin = self._split(self._read(inputs, np.float32), name), (ctypes.addressof(inputs), 0)
            self._show(Activation(name, part.reshape(-1, 1, part.shape[-1]), None, 1, origin, number) for number, part in enumerate(parts))
        return False

    def _activations(self, node: GgmlTensor, weight: GgmlTensor, source: GgmlTensor) -> Iterator[Activation]:
        """One for each chunk."""
        name, n_slices = weight_name(weight.name), int(weight.ne[2] * weight.ne[3])
        if self._source != ctypes.addressof(source) or name in self._sharing:  # a weight comes again in the next graph
            self._source, self._sharing, self._copies = ctypes.addressof(source), set(), {}
        self._sharing.add(name)
        values = self._read(source, np.float32)  # (ne3, ne2, ne1, n_cols)
        if self._ops[node.op] == "MUL_MAT_ID":
            ids = _checked(self._read(node.src[2].contents, np.int32)[0, 0], n_slices, name)  # (n_tokens, n_used)
            origin = ctypes.addressof(source), ctypes.addressof(node.src[2].contents)
            xs, idss = (np.split(whole, self.n_sequences) for whole in (values[0], ids))  # x is (n_tokens, n_inputs, n_cols)
            for number, (x, own) in enumerate(zip(xs, idss, strict=True)):
                yield Activation(name, x, own, n_slices, origin, number)
            return
        for number, part in enumerate(self._split(values, name)):
            slices = None if n_slices == 1 else _broadcast_slices(weight, part.shape[:3]).reshape(-1, 1)
            yield Activation(name, part.reshape(-1, 1, part.shape[-1]), slices, n_slices, (ctypes.addressof(source), 0), number)

    def _split(self, values: Floats, name: str) -> list[Floats]:
        """The chunks' parts of an input, (ne3, ne2, ne1, n_cols) each: all tokens have one axis, or chunks have one of their own."""
        n_sequences, shape = self.n_sequences, values.shape[:3]
        if n_sequences == 1:
            return [values]
        n_chunk = self.n_tokens // n_sequences
        together = [axis for axis in range(3) if shape[axis] == self.n_tokens]
        apart = [axis for axis in range(2) if shape[axis] == n_sequences and n_chunk in shape[axis + 1 :]]
        if not together + apart:
            raise InferenceError(f"the inputs of {name} cannot be told apart by chunks that run side by side")
        return np.split(values, n_sequences, axis=(together + apart)[0])

    def _read(self, tensor: GgmlTensor, kind: type[np.float32] | type[np.int32]) -> npt.NDArray[Any]:
        """A tensor of 4-byte elements as (ne3, ne2, ne1, ne0), whatever its strides; a view where it is in host memory."""
        n_bytes = int(self._ggml.ggml_nbytes(ctypes.byref(tensor)))
        if tensor.buffer and self._ggml.ggml_backend_buffer_is_host(tensor.buffer):
            memory: Any = (ctypes.c_uint8 * n_bytes).from_address(tensor.data)
        else:
            address = ctypes.addressof(tensor)
            if address not in self._copies:
                self._copies[address] = (ctypes.c_uint8 * n_bytes)()
                self._ggml.ggml_backend_tensor_get(ctypes.byref(tensor), self._copies[address], 0, n_bytes)
            memory = self._copies[address]
        shape, strides = tuple(reversed(tensor.ne)), tuple(reversed(tensor.nb))
        return np.ndarray(shape, dtype=kind, buffer=memory, strides=strides)


def _checked(ids: Tokens, n_slices: int, name: str) -> Tokens:
    if ids.size and not (int(ids.min()) >= 0 and int(ids.max()) < n_slices):
        raise InferenceError(f"the router of {name} chose an expert out of range")
    return ids


def _broadcast_slices(weight: GgmlTensor, shape: tuple[int, ...]) -> Tokens:
    """Which matrix of a stack each row of a plain product meets, as ggml broadcasts: (ne3 * ne2 * ne1,), the input's `shape`."""
    third = np.arange(shape[1], dtype=np.int32) % weight.ne[2]
    fourth = np.arange(shape[0], dtype=np.int32) % weight.ne[3]
    stacked = fourth[:, None] * weight.ne[2] + third[None, :]
    return np.repeat(stacked.reshape(-1), shape[2]).astype(np.int32)


@functools.cache
def _operations() -> dict[int, str]:
    """ggml's numbers of the two matrix products."""
    ggml, numbers = library.load().ggml, {}
    for index in range(256):
        name = ggml.ggml_op_name(index).decode()
        if name in ("MUL_MAT", "MUL_MAT_ID"):
            numbers[index] = name
        if len(numbers) == 2:
            break
    return numbers


def weight_name(node_name: bytes) -> str:
    """The weight behind a graph node's name: `CUDA0#blk.0.attn_k.weight#0` -> `blk.0.attn_k.weight`."""
    name = node_name.decode(errors="replace")
    _, mark, rest = name.partition("#")
    return rest.partition("#")[0] if mark else name


def is_weight(name: str) -> bool:
    """Whether a product's first factor is a weight that we watch: a block's, or the output (its own or the tied embeddings')."""
    return name.startswith("blk.") or name in OUTPUT_MATRICES
