"""What a model takes of memory beside its weights, as llama.cpp accounts for it itself: it loads a header and allocates no buffers.

Keys and values, results on the way and outputs are llama.cpp's own figures. Its vocabulary, its description of the model and its graphs
are in no account: they are there after such a load too, and are measured as what it added to a fresh process.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import psutil

from quantailor.errors import InferenceError
from quantailor.ggml import library
from quantailor.ggml.headers import loaded_header
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
_CACHE = re.compile(r"\bsize = +([\d.]+) MiB \(")
_BUFFER = re.compile(r"\b(output|compute) buffer size = +([\d.]+) MiB")
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


def context_memory(path: Path, *, n_ctx: int, kv_type: str) -> ContextMemory:
    """What a context of so many tokens takes; `path` is a GGUF file, of which the header alone is read.

    Raises InferenceError where llama.cpp has no such context for this model.
    """
    apart.close_idle()  # memory that an earlier call gave back would be taken first, and go unseen
    return apart.call(_account, path, n_ctx, kv_type)


def _account(path: Path, n_ctx: int, kv_type: str) -> ContextMemory:
    llama = library.load().llama
    take_log()
    before = psutil.Process().memory_info().rss
    with loaded_header(path) as model:
        return _of_context(llama, model, path, n_ctx, kv_type, before)


def _of_context(llama: ModuleType, model: object, path: Path, n_ctx: int, kv_type: str, before: int) -> ContextMemory:
    parameters = llama.llama_context_default_params()
    parameters.n_ctx, parameters.n_batch, parameters.n_ubatch, parameters.n_seq_max = n_ctx, N_BATCH, MAX_UBATCH, 1
    parameters.type_k = parameters.type_v = library.type_named(kv_type.upper()).id
    parameters.swa_full = False  # as llama.cpp's own programs have it
    parameters.n_outputs_max = 1  # of a prompt they ask for the last token's: the reserve is for those alone
    if kv_type not in UNQUANTIZED_KV:
        parameters.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED
    with said_by() as log:
        context = llama.llama_init_from_model(model, parameters)
        if not context:
            reason = log.last_error()
            raise InferenceError(f"llama.cpp has no context of {n_ctx} tokens with {kv_type} for {path}: {reason}")
        lines = log.lines()
        after = psutil.Process().memory_info().rss
        llama.llama_free(context)
    buffers = [match.groups() for line in lines if (match := _BUFFER.search(line))]
    return ContextMemory(
        kv_bytes=sum(_bytes(match[1]) for line in lines if (match := _CACHE.search(line))),
        compute_bytes=sum(_bytes(size) for kind, size in buffers if kind == "compute"),
        output_bytes=sum(_bytes(size) for kind, size in buffers if kind == "output"),
        program_bytes=max(after - before, 0) + RUNNING_BYTES,
    )


def _bytes(mib: str) -> int:
    return round(float(mib) * _MIB)
