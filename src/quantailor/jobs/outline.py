"""A job as a whole: which phases it has, what each is expected to take, and from that how far the job is and how long it will take.

A phase is expected to take what was estimated before the job began, until it tells by itself: from its stage's rate, or, where it has
several stages that count the same thing, from the time that what is done took. Where a moment is set at which measuring ends, no phase
that ends there is expected to go beyond. The share that is done is that of the time, and never falls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Span = tuple[float, float]
"""Seconds, or units of work: at the least and at the most."""
LEAST_SECONDS = 2.0
"""A phase tells nothing of its speed before."""
LEAST_UNITS = 8.0
SPREAD = 0.15
"""How far what is left may differ from what was done."""
OVERTIME: Span = (0.05, 0.5)
"""A phase that took longer than expected is expected to take such shares of its time in addition."""
ALMOST = 0.999


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a job, or a share of one, before it begins."""

    name: str
    seconds: Span
    units: Span = (0.0, 0.0)
    """What its stages count together; (0, 0) where a single stage tells how far the phase is."""
    stages: tuple[str, ...] = ()
    """How the names of its stages begin, beside its own name."""
    is_limited: bool = False
    """Whether a limit ends it; such phases take turns."""
    least: float = 0.0
    """Units that are done all the same."""

    def has(self, stage: str) -> bool:
        """Whether a stage of that name belongs to it."""
        return stage == self.name or any(stage.startswith(beginning) for beginning in self.stages)


@dataclass(slots=True)
class _Seen:
    """What is known of a phase that has begun."""

    spent: float = 0.0
    finished_units: float = 0.0
    """Of stages that have ended."""
    stage_units: float = 0.0
    """Of the present one."""


class Outline:
    """Follows a job through its phases. `now` is in seconds that only grow."""

    def __init__(self, phases: Sequence[Phase], now: float) -> None:
        self._phases = tuple(phases)
        self._seen = [_Seen() for _ in phases]
        self._at, self._began, self._last = 0, now, now
        self._stage, self._counts = "", False
        self._moment: float | None = None
        self._share = 0.0

    def until(self, moment: float) -> None:
        """Measuring ends then."""
        self._moment = moment

    def stage(self, name: str, now: float, *, counts: bool) -> None:
        """A stage begins; `counts` says whether it counts what its phase does."""
        self._spend(now)
        seen = self._seen[self._at]
        seen.finished_units, seen.stage_units = seen.finished_units + seen.stage_units, 0.0
        self._stage, self._counts = name, counts
        self._at = next((number for number, phase in enumerate(self._phases) if phase.has(name)), self._at)

    def advance(self, done: float, now: float) -> None:
        """The present stage is so far."""
        self._spend(now)
        if self._counts and self._phases[self._at].has(self._stage):
            seen = self._seen[self._at]
            if done < seen.stage_units:  # a stage may run several times over
                seen.finished_units += seen.stage_units
            seen.stage_units = done

    def left(self, now: float, stage_left: Span | None) -> Span:
        """Seconds until the job ends; `stage_left` as the present stage tells by itself."""
        self._spend(now)
        low = high = 0.0
        for number, phase in enumerate(self._phases):
            one = self._left_of(number, stage_left)
            if self._moment is not None and phase.is_limited:
                rest = max(0.0, self._moment - now)
                least = self._least_left_of(number)
                low, high = max(low + least, min(low + one[0], rest)), max(high + least, min(high + one[1], rest))
            else:
                low, high = low + one[0], high + one[1]
        return low, high

    def share(self, now: float, left: Span) -> float:
        """How much of the job's time is over, 0 to 1."""
        elapsed, middle = now - self._began, (left[0] + left[1]) / 2
        if elapsed > 0:
            self._share = max(self._share, min(ALMOST, elapsed / (elapsed + middle)))
        return self._share

    def _spend(self, now: float) -> None:
        self._seen[self._at].spent += now - self._last
        self._last = now

    def _least_left_of(self, number: int) -> float:
        """Seconds of what is done whatever the limit is."""
        phase, seen = self._phases[number], self._seen[number]
        done = seen.finished_units + seen.stage_units
        each = seen.spent / done if done >= LEAST_UNITS else phase.seconds[0] / max(1.0, phase.units[0])
        return max(0.0, phase.least - done) * each

    def _slowness(self) -> float | None:
        """How much longer than expected units have taken so far, over all phases that count them; None where too few are done."""
        spent = expected = done = 0.0
        for phase, seen in zip(self._phases, self._seen, strict=True):
            if phase.units[1]:
                units = seen.finished_units + seen.stage_units
                spent, done = spent + seen.spent, done + units
                expected += units * sum(phase.seconds) / sum(phase.units)
        return spent / expected if done >= LEAST_UNITS and spent >= LEAST_SECONDS and expected > 0 else None

    def _left_of(self, number: int, stage_left: Span | None) -> Span:
        phase, seen = self._phases[number], self._seen[number]
        alternates = phase.is_limited and self._phases[self._at].is_limited
        if number < self._at and not alternates:
            return 0.0, 0.0
        if number > self._at and not seen.spent:
            low, high = phase.seconds
            slowness = self._slowness() if phase.units[1] else None
            middle = (low + high) / 2 * (slowness or 1.0)
            return (low, high) if slowness is None else (middle * (1 - SPREAD), middle * (1 + SPREAD))
        if phase.units[1]:
            done = seen.finished_units + seen.stage_units
            if done >= LEAST_UNITS and seen.spent >= LEAST_SECONDS:
                each = seen.spent / done
                fewest, most = (max(0.0, units - done) * each for units in phase.units)
                return fewest * (1 - SPREAD), most * (1 + SPREAD)
        elif number == self._at and self._stage == phase.name and stage_left is not None:
            return stage_left
        over = seen.spent if seen.spent > phase.seconds[1] else 0.0
        return max(phase.seconds[0] - seen.spent, OVERTIME[0] * over), max(phase.seconds[1] - seen.spent, OVERTIME[1] * over)
