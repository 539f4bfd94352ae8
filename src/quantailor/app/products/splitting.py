"""A model split between a GPU and the processor: which weights go where, and the split that leaves least to the processor.

llama.cpp fills a GPU from the last layer on: `-ngl 1` puts the output matrix there, every further one the layer before. A mixture's
experts take most of its bytes and are each used seldom, so they are what stays with the processor longest (`--n-cpu-moe`). Token
embeddings always stay there; where they are the output matrix too, the GPU has a copy.

While it reads a prompt, llama.cpp multiplies on the GPU by weights that are not there, too, and copies them one after the other: the
largest needs room there. Its accounts of a GPU lack what the GPU's driver takes for itself. A projector's part of either side is taken
before any layer's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from quantailor.app.products.projectors import ProjectorNeeds
from quantailor.errors import OptionError
from quantailor.ggml import library
from quantailor.ggml.memory.context import EXPERTS, ContextMemory, Split, SplitMemory, split_memory
from quantailor.models.abilities import why_no_predictions
from quantailor.models.source import ModelSource
from quantailor.present import words
from quantailor.records import TensorInfo

_INPUTS = ("token_embd", "position_embd", "token_types", "per_layer_token_embd")
_OF_FIRST_LAYER = ("token_embd_norm", "per_layer_model_proj", "per_layer_proj_norm", "rope_")
"""Outside the blocks; llama.cpp counts all others to the output. See its LLM_TENSOR_INFOS."""
_EMBEDDINGS, _OUTPUT = "token_embd.weight", "output.weight"


@dataclass(frozen=True, slots=True)
class SideMemory:
    """Bytes on one side."""

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    output_bytes: int
    program_bytes: int
    copies_bytes: int
    """On the GPU: room for the largest weight of the processor's, which llama.cpp copies there for prompts."""
    mmproj_bytes: int
    """The projector's part."""
    needs_bytes: int
    """All of it."""


@dataclass(frozen=True, slots=True)
class FileSplit:
    """How a file is split."""

    n_gpu_layers: int
    """As `-ngl` takes it: the last layers, the output matrix among them; 0 leaves the GPU alone."""
    n_layers: int
    """That there are, in the same way."""
    n_cpu_moe: int
    """Experts of so many layers, counted from the first, stay with the processor."""
    gpu: SideMemory
    host: SideMemory

    @property
    def flags(self) -> tuple[str, ...]:
        """How llama.cpp is told."""
        if not self.n_gpu_layers:
            return ("-ngl", "0", "--no-op-offload") if self.gpu.mmproj_bytes else ("--device", "none")
        return ("-ngl", str(self.n_gpu_layers), *(("--n-cpu-moe", str(self.n_cpu_moe)) if self.n_cpu_moe else ()))


@dataclass(frozen=True, slots=True)
class _Weights:
    """Bytes on either side."""

    gpu: int
    host: int
    copies: int


class Splitting:
    """The splits of one model with one context.

    Args:
        source: the model.
        header: a GGUF file with its header.
        n_ctx: tokens of the context.
        kv_type: of keys and values.
        program_bytes: what the program takes beside.
        gpu_bytes: the GPU's memory.
        memory_bytes: the processor's.
        projector: what one beside the model takes of either.

    Raises OptionError where the header does not say how many layers there are.
    """

    def __init__(
        self,
        source: ModelSource,
        header: Path,
        *,
        n_ctx: int,
        kv_type: str,
        program_bytes: int,
        gpu_bytes: int,
        memory_bytes: int,
        projector: ProjectorNeeds | None = None,
    ) -> None:
        self._source, self._header, self._n_ctx, self._kv_type = source, header, n_ctx, kv_type
        self._program_bytes, self._gpu_bytes, self._memory_bytes = program_bytes, gpu_bytes, memory_bytes
        self._projector_gpu_bytes, self._projector_host_bytes = (0, 0) if projector is None else (projector.gpu_bytes, projector.host_bytes)
        self._known: dict[Split, SplitMemory] = {}
        stated = source.metadata.get(f"{source.architecture}.block_count")
        if stated is None or not isinstance(stated.value, int):
            raise OptionError(f"{source.name} does not say how many layers it has, so it cannot be split", remedy="Leave out --gpu-memory")
        self.n_layers = stated.value + 1
        with_experts = sorted({tensor.layer for tensor in source.tensors if tensor.layer is not None and re.search(EXPERTS, tensor.name)})
        n_cpu_moe = stated.value if with_experts else 0
        self._splits = [Split(n, n_cpu_moe if n else 0) for n in range(self.n_layers + 1)]
        self._splits += [Split(self.n_layers, layer) for layer in reversed(with_experts)]
        self._is_tied = all(tensor.name != _OUTPUT for tensor in source.tensors) and why_no_predictions(source) is None

    def best(self, types: Mapping[str, str], size_bytes: int) -> FileSplit:
        """The split of a file with most on the GPU of those that fit there; its header counts to the processor's side.

        Args:
            types: tensor -> type, of those that do not keep their own.
            size_bytes: the file's.
        """
        sizes = self._sizes(types)

        def found(split: Split) -> FileSplit:
            return self._file_split(split, self._weights(split, sizes), size_bytes - sum(sizes.values()))

        return found(self._last(lambda split: found(split).gpu.needs_bytes <= self._gpu_bytes))

    def room_bytes(self) -> int:
        """About how large a file may be: bytes lie as they do in this model.

        Raises OptionError where the context alone takes more than there is.
        """
        sizes = self._sizes({})

        def scales(split: Split) -> tuple[float, float]:
            memory, weights = self._memory(split), self._weights(split, sizes)
            rooms = self._gpu_bytes - self._taken(memory)[0], self._memory_bytes - self._taken(memory)[1]
            gpu, host = (
                room / n_bytes if n_bytes else float("inf" if room >= 0 else "-inf")
                for room, n_bytes in zip(rooms, (weights.gpu + weights.copies, weights.host), strict=True)
            )
            return gpu, host

        at = self._splits.index(self._last(lambda split: scales(split)[0] >= scales(split)[1]))
        room = max(min(scales(split)) for split in self._splits[max(0, at - 1) : at + 2]) * sum(sizes.values())
        if room <= 0:
            least = self._memory(self._last(lambda split: self._taken(self._memory(split))[0] <= self._gpu_bytes))
            beside, without = (" with the projector", "--mmproj none, ") if self._projector_host_bytes else ("", "")
            raise OptionError(
                f"a context of {self._n_ctx:,} tokens{beside} takes at least {words.size(self._taken(least)[1])} of memory beside "
                f"{words.size(self._gpu_bytes)} on the GPU with {self._kv_type}, more than {words.size(self._memory_bytes)}",
                remedy=f"Give a smaller --ctx, another --kv such as q8_0, {without}or more --memory or --gpu-memory",
            )
        return int(room)

    def _taken(self, memory: SplitMemory) -> tuple[int, int]:
        """What is gone of the GPU's memory and of the processor's before weights."""
        return memory.gpu.total_bytes + self._projector_gpu_bytes, memory.host.total_bytes + self._projector_host_bytes

    def _last(self, fits: Callable[[Split], bool]) -> Split:
        """The last of the splits that fits, where those before it do, too; the first, which leaves the GPU alone, always does."""
        if fits(self._splits[-1]):
            return self._splits[-1]  # looked at first: it alone needs no room for copies
        low, high = 0, len(self._splits) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(self._splits[middle]) else (low, middle)
        return self._splits[low]

    def _memory(self, split: Split) -> SplitMemory:
        if split not in self._known:
            found = split_memory(self._header, split, n_ctx=self._n_ctx, kv_type=self._kv_type)
            host = found.host
            self._known[split] = SplitMemory(
                found.gpu, ContextMemory(host.kv_bytes, host.compute_bytes, host.output_bytes, self._program_bytes)
            )
        return self._known[split]

    def _sizes(self, types: Mapping[str, str]) -> dict[TensorInfo, int]:
        qtypes = library.types()
        return {
            tensor: qtypes[types[tensor.name]].tensor_bytes(tensor) if types.get(tensor.name) in qtypes else tensor.size_bytes
            for tensor in self._source.tensors
        }

    def _weights(self, split: Split, sizes: Mapping[TensorInfo, int]) -> _Weights:
        on_gpu = {tensor for tensor in sizes if self._is_on_gpu(tensor, split)}
        gpu = sum(sizes[tensor] for tensor in on_gpu)
        if self._is_tied and split.n_gpu_layers:
            gpu += sum(n_bytes for tensor, n_bytes in sizes.items() if tensor.name == _EMBEDDINGS)
        beside = {tensor: n_bytes for tensor, n_bytes in sizes.items() if tensor not in on_gpu}
        copied = [n_bytes for tensor, n_bytes in beside.items() if tensor.layer is not None or tensor.name == _OUTPUT]
        return _Weights(gpu, sum(beside.values()), max(copied, default=0) if split.n_gpu_layers else 0)

    def _is_on_gpu(self, tensor: TensorInfo, split: Split) -> bool:
        if tensor.layer is None and tensor.role in _INPUTS:
            return False
        layer = 0 if tensor.layer is None and tensor.role.startswith(_OF_FIRST_LAYER) else tensor.layer
        if layer is None:
            return split.n_gpu_layers > 0
        stays = layer < split.n_cpu_moe and re.search(EXPERTS, tensor.name) is not None
        return layer >= self.n_layers - split.n_gpu_layers and not stays

    def _file_split(self, split: Split, weights: _Weights, n_header_bytes: int) -> FileSplit:
        memory = self._memory(split)
        return FileSplit(
            n_gpu_layers=split.n_gpu_layers,
            n_layers=self.n_layers,
            n_cpu_moe=split.n_cpu_moe,
            gpu=_side(memory.gpu, weights.gpu, weights.copies, self._projector_gpu_bytes),
            host=_side(memory.host, weights.host + n_header_bytes, 0, self._projector_host_bytes),
        )


def _side(memory: ContextMemory, weights_bytes: int, copies_bytes: int, mmproj_bytes: int) -> SideMemory:
    return SideMemory(
        weights_bytes=weights_bytes,
        kv_bytes=memory.kv_bytes,
        compute_bytes=memory.compute_bytes,
        output_bytes=memory.output_bytes,
        program_bytes=memory.program_bytes,
        copies_bytes=copies_bytes,
        mmproj_bytes=mmproj_bytes,
        needs_bytes=memory.total_bytes + weights_bytes + copies_bytes + mmproj_bytes,
    )
