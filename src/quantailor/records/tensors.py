"""Tensors and metadata of a model, and what their names say."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

_BLOCK_NAME = re.compile(r"^blk\.(\d+)\.(.+?)(?:\.(?:weight|bias))?$")


def layer_of(tensor_name: str) -> int | None:
    """The block number in a GGUF tensor name, or None outside the blocks."""
    match = _BLOCK_NAME.match(tensor_name)
    return int(match.group(1)) if match else None


def role_of(tensor_name: str) -> str:
    """What a tensor does, without its block: `blk.3.attn_q.weight` -> `attn_q`, `output.weight` -> `output`."""
    match = _BLOCK_NAME.match(tensor_name)
    if match:
        return match.group(2)
    return re.sub(r"\.(weight|bias)$", "", tensor_name)


KERNELS = "kernels"
"""What the kernels of quantized types cost by rounding their inputs, whichever the part of the model."""


def part_of(tensor_name: str) -> str:
    """The part of a model whose errors meet in one way: "output", "embeddings" or "blocks"."""
    if layer_of(tensor_name) is not None:
        return "blocks"
    return "output" if tensor_name == "output.weight" else "embeddings"


@dataclass(frozen=True, slots=True)
class MetadataValue:
    """One GGUF metadata value: its type name as gguf-py spells it in lower case ("uint32", "string", "array")."""

    value_type: str
    value: bool | int | float | str | tuple[bool | int | float | str, ...]
    element_type: str | None = None
    """The type of an array's elements; None for a scalar."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts that it holds, alone or in an array, in letters that can be shown. What is blank or no text is left out."""
        values = self.value if isinstance(self.value, tuple) else (self.value,)
        lines = (" ".join(value.split()) for value in values if isinstance(value, str))
        shown = ("".join(letter for letter in line if letter.isprintable()).strip() for line in lines)
        return tuple(text for text in shown if text)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a model as its source holds it."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    size_bytes: int

    @property
    def n_cols(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def n_rows(self) -> int:
        """Rows of all slices together."""
        return self.n_elements // self.n_cols if self.n_cols else 0

    @property
    def n_slices(self) -> int:
        """Matrices stacked in this tensor: the number of experts, or 1."""
        return math.prod(self.shape[:-2]) if len(self.shape) > 2 else 1

    @property
    def rows_per_slice(self) -> int:
        return self.n_rows // self.n_slices if self.n_slices else 0

    @property
    def role(self) -> str:
        return role_of(self.name)

    @property
    def layer(self) -> int | None:
        return layer_of(self.name)


def bits_per_weight(tensors: Sequence[TensorInfo]) -> float:
    """8 x bytes / weights of these tensors together; 0 where there are none."""
    return 8 * sum(tensor.size_bytes for tensor in tensors) / max(1, sum(tensor.n_elements for tensor in tensors))
