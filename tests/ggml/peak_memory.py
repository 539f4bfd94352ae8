"""Runs a prompt as long as the context and prints by how many bytes this process grew at most.

Usage: peak_memory.py FILE N_CTX KV_TYPE [MMPROJ SIDE].

With a projector, a black picture of SIDE x SIDE is encoded after it.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import llama_cpp
import numpy as np
import psutil
from llama_cpp import mtmd_cpp

from quantailor.ggml import library
from quantailor.ggml.memory.context import N_BATCH, UNQUANTIZED_KV
from quantailor.ggml.runtime import MAX_UBATCH, take_log


def encode(model: int, projector: str, side: int) -> None:
    """On the processor, with one thread."""
    parameters = mtmd_cpp.mtmd_context_params_default()
    parameters.use_gpu, parameters.print_timings, parameters.n_threads = False, False, 1
    context = mtmd_cpp.mtmd_init_from_file(projector.encode(), model, parameters)
    bitmap = mtmd_cpp.mtmd_bitmap_init(side, side, (ctypes.c_uint8 * (3 * side * side))())
    prompt = mtmd_cpp.mtmd_input_text(text=b"<__media__>", text_len=11, add_special=True, parse_special=True)
    chunks = mtmd_cpp.mtmd_input_chunks_init()
    if mtmd_cpp.mtmd_tokenize(context, chunks, ctypes.byref(prompt), (ctypes.c_void_p * 1)(bitmap), 1):
        raise SystemExit("libmtmd takes no picture")
    for index in range(mtmd_cpp.mtmd_input_chunks_size(chunks)):
        chunk = mtmd_cpp.mtmd_input_chunks_get(chunks, index)
        if mtmd_cpp.mtmd_input_chunk_get_type(chunk) != mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_TEXT and mtmd_cpp.mtmd_encode_chunk(context, chunk):
            raise SystemExit("libmtmd cannot encode the picture")


def main(path: str, n_ctx: int, kv_type: str, projector: str = "", side: int = 0) -> None:
    """One conversation, weights read and not mapped: as the flags of `fit` say."""
    kv_id = library.type_named(kv_type.upper()).id
    take_log()
    before = psutil.Process().memory_info().rss
    model_parameters = llama_cpp.llama_model_default_params()
    model_parameters.n_gpu_layers, model_parameters.load_mode = 0, llama_cpp.LLAMA_LOAD_MODE_NONE
    model = llama_cpp.llama_model_load_from_file(path.encode(), model_parameters)
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = n_ctx, N_BATCH, MAX_UBATCH
    parameters.n_threads = parameters.n_threads_batch = parameters.n_outputs_max = 1
    parameters.type_k = parameters.type_v = kv_id
    parameters.swa_full = False
    if kv_type not in UNQUANTIZED_KV:
        parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
    context = llama_cpp.llama_init_from_model(model, parameters)
    tokens = np.arange(n_ctx, dtype=np.int32) % 200
    for begin in range(0, n_ctx, N_BATCH):
        piece = tokens[begin : begin + N_BATCH]
        batch = llama_cpp.llama_batch_get_one(piece.ctypes.data_as(llama_cpp.llama_token_p), len(piece))
        if llama_cpp.llama_decode(context, batch):
            raise SystemExit("llama.cpp cannot run it")
    if projector:
        encode(model, projector, side)
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    print(peak * 1024 - before)


if __name__ == "__main__":
    arguments = [*sys.argv[1:], "", "0"]
    main(arguments[0], int(arguments[1]), arguments[2], arguments[3], int(arguments[4]))
