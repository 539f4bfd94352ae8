"""Which files of a model run in so much memory with a context, by llama.cpp's own accounting, and how to run them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quantailor.analysis.corpus import MIN_N_CTX
from quantailor.app.products.builds import list_builds
from quantailor.app.products.projectors import AUTO, ProjectorNeeds, choose_projector, projector_needs
from quantailor.app.products.splitting import FileSplit, Splitting
from quantailor.app.products.verdicts import list_verdicts
from quantailor.errors import OptionError
from quantailor.evidence.grounds import command_line
from quantailor.evidence.presets import ladder, preset_sizes
from quantailor.evidence.speeds import known_speeds, predicted_speed
from quantailor.evidence.strategies import STORED, strategy_of
from quantailor.ggml import library
from quantailor.ggml.memory.context import KV_TYPES, UNQUANTIZED_KV, context_memory
from quantailor.models.abilities import n_positions, trained_context
from quantailor.present import words
from quantailor.processes import apart
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
    """On this machine; None where its types were not timed, and where the file is split."""
    split: FileSplit | None = None
    """With a GPU's memory: how the file is split, with as much on the GPU as fits there."""

    @property
    def host_bytes(self) -> int:
        """What it needs beside the GPU, or in all where there is none."""
        return self.needs_bytes if self.split is None else self.split.host.needs_bytes

    @property
    def shown_name(self) -> str:
        """Without its folder."""
        return f"llama.cpp {self.name}" if self.kind == "preset" else Path(self.name).name


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
    """For the file: the memory without what the context takes. Of a split about, as the model's own bytes lie."""
    files: tuple[FittingFile, ...]
    """The largest first."""
    best: str | None
    """The built file with the least divergence of those that fit, or this one; None where none fits."""
    run_command: str | None
    """How llama.cpp runs it."""
    make_command: str
    """What makes the best file for this room."""
    gpu_memory_bytes: int | None = None
    """None where nothing is split. The figures of the context above are those without a GPU."""
    shortfall: str | None = None
    """Where no file fits: what the least of them needs, in words."""
    mmproj: ProjectorNeeds | None = None
    """The vision tower or audio encoder that counts, too."""
    notes: tuple[str, ...] = ()
    """Of projectors: one that does not count, another that could."""


def fit(
    workspace: Workspace,
    place: Path,
    memory_bytes: int,
    *,
    n_ctx: int,
    kv_type: str = "f16",
    gpu_memory_bytes: int | None = None,
    mmproj: str | Path = AUTO,
    mmproj_offload: bool = True,
) -> FitReport:
    """What a model's files need with a context, and the best that runs in so much memory.

    Weights count once, as the file has them; context, results and vocabulary as `ggml.memory` says, for one conversation at a time. What a
    program around llama.cpp takes does not count, nor what a GPU's driver takes for itself. How files are split says `splitting`.

    Args:
        workspace: the files that were built, and what is known of them.
        place: a GGUF file or a Hugging Face directory.
        memory_bytes: what there is.
        n_ctx: tokens of the context.
        kv_type: of keys and values, as llama.cpp's `-ctk` takes it.
        gpu_memory_bytes: what a GPU has beside it; None puts everything in the one memory.
        mmproj: which projector counts, see `choose_projector`: "auto", "none" or a file.
        mmproj_offload: False leaves it to the processor, though there is room on the GPU.

    Raises:
        OptionError: no such type, no projector, fewer learned positions than tokens, a context that alone takes more, or a model that does
            not say how many layers it has.
        ModelError: the model or the projector cannot be read.
        InferenceError: llama.cpp cannot run the model or the projector.
        NativeLibraryError: of a split, where llama.cpp has neither a GPU here nor the RPC backend.
    """
    if kv_type.lower() not in KV_TYPES:
        raise OptionError(f"llama.cpp cannot keep keys and values in {kv_type}", remedy=f"Give --kv {', '.join(KV_TYPES)}")
    kv_type = kv_type.lower()
    with workspace.model(place, allow_requantize=True) as model:
        positions = n_positions(model.source)
        if positions is not None and n_ctx > positions:
            what = f"{model.source.name} has {positions:,} positions, too few for a context of {n_ctx:,} tokens"
            raise OptionError(what, remedy=f"Give --ctx {positions} or less" if positions >= MIN_N_CTX else None)
        chosen = choose_projector(workspace, model, mmproj)
        with header_path(model) as header:
            found = context_memory(header, n_ctx=n_ctx, kv_type=kv_type)
            projector, notes = projector_needs(chosen, header, gpu_memory_bytes=gpu_memory_bytes, offloads=mmproj_offload)
            taken = found.total_bytes + (0 if projector is None else projector.host_bytes)
            splitting = None
            if gpu_memory_bytes is not None:
                splitting = Splitting(
                    model.source,
                    header,
                    n_ctx=n_ctx,
                    kv_type=kv_type,
                    program_bytes=found.program_bytes,
                    gpu_bytes=gpu_memory_bytes,
                    memory_bytes=memory_bytes,
                    projector=projector,
                )
            try:
                room = memory_bytes - taken if splitting is None else splitting.room_bytes()
                if room <= 0:
                    beside, without = (" takes", "") if projector is None else (" and the projector take", "--mmproj none, ")
                    raise OptionError(
                        f"a context of {n_ctx:,} tokens{beside} {words.size(taken)} with {kv_type}, more than {words.size(memory_bytes)}",
                        remedy=f"Give a smaller --ctx, another --kv such as q8_0, {without}or more --memory",
                    )
                files = tuple(sorted(_files(workspace, model, taken, memory_bytes, splitting), key=lambda each: -each.size_bytes))
            finally:
                if splitting is not None:
                    apart.close_idle()  # it may serve as the GPU
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
            run_command=None if best is None else shlex.join(_run_words(best, projector, n_ctx, kv_type)),
            make_command=command_line(workspace, "make", place, "--size", str(room), "-o", "out"),
            gpu_memory_bytes=gpu_memory_bytes,
            shortfall=_shortfall(files, gpu_memory_bytes),
            mmproj=projector,
            notes=notes,
        )


def _shortfall(files: Sequence[FittingFile], gpu_memory_bytes: int | None) -> str | None:
    if not files or any(each.fits for each in files):
        return None
    least = min(files, key=lambda each: each.host_bytes)
    beside = "" if gpu_memory_bytes is None else f" beside {words.size(gpu_memory_bytes)} on the GPU"
    return f"None of these files fits: {least.shown_name} needs least, {words.size(least.host_bytes)} of memory{beside}."


def _run_words(file: FittingFile, projector: ProjectorNeeds | None, n_ctx: int, kv_type: str) -> tuple[str, ...]:
    """One conversation, no others kept beside it; weights read, not mapped: mapped, those that are repacked would be there twice."""
    stays = ("--no-mmproj-offload",) if file.split is not None and projector is not None and not projector.on_gpu else ()
    beside = () if projector is None else ("--mmproj", projector.path, *stays)
    kv = () if kv_type == "f16" else ("-ctk", kv_type, "-ctv", kv_type)
    attention = () if kv_type in UNQUANTIZED_KV else ("-fa", "on")
    layers = () if file.split is None else file.split.flags
    return (
        "llama-server",
        "-m",
        file.name,
        *beside,
        *layers,
        "-c",
        str(n_ctx),
        *kv,
        *attention,
        "-np",
        "1",
        "--cache-ram",
        "0",
        "--load-mode",
        "none",
    )


def _files(workspace: Workspace, model: OpenedModel, taken: int, memory_bytes: int, splitting: Splitting | None) -> Sequence[FittingFile]:
    """The model itself where it is a file, what was built from it, and presets."""

    speeds = known_speeds(workspace, model.source) if splitting is None else None

    def beside(
        name: str, kind: Literal["this", "built", "preset"], size: int, kld: float | None, types: Mapping[str, str], *, measured: bool
    ) -> FittingFile:
        if splitting is None:
            speed = predicted_speed(speeds, model.source, types)
            return FittingFile(name, kind, size, size + taken, size + taken <= memory_bytes, kld, measured, speed)
        split = splitting.best(types, size)
        needs = split.gpu.needs_bytes + split.host.needs_bytes
        return FittingFile(name, kind, size, needs, split.host.needs_bytes <= memory_bytes, kld, measured, split=split)

    verdicts = {item.fingerprint: item.ours.statistics.kld_mean.value for item in list_verdicts(workspace, model.fingerprint)}
    found = []
    if model.path.is_file():
        found.append(beside(str(model.path), "this", sum(path.stat().st_size for path in model.source.files), 0.0, {}, measured=True))
    for item in list_builds(workspace, model.fingerprint):
        measured = next((verdicts[each] for each in item.verdicts if each in verdicts), None)
        kld = item.predicted_kld_nats if measured is None else measured
        types = {} if speeds is None and splitting is None else strategy_of(workspace, f"{STORED}{item.strategy}").types
        found.append(beside(item.path, "built", item.size_bytes, kld, types, measured=measured is not None))
    if not library.quantized_types(model.source.tensors):
        matrix = workspace.imatrices.default(model.fingerprint)
        sizes = preset_sizes(model, ladder(model, matrix), matrix)
        presets = ladder(model, matrix)
        found += [beside(name, "preset", size, None, presets[name], measured=False) for name, size in sizes.items()]
    return found
