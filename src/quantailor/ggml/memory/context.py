"""What a model takes of memory beside its weights, as llama.cpp accounts for it itself: it loads a header and allocates no buffers.

Keys and values, results on the way and outputs are llama.cpp's own figures. Its vocabulary, its description of the model and its graphs
are in no account: they are there after such a load too, and are measured as what it added to a fresh process.

Where layers lie on a GPU, llama.cpp accounts for both sides. Which one a layer's keys and values are on it says layer by layer; how much
they are, for all of a cache together. What it copies of the processor's weights to the GPU while it reads a prompt is left out: that
depends on their types.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import psutil

from quantailor.errors import InferenceError
from quantailor.ggml import library
from quantailor.ggml.headers import loaded_header
from quantailor.ggml.remote.rpc import accounted_device
from quantailor.ggml.runtime import MAX_UBATCH, said_by, take_log
from quantailor.processes import apart

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
"""What llama.cpp keeps keys and values in, as its `-ctk` and `-ctv` take them."""
UNQUANTIZED_KV = KV_TYPES[:3]
"""The others need flash attention."""
N_BATCH = 2048
"""llama.cpp's own default."""
RUNNING_BYTES = 3 * 2**19
"""What a run adds to a load: pages of code, the kernels' own room, lists of a batch. 0.5 to 2.5 MiB with three architectures."""
EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""How llama.cpp's `--n-cpu-moe` finds the experts of a layer."""
_CACHE = re.compile(r"\bsize = +([\d.]+) MiB \(")
_CACHED_LAYER = re.compile(r": layer +(\d+): dev = (\S+)")
_HEADS = re.compile(r"\bn_embd_[kv]_gqa += (.+)")
_BUFFER = re.compile(r"(\S+) +(output|compute) buffer size = +([\d.]+) MiB")
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class ContextMemory:
    """Bytes that a context takes."""

    kv_bytes: int
    """Keys and values of all layers, and the state of recurrent ones."""
    compute_bytes: int
    """For results on the way, of prompts in pieces of 512 tokens."""
    output_bytes: int
    program_bytes: int
    """For the vocabulary, the model's description, graphs and kernels; not for a program around llama.cpp."""

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.kv_bytes + self.compute_bytes + self.output_bytes + self.program_bytes


@dataclass(frozen=True, slots=True)
class Split:
    """Which weights are on a GPU: the last layers, without the experts of the first ones."""

    n_gpu_layers: int
    """The output matrix is one of them; 0 leaves the GPU alone."""
    n_cpu_moe: int = 0
    """Experts of so many layers, counted from the model's first, stay with the processor."""

    @property
    def on_processor(self) -> tuple[str, ...]:
        """Patterns of the tensors that stay with the processor wherever their layers are."""
        return tuple(rf"blk\.{layer}{EXPERTS}" for layer in range(self.n_cpu_moe))


@dataclass(frozen=True, slots=True)
class SplitMemory:
    """Bytes that a context takes on the GPU, and beside it."""

    gpu: ContextMemory
    host: ContextMemory


def context_memory(path: Path, *, n_ctx: int, kv_type: str) -> ContextMemory:
    """What a context of so many tokens takes; `path` is a GGUF file, of which the header alone is read.

    Raises InferenceError where llama.cpp has no such context for this model.
    """
    apart.close_idle()  # memory that an earlier call gave back would be taken first, and go unseen
    return apart.call(_account, path, n_ctx, kv_type)


def split_memory(path: Path, split: Split, *, n_ctx: int, kv_type: str) -> SplitMemory:
    """The same where some layers are on a GPU: the first of this machine, else its own processor as an RPC server.

    What the program takes is not in it. `apart.close_idle` ends the server.

    Raises:
        InferenceError: llama.cpp has no such context for this model.
        NativeLibraryError: there is no GPU, and llama.cpp was built without the RPC backend.
    """
    return apart.call(_account_split, path, split, n_ctx, kv_type)


def _account(path: Path, n_ctx: int, kv_type: str) -> ContextMemory:
    llama = library.load().llama
    take_log()
    before = psutil.Process().memory_info().rss
    with loaded_header(path) as model:
        lines, after = _of_context(llama, model, path, n_ctx, kv_type)
    return _added_up(lines, max(after - before, 0) + RUNNING_BYTES).host


def _account_split(path: Path, split: Split, n_ctx: int, kv_type: str) -> SplitMemory:
    llama = library.load().llama
    take_log()
    patterns = split.on_processor
    with (
        said_by() as log,
        loaded_header(path, n_gpu_layers=split.n_gpu_layers, devices=accounted_device(), on_processor=patterns) as model,
    ):
        heads = [line for line in log.lines() if _HEADS.search(line)]
        lines, _ = _of_context(llama, model, path, n_ctx, kv_type, offloads=False)
    return _added_up([*heads, *lines], 0)


def _of_context(
    llama: ModuleType, model: object, path: Path, n_ctx: int, kv_type: str, *, offloads: bool = True
) -> tuple[Sequence[str], int]:
    """What llama.cpp says of a context, and the bytes that this process has taken by then."""
    parameters = llama.llama_context_default_params()
    parameters.n_ctx, parameters.n_batch, parameters.n_ubatch, parameters.n_seq_max = n_ctx, N_BATCH, MAX_UBATCH, 1
    parameters.type_k = parameters.type_v = library.type_named(kv_type.upper()).id
    parameters.swa_full = False  # as llama.cpp's own programs have it
    parameters.n_outputs_max = 1  # of a prompt they ask for the last token's: the reserve is for those alone
    parameters.op_offload = offloads
    if kv_type not in UNQUANTIZED_KV:
        parameters.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED
    with said_by() as log:
        context = llama.llama_init_from_model(model, parameters)
        if not context:
            reason = log.last_error()
            raise InferenceError(f"llama.cpp has no context of {n_ctx} tokens with {kv_type} for {path}: {reason}")
        lines = log.lines()
        taken = psutil.Process().memory_info().rss
        llama.llama_free(context)
    return lines, taken


@dataclass
class _Side:
    kv_bytes: float = 0.0
    compute_bytes: int = 0
    output_bytes: int = 0

    def account(self, program_bytes: int) -> ContextMemory:
        return ContextMemory(round(self.kv_bytes), self.compute_bytes, self.output_bytes, program_bytes)


@dataclass
class _Sides:
    gpu: _Side = field(default_factory=_Side)
    host: _Side = field(default_factory=_Side)

    def of(self, name: str) -> _Side:
        """The side that a device or a buffer is on; `CUDA_Host` and the like are memory beside the GPU that it can reach."""
        return self.host if name.startswith("CPU") or name.endswith("_Host") else self.gpu


def _added_up(lines: Sequence[str], program_bytes: int) -> SplitMemory:
    """A cache's bytes are its layers' by what each keeps of a token, as `n_embd_k_gqa` and `n_embd_v_gqa` have it, all of them alike where
    they say nothing."""
    sides, layers = _Sides(), list[tuple[int, str]]()
    widths = [_numbers(match[1]) for line in lines if (match := _HEADS.search(line))]
    for line in lines:
        if match := _CACHED_LAYER.search(line):
            layers.append((int(match[1]), match[2]))
        elif match := _CACHE.search(line):
            shares = [sum(each[min(layer, len(each) - 1)] for each in widths) or 1 for layer, _ in layers]
            for (_, device), share in zip(layers, shares, strict=True):
                sides.of(device).kv_bytes += _bytes(match[1]) * share / sum(shares)
            if not layers:
                sides.host.kv_bytes += _bytes(match[1])
            layers = []
        elif match := _BUFFER.search(line):
            side = sides.of(match[1])
            if match[2] == "compute":
                side.compute_bytes += _bytes(match[3])
            else:
                side.output_bytes += _bytes(match[3])
    return SplitMemory(sides.gpu.account(0), sides.host.account(program_bytes))


def _numbers(text: str) -> list[int]:
    """`512`, or `[512, 256]`."""
    return [int(number) for number in re.findall(r"\d+", text)] or [0]


def _bytes(mib: str) -> int:
    return round(float(mib) * _MIB)
