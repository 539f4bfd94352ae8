"""The steps that a job can run, with their options and results; importing this makes every kind known."""

from __future__ import annotations

import importlib.metadata

from quantailor.analysis.scores.resting import Rest
from quantailor.evidence.measurements import usual_types
from quantailor.evidence.recipes import reference_of
from quantailor.evidence.speed_limits import speed_asked
from quantailor.ggml import library
from quantailor.models.hub import find_token
from quantailor.models.upstream import ProjectorType, ProjectorWish
from quantailor.pipeline import (
    LEVEL_SETTINGS,
    LEVELS,
    NAME,
    LadderResult,
    LadderStep,
    Level,
    MakeResult,
    MakeStep,
    StudyResult,
    StudyStep,
)
from quantailor.qtypes import IMATRIX_REQUIRED, UNQUANTIZED
from quantailor.records import RoundingWish, SpeedOf
from quantailor.session import AUTO, NONE
from quantailor.steps.build import BuildReport, BuildStep
from quantailor.steps.calibration.calibrate import CalibrateReport, CalibrateStep
from quantailor.steps.calibration.imatrix import ImatrixReport, ImatrixStep, use_imatrix
from quantailor.steps.checks.ranges import RANGES
from quantailor.steps.conversion.convert import ConversionOffer, ConvertResult, ConvertStep, conversion_offer
from quantailor.steps.conversion.projector import Projector
from quantailor.steps.hub.download import DownloadResult, DownloadStep, cached_model, shipped_imatrix
from quantailor.steps.hub.publish import PublishResult, PublishStep
from quantailor.steps.measure import MeasureResult, MeasureStep
from quantailor.steps.options import (
    COMPUTE,
    DEFAULT_N_CTX,
    N_PROMPTS,
    REPO,
    Compute,
    Conversion,
    Evals,
    HubModel,
    Way,
    absolute,
    eval_names,
)
from quantailor.steps.plan import BasisWish, Limits, Method, PlanOptions, PlanResult, Target, like_target, plan
from quantailor.steps.probe import (
    DEFAULT_ANCHORS,
    DEFAULT_MIXES,
    DEFAULT_PROBE_CHUNKS,
    TIMED_EFFORT,
    USUAL_EFFORT,
    Grouping,
    ProbeResult,
    ProbeStep,
    effort,
)
from quantailor.steps.refine import DEFAULT_REFINE_CHUNKS, RefineResult, RefineStep
from quantailor.steps.speed import DEFAULT_MIXES as DEFAULT_TIMED_MIXES
from quantailor.steps.speed import SpeedResult, SpeedStep
from quantailor.steps.step import Step, StepResult, kinds
from quantailor.steps.sweep import DEFAULT_SWEEP_CHUNKS, SweepCellReport, SweepResult, SweepStep
from quantailor.steps.verify import VerifyResult, VerifyStep
from quantailor.strategy.file import dumps as strategy_text
from quantailor.strategy.file import write as save_strategy


def type_bits() -> dict[str, float]:
    """Every ggml type with its bits per weight, from most to fewest."""
    return {name: qtype.bits_per_weight for name, qtype in sorted(library.types().items(), key=lambda item: -item[1].bits_per_weight)}


def version() -> str:
    """The installed version."""
    return importlib.metadata.version("quantailor")
