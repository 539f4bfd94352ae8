"""What a process of its own costs: `python -m benchmarks.apart`, part of `make bench`.

1. Starting it: the first call, and one that finds it waiting.
2. Probes there against probes here, with the same functions on the same mixes, in turns mix by mix so that both see the same machine.
"""

from __future__ import annotations

import argparse
import functools
import operator
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.setting import MODELS
from benchmarks.swap import PROBE_TYPE, Bench
from quantailor.analysis.scores.mix_scores import scoring_apart
from quantailor.processes import apart
from quantailor.records import Mix

GOAL_RATIO, GOAL_START_S = 1.05, 1.0
N_STARTS = 5
N_CALLS = 200


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _first_call() -> float:
    apart.close_idle()
    return seconds(lambda: apart.call(operator.add, 1, 1))


def _drain(items: Iterable[object]) -> None:
    for _ in items:
        pass


def probes(bench: Bench, n_rounds: int) -> tuple[float, float]:
    """Seconds of the same probes in a process of their own, and in this one."""
    there = here = 0.0
    options = (bench.path, bench.names, bench.tokens, bench.folder / "logp")
    with bench.scorer() as own, scoring_apart(*options, imatrix=None, n_threads=bench.n_threads) as other:
        own.prepare(bench.indexes)
        for number in range(n_rounds):
            for name in bench.names:
                mix = [Mix.of({name: PROBE_TYPE})]
                for is_other in (True, False) if number % 2 else (False, True):
                    took = seconds(functools.partial(_drain, (other if is_other else own).score(mix, bench.indexes)))
                    there, here = there + took * is_other, here + took * (not is_other)
    return there, here


def main() -> int:
    """Print the figures; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=2, help="how often each probe is taken")
    options = parser.parse_args()
    start = min(_first_call() for _ in range(N_STARTS))
    waiting = seconds(lambda: [apart.call(operator.add, 1, 1) for _ in range(N_CALLS)]) / N_CALLS
    print(f"first call {start:.2f} s (goal {GOAL_START_S}), the next {1000 * waiting:.2f} ms")
    missed = start > GOAL_START_S
    with tempfile.TemporaryDirectory() as name:
        for model in MODELS:
            bench = Bench(model, Path(name), options.threads)
            there, here = probes(bench, options.rounds)
            print(f"{model.name}: probes apart / here {there / here:.3f} (goal {GOAL_RATIO})", flush=True)
            missed |= there / here > GOAL_RATIO
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
