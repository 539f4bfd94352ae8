"""What spreading work over workers of Dask costs and brings: `python -m benchmarks.cluster`, part of `make bench`.

1. Passes that sleep, on one worker in a process of its own: what the driver takes beside them, in processor time per pass.
2. A plan of 1,000 tensors with three probes each on 64 workers that sleep for a pass's time: how much of the time they are busy. Their
   threads share one process with the scheduler and the driver, so that this is the least that separate ones would reach.
3. Probes of a model on one and on two workers of one thread: passes per second.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import distributed

from benchmarks.setting import MODELS
from benchmarks.sleeping import Sleeping, SleepingConnection
from benchmarks.swap import PROBE_TYPE, Bench
from quantailor.analysis.rounding.rounding import PLAIN
from quantailor.analysis.scores.mix_scores import MixWork, scoring_mixes
from quantailor.cluster import Listeners, Places, connected
from quantailor.cluster.arithmetic import arithmetic
from quantailor.cluster.crew import ClusterCrew
from quantailor.cluster.places import packed
from quantailor.cluster.worker import Order
from quantailor.control import QUIET
from quantailor.files import state_of
from quantailor.jobs import Home
from quantailor.models.identity import fingerprint
from quantailor.models.opening import model_files
from quantailor.processes.crews import Executor, ModelFiles
from quantailor.records import Mix
from quantailor.store import ClusterReport

GOAL_OVERHEAD_S, GOAL_BUSY, GOAL_SCALING = 0.005, 0.95, 1.8
N_TENSORS, N_PROBES, N_SLEEPERS = 1000, 3, 64


def _nothing(report: ClusterReport) -> None:
    del report


LISTENERS = Listeners(QUIET, print, _nothing)


@contextmanager
def workers(n: int, home: Path) -> Iterator[Executor]:
    """So many on this machine."""
    with connected(f"local:{n}", Places.of(home, ()), LISTENERS) as executor:
        yield executor


def overhead(executor: Executor, model: Path, n: int, seconds: float) -> float:
    """The driver's processor time per pass."""
    work = Sleeping(seconds, ModelFiles(model, state=state_of(model_files(model))))
    with executor.on(work) as crew:
        before = time.process_time()
        done = list(crew.do([(number, 0) for number in range(n)]))
        assert len(done) == n
        return (time.process_time() - before) / n


def busy_share(seconds: float, home: Path) -> float:
    """How much of the time 64 workers sleep while the plan is measured."""
    work = Sleeping(seconds, ModelFiles(home))
    order = Order("sleeping", packed(work), Places.of(home, ()), arithmetic())
    with (
        distributed.LocalCluster(
            n_workers=N_SLEEPERS, processes=False, threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
        SleepingConnection(client, f"local:{N_SLEEPERS}", seconds) as connection,
    ):
        crew = ClusterCrew(connection, work, order, LISTENERS)
        crew.gather()
        for _ in crew.do([(-1, number) for number in range(4 * N_SLEEPERS)]):
            pass  # until all have joined
        started = time.perf_counter()
        done = list(crew.do([(tensor, probe) for tensor in range(N_TENSORS) for probe in range(N_PROBES)]))
        took = time.perf_counter() - started
    assert len(done) == N_TENSORS * N_PROBES
    return len(done) * seconds / (N_SLEEPERS * took)


def passes_per_second(bench: Bench, executor: Executor, indexes: Sequence[int]) -> float:
    """Of probes, once workers have loaded the model and run the base."""
    files = ModelFiles(bench.path, fingerprint(bench.source), state_of(model_files(bench.path)))
    work = MixWork(files, frozenset(bench.names), bench.tokens, Home(bench.folder).base_logp, PLAIN, n_threads=1)
    mixes = [Mix.of({name: PROBE_TYPE}) for name in bench.names]
    with scoring_mixes(work, executor) as scorer:
        for _ in scorer.score(mixes[:8], indexes):
            pass
        started = time.perf_counter()
        n = sum(1 for _ in scorer.score(mixes, indexes))
        return n / (time.perf_counter() - started)


def main() -> int:
    """Print the figures; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pass-seconds", type=float, default=2.0, help="how long a pass of the simulation sleeps")
    parser.add_argument("--only", choices=("overhead", "busy", "scaling"), default=None)
    options = parser.parse_args()
    missed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench = Bench(MODELS[0], folder, 1)
        if options.only in (None, "overhead"):
            with workers(1, folder) as executor:
                each = overhead(executor, bench.path, 2000, 0.005)
            print(f"driver: {1000 * each:.2f} ms per pass (goal {1000 * GOAL_OVERHEAD_S:g})", flush=True)
            missed |= each > GOAL_OVERHEAD_S
        if options.only in (None, "busy"):
            share = busy_share(options.pass_seconds, folder)
            print(
                f"{N_SLEEPERS} workers, {N_TENSORS * N_PROBES} passes of {options.pass_seconds} s: busy {share:.3f} (goal {GOAL_BUSY})",
                flush=True,
            )
            missed |= share < GOAL_BUSY
        if options.only in (None, "scaling"):
            rates = []
            for n in (1, 2):
                with workers(n, folder) as executor:
                    rates.append(passes_per_second(bench, executor, bench.indexes[:2]))
            print(
                f"passes per second: {rates[0]:.2f} on one worker, {rates[1]:.2f} on two, {rates[1] / rates[0]:.2f} x (goal {GOAL_SCALING})"
            )
            missed |= rates[1] < GOAL_SCALING * rates[0]
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
