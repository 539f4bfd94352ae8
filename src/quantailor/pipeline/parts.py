"""What `study` and `make` share: the parts that measure, how a run tells which of its parts begins, and the levels of a study.

Every part takes what is there already, so that a stopped run goes on where it was. A base is written where a part runs the
model: to compute an importance matrix or covariances, to probe, to verify. Without these, weights are measured and built from
the checkpoint itself, row by row, and the result is all that `make` writes.

The levels of a study:

    quick        importance matrix of a few chunks, weight errors of sampled rows; ranks mixes, predicts no KLD
    balanced     importance matrix of much of the text, the same weight errors, probes
    thorough     importance matrix of the whole text, weight errors of every row, probes of every tensor at more types on more chunks
    exhaustive   the same, and every tensor through every type in the model

Rounding is compensated unless told otherwise, wherever a text is run through the model: input covariances are then computed
together with the importance matrix, or beside one that is there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

from quantailor.analysis.scores.resting import Rest
from quantailor.costs.model_size import QUICK_TYPES, is_large
from quantailor.errors import UnsupportedModelError
from quantailor.models.abilities import why_no_predictions
from quantailor.models.opening import require_unquantized
from quantailor.models.source import ModelSource
from quantailor.records import RoundingWish
from quantailor.session import AUTO, NONE, OpenedModel, Workspace
from quantailor.steps.calibration.calibrate import CalibrateStep
from quantailor.steps.calibration.imatrix import ImatrixStep
from quantailor.steps.checks.inputs import check_imatrix, check_texts, require_ours
from quantailor.steps.conversion.convert import WholeStep
from quantailor.steps.measure import MeasureStep, known_types
from quantailor.steps.probe import (
    DEFAULT_ANCHORS,
    DEFAULT_MIXES,
    DEFAULT_PROBE_CHUNKS,
    DEFAULT_PROBE_TYPES,
    THOROUGH_PROBE_TYPES,
    TIMED_EFFORT,
    Effort,
    Grouping,
    ProbeStep,
)
from quantailor.steps.stages import Stages
from quantailor.steps.step import Answer

Level = Literal["quick", "balanced", "thorough", "exhaustive"]
LEVELS: tuple[Level, ...] = ("quick", "balanced", "thorough", "exhaustive")
LARGE_MIXES, LARGE_ANCHORS = 10, 1
"""Whole mixes, and files of such, of a model that is large."""
LARGE_PASSES = 64
"""What a large model is given on a CPU where nobody says; with weight errors one to two times as long as covariances of 100 chunks."""


@dataclass(frozen=True, slots=True)
class LevelSettings:
    """What a level measures."""

    imatrix_chunks: int | None
    """At most so many; None is the whole text."""
    exhaustive: bool = False
    probe_chunks: int = 0
    """0 for no probes."""
    probe_types: tuple[str, ...] = DEFAULT_PROBE_TYPES
    mixes: int = DEFAULT_MIXES
    every_tensor: bool = False
    """Probe each tensor by itself, whatever the model's size."""
    sweep: bool = False


_THOROUGH = LevelSettings(None, exhaustive=True, probe_chunks=8, probe_types=THOROUGH_PROBE_TYPES, mixes=24, every_tensor=True)
LEVEL_SETTINGS: dict[Level, LevelSettings] = {
    "quick": LevelSettings(50),
    "balanced": LevelSettings(200, probe_chunks=DEFAULT_PROBE_CHUNKS),
    "thorough": _THOROUGH,
    "exhaustive": dataclasses.replace(_THOROUGH, sweep=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineStep(WholeStep[Answer]):
    """What `study` and `make` have in common: the parts that measure."""

    measures: ClassVar[bool] = True

    types: tuple[str, ...] = ()
    """Candidate types; empty means all usual ones."""
    text: str | None = None
    """None means the calibration text that ships with Quantailor."""
    seconds: float | None = None
    """Time for everything that is measured, from the beginning of a run; probes get what is left. None for as long as it takes."""
    passes: int | None = None
    """As of `ProbeStep`."""
    total_passes: int | None = None
    """As of `ProbeStep`; set for a large model where nobody said how much is to be probed."""
    rest: Rest = "16"
    """What the base rests in while it is probed (`ScoringStep.rest`)."""
    allow_requantize: bool = False
    rounding: RoundingWish = "auto"
    """Of what is measured, probed and built; "auto" is compensated where a text is run through the model for it, else plain."""

    def check(self, workspace: Workspace) -> None:
        """What can be read without work. Raises QuantailorError."""
        super(PipelineStep, self).check(workspace)
        check_texts(self.text)
        check_imatrix(self.imatrix)
        known_types(self.types)
        if self.hub is None:
            with contextlib.suppress(UnsupportedModelError), workspace.model(self.model, allow_requantize=True) as model:
                require_unquantized(model.source, allow_requantize=self.allow_requantize)
                require_ours(workspace, model, self.imatrix, self.covariances)
                self.check_model(workspace, model)

    def check_model(self, workspace: Workspace, model: OpenedModel) -> None:
        """The same of a model that is here. Raises QuantailorError."""

    def compensates(self, source: ModelSource, *, runs: bool = True) -> bool:
        """Whether rounding is compensated: as asked for; else where a text `runs` through the model, which predicts it."""
        if self.rounding != AUTO:
            return self.rounding == "compensated"
        return runs and NONE not in (self.imatrix, self.covariances) and why_no_predictions(source) is None

    def calibrate_step(self, base: str, n_chunks: int | None) -> CalibrateStep:
        """The computation of input covariances, and of an importance matrix with them."""
        return CalibrateStep(base=base, text=self.text, chunks=n_chunks, compute=self.compute)

    def imatrix_step(self, base: str, n_chunks: int | None, output: Path | None = None) -> ImatrixStep:
        """The computation of its importance matrix."""
        place = None if output is None else str(output)
        return ImatrixStep(base=base, text=self.text, chunks=n_chunks, output=place, overwrite=True, compute=self.compute)

    def measure_step(self, base: str, imatrix: str, types: Sequence[str], *, exhaustive: bool) -> MeasureStep:
        """The measurement of weight errors."""
        return MeasureStep(
            base=base,
            types=tuple(types),
            exhaustive=exhaustive,
            imatrix=imatrix,
            rounding=self.rounding,
            covariances=self.covariances,
            allow_requantize=self.allow_requantize,
            compute=self.compute,
        )

    def with_usual_limit(self, source: ModelSource, *, is_usual: bool) -> Self:
        """The same with as many passes as a large model is given where nobody said how much is to be probed (`is_usual`)."""
        few = is_usual and not self.is_limited and not self.compute.n_gpu_layers and is_large(source)
        return dataclasses.replace(self, total_passes=LARGE_PASSES) if few else self

    def usual_group(self, source: ModelSource) -> Grouping:
        """What is probed together where nobody says: a large model's roles in quarters of the depth, where no limit ends probes before."""
        return "role-depth" if is_large(source) and not self.is_limited and not self.compute.n_gpu_layers else "tensor"

    def probes_quickly(self, source: ModelSource) -> bool:
        """Whether what is probed is rounded plainly and to `QUICK_TYPES`, whatever the file will be."""
        return is_large(source)

    def measure_swapped(self, workspace: Workspace, base: str, imatrix: str, stages: Stages) -> None:
        """Measure what probes swap in, if that is rounded otherwise than the file will be."""
        with workspace.source(base) as source:
            is_other = self.rounding == "compensated" and self.probes_quickly(source)
        if is_other:
            step = self.measure_step(base, imatrix, QUICK_TYPES, exhaustive=False)
            dataclasses.replace(step, rounding="plain").run(workspace, stages)

    def probes_step(
        self,
        base: str,
        imatrix: str,
        n_chunks: int,
        group: Grouping,
        *,
        types: tuple[str, ...] = DEFAULT_PROBE_TYPES,
        mixes: int = DEFAULT_MIXES,
        quickly: bool = False,
    ) -> ProbeStep:
        """The probes, with whole mixes on four times their chunks; with a limit of time or passes as many as it gives.

        `quickly` is what `probes_quickly` says.
        """
        if self.total_passes is not None:
            limits = Effort(DEFAULT_PROBE_TYPES, TIMED_EFFORT.chunks)  # others come on more chunks than so few passes reach
        else:
            limits = TIMED_EFFORT if self.is_limited else Effort(types, n_chunks)
        return ProbeStep(
            base=base,
            text=self.text,
            chunks=limits.chunks,
            types=limits.types,
            mixes=min(mixes, LARGE_MIXES) if quickly else mixes,
            mix_chunks=limits.mix_chunks,
            anchors=LARGE_ANCHORS if quickly else DEFAULT_ANCHORS,
            group=group,
            seconds=self.seconds,
            passes=self.passes,
            total_passes=self.total_passes,
            rest=self.rest,
            imatrix=imatrix,
            rounding="plain" if quickly else self.rounding,
            covariances=self.covariances,
            compute=self.compute,
        )

    @property
    def is_limited(self) -> bool:
        """Whether time or passes are what limits its probes."""
        return (self.seconds, self.passes, self.total_passes) != (None, None, None)

    def with_time_left(self, began: float) -> Self:
        """The same with what is left of its time since a moment of `time.monotonic`, at the least a second."""
        return self if self.seconds is None else dataclasses.replace(self, seconds=max(1.0, self.seconds - (time.monotonic() - began)))


class Parts:
    """The parts that a run has, in order; tells which of how many begins."""

    def __init__(self, names: Sequence[str], stages: Stages) -> None:
        self._names, self._stages = tuple(names), stages

    def begin(self, name: str) -> bool:
        """Whether the run has this part, which then begins."""
        if name in self._names:
            self._stages.part(self._names.index(name) + 1, len(self._names))
        return name in self._names
