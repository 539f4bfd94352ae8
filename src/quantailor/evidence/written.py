"""Files that we write and use again, and what they are filed under: everything that goes into them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from quantailor.analysis.importance.imatrix import Imatrix
from quantailor.analysis.rounding.rounding import PLAIN, Rounding
from quantailor.analysis.scores.resting import resting_types
from quantailor.control import QUIET, Control
from quantailor.evidence.presets import types_of_preset
from quantailor.evidence.strategies import embedded_strategy, rounding_of, strategy_imatrix
from quantailor.ggml import library
from quantailor.making import building, judging
from quantailor.processes.crews import HERE, Executor
from quantailor.records import Strategy, TensorChoice
from quantailor.session import AUTO, OpenedModel, Workspace, gguf_path
from quantailor.store import ReferenceFile
from quantailor.strategy import file as strategy_file


def recipe(model: OpenedModel, strategy: Strategy, rounding: Rounding) -> str:
    """What a built file is filed under: equal only where a build would write the same bytes again."""
    text = strategy_file.dumps(strategy, format="json", include_prediction=False)
    parts = [library.engine(), model.description, rounding.imatrix.fingerprint if rounding.imatrix else "none", text]
    parts += [rounding.bytes_key] if rounding.bytes_key else []
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def reference(
    workspace: Workspace,
    model: OpenedModel,
    preset: str,
    imatrix: Imatrix | None,
    *,
    n_threads: int | None = None,
    control: Control = QUIET,
    executor: Executor = HERE,
) -> Path:
    """The home's file of a preset, made anew where it is not what was written; raises as `judging.ensure_reference` does.

    On this machine llama.cpp quantizes it; workers do the same with its codecs, to the same bytes.
    """
    path = judging.reference_path(model.description, preset, imatrix=imatrix, folder=workspace.home.references)
    if executor is not HERE and not workspace.is_as_written(path, path.name):
        types = types_of_preset(model, preset, imatrix)
        building.build_preset(
            model.source,
            preset,
            types,
            path,
            imatrix=imatrix,
            fingerprint=model.fingerprint,
            n_threads=n_threads,
            control=control,
            executor=executor,
        )
        workspace.note_written(path, path.name)
        return path
    path = judging.ensure_reference(
        gguf_path(model),
        preset,
        imatrix=imatrix,
        folder=workspace.home.references,
        description=model.description,
        is_intact=lambda path: workspace.is_as_written(path, path.name),
        n_threads=n_threads,
        control=control,
    )
    workspace.note_written(path, path.name)
    return path


def known_plain_twin(workspace: Workspace, model: OpenedModel, file: Path) -> tuple[Path, bool] | None:
    """The file that `plain_twin` gives and whether it is there; None for a file whose rounding is plain. Raises ImatrixError."""
    found = _plain_twin(workspace, model, file)
    return None if found is None else (found[2], workspace.is_as_written(found[2], found[3]))


def _plain_twin(workspace: Workspace, model: OpenedModel, file: Path) -> tuple[Strategy, Rounding, Path, str] | None:
    strategy = embedded_strategy(workspace, file)
    if strategy is None or rounding_of(strategy) == "plain":
        return None
    rounding = Rounding(strategy_imatrix(workspace, model, strategy, AUTO))
    strategy = building.as_rounded(strategy, rounding)
    wanted = recipe(model, strategy, rounding)
    return strategy, rounding, workspace.home.references / f"{model.description[:16]}-{wanted[:16]}-plain.gguf", wanted


def plain_twin(
    workspace: Workspace,
    model: OpenedModel,
    file: Path,
    *,
    n_threads: int | None = None,
    control: Control = QUIET,
    executor: Executor = HERE,
) -> Path | None:
    """The home's file of the types of one with compensated rounding, with the same importance matrix but rounded plainly; made where
    there is none. None for a file whose rounding is plain.

    Raises ImatrixError where the matrix is gone, OutputError where the file cannot be written.
    """
    found = _plain_twin(workspace, model, file)
    if found is None:
        return None
    strategy, rounding, path, _ = found
    return _written(workspace, model, strategy, rounding, path, n_threads=n_threads, control=control, executor=executor)


def known_reference(workspace: Workspace, model: OpenedModel, preset: str, imatrix: Imatrix | None) -> ReferenceFile | None:
    """What the file of a preset is, whether it is there or not; None where none was judged. Raises TypeUnavailableError."""
    path = judging.reference_path(model.description, preset, imatrix=imatrix, folder=workspace.home.references)
    return workspace.store.reference_file(path.name)


def let_go(workspace: Workspace, model: OpenedModel, path: Path) -> None:
    """Remove a reference of a model that was judged and keep what it is, so that its scores serve without it."""
    size_bytes, bits = judging.file_size(path)
    with workspace.source(path) as source:
        types = {tensor.name: tensor.type_name for tensor in source.tensors}
    content = workspace.identity(path).fingerprint
    workspace.store.record_reference_file(ReferenceFile(model.fingerprint, path.name, content, size_bytes, bits, types))
    path.unlink(missing_ok=True)


def resting_base(
    workspace: Workspace, model: OpenedModel, *, n_threads: int | None = None, control: Control = QUIET, executor: Executor = HERE
) -> Path:
    """The home's file of a base as it rests at 8 bits (`analysis.scores.resting`), made where there is none. Raises OutputError."""
    choices = tuple(TensorChoice(name, type_name, "rests there") for name, type_name in resting_types(model.source).items())
    strategy = Strategy(model.fingerprint, model.source.name, model.source.architecture, "manual", choices)
    wanted = recipe(model, strategy, PLAIN)
    path = workspace.home.references / f"{model.description[:16]}-{wanted[:16]}-resting.gguf"
    return _written(workspace, model, strategy, PLAIN, path, n_threads=n_threads, control=control, executor=executor)


def _written(
    workspace: Workspace,
    model: OpenedModel,
    strategy: Strategy,
    rounding: Rounding,
    path: Path,
    *,
    n_threads: int | None,
    control: Control,
    executor: Executor,
) -> Path:
    """A file of the home, built unless it is there as it would be."""
    wanted = recipe(model, strategy, rounding)
    if not workspace.is_as_written(path, wanted):
        building.build(
            model.source,
            strategy,
            path,
            rounding=rounding,
            n_threads=n_threads,
            control=control,
            overwrite=True,
            fingerprint=model.fingerprint,
            executor=executor,
        )
        workspace.note_written(path, wanted)
    return path


def known_conversion(workspace: Workspace, folder: Path, converter: str | None = None) -> Path | None:
    """The base that llama.cpp's converter made of a directory, where both are still what they were then.

    Where a `converter` is named, one that it made.
    """
    made_by = converted_by(workspace.checkpoint(folder), converter)
    for location in workspace.store.every_location("conversion"):
        key, _, content = location.key.partition(":")
        if key == made_by and workspace.holds(location.path, content):
            return location.path
    return None


def converted_by(checkpoint: str, converter: str | None) -> str:
    """What a conversion by llama.cpp's converter is filed under: the checkpoint's digest, llama.cpp, and a converter that was named."""
    text = f"{checkpoint} {library.engine()} {converter or ''}"
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def home_place(workspace: Workspace, folder: Path) -> Path:
    """A file in the home for the base of a directory that only llama.cpp's converter knows."""
    return workspace.base_path(folder, workspace.checkpoint(folder))
