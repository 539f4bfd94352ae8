"""How fast work of each kind went on this machine: what was recorded of earlier jobs, beside what a trial makes of the same work.

A ratio of both carries over to other models, as what a trial knows of the work (operations, weights, bytes) is in the expectation.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable

from quantailor.costs.machine import Range
from quantailor.costs.seconds import Seconds, added
from quantailor.costs.trial import TRIED_SPREAD
from quantailor.store import Pace

N_LATEST = 5
"""Runs of one kind that count: a machine is not always equally busy."""
LEAST_SECONDS = 0.5
"""Shorter work tells of starting up and little else."""


class Paces:
    """The latest first."""

    def __init__(self, paces: Iterable[Pace]) -> None:
        self._paces = [pace for pace in paces if pace.seconds >= LEAST_SECONDS and pace.expected_seconds > 0]

    def ratio(self, stages: Collection[str], n_threads: int) -> float | None:
        """Real over expected time of any of these stages, the median of the latest; None where nothing is known.

        Those with as many threads count, where there are any: several are rarely as much faster as they are many.
        """
        found = [pace for pace in self._paces if pace.stage in stages]
        alike = [pace for pace in found if pace.n_threads == n_threads] or found
        ratios = [pace.seconds / pace.expected_seconds for pace in alike[:N_LATEST]]
        return statistics.median(ratios) if ratios else None


PACE_SPREAD, OTHER_SPREAD = 1.3, 1.6
"""How far the ends of a range lie from its middle where such work was recorded, and where other work that runs the model was."""
RUNNING = ("imatrix", "calibrate", "probes", "mixes", "sweep", "verify")
"""What runs the model most of the time."""
COMPENSATED = ("measure", "probes", "mixes", "sweep", "build")
"""What takes longer where errors are compensated."""


def pace_name(stage: str, *, compensated: bool, on_gpu: bool) -> str:
    """Beneath what name a stage is remembered."""
    how = (" compensated" if compensated and stage in COMPENSATED else "", " on GPU" if on_gpu and stage in RUNNING else "")
    return stage + "".join(how)


def at_pace(
    paces: Paces,
    stage: str,
    seconds: Seconds,
    *,
    compensated: bool,
    n_threads: int,
    on_gpu: bool,
    work: Range = (0.0, 0.0),
    tried: float | None = None,
) -> Range:
    """What a stage takes, by what was recorded of such stages; of what runs the model, else of others, or of a trial of this very model.

    `seconds` are by the trial of the machine, for the least and the most `work`; `tried` is the time that this model took for a few
    tokens over what the trial of the machine makes of them.
    """
    own = paces.ratio([pace_name(stage, compensated=compensated, on_gpu=on_gpu)], n_threads)
    if own is not None:
        return _around(own * seconds.middle, work, (1 / PACE_SPREAD, PACE_SPREAD))
    names = {pace_name(name, compensated=each, on_gpu=on_gpu) for name in RUNNING for each in (False, True)}
    others = paces.ratio(names, n_threads)
    running, middle = seconds.running, Seconds(seconds.running).middle
    if others is not None:
        running = _around(others * middle, work, (1 / OTHER_SPREAD, OTHER_SPREAD))
    elif tried is not None:
        running = _around(tried * middle, work, TRIED_SPREAD)
    return added(running, seconds.beside)


def _around(middle: float, work: Range, spread: Range) -> Range:
    """A range around a middle; what differs in the amount of work differs beside."""
    differs = math.sqrt(work[1] / work[0]) if work[0] > 0 else 1.0
    return middle / differs * spread[0], middle * differs * spread[1]
