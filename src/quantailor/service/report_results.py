"""What the service answers where no job is needed: a strategy's prediction, reports, two models side by side."""

from __future__ import annotations

from dataclasses import dataclass

from quantailor.records import Estimate, Prediction


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one tensor adds to a strategy's sum of damages, nats."""

    tensor: str
    type_name: str
    damage: Estimate
    share: float


@dataclass(frozen=True, slots=True)
class PredictResult:
    """A strategy's KLD before it is built."""

    strategy: str
    prediction: Prediction
    kld_interval_80_nats: tuple[float, float] | None
    contributions: tuple[Contribution, ...]
    """The largest first."""
    n_mixes: int
    n_anchors: int


@dataclass(frozen=True, slots=True)
class ReportResult:
    """What was written about a model, and how much there was to tell."""

    model_name: str
    paths: tuple[str, ...]
    n_tensors: int
    n_probed: int
    n_cells: int
    n_mixes: int
    n_verdicts: int


@dataclass(frozen=True, slots=True)
class ProfileReport:
    """A role at a depth in two models: its share of the model's sensitivity and of its weights, 0 to 1."""

    role: str
    depth: str
    share_a: Estimate
    share_b: Estimate
    parameter_share_a: float
    parameter_share_b: float


@dataclass(frozen=True, slots=True)
class CompareResult:
    """The sensitivity profiles of two models."""

    models: tuple[str, str]
    paths: tuple[str, ...]
    profiles: tuple[ProfileReport, ...]
