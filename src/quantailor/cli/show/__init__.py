"""Results as tables and sentences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from quantailor.app.steps import (
    BuildReport,
    CalibrateReport,
    ConvertResult,
    ImatrixReport,
    LadderResult,
    MakeResult,
    MeasureResult,
    ProbeResult,
    RefineResult,
    SpeedResult,
    StepResult,
    StudyResult,
    SweepResult,
    VerifyResult,
)
from quantailor.cli.output import console
from quantailor.cli.show.choosing import compared, planned, predicted, refined, reported
from quantailor.cli.show.files import built, converted, laddered, made, verified
from quantailor.cli.show.job_table import job, jobs
from quantailor.cli.show.measuring import calibrated, imatrix, measured, probed, studied, swept, timed
from quantailor.cli.show.structure import configuration, model, tensors
from quantailor.cli.show.text import plain

SHOW: dict[type, Callable[[Any], None]] = {
    ConvertResult: converted,
    ImatrixReport: imatrix,
    CalibrateReport: calibrated,
    MeasureResult: measured,
    ProbeResult: probed,
    SweepResult: swept,
    SpeedResult: timed,
    StudyResult: studied,
    RefineResult: refined,
    BuildReport: built,
    VerifyResult: verified,
    MakeResult: made,
    LadderResult: laddered,
}


def result(value: StepResult) -> None:
    """Whatever a step answered: as its kind is shown, else field by field."""
    SHOW.get(type(value), _fields)(value)
    if value.origin:
        console().print(f"model     {value.origin}")


def _fields(value: StepResult) -> None:
    items = [(item.name.replace("_", " "), getattr(value, item.name)) for item in fields(value) if item.name != "origin"]
    width = max((len(name) for name, _ in items), default=0)
    for name, figure in items:
        console().print(f"{name:{width}}  {figure}", markup=False)
