"""Builds reference files with llama.cpp's own `llama_model_quantize`: presets, one type for all, or any mix.

Everything runs in a process of its own (`processes.apart`): whatever llama.cpp does there, this process goes on.
The file is written beside its final name and moved there when it is complete.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from quantailor import files
from quantailor.control import QUIET, Control
from quantailor.errors import (
    AlreadyQuantizedError,
    CrashError,
    ImatrixError,
    InferenceError,
    OutputError,
    QuantailorError,
    TypeUnavailableError,
)
from quantailor.ggml import library
from quantailor.ggml.reference_worker import Outcome, Request, outcomes
from quantailor.ggml.runtime import NOT_LOADED
from quantailor.numerics import Floats
from quantailor.present import words
from quantailor.processes import apart

BUFFER_BYTES = 512 * 1024**2
"""Rows of one tensor that the reference quantizer keeps in memory; the result does not depend on it."""

_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "IQ2": "IQ2_XXS"}
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
        presets=((preset or type_name or "the given types", library.presets()[preset_name(preset) if preset is not None else "Q8_0"]),),
        n_threads=n_threads or os.cpu_count() or 1,
        allow_requantize=allow_requantize,
        buffer_bytes=BUFFER_BYTES,
        overrides=tuple(
            (pattern, library.stored_type(name).id) for pattern, name in [*overrides, *([(".*", type_name)] if type_name else [])]
        ),
        embedding_type=None if embedding_type is None else library.type_named(embedding_type).id,
        output_type=None if output_type is None else library.type_named(output_type).id,
        metadata=dict(metadata or {}),
    )
    try:
        _run(request, vectors, control)
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
    return types_by_preset(base, [preset_name(preset)], imatrix=imatrix)[preset_name(preset)]


def types_by_preset(base: Path, presets: Sequence[str], *, imatrix: Mapping[str, Floats] | None = None) -> dict[str, dict[str, str]]:
    """`preset_types` of several presets, asked in one process; presets that llama.cpp refuses are left out.

    `imatrix` is tensor -> (n_slices * n_cols,).

    Raises InferenceError where it can make none of them.
    """
    known = tuple((name, library.presets()[name]) for name in presets)
    request = Request(base=str(base.resolve()), output="", presets=known, n_threads=1, allow_requantize=True, dry_run=True)
    return _run(request, _vectors(imatrix or {}), QUIET)


def _vectors(imatrix: Mapping[str, Floats]) -> dict[str, Floats]:
    vectors = {name: np.asarray(values, dtype=np.float32).reshape(-1) for name, values in imatrix.items()}
    for name, vector in vectors.items():
        if not np.isfinite(vector).all():
            raise ImatrixError(f"the importance matrix has NaN or Inf for {name}", remedy="Compute it again")
    return vectors


def _run(request: Request, vectors: Mapping[str, Floats], control: Control) -> dict[str, dict[str, str]]:
    """Preset -> the types that it gives, of those that llama.cpp can make; where it dies over one of several, those before it count."""
    request = replace(request, imatrix_names=tuple(vectors), imatrix_sizes=tuple(vector.size for vector in vectors.values()))
    importances = np.concatenate([np.empty(0, np.float32), *vectors.values()])
    made: dict[str, dict[str, str]] = {}
    failure: QuantailorError | None = None
    try:
        for outcome in apart.stream(outcomes, request, importances, control=control):
            if outcome.is_made:
                made[outcome.name] = dict(outcome.types)
            else:
                failure = _failure(Path(request.base), outcome)
    except CrashError as error:
        failure = error
    if failure is not None and not made:
        raise failure
    return made


def _failure(base: Path, outcome: Outcome) -> QuantailorError:
    said, what = " ".join(outcome.errors), outcome.name
    reason = next((line for line in reversed(outcome.errors) if "failed to quantize" in line), said)
    reason = reason.rpartition("failed to quantize: ")[2] or "it gives no reason"
    if "iostream error" in said:
        return OutputError(f"llama.cpp cannot write {base.name} as {what}", remedy="Check the folder, its permissions and the free space")
    kind = next((kind for words, kind in _KINDS if words in said), InferenceError)
    remedy = NOT_LOADED if kind is InferenceError else None
    return kind(f"llama.cpp cannot quantize {base.name} to {what}: {reason}", remedy=remedy)
