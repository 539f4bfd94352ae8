"""What was measured of a model: errors of weights, probes and mixes, and what is drawn from them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its standard error (0 where nothing was estimated)."""

    value: float
    se: float = 0.0

    @property
    def relative_se(self) -> float:
        """The standard error as a share of the figure; 0 for a figure of 0."""
        return self.se / self.value if self.value > 0 else 0.0


@dataclass(frozen=True, slots=True)
class WeightError:
    """What one type does to one tensor; see METHODS 1 and `analysis.weight_errors.weight_error` for the definitions.

    A cell that cannot be measured has `unavailable` set and no figures. `n_rows_measured < n_rows_total`
    means sampled: then the `*_se` fields hold standard errors and `max_abs_error` is a lower bound.
    """

    tensor: str
    type_name: str
    size_bytes: int
    bits_per_weight: float
    n_rows_measured: int = 0
    n_rows_total: int = 0
    rmse: float | None = None
    max_abs_error: float | None = None
    relative_mse: float | None = None
    sqnr_db: float | None = None
    weighted_mse: float | None = None
    output_error: float | None = None
    output_mse: float | None = None
    """None where no input covariances were at hand."""
    rmse_se: float = 0.0
    relative_mse_se: float = 0.0
    weighted_mse_se: float = 0.0
    output_error_se: float = 0.0
    output_mse_se: float = 0.0
    error_quantiles: tuple[float, ...] = ()
    """p50, p90, p95, p99, p99.9 of abs(dW)."""
    error_quantiles_se: tuple[float, ...] = ()
    histogram: tuple[float, ...] = ()
    """64 bins of abs(dW), as shares of all weights; edges are `analysis.weight_errors.weight_error.HISTOGRAM_EDGES` x rms(W)."""
    n_unseen_experts: int = 0
    unavailable: str | None = None
    definition_version: int = 1

    @property
    def error(self) -> float | None:
        """What damages are reckoned from: `output_mse` where there is one, else `weighted_mse`."""
        return self.weighted_mse if self.output_mse is None else self.output_mse

    @property
    def error_se(self) -> float:
        """Standard error of `error`."""
        return self.weighted_mse_se if self.output_mse is None else self.output_mse_se

    @property
    def sampled(self) -> bool:
        return self.n_rows_measured < self.n_rows_total


@dataclass(frozen=True, slots=True)
class Mix:
    """Some tensors with the types they are to have; all others stay as they are."""

    id: str
    """"" for none, "NAME=TYPE" for a single tensor, else a hash: equal mixes have equal ids."""
    types: Mapping[str, str]

    @classmethod
    def of(cls, types: Mapping[str, str]) -> Mix:
        """A mix with its id; the order of the tensors does not count."""
        lines = sorted(f"{name}={type_name}" for name, type_name in types.items())
        if len(lines) > 1:
            digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
            return cls(f"mix:{digest[:32]}", dict(types))
        return cls("".join(lines), dict(types))


@dataclass(frozen=True, slots=True)
class SwapCell:
    """What one tensor at one type does to the model with all others as they are, over some chunks."""

    tensor: str
    type_name: str
    n_chunks: int
    kld: Estimate
    """Mean KL(base || model), nats; the standard error is over chunks."""
    perplexity: Estimate
    ln_ppl_ratio: Estimate
    """ln(PPL / PPL_base), paired by chunk."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """How much the weight error of one tensor matters: KLD = alpha x error + noise of its kernel (METHODS 4)."""

    tensor: str
    status: Literal["measured", "drowned", "not in the graph", "not probed"]
    """"drowned": its probes cannot be distinguished from the floor, and `alpha` is an upper bound. The last two have no probes, and
    `alpha` is what the others' probes and the weights tell of them."""
    alpha: Estimate
    """Nats per unit of `WeightError.error`."""
    noise: Mapping[int, float] = field(default_factory=dict)
    """Nats that the kernel's rounding of inputs costs, by `QType.activation_block` (32 or 256)."""
    group: str = ""
    """The tensors that were probed together with it; "" for a probe of its own."""
    probes: tuple[str, ...] = ()
    """Types it was probed at."""


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One whole mix that was measured: what was predicted for it, and what it is."""

    mix: str
    kind: Literal["memory", "file"]
    bits_per_weight: float
    damage_nats: float
    """The sum S of its tensors' damages, scaled as the curve says."""
    measured: Estimate
    """Mean KLD over the chunks, nats; the standard error is over sections of the text."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """The same sum by part of the model (`part_of`), what kernels cost apart (`KERNELS`), not scaled."""
    spread: float = 0.0
    """How far that sum may be off, relative, by what is not known of its tensors."""


@dataclass(frozen=True, slots=True)
class Curve:
    """From the sum of damages S to the KLD of a file: gamma (S + kappa S^2) + c0, fitted to measured mixes (METHODS 4)."""

    gamma: float
    kappa: float
    c0_nats: float
    residual_sd: float
    """Standard deviation of ln(measured / predicted) about the curve, what fitting it took off added again."""
    degrees_of_freedom: int
    points: tuple[CurvePoint, ...] = ()
    scales: Mapping[str, float] = field(default_factory=dict)
    """What the damages of each part of the model are multiplied by before they are added up."""
    covariance: tuple[tuple[float, ...], ...] = ()
    """Of what was fitted: ln gamma, kappa, and the logarithms of `scales` in their order."""
    text_sd: float = 0.0
    """Standard error of what all points have in common, relative: they were measured on a few chunks of one text."""
    n_chunks: int = 0
    """So many of them."""
    c0_se: float = 0.0
    """Its standard error."""
    unseen: Estimate = Estimate(0.0)
    """ln of how much more rounding weights costs on text that it was not fitted to than on the text of the points."""
    scatter_sd: float = 0.0
    """How far whole mixes lie from the curve, relative, beyond what is not known of their tensors."""
