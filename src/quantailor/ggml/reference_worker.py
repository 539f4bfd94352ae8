"""What runs `llama_model_quantize`; `quantailor.ggml.reference` calls it in a process of its own, see `processes.apart`."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np

from quantailor.control import QUIET, Control
from quantailor.ggml import library
from quantailor.ggml.runtime import take_log
from quantailor.numerics import Floats
from quantailor.processes import messages

_LEVEL_ERROR = 4
_TAG_INT, _TAG_STR = 0, 3
MAX_TEXT_BYTES = 127
"""llama.cpp keeps metadata overrides in fields of 128 bytes."""
_TENSOR_LINE = re.compile(r"^\[\s*(\d+)/\s*(\d+)\] (\S+)")
_NEW_TYPE = re.compile(r"-> .*\((\w+)\)$|converting to (\w+) \.\.")


@dataclass(frozen=True, slots=True)
class Request:
    """Everything that `llama_model_quantize` is given; types and presets are ggml's and llama.cpp's numbers."""

    base: str
    output: str
    presets: tuple[tuple[str, int], ...]
    """Names and numbers of presets to make one after the other, of which the last stays."""
    n_threads: int
    allow_requantize: bool = False
    dry_run: bool = False
    buffer_bytes: int = 0
    """Rows of one tensor kept in memory; 0 is llama.cpp's own 8 GiB."""
    overrides: tuple[tuple[str, int], ...] = ()
    embedding_type: int | None = None
    """`--token-embedding-type`, which goes before overrides."""
    output_type: int | None = None
    """`--output-tensor-type`."""
    imatrix_names: tuple[str, ...] = ()
    imatrix_sizes: tuple[int, ...] = ()
    metadata: Mapping[str, str | int] = field(default_factory=dict)


def quantize(request: Request, ftype: int, importances: Floats, log: Callable[[int, str], None]) -> bool:
    """Call `llama_model_quantize` in this process; True on success.

    Args:
        request: what to do.
        ftype: the preset's number.
        importances: all importance vectors end to end, in the order of `request.imatrix_names`: (n_values,).
        log: called with ggml's log level and text, not always a whole line.
    """
    llama = library.load().llama
    on_log = llama.llama_log_callback(lambda level, text, _: log(level, (text or b"").decode("utf-8", "replace")))
    llama.llama_log_set(on_log, ctypes.c_void_p(None))
    try:
        # the arrays behind `parameters` must outlive the call
        parameters, kept = _parameters(llama, request, ftype, np.ascontiguousarray(importances, dtype=np.float32))
        failed = llama.llama_model_quantize(os.fsencode(request.base), os.fsencode(request.output), ctypes.byref(parameters))
        del kept
    finally:
        take_log()
    return not failed


def _parameters(llama: ModuleType, request: Request, ftype: int, importances: Floats) -> tuple[ctypes.Structure, list[object]]:
    parameters = llama.llama_model_quantize_default_params()
    parameters.nthread = request.n_threads
    parameters.ftype = ftype
    parameters.allow_requantize = request.allow_requantize
    parameters.dry_run = request.dry_run
    parameters.max_buf_size = request.buffer_bytes or parameters.max_buf_size
    kept: list[object] = [importances]
    if request.embedding_type is not None:
        parameters.token_embedding_type = request.embedding_type
    if request.output_type is not None:
        parameters.output_tensor_type = request.output_type
    if request.overrides:
        overrides = (llama.llama_model_tensor_override * (len(request.overrides) + 1))()
        for index, (pattern, type_id) in enumerate(request.overrides):
            overrides[index].pattern, overrides[index].type = pattern.encode(), type_id
        parameters.tt_overrides = overrides
        kept.append(overrides)
    if request.imatrix_names:
        entries = _imatrix_entries(llama, request, importances)
        parameters.imatrix = entries
        kept.append(entries)
    if request.metadata:
        values = _metadata_entries(llama, request.metadata)
        parameters.kv_overrides = values
        kept.append(values)
    return parameters, kept


def _imatrix_entries(llama: ModuleType, request: Request, importances: Floats) -> ctypes.Array[ctypes.Structure]:
    entries: ctypes.Array[ctypes.Structure] = (llama.llama_model_imatrix_data * (len(request.imatrix_names) + 1))()
    start = 0
    for entry, name, size in zip(entries, request.imatrix_names, request.imatrix_sizes, strict=False):
        entry.name, entry.size = name.encode(), size
        entry.data = importances[start : start + size].ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        start += size
    return entries


def _metadata_entries(llama: ModuleType, metadata: Mapping[str, str | int]) -> ctypes.Array[ctypes.Structure]:
    entries: ctypes.Array[ctypes.Structure] = (llama.llama_model_kv_override * (len(metadata) + 1))()
    for entry, (key, value) in zip(entries, metadata.items(), strict=False):
        entry.key = key.encode()
        if isinstance(value, str):
            entry.tag, entry.value.val_str = _TAG_STR, value.encode()[:MAX_TEXT_BYTES]
        else:
            entry.tag, entry.value.val_i64 = _TAG_INT, value
    return entries


@dataclass(frozen=True, slots=True)
class Outcome:
    """What llama.cpp said when it made one preset or mix."""

    name: str
    is_made: bool
    types: Mapping[str, str]
    """Tensor -> the type that it changes to."""
    errors: tuple[str, ...]


def outcomes(request: Request, importances: Floats, *, control: Control) -> Iterator[Outcome]:
    """Make one after the other of `request.presets`; progress counts tensors. `importances` as for `quantize`, (n_values,)."""
    messages.remove_when_left(Path(request.output) if request.output else None)
    for name, ftype in request.presets:
        messages.doing(f"quantizing {request.base} to {name}")
        # A word for each of thousands of tensors takes longer than the dry run itself.
        log = _LineLog(QUIET if request.dry_run else control)
        is_made = quantize(request, ftype, importances, log)
        yield Outcome(name, is_made, log.types, tuple(log.errors))
    messages.remove_when_left(None)


class _LineLog:
    """Joins llama.cpp's log fragments to lines and keeps what matters."""

    def __init__(self, control: Control) -> None:
        self._control, self._line = control, ""
        self.types: dict[str, str] = {}
        self.errors: list[str] = []

    def __call__(self, level: int, text: str) -> None:
        if level == _LEVEL_ERROR:
            self.errors += filter(None, (part.strip(" =") for part in text.splitlines()))
            return
        head, newline, rest = text.rpartition("\n")
        if not newline:
            self._line += text
            return
        for line in (self._line + head).splitlines():
            self._tell(line.strip())
        self._line = rest

    def _tell(self, line: str) -> None:
        if match := _TENSOR_LINE.match(line):
            self._control.advance(float(match.group(1)), float(match.group(2)), "quantizing with llama.cpp")
            if new_type := _NEW_TYPE.search(line):
                self.types[match.group(3)] = (new_type.group(1) or new_type.group(2)).upper()
