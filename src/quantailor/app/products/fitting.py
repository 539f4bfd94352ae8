"""Which files of a model run in so much memory with a context, by llama.cpp's own accounting, and how to run them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quantailor.app.products.builds import list_builds
from quantailor.app.products.verdicts import list_verdicts
from quantailor.errors import OptionError
from quantailor.evidence.grounds import command_line
from quantailor.evidence.presets import ladder, preset_sizes
from quantailor.evidence.speeds import known_speeds, predicted_speed
from quantailor.evidence.strategies import STORED, strategy_of
from quantailor.ggml import library
from quantailor.ggml.memory import KV_TYPES, UNQUANTIZED_KV, context_memory
from quantailor.models.abilities import trained_context
from quantailor.present import words
from quantailor.records import PredictedSpeed
from quantailor.session import OpenedModel, Workspace, header_path


@dataclass(frozen=True, slots=True)
class FittingFile:
    """A file, or a preset's that could be built, beside the memory."""

    name: str
    kind: Literal["this", "built", "preset"]
    size_bytes: int
    needs_bytes: int
    """With the context."""
    fits: bool
    kld_nats: float | None
    """Measured, else predicted; None where neither was."""
    is_measured: bool
    speed: PredictedSpeed | None = None
    """On this machine; None where its types were not timed."""


@dataclass(frozen=True, slots=True)
class FitReport:
    """What fits."""

    model_name: str
    memory_bytes: int
    n_ctx: int
    n_ctx_trained: int | None
    """Tokens that the model was made for, where it says so."""
    kv_type: str
    kv_bytes: int
    compute_bytes: int
    output_bytes: int
    program_bytes: int
    """For the vocabulary, the model's description, graphs and kernels."""
    room_bytes: int
    """For the file: the memory without what the context takes."""
    files: tuple[FittingFile, ...]
    """The largest first."""
    best: str | None
    """The built file with the least divergence of those that fit, or this one; None where none fits."""
    run_command: str | None
    """How llama.cpp runs it."""
    make_command: str
    """What makes the best file for this room."""


def fit(workspace: Workspace, place: Path, memory_bytes: int, *, n_ctx: int, kv_type: str = "f16") -> FitReport:
    """What a model's files need with a context, and the best that runs in so much memory.

    Weights count once, as the file has them; context, results and vocabulary as `ggml.memory` says, for one conversation at a time on a
    processor. What a program around llama.cpp takes, and a split between processor and GPU, do not count.

    Args:
        workspace: the files that were built, and what is known of them.
        place: a GGUF file or a Hugging Face directory.
        memory_bytes: what there is.
        n_ctx: tokens of the context.
        kv_type: of keys and values, as llama.cpp's `-ctk` takes it.

    Raises:
        OptionError: no such type, or the context alone takes more.
        InferenceError: llama.cpp cannot run the model.
    """
    if kv_type.lower() not in KV_TYPES:
        raise OptionError(f"llama.cpp cannot keep keys and values in {kv_type}", remedy=f"Give --kv {', '.join(KV_TYPES)}")
    kv_type = kv_type.lower()
    with workspace.model(place, allow_requantize=True) as model:
        with header_path(model) as header:
            found = context_memory(header, n_ctx=n_ctx, kv_type=kv_type)
        taken = found.total_bytes
        room = memory_bytes - taken
        if room <= 0:
            raise OptionError(
                f"a context of {n_ctx:,} tokens takes {words.size(taken)} with {kv_type}, more than {words.size(memory_bytes)}",
                remedy="Give a smaller --ctx, another --kv such as q8_0, or more --memory",
            )
        files = tuple(sorted(_files(workspace, model, taken, memory_bytes), key=lambda each: -each.size_bytes))
        usable = [each for each in files if each.fits and each.kind != "preset"]
        best = min(usable, key=lambda each: (each.kld_nats is None, each.kld_nats or 0.0, -each.size_bytes), default=None)
        return FitReport(
            model_name=model.source.name,
            memory_bytes=memory_bytes,
            n_ctx=n_ctx,
            n_ctx_trained=trained_context(model.source),
            kv_type=kv_type,
            kv_bytes=found.kv_bytes,
            compute_bytes=found.compute_bytes,
            output_bytes=found.output_bytes,
            program_bytes=found.program_bytes,
            room_bytes=room,
            files=files,
            best=None if best is None else best.name,
            run_command=None if best is None else shlex.join(("llama-server", "-m", best.name, *_flags(n_ctx, kv_type))),
            make_command=command_line(workspace, "make", place, "--size", str(room), "-o", "out"),
        )


def _flags(n_ctx: int, kv_type: str) -> tuple[str, ...]:
    """One conversation, no others kept beside it; weights read, not mapped: mapped, those that are repacked would be there twice."""
    kv = () if kv_type == "f16" else ("-ctk", kv_type, "-ctv", kv_type)
    attention = () if kv_type in UNQUANTIZED_KV else ("-fa", "on")
    return ("-c", str(n_ctx), *kv, *attention, "-np", "1", "--cache-ram", "0", "--load-mode", "none")


def _files(workspace: Workspace, model: OpenedModel, taken: int, memory_bytes: int) -> Sequence[FittingFile]:
    """The model itself where it is a file, what was built from it, and presets."""

    speeds = known_speeds(workspace, model.source)

    def beside(
        name: str, kind: Literal["this", "built", "preset"], size: int, kld: float | None, types: Mapping[str, str], *, measured: bool
    ) -> FittingFile:
        speed = predicted_speed(speeds, model.source, types)
        return FittingFile(name, kind, size, size + taken, size + taken <= memory_bytes, kld, measured, speed)

    verdicts = {item.fingerprint: item.ours.statistics.kld_mean.value for item in list_verdicts(workspace, model.fingerprint)}
    found = []
    if model.path.is_file():
        found.append(beside(str(model.path), "this", sum(path.stat().st_size for path in model.source.files), 0.0, {}, measured=True))
    for item in list_builds(workspace, model.fingerprint):
        measured = next((verdicts[each] for each in item.verdicts if each in verdicts), None)
        kld = item.predicted_kld_nats if measured is None else measured
        types = {} if speeds is None else strategy_of(workspace, f"{STORED}{item.strategy}").types
        found.append(beside(item.path, "built", item.size_bytes, kld, types, measured=measured is not None))
    if not library.quantized_types(model.source.tensors):
        matrix = workspace.imatrices.default(model.fingerprint)
        sizes = preset_sizes(model, ladder(model, matrix), matrix)
        presets = ladder(model, matrix)
        found += [beside(name, "preset", size, None, presets[name], measured=False) for name, size in sizes.items()]
    return found
