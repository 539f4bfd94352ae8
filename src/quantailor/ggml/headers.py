"""llama.cpp's own reading of a model file's header: it looks for every tensor that it needs, without reading weights."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from quantailor.errors import InferenceError
from quantailor.ggml import library
from quantailor.ggml.runtime import NOT_LOADED, said_by
from quantailor.processes import apart
from quantailor.processes.messages import doing


class _BufferOverride(ctypes.Structure):
    """`struct llama_model_tensor_buft_override` of llama.h."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buft", ctypes.c_void_p))


@contextmanager
def loaded_header(
    path: Path, *, n_gpu_layers: int = 0, devices: ctypes.Array[ctypes.c_void_p] | None = None, on_processor: Sequence[str] = ()
) -> Iterator[object]:
    """llama.cpp's model of a GGUF file, without its weights. Raises InferenceError where it cannot load it.

    Args:
        path: the file, or the first of its shards.
        n_gpu_layers: how many layers, the output matrix among them, are on the devices.
        devices: as `llama_model_params.devices` takes them; None lets llama.cpp decide.
        on_processor: patterns of tensors that stay with the processor all the same.
    """
    llama = library.load().llama
    parameters = llama.llama_model_default_params()
    parameters.no_alloc = True
    parameters.load_mode = llama.LLAMA_LOAD_MODE_NONE
    parameters.n_gpu_layers = n_gpu_layers
    parameters.devices = None if devices is None else ctypes.addressof(devices)
    overrides = (_BufferOverride * (len(on_processor) + 1))(
        *(_BufferOverride(pattern.encode(), _processor_buffers()) for pattern in on_processor)
    )
    parameters.tensor_buft_overrides = ctypes.addressof(overrides) if on_processor else None
    doing(f"loading {path}")
    with said_by() as log:
        model = llama.llama_model_load_from_file(os.fsencode(path), parameters)
        if not model:
            raise InferenceError(f"llama.cpp cannot load {path}: {log.last_error()}", remedy=NOT_LOADED)
        try:
            yield model
        finally:
            llama.llama_model_free(model)


def _processor_buffers() -> int:
    """`ggml_backend_buffer_type_t ggml_backend_cpu_buffer_type(void)`."""
    function = library.load().ggml.ggml_backend_cpu_buffer_type
    function.restype, function.argtypes = ctypes.c_void_p, ()
    return int(function())


def read_header(path: Path) -> None:
    """Let llama.cpp read a header in a process of its own. Raises InferenceError with what llama.cpp says of one that does not load."""
    apart.call(_read, path)


def _read(path: Path) -> None:
    with loaded_header(path):
        pass
