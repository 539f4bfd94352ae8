"""What a step is: its options, as a record that a job stores, and what it does with them.

A step says everything about itself: what kind of job it is, what its stages count, what it needs of the machine, what it
answers and where that is shown. Whoever lists, stores, runs or shows steps asks them. A new kind of step is one file with a
subclass of `Step`, and the command that fills in its options.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from quantailor.cluster import Places, check_address
from quantailor.costs.needs import Needs
from quantailor.errors import JobError, OptionError
from quantailor.ggml.remote.rpc import check_devices
from quantailor.records import RoundingWish
from quantailor.session import AUTO, Workspace
from quantailor.steps.checks.ranges import check_ranges
from quantailor.steps.options import Compute, HubModel
from quantailor.steps.stages import Stages

Screen = Literal["structure", "measure", "choose", "build", "verify"]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step answers: plain data, kept with its job and printed by `--json`."""

    origin: str | None = field(default=None, kw_only=True)
    """ORG/NAME@COMMIT where the model came from the hub."""


Answer = TypeVar("Answer", bound=StepResult, covariant=True)


class Step(ABC, Generic[Answer]):
    """The base of every step. Subclasses are frozen dataclasses whose fields are the step's options, all plain data."""

    __slots__ = ()

    kind: ClassVar[str]
    """Its name in the job table, on the command line and in JSON."""
    result: ClassVar[type[StepResult]]
    """What `run` returns."""
    units: ClassVar[Mapping[str, str]] = {}
    """How a stage's name begins -> what that stage counts: "bytes", "chunks", "files" or "weights"."""
    runs_model: ClassVar[bool] = False
    """Whether llama.cpp runs the model, which must then be a GGUF file."""
    measures: ClassVar[bool] = False
    """Whether it adds to what is known of a model, so that the Measure screen follows it."""
    screen: ClassVar[Screen | None] = None
    """Where the GUI shows its result."""

    def __init_subclass__(cls, *, kind: str = "", result: type[StepResult] = StepResult, **options: Any) -> None:
        super().__init_subclass__(**options)
        if kind:
            cls.kind, cls.result = kind, result
        if "kind" in cls.__dict__:  # a dataclass with slots is made twice, the second time without these options
            _KINDS[cls.kind] = cls

    @property
    def takes_turns(self) -> bool:
        """Whether it keeps the machine busy with running a model, so that it waits while another job does."""
        return self.runs_model

    @abstractmethod
    def run(self, workspace: Workspace, stages: Stages) -> Answer:
        """Do it. What an earlier run stored is not done again."""

    def check(self, workspace: Workspace) -> None:
        """Refuse, before any work, what can be seen to be wrong: numbers out of range, texts that are not there. Raises QuantailorError."""
        del workspace
        check_ranges(self)

    def needs(self, workspace: Workspace) -> Needs:
        """What it needs of disk and memory at the least. Raises QuantailorError where `run` will say better what is wrong."""
        del workspace
        return Needs()


_KINDS: dict[str, type[Step[StepResult]]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStep(Step[Answer]):
    """A step that works on a model, which may still have to be downloaded."""

    model_option: ClassVar[str] = "base"
    """The option that names the model: a path, or ORG/NAME together with `hub`."""
    hub: HubModel | None = None
    """The repository that the model is in; None where it is a path."""
    compute: Compute = field(default_factory=Compute)

    def check(self, workspace: Workspace) -> None:
        """Where it is to be done, too. Raises ClusterError, OptionError, RpcError, NativeLibraryError."""
        super(ModelStep, self).check(workspace)
        check_devices(self.compute.devices)
        if self.compute.cluster is not None and self.compute.rpc:
            said = "--cluster and --rpc cannot be combined: an RPC server serves one process at a time"
            raise OptionError(said, remedy="Give one of them")
        if self.compute.cluster is not None:
            check_address(self.compute.cluster)
            Places.of(workspace.home.path, self.compute.cluster_paths)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedStep(ModelStep[Answer]):
    """A step that may use an importance matrix."""

    imatrix: str = AUTO
    """"auto" (the one of the model's own that saw most, if any), "none", "repo", or a file."""
    rounding: RoundingWish = "auto"
    """Whether errors of rounding are compensated; "auto" as the strategy or the weight errors that are there say, else plain."""
    covariances: str = AUTO
    """Of the inputs, for compensated rounding: "auto" (the newest of this model), "none", or a file."""


def kinds() -> Mapping[str, type[Step[StepResult]]]:
    """Every kind of step whose module is loaded, by name."""
    return _KINDS


def unit_of(stage: str) -> str:
    """What a stage counts; "" where no step says."""
    units = (item for units in ({"identify": "bytes"}, *(step.units for step in _KINDS.values())) for item in units.items())
    return next((unit for beginning, unit in units if stage.startswith(beginning)), "")


def to_json(step: Step[StepResult]) -> str:
    """The step's options; the same text for equal steps."""
    return json.dumps(dataclasses.asdict(step), sort_keys=True)  # type: ignore[call-overload]


@functools.cache
def _reader(step: type[Step[StepResult]]) -> TypeAdapter[Step[StepResult]]:
    """Made once a kind: making one takes longer than reading many jobs."""
    return TypeAdapter(step)


def from_json(kind: str, text: str) -> Step[StepResult]:
    """The step of a stored job. Raises JobError where a newer or damaged store holds something else."""
    try:
        return _reader(_KINDS[kind]).validate_json(text)
    except (KeyError, ValidationError) as error:
        raise JobError(
            f"this version cannot read what job kind {kind!r} was asked", remedy="Update Quantailor or remove the job"
        ) from error
