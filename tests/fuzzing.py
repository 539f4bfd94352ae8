"""How many cases a run takes, and which: few that change from day to day, or all of them with `make fuzz`."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence

LONG = bool(os.environ.get("QUANTAILOR_FUZZ_LONG"))
_SEED = "QUANTAILOR_FUZZ_SEED"


def choose_seed() -> None:
    """One seed for this process and all that it starts: a given one, else one of the run or of the day."""
    today = str(datetime.datetime.now(datetime.UTC).date().toordinal())
    os.environ.setdefault(_SEED, os.environ.get("GITHUB_RUN_ID") or today)


def seed() -> int:
    """The seed of this run; raises KeyError before `choose_seed`."""
    return int(os.environ[_SEED])


def how_to_repeat() -> str:
    """What to set for the same cases again."""
    return f"fuzzing: {'all' if LONG else 'some'} cases; {_SEED}={seed()} takes them again"


def seeds(n_all: int) -> list[int]:
    """So many seeds in a long run, one in a usual one."""
    return [seed() + number for number in range(n_all if LONG else 1)]


def n_cases(n_all: int, share: int) -> int:
    """How many of a long run's cases this run takes: in a usual run one of every `share`."""
    return n_all if LONG else n_all // share


def some(items: Sequence[int], most: int) -> list[int]:
    """All items of a long run or a short list; else the first, the last and evenly spaced ones, which rotate with the seed."""
    if LONG or len(items) <= most:
        return list(items)
    step = -(-(len(items) - 2) // (most - 2))
    return [items[0], *items[1 + seed() % step : -1 : step], items[-1]]
