"""What a vision tower or an audio encoder takes of memory beside its model, as llama.cpp's libmtmd accounts for it.

It is loaded beside the model's header, with its weights, and reserves what it computes with for the picture (or the length of sound) that
programs prepare themselves for when they start. It is not run.
"""

from __future__ import annotations

import importlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import psutil

from quantailor.errors import InferenceError, NativeLibraryError
from quantailor.ggml import library
from quantailor.ggml.headers import loaded_header
from quantailor.ggml.runtime import said_by
from quantailor.processes import apart
from quantailor.processes.messages import doing

_BUFFER = re.compile(r"\bcompute buffer size = +([\d.]+) MiB")
_PICTURE = re.compile(r"\bwarmup with image size = (\d+) x (\d+)")
_SOUND = re.compile(r"\bwarmup with audio size = (\d+)")
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class ProjectorMemory:
    """What a projector takes beside its weights, and for what."""

    compute_bytes: int
    """For results on the way, where it runs."""
    program_bytes: int
    """For its description, graphs and the library's code: what a load adds to a process beside the weights."""
    picture: tuple[int, int] | None
    """(width, height) in pixels; None where it takes sound alone."""
    n_frames: int | None
    """Of sound; None where it takes pictures alone."""


def projector_memory(model: Path, projector: Path, *, weights_bytes: int) -> ProjectorMemory:
    """What a projector's file takes beside a text model, of which the header alone is read, where this processor runs it.

    Args:
        model: a GGUF file, or the first of its shards.
        projector: the file for llama.cpp's `--mmproj`.
        weights_bytes: of its tensors.

    Raises:
        InferenceError: llama.cpp cannot load it, or not beside this model.
        NativeLibraryError: llama.cpp was built without libmtmd.
    """
    apart.close_idle()  # memory that an earlier call gave back would be taken first, and go unseen
    return apart.call(_account, model, projector, weights_bytes)


def _account(model: Path, projector: Path, weights_bytes: int) -> ProjectorMemory:
    mtmd = _mtmd()
    with loaded_header(model) as text_model, said_by() as log:
        mtmd.mtmd_log_set(log.callback, None)
        before = psutil.Process().memory_info().rss
        parameters = mtmd.mtmd_context_params_default()
        parameters.use_gpu, parameters.warmup, parameters.n_threads = False, True, 1
        doing(f"loading {projector}")
        context = mtmd.mtmd_init_from_file(os.fsencode(projector), text_model, parameters)
        if not context:
            reason = log.last_error().removeprefix("error: ")
            what = f"llama.cpp cannot load the projector {projector} beside this model: {reason}"
            raise InferenceError(what, remedy="Give --mmproj the projector that was made with this model, or none")
        taken = psutil.Process().memory_info().rss - before
        said = "\n".join(log.lines())
        mtmd.mtmd_free(context)
    picture, sound = _PICTURE.search(said), _SOUND.search(said)
    return ProjectorMemory(
        compute_bytes=sum(round(float(match[1]) * _MIB) for match in _BUFFER.finditer(said)),  # of both encoders, where there are two
        program_bytes=max(taken - weights_bytes, 0),
        picture=None if picture is None else (int(picture[1]), int(picture[2])),
        n_frames=None if sound is None else int(sound[1]),
    )


def _mtmd() -> ModuleType:
    library.load()
    try:
        return importlib.import_module("llama_cpp.mtmd_cpp")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        what = f"llama.cpp was built without libmtmd, which runs projectors: {error}"
        raise NativeLibraryError(what, remedy="Install llama-cpp-python with it, or give --mmproj none") from error
