"""How fast work goes and how long it will still take, as a range.

The rate is units per second over the latest samples. The range comes from its spread: two standard errors of the
mean of the rates between samples, each weighted by its duration, and never less than 10 % either way, because the
work to come need not be like the work just done.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from itertools import pairwise

N_SAMPLES = 40
"""Samples kept; older ones no longer count."""
SAMPLE_GAP_S = 0.5
"""Samples are at least this far apart."""
MIN_INTERVALS = 3
"""No estimate before this many intervals."""
LEAST_SPREAD = 0.1
SLOWEST_SHARE = 0.25
"""The slow end of the range never falls below this share of the mean rate."""


@dataclass(frozen=True, slots=True)
class RateEstimate:
    """Units per second: the mean and the two ends of its range."""

    mean: float
    low: float
    high: float

    def seconds_for(self, units: float) -> tuple[float, float]:
        """The shortest and the longest time for so many units."""
        return max(0.0, units) / self.high, max(0.0, units) / self.low


class RateMeter:
    """Collects (time, units done) and estimates the rate."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=N_SAMPLES)

    def add(self, at: float, done: float) -> None:
        """Note the units done at a time in seconds; going back starts afresh."""
        if self._samples and done < self._samples[-1][1]:
            self._samples.clear()
        if not self._samples or at - self._samples[-1][0] >= SAMPLE_GAP_S:
            self._samples.append((at, done))

    def estimate(self) -> RateEstimate | None:
        """The recent rate, or None while too little is known."""
        points = list(self._samples)
        intervals = [(later[0] - earlier[0], later[1] - earlier[1]) for earlier, later in pairwise(points)]
        seconds = sum(duration for duration, _ in intervals)
        mean = sum(units for _, units in intervals) / seconds if seconds > 0 else 0.0
        if len(intervals) < MIN_INTERVALS or mean <= 0:
            return None
        variance = sum(duration * (units / duration - mean) ** 2 for duration, units in intervals) / seconds
        n_effective = seconds**2 / sum(duration**2 for duration, _ in intervals)
        standard_error = math.sqrt(variance / max(1.0, n_effective - 1.0))
        spread = max(2 * standard_error, LEAST_SPREAD * mean)
        return RateEstimate(mean, max(mean - spread, SLOWEST_SHARE * mean), mean + spread)
