"""Speed: how many tokens per second a model's files read and write on this machine, for every type."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from quantailor.analysis.racing import race
from quantailor.analysis.speed import REFERENCE, disturbed, groups, quiet_limits, quieter
from quantailor.control import Control
from quantailor.costs.needs import Needs
from quantailor.errors import CrashError, OptionError
from quantailor.evidence.measurements import usual_types
from quantailor.evidence.speeds import Speeds, TimedFile, files_to_time, reference_file, speeds_of, timing_key
from quantailor.ggml import library
from quantailor.ggml.timing import N_PROMPT, N_WRITTEN
from quantailor.making.timing_files import timing_layout, write_timing_file
from quantailor.models.abilities import require_positions
from quantailor.models.source import ModelSource
from quantailor.records import Timing
from quantailor.session import Workspace
from quantailor.steps.measure import known_types
from quantailor.steps.stages import Stages
from quantailor.steps.step import ModelStep, Screen, StepResult
from quantailor.store import TimingKey

DEFAULT_MIXES = 6


@dataclass(frozen=True, slots=True)
class TypeSpeed:
    """The whole model at one type, where its tensors can take it; the others as in the reference."""

    type_name: str
    bits_per_weight: float
    prompt_tokens_per_second: float
    generation_tokens_per_second: float


@dataclass(frozen=True, slots=True)
class SpeedResult(StepResult):
    """What is known now of a model's speed on this machine."""

    model_fingerprint: str
    kernels: str
    """The processor, its instructions and the llama.cpp."""
    n_threads: int
    n_gpu_layers: int
    n_prompt: int
    """Tokens of a prompt that was timed."""
    n_written: int
    """Tokens that were written after it."""
    n_files: int
    n_already_timed: int
    failed: tuple[str, ...]
    """What llama.cpp did not run."""
    prompt_error: float | None
    """How far predictions of random mixes are off, relative, as one standard deviation; None where none was timed."""
    generation_error: float | None
    types: tuple[TypeSpeed, ...]
    """The fastest at writing first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedStep(ModelStep[SpeedResult], kind="speed", result=SpeedResult):
    """Time every type on this machine, prompt and generation, in files that are made for it (METHODS 10)."""

    units: ClassVar[Mapping[str, str]] = {"timing": "files"}
    runs_model: ClassVar[bool] = True
    screen: ClassVar[Screen | None] = "choose"

    base: str
    types: tuple[str, ...] = ()
    """Empty for those that a plan uses by itself."""
    mixes: int = DEFAULT_MIXES
    """Random mixes that tell how far predictions are off."""

    def check(self, workspace: Workspace) -> None:
        """The types. Raises TypeUnavailableError, OptionError."""
        super(SpeedStep, self).check(workspace)
        known_types(self.types)
        if self.compute.cluster is not None:
            raise OptionError("speed is measured on this machine, not on a cluster", remedy="Leave out --cluster")

    def run(self, workspace: Workspace, stages: Stages) -> SpeedResult:
        """Time what was not timed before; each file's figures are stored as they come."""
        with workspace.model(self.base) as model:
            workspace.require_runnable(model)
            require_positions(model.source, N_PROMPT + N_WRITTEN)
            key = timing_key(model.source, self.compute.n_threads, self.compute.devices)
            files = files_to_time(model.source, self._type_names, self.mixes)
            before = workspace.store.timings(key)
            missing = [each for each in files if each.name not in before]
            failed = self._time(workspace, model.source, key, files, missing, stages) if missing else ()
            speeds = speeds_of(workspace, model.source, key)
            return SpeedResult(
                model_fingerprint=model.fingerprint,
                kernels=key.kernels,
                n_threads=key.n_threads,
                n_gpu_layers=key.n_gpu_layers,
                n_prompt=N_PROMPT,
                n_written=N_WRITTEN,
                n_files=len(files),
                n_already_timed=len(files) - len(missing),
                failed=failed,
                prompt_error=None if speeds is None else speeds.model.errors["prompt"],
                generation_error=None if speeds is None else speeds.model.errors["generation"],
                types=() if speeds is None else _rows(model.source, speeds, self._type_names),
            )

    def _time(
        self, workspace: Workspace, source: ModelSource, key: TimingKey, files: list[TimedFile], missing: list[TimedFile], stages: Stages
    ) -> tuple[str, ...]:
        """Time what is missing, and once more what was timed while the machine was busy; what llama.cpp did not run."""
        failed = []
        with _folder(workspace, stages) as folder:
            control = stages.begin("timing")
            reference, candidate = folder / "reference.gguf", folder / "candidate.gguf"
            _write(source, reference, reference_file(source), control)
            for number, each in enumerate(missing):
                control.advance(number, len(missing), each.label)
                try:
                    timing = self._timed(source, reference, candidate, each, control, workspace.store.timings(key))
                except CrashError as error:
                    failed.append(each.label)
                    stages.warn(f"{each.label} was not timed: {error.message}")
                else:
                    workspace.store.record_timing(key, each.name, timing)
            control.advance(len(missing), len(missing))
            found = workspace.store.timings(key)
            again = [each for each in files if each.name in disturbed(found)]
            control = stages.begin("timing again") if again else control
            for number, each in enumerate(again):
                control.advance(number, len(again), each.label)
                timing = self._timed(source, reference, candidate, each, control, found)
                workspace.store.record_timing(key, each.name, quieter(found[each.name], timing))
        return tuple(failed)

    @property
    def _type_names(self) -> tuple[str, ...]:
        return known_types(self.types) if self.types else usual_types()

    def _timed(
        self, source: ModelSource, reference: Path, path: Path, file: TimedFile, control: Control, known: Mapping[str, Timing]
    ) -> Timing:
        """Write a file and run it in turns with the reference. Raises CrashError, InferenceError, OutputError."""
        _write(source, path, file, control)
        return race(reference, path, quiet_limits(known), n_threads=self.compute.n_threads, devices=self.compute.devices, control=control)

    def needs(self, workspace: Workspace) -> Needs:
        """Disk and memory for two files."""
        with workspace.source(self.base) as source:
            file = reference_file(source)
            n_bytes = timing_layout(source, file.types, n_layers=file.n_layers).size_bytes
        return Needs(((workspace.home.timing, 2 * n_bytes),), mapped_bytes=2 * n_bytes)


@contextmanager
def _folder(workspace: Workspace, stages: Stages) -> Iterator[Path]:
    """Where this job's files lie while they are timed; what an earlier attempt left is removed."""
    folder = workspace.home.timing / f"job-{stages.job_id}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(source: ModelSource, path: Path, file: TimedFile, control: Control) -> None:
    write_timing_file(source, path, file.types, n_layers=file.n_layers, control=control)


def _rows(source: ModelSource, speeds: Speeds, type_names: tuple[str, ...]) -> tuple[TypeSpeed, ...]:
    qtypes, rows = library.types(), []
    for type_name in dict.fromkeys((REFERENCE, *type_names)):
        able = [name for name in groups(source) if qtypes[type_name].divides(source.tensor(name).n_cols)]
        predicted = speeds.predicted({**speeds.model.reference, **dict.fromkeys(able, type_name)})
        if able and predicted is not None:
            seconds = (predicted.prompt_tokens_per_second, predicted.generation_tokens_per_second)
            rows.append(TypeSpeed(type_name, qtypes[type_name].bits_per_weight, *seconds))
    return tuple(sorted(rows, key=lambda row: -row.generation_tokens_per_second))
