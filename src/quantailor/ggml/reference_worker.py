"""The process that runs `llama_model_quantize`; `quantailor.ggml.reference` starts it and reads its lines.

llama.cpp may end a process on input it does not expect, so it gets one of its own. The protocol is plain text on
standard output: `progress DONE TOTAL` for each tensor, `type TENSOR TYPE` for each one that changes its type, and
`error MESSAGE` for each line llama.cpp logs as an error. Where several presets are tried, `preset NAME` ends the types of
one, and `preset` alone those of one that llama.cpp refuses.
Standard input carries nothing; when it closes, whoever asked is gone, and the worker stops and removes its output.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType

import numpy as np

from quantailor.errors import QuantailorError
from quantailor.ggml import library
from quantailor.numerics import Floats

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
    ftype: int
    n_threads: int
    allow_requantize: bool = False
    dry_run: bool = False
    presets: tuple[tuple[str, int], ...] = ()
    """Names and numbers of presets to try one after the other, instead of `ftype`."""
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

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Request:
        fields = json.loads(text)
        for name in ("imatrix_names", "imatrix_sizes"):
            fields[name] = tuple(fields[name])
        fields["presets"] = tuple((name, int(ftype)) for name, ftype in fields["presets"])
        fields["overrides"] = tuple((pattern, int(type_id)) for pattern, type_id in fields["overrides"])
        return Request(**fields)


def quantize(request: Request, importances: Floats, log: Callable[[int, str], None]) -> bool:
    """Call `llama_model_quantize` in this process; True on success.

    Args:
        request: what to do.
        importances: all importance vectors end to end, in the order of `request.imatrix_names`: (n_values,).
        log: called with ggml's log level and text, not always a whole line.
    """
    llama = library.load().llama
    on_log = llama.llama_log_callback(lambda level, text, _: log(level, (text or b"").decode("utf-8", "replace")))
    llama.llama_log_set(on_log, ctypes.c_void_p(None))
    try:
        # the arrays behind `parameters` must outlive the call
        parameters, kept = _parameters(llama, request, np.ascontiguousarray(importances, dtype=np.float32))
        failed = llama.llama_model_quantize(os.fsencode(request.base), os.fsencode(request.output), ctypes.byref(parameters))
        del kept
    finally:
        llama.llama_log_set(llama.llama_log_callback(), ctypes.c_void_p(None))
    return not failed


def _parameters(llama: ModuleType, request: Request, importances: Floats) -> tuple[ctypes.Structure, list[object]]:
    parameters = llama.llama_model_quantize_default_params()
    parameters.nthread = request.n_threads
    parameters.ftype = request.ftype
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


class _LineLog:
    """Joins llama.cpp's log fragments to lines and sends what matters to standard output."""

    def __init__(self) -> None:
        self._line = ""

    def __call__(self, level: int, text: str) -> None:
        if level == _LEVEL_ERROR:
            for line in filter(None, (part.strip(" =") for part in text.splitlines())):
                _say(f"error {line}")
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
            _say(f"progress {match.group(1)} {match.group(2)}")
            if new_type := _NEW_TYPE.search(line):
                _say(f"type {match.group(3)} {(new_type.group(1) or new_type.group(2)).upper()}")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _stop_with_parent(output: Path) -> None:
    # not through sys.stdin: its lock must be free when the interpreter ends
    while os.read(0, 1024):
        pass
    output.unlink(missing_ok=True)
    os._exit(1)


def main(folder: Path) -> int:
    """Run the request in `folder` (request.json, importances.npy); the exit status is 0 on success."""
    request = Request.from_json((folder / "request.json").read_text(encoding="utf-8"))
    importances = np.load(folder / "importances.npy", allow_pickle=False)
    threading.Thread(target=_stop_with_parent, args=(Path(request.output),), daemon=True).start()
    try:
        for name, ftype in request.presets:
            is_made = quantize(replace(request, ftype=ftype), importances, _LineLog())
            _say(f"preset {name if is_made else ''}")
        return 0 if request.presets or quantize(request, importances, _LineLog()) else 1
    except QuantailorError as error:
        _say(f"error {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
