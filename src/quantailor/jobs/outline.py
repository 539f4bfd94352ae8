"""A job as a whole: which phases it has, what each is expected to take, and from that how far the job is and how long it will take.

A phase is expected to take what was estimated before the job began, times how much longer than estimated phases of the same kind have
taken so far, until it tells by itself: from its stage's rate, or, where it has several stages that count the same thing, from the time
that what is done took. Where a moment is set at which measuring ends, no phase that ends there is expected to go beyond. The share that
is done is that of the time, and never falls.

At its end an outline tells what each kind of work took beside what a trial of the machine had expected, for the estimates of later jobs.
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
OTHER_SPREAD = 0.25
"""The same of a phase that has not begun, where others of its kind tell how fast the machine is."""
LEAST_SHARE = 0.03
"""A phase that counts nothing tells nothing of its kind before so much of it is done."""
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
    kind: str = ""
    """Phases of one kind are slow or fast together; "" for one that is like no other."""
    pace: str = ""
    """Beneath what name it is remembered how long it took; "" for not at all."""
    trial_seconds: float = 0.0
    """What a trial of the machine alone makes of it."""
    counted: float = 0.0
    """Of how many units of its stages; 0 where that is known of all of it alone."""

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
    has_begun: bool = False
    """Whether one of its stages has."""

    @property
    def units(self) -> float:
        return self.finished_units + self.stage_units


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
        seen.finished_units, seen.stage_units = seen.units, 0.0
        self._stage, self._counts = name, counts
        self._at = next((number for number, phase in enumerate(self._phases) if phase.has(name)), self._at)
        if self._phases[self._at].has(name):
            self._seen[self._at].has_begun = True

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

    def took(self, now: float, *, has_ended: bool) -> list[tuple[str, float, float]]:
        """What is worth remembering: (pace, seconds by the trial, seconds) of what was done of each phase."""
        self._spend(now)
        found = []
        for number, (phase, seen) in enumerate(zip(self._phases, self._seen, strict=True)):
            share = seen.units / phase.counted if phase.counted else float(has_ended or number < self._at)
            if phase.pace and seen.has_begun and share * phase.trial_seconds > 0:
                found.append((phase.pace, share * phase.trial_seconds, seen.spent))
        return found

    def _spend(self, now: float) -> None:
        self._seen[self._at].spent += now - self._last
        self._last = now

    def _least_left_of(self, number: int) -> float:
        """Seconds of what is done whatever the limit is."""
        phase, seen = self._phases[number], self._seen[number]
        done = seen.units
        each = seen.spent / done if done >= LEAST_UNITS else phase.seconds[0] / max(1.0, phase.units[0])
        return max(0.0, phase.least - done) * each

    def _slowness(self, kind: str, stage_left: Span | None) -> float | None:
        """How much longer than expected what is done of phases of a kind has taken; None where that is too little."""
        spent = expected = 0.0
        for number, (phase, seen) in enumerate(zip(self._phases, self._seen, strict=True)):
            if kind and phase.kind == kind and seen.has_begun and seen.spent >= LEAST_SECONDS:
                share = self._share_done(number, stage_left)
                spent, expected = spent + seen.spent * (share > 0), expected + share * sum(phase.seconds) / 2
        return spent / expected if expected > 0 else None

    def _share_done(self, number: int, stage_left: Span | None) -> float:
        """Of a phase that has begun; 0 where too little is done to tell."""
        phase, seen = self._phases[number], self._seen[number]
        if phase.units[1]:
            return 2 * seen.units / sum(phase.units) if seen.units >= LEAST_UNITS else 0.0
        if number < self._at:
            return 1.0
        if self._stage != phase.name or stage_left is None:
            return 0.0
        share = seen.spent / (seen.spent + sum(stage_left) / 2)
        return share if share >= LEAST_SHARE else 0.0

    def _expected(self, number: int, stage_left: Span | None) -> Span:
        """All of a phase, by the estimate and by what others of its kind have shown."""
        phase = self._phases[number]
        slowness = self._slowness(phase.kind, stage_left)
        if slowness is None:
            return phase.seconds
        middle = slowness * sum(phase.seconds) / 2
        fewest, most = (2 * units / sum(phase.units) for units in phase.units) if phase.units[1] else (1.0, 1.0)
        return middle * fewest * (1 - OTHER_SPREAD), middle * most * (1 + OTHER_SPREAD)

    def _left_of(self, number: int, stage_left: Span | None) -> Span:
        phase, seen = self._phases[number], self._seen[number]
        alternates = phase.is_limited and self._phases[self._at].is_limited
        if number < self._at and not alternates:
            return 0.0, 0.0
        if phase.units[1]:
            if seen.units >= LEAST_UNITS and seen.spent >= LEAST_SECONDS:
                each = seen.spent / seen.units
                fewest, most = (max(0.0, units - seen.units) * each for units in phase.units)
                return fewest * (1 - SPREAD), most * (1 + SPREAD)
        elif number == self._at and self._stage == phase.name and stage_left is not None:
            return stage_left
        low, high = self._expected(number, stage_left)
        over = seen.spent if seen.spent > high else 0.0
        return max(low - seen.spent, OVERTIME[0] * over), max(high - seen.spent, OVERTIME[1] * over)
