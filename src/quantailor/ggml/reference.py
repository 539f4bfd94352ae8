"""Builds reference files with llama.cpp's own `llama_model_quantize`: presets, one type for all, or any mix.

Everything runs in a process of its own (`reference_worker`): whatever llama.cpp does there, this process goes on.
The file is written beside its final name and moved there when it is complete.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from quantailor import files
from quantailor.control import QUIET, Control
from quantailor.errors import AlreadyQuantizedError, ImatrixError, InferenceError, OutputError, QuantailorError, TypeUnavailableError
from quantailor.ggml import library
from quantailor.ggml.reference_worker import Request
from quantailor.numerics import Floats
from quantailor.present import words

BUFFER_BYTES = 512 * 1024**2
"""Rows of one tensor that the reference quantizer keeps in memory; the result does not depend on it."""

WORKER = ("-m", "quantailor.ggml.reference_worker")
"""Arguments that make Python run the worker."""

_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "IQ2": "IQ2_XXS"}
_POLL_SECONDS = 0.2
_KINDS: tuple[tuple[str, type[QuantailorError]], ...] = (
    ("imatrix", ImatrixError),
    ("importance matrix", ImatrixError),
    ("requantizing from type", AlreadyQuantizedError),
    ("fallback is defined", TypeUnavailableError),
    ("invalid output file type", TypeUnavailableError),
)


def preset_name(text: str) -> str:
    """The preset as llama.cpp spells it: "q4_k_m" and "Q4_K" give "Q4_K_M".

    Raises:
        TypeUnavailableError: llama.cpp has no such preset.
    """
    name = _ALIASES.get(text.upper(), text.upper())
    if name not in library.presets():
        raise TypeUnavailableError(f"llama.cpp has no preset {text}", remedy=words.nearest(text, sorted(library.presets())))
    return name


def quantize_reference(
    base: Path,
    output: Path,
    *,
    preset: str | None = None,
    type_name: str | None = None,
    overrides: Sequence[tuple[str, str]] = (),
    embedding_type: str | None = None,
    output_type: str | None = None,
    imatrix: Mapping[str, Floats] | None = None,
    metadata: Mapping[str, str | int] | None = None,
    allow_requantize: bool = False,
    n_threads: int | None = None,
    check: Callable[[Path], None] | None = None,
    control: Control = QUIET,
) -> Path:
    """Quantize `base` to `output` with llama.cpp.

    Args:
        base: a GGUF file, or the first part of a split one.
        output: where the file goes; an existing file is replaced.
        preset: llama.cpp's mix of that name, for example "Q4_K_M".
        type_name: instead of a preset, one type for every tensor that is quantized at all.
        overrides: (pattern, type name) pairs; the first whose pattern is found in a tensor's name decides.
        embedding_type: the token embeddings' type, before any override.
        output_type: the output matrix' type, before any override.
        imatrix: importances as the quantizer takes them, (n_slices * n_cols,) per tensor.
        metadata: further keys to write, for example `quantize.imatrix.*`.
        allow_requantize: take sources that are quantized already.
        n_threads: None takes all processors.
        check: called with the complete file before it gets its final name; may raise.
        control: asked whether to go on; progress counts tensors.

    Raises:
        QuantailorError: of the class that fits what llama.cpp reported; nothing is left under `output`.
    """
    part = files.temporary_path(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.cannot_write(output, error) from error
    files.remove_leftovers(output)
    vectors = _vectors(imatrix or {})
    request = Request(
        base=str(base.resolve()),
        output=str(part.resolve()),
        ftype=library.presets()[preset_name(preset) if preset is not None else "Q8_0"],
        n_threads=n_threads or os.cpu_count() or 1,
        allow_requantize=allow_requantize,
        buffer_bytes=BUFFER_BYTES,
        overrides=tuple(
            (pattern, library.type_named(name).id) for pattern, name in [*overrides, *([(".*", type_name)] if type_name else [])]
        ),
        embedding_type=None if embedding_type is None else library.type_named(embedding_type).id,
        output_type=None if output_type is None else library.type_named(output_type).id,
        metadata=dict(metadata or {}),
    )
    try:
        _run(request, vectors, preset or type_name or "the given types", control)
        if check is not None:
            check(part)
        part.replace(output)
    except OSError as error:
        raise files.cannot_write(output, error) from error
    finally:
        part.unlink(missing_ok=True)
    return output


def preset_types(base: Path, preset: str, *, imatrix: Mapping[str, Floats] | None = None) -> dict[str, str]:
    """The type that llama.cpp's preset gives each tensor of `base` that changes its type; nothing is quantized.

    The mix depends on whether there is an importance matrix, tensor -> (n_slices * n_cols,). Raises as `quantize_reference` does.
    """
    ftype = library.presets()[preset_name(preset)]
    request = Request(base=str(base.resolve()), output="", ftype=ftype, n_threads=1, allow_requantize=True, dry_run=True)
    return _run(request, _vectors(imatrix or {}), preset, QUIET).types


def types_by_preset(base: Path, presets: Sequence[str], *, imatrix: Mapping[str, Floats] | None = None) -> dict[str, dict[str, str]]:
    """`preset_types` of several presets, asked in one process; presets that llama.cpp refuses are left out.

    `imatrix` is tensor -> (n_slices * n_cols,).

    Raises InferenceError where it can make none of them.
    """
    known = tuple((name, library.presets()[name]) for name in presets)
    request = Request(base=str(base.resolve()), output="", ftype=0, presets=known, n_threads=1, allow_requantize=True, dry_run=True)
    return _run(request, _vectors(imatrix or {}), "a preset", QUIET).presets


def _vectors(imatrix: Mapping[str, Floats]) -> dict[str, Floats]:
    vectors = {name: np.asarray(values, dtype=np.float32).reshape(-1) for name, values in imatrix.items()}
    for name, vector in vectors.items():
        if not np.isfinite(vector).all():
            raise ImatrixError(f"the importance matrix has NaN or Inf for {name}", remedy="Compute it again")
    return vectors


@dataclass
class _Report:
    """What the worker said."""

    types: dict[str, str] = field(default_factory=dict)
    presets: dict[str, dict[str, str]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def _run(request: Request, vectors: Mapping[str, Floats], what: str, control: Control) -> _Report:
    """Run the worker; returns what it reports. Where it dies over one of several presets, those before it count."""
    sizes = tuple(vector.size for vector in vectors.values())
    request = replace(request, imatrix_names=tuple(vectors), imatrix_sizes=sizes)
    with tempfile.TemporaryDirectory(prefix="quantailor-") as name:
        folder = Path(name)
        (folder / "request.json").write_text(request.to_json(), encoding="utf-8")
        np.save(folder / "importances.npy", np.concatenate([np.empty(0, np.float32), *vectors.values()]), allow_pickle=False)
        process = subprocess.Popen(
            [sys.executable, *WORKER, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=os.environ | {"PYTHONPATH": _python_path()},
        )
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=_read_lines, args=(process, lines), daemon=True)
        with process:
            reader.start()
            try:
                report = _follow(lines, control)
            except BaseException:
                process.kill()
                raise
            finally:
                reader.join()
    if (process.returncode != 0 or request.presets) and not report.presets:
        raise _failure(Path(request.base), what, process.returncode, report.errors or report.others[-3:])
    return report


def _python_path() -> str:
    """The worker must find this very package, installed or not."""
    here = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))


def _follow(lines: queue.Queue[str | None], control: Control) -> _Report:
    """Pass the worker's progress on until it ends."""
    report = _Report()
    while True:
        control.check()
        try:
            line = lines.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            continue
        if line is None:
            return report
        word, _, rest = line.partition(" ")
        if word == "progress":
            done, total = (int(number) for number in rest.split())
            control.advance(done, total, "quantizing with llama.cpp")
        elif word == "type":
            name, type_name = rest.split()
            report.types[name] = type_name
        elif word == "preset":
            report.presets |= {rest: report.types} if rest else {}
            report.types = {}
        else:
            (report.errors if word == "error" else report.others).append(rest if word == "error" else line)


def _read_lines(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    for line in process.stdout or ():
        lines.put(line.strip())
    lines.put(None)


def _failure(base: Path, what: str, status: int, tail: Sequence[str]) -> QuantailorError:
    reason = next((line for line in reversed(tail) if "failed to quantize" in line), " ".join(tail))
    reason = reason.rpartition("failed to quantize: ")[2] or f"its process ended with status {status}"
    text = " ".join(tail)
    if "iostream error" in text:
        return OutputError(f"llama.cpp cannot write {base.name} as {what}", remedy="Check the folder, its permissions and the free space")
    kind = next((kind for words, kind in _KINDS if words in text), InferenceError)
    return kind(f"llama.cpp cannot quantize {base.name} to {what}: {reason}")
