"""From a Hugging Face directory to its 16-bit base: our own conversion where it knows the model, else llama.cpp's converter.

A directory that we cannot read ourselves has no fingerprint of its own. Its conversion is found again by a digest of its
files, kept with the fingerprint of the base that it became.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from quantailor.errors import UnsupportedModelError
from quantailor.models import upstream
from quantailor.models.convert.base import write_base
from quantailor.models.huggingface import HuggingFaceSource
from quantailor.models.opening import open_model
from quantailor.service import tasks
from quantailor.service.results import ConvertResult
from quantailor.service.stages import Stages
from quantailor.service.workspace import OpenedModel, Workspace, is_model

OWN, UPSTREAM = "native", "llama.cpp"


@dataclass(frozen=True, slots=True)
class ConversionOffer:
    """A directory that llama.cpp's converter is to take before anything else can be done with it."""

    folder: str
    why: str
    """What our own conversion does not know."""
    place: str
    """Where the base would go."""


Whole = TypeVar("Whole", tasks.MakeTask, tasks.StudyTask)


def convert(workspace: Workspace, task: tasks.ConvertTask, stages: Stages) -> ConvertResult:
    """Write the 16-bit base of a Hugging Face directory, by the way that the task asks for.

    Raises:
        ModelError: the directory is damaged or lacks something, or neither way knows it.
        ConverterError: llama.cpp's converter cannot be had or fails.
        OutputError: the base cannot be written.
    """
    refusal = native_refusal(Path(task.model), task.way)
    if refusal is None:
        return _natively(workspace, task, stages)
    return _upstream(workspace, task, refusal, stages)


def native_refusal(model: Path, way: tasks.Way = "auto") -> str | None:
    """Why llama.cpp's converter is to take a directory; None where our own conversion can, and for GGUF files.

    Raises UnsupportedModelError where only ours was allowed and cannot, ModelError where the model is damaged.
    """
    if way == UPSTREAM and model.is_dir():
        return "it was asked for"
    try:
        open_model(model).close()
    except UnsupportedModelError as error:
        if way == OWN or not model.is_dir():
            raise
        return error.message
    return None


def _natively(workspace: Workspace, task: tasks.ConvertTask, stages: Stages) -> ConvertResult:
    with workspace.model(task.model) as model:
        why = _why(model)
        stages.note(why)
        path = write_base(model.source, Path(task.output), control=stages.begin("convert"), overwrite=task.overwrite)
        workspace.store.record_location("model", model.fingerprint, path)
        source = model.source
        return ConvertResult(str(path), model.fingerprint, path.stat().st_size, len(source.tensors), source.left_out, OWN, why)


def _why(model: OpenedModel) -> str:
    return f"native: the {model.source.family} family" if isinstance(model.source, HuggingFaceSource) else "native: it is GGUF already"


def _upstream(workspace: Workspace, task: tasks.ConvertTask, refusal: str, stages: Stages) -> ConvertResult:
    folder, output = Path(task.model), Path(task.output)
    upstream.check_before(folder, output, overwrite=task.overwrite, trust_remote_code=task.trust_remote_code)
    checkpoint = upstream.checkpoint_digest(folder)
    converter = upstream.locate(None if task.converter is None else Path(task.converter), begin=stages.begin)
    why = f"{converter.name}: {refusal}"
    stages.note(why)
    python = upstream.interpreter(begin=stages.begin)
    upstream.convert_directory(
        folder,
        output,
        converter=converter,
        python=python,
        log=workspace.home.logs / f"convert-{hashlib.sha256(str(output).encode(errors='surrogateescape')).hexdigest()[:12]}.log",
        control=stages.begin("convert"),
        overwrite=task.overwrite,
        trust_remote_code=task.trust_remote_code,
    )
    with workspace.model(output) as model:
        for known in sorted({checkpoint, _made_by(checkpoint, task.converter)}):
            workspace.store.record_location("conversion", f"{known}:{model.fingerprint}", output)
        return ConvertResult(str(output), model.fingerprint, output.stat().st_size, len(model.source.tensors), (), UPSTREAM, why)


# Conversions that are there


def known_conversion(workspace: Workspace, folder: Path, converter: str | None = None) -> Path | None:
    """The base that llama.cpp's converter made of a directory, where both are still what they were then.

    Where a `converter` is named, one that it made.
    """
    digest = _made_by(upstream.checkpoint_digest(folder), converter)
    for location in workspace.store.every_location("conversion"):
        checkpoint, _, fingerprint = location.key.partition(":")
        if checkpoint == digest and is_model(location.path, fingerprint):
            return location.path
    return None


def _made_by(checkpoint: str, converter: str | None) -> str:
    """A checkpoint's digest, with the converter in it where one was named."""
    return checkpoint if converter is None else hashlib.sha256(f"{checkpoint} {converter}".encode(errors="surrogateescape")).hexdigest()


def conversion_offer(workspace: Workspace, model: Path) -> ConversionOffer | None:
    """What is to be done before a directory can be opened; None where it can be. Raises ModelError for a damaged one."""
    refusal = native_refusal(model)
    if refusal is None or known_conversion(workspace, model) is not None:
        return None
    return ConversionOffer(str(model), refusal, str(home_place(workspace, model)))


def openable(workspace: Workspace, model: Path) -> Path:
    """The model itself, or the base that llama.cpp's converter made of a directory that we do not know."""
    known = None if native_refusal(model) is None else known_conversion(workspace, model)
    return known or model


def with_known_base(workspace: Workspace, task: Whole) -> Whole:
    """The task with an earlier base in place of a directory that llama.cpp's converter took; other tasks stay as they are.

    Raises UnsupportedModelError where there is none yet: it says what to run.
    """
    folder = Path(task.model)
    if native_refusal(folder, task.way) is None:
        return task
    known = known_conversion(workspace, folder, task.converter)
    if known is None:
        open_model(folder).close()
        return task
    return dataclasses.replace(task, model=str(known))


def with_base(workspace: Workspace, task: Whole, place: Path | None, stages: Stages, *, overwrite: bool) -> Whole:
    """The task with a base in place of a directory that llama.cpp's converter is to take, converted where there is none yet.

    `place` is where it goes, None for the home; `overwrite` replaces what stands there. Other tasks stay as they are.
    Raises as `convert` does.
    """
    folder = Path(task.model)
    if native_refusal(folder, task.way) is None:
        return task
    known = known_conversion(workspace, folder, task.converter)
    if known is not None:
        stages.note(f"{known} is its conversion by llama.cpp's converter, made before")
        return dataclasses.replace(task, model=str(known))
    output = place or home_place(workspace, folder)
    wanted = tasks.ConvertTask(
        model=task.model,
        output=str(output),
        overwrite=overwrite or place is None,
        converter=task.converter,
        way=task.way,
        trust_remote_code=task.trust_remote_code,
    )
    return dataclasses.replace(task, model=convert(workspace, wanted, stages).path)


def home_place(workspace: Workspace, folder: Path) -> Path:
    """A file in the home for the base of a directory that only llama.cpp's converter knows."""
    return workspace.base_path(folder, upstream.checkpoint_digest(folder))
