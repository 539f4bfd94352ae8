"""Loads a split file and prints what llama.cpp allocates on either side: split_buffers.py FILE N_CTX KV_TYPE N_GPU_LAYERS PATTERN...

The device is this processor as an RPC server. Prints one line of JSON: side -> kind of buffer -> MiB.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from collections import defaultdict

import llama_cpp

from quantailor.ggml import library
from quantailor.ggml.memory.context import N_BATCH, UNQUANTIZED_KV
from quantailor.ggml.remote.rpc import accounted_device
from quantailor.ggml.runtime import MAX_UBATCH, said_by

BUFFER = re.compile(r"(\S+) +(model|KV|RS|output|compute) buffer size = +([\d.]+) MiB")


class Override(ctypes.Structure):
    """`struct llama_model_tensor_buft_override`."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buft", ctypes.c_void_p))


def main(path: str, n_ctx: int, kv_type: str, n_gpu_layers: int, patterns: list[str]) -> None:
    """As the flags of `fit` say, but without the copies that an RPC server takes no part in."""
    buffers = library.load().ggml.ggml_backend_cpu_buffer_type
    buffers.restype = ctypes.c_void_p
    overrides = (Override * (len(patterns) + 1))(*(Override(pattern.encode(), buffers()) for pattern in patterns))
    device = accounted_device()
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers, parameters.load_mode = n_gpu_layers, llama_cpp.LLAMA_LOAD_MODE_NONE
    parameters.devices = ctypes.addressof(device)
    parameters.tensor_buft_overrides = ctypes.addressof(overrides)
    wanted = llama_cpp.llama_context_default_params()
    wanted.n_ctx, wanted.n_batch, wanted.n_ubatch, wanted.n_outputs_max, wanted.swa_full = n_ctx, N_BATCH, MAX_UBATCH, 1, False
    wanted.type_k = wanted.type_v = library.type_named(kv_type.upper()).id
    if kv_type not in UNQUANTIZED_KV:
        wanted.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
    with said_by() as log:
        model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
        context = llama_cpp.llama_init_from_model(model, wanted)
        lines = log.lines()
    if not context:
        raise SystemExit("llama.cpp cannot run it")
    found: dict[str, dict[str, float]] = {"gpu": defaultdict(float), "host": defaultdict(float)}
    for line in lines:
        if match := BUFFER.search(line):
            found["gpu" if match[1].startswith("RPC") else "host"][match[2]] += float(match[3])
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5:])
