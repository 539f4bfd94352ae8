"""What a process of its own costs: `python -m benchmarks.apart`, part of `make bench`.

1. Starting it: the first call, and one that finds it waiting.
2. Probes there against probes here, with the same functions on the same mixes, in turns mix by mix so that both see the same
   machine: processor time of both processes together, which other programs change little, and seconds that pass.
"""

from __future__ import annotations

import argparse
import operator
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from benchmarks.setting import MODELS
from benchmarks.swap import PROBE_TYPE, Bench
from quantailor.analysis.rounding.rounding import PLAIN
from quantailor.analysis.scores.mix_scores import MixWork, scoring_mixes
from quantailor.processes import apart
from quantailor.processes.crews import ModelFiles
from quantailor.records import Mix

GOAL_RATIO, GOAL_START_S = 1.05, 1.0
N_STARTS = 5
N_CALLS = 200


def seconds_of_calls(n_calls: int) -> float:
    """Seconds of so many calls that do nothing."""
    started = time.perf_counter()
    for _ in range(n_calls):
        apart.call(operator.add, 1, 1)
    return time.perf_counter() - started


def first_call() -> float:
    """Seconds of a call that finds no process waiting."""
    apart.close_idle()
    return seconds_of_calls(1)


def _taken(items: Iterable[object]) -> tuple[float, float]:
    """Processor time of this process and those it started, and seconds that pass, until all items are here."""
    processes = [psutil.Process(), *psutil.Process().children()]
    before, started = _processor_time(processes), time.perf_counter()
    for _ in items:
        pass
    return _processor_time(processes) - before, time.perf_counter() - started


def _processor_time(processes: Iterable[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(each.user + each.system for each in times)


def probes(bench: Bench, n_tensors: int, n_rounds: int) -> tuple[float, float]:
    """How many times as long as here the same probes take in a process of their own: processor time, seconds that pass."""
    totals = {True: [0.0, 0.0], False: [0.0, 0.0]}
    work = MixWork(ModelFiles(bench.path), frozenset(bench.names), bench.tokens, bench.folder / "logp", PLAIN, bench.n_threads)
    with bench.scorer() as own, scoring_mixes(work) as other:
        own.prepare(bench.indexes)
        for number in range(n_rounds):
            for name in bench.names[:: max(1, len(bench.names) // n_tensors)]:
                for is_other in (True, False) if number % 2 else (False, True):
                    scores = (other if is_other else own).score([Mix.of({name: PROBE_TYPE})], bench.indexes)
                    totals[is_other] = [sum(pair) for pair in zip(totals[is_other], _taken(scores), strict=True)]
    used, passed = (there / here for there, here in zip(totals[True], totals[False], strict=True))
    return used, passed


def main() -> int:
    """Print the figures; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--tensors", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2, help="how often each probe is taken")
    options = parser.parse_args()
    start = min(first_call() for _ in range(N_STARTS))
    print(f"first call {start:.2f} s (goal {GOAL_START_S}), the next {1000 * seconds_of_calls(N_CALLS) / N_CALLS:.2f} ms")
    missed = start > GOAL_START_S
    with tempfile.TemporaryDirectory() as name:
        for model in MODELS:
            used, passed = probes(Bench(model, Path(name), options.threads), options.tensors, options.rounds)
            print(f"{model.name}: probes apart / here {used:.3f} in processor time (goal {GOAL_RATIO}), {passed:.3f} in all", flush=True)
            missed |= used > GOAL_RATIO
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
