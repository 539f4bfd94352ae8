"""Commands on real workers: what they find is what one process finds, row for row, whoever dies meanwhile."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks.cluster import passes_per_second, workers
from benchmarks.setting import MODELS
from benchmarks.swap import Bench
from real_workers import Words, cluster, fill_disk, result, start, wait_until

import fuzzing
from quantailor.store import Store
from small_base import write_small_base
from stores import first_difference

pytestmark = pytest.mark.slow

FAILURES: dict[str, Callable[[int], None]] = {
    "killed": lambda process: os.kill(process, signal.SIGKILL),
    "stopped": lambda process: os.kill(process, signal.SIGSTOP),
    "full": fill_disk,
}
TYPES = "Q2_K,Q4_K,Q6_K,Q8_0"
FEW: Words = ("--group", "role", "--probe-chunks", 1, "--imatrix-chunks", 2, "--chunks", 2)
MAKE: Words = ("--types", TYPES, "--bpw", 5, "--against", "Q4_K_M", *FEW)
EVALS: Words = ("--eval", "greedy", "--prompts", 4)
"""They run on this machine whoever does the rest."""


@pytest.fixture(scope="session")
def base(share: Callable[..., Path]) -> Path:
    return share("spread-base", lambda folder: write_small_base(folder / "base.gguf")) / "base.gguf"


@pytest.fixture(scope="session")
def text(share: Callable[..., Path], calibration_text: Path) -> Path:
    short = calibration_text.read_text(encoding="utf-8")[:6_000]
    return share("spread-text", lambda folder: (folder / "short.txt").write_text(short, encoding="utf-8")) / "short.txt"


def swept(base: Path, text: Path) -> Words:
    return ("sweep", base, "-f", text, "--n-ctx", 64, "--types", TYPES, "--chunks", 12, "--threads", 1)


@pytest.fixture(scope="session")
def measured(base: Path, share: Callable[..., Path]) -> Path:
    """A home in which weight errors are measured, to copy."""

    def make(folder: Path) -> None:
        result(start(folder / "home", "measure", base, "--types", TYPES, "--threads", 1))

    return share("spread-measured", make) / "home"


@pytest.fixture(scope="session")
def alone(base: Path, text: Path, measured: Path, share: Callable[..., Path]) -> Path:
    """The home of a sweep that one process made."""

    def make(folder: Path) -> None:
        result(start(shutil.copytree(measured, folder / "home"), *swept(base, text)))

    return share("spread-alone", make) / "home"


@pytest.fixture
def home(measured: Path, tmp_path: Path) -> Path:
    return shutil.copytree(measured, tmp_path / "home")


def same_rows(home: Path, other: Path) -> str | None:
    with Store(home / "quantailor.db") as one, Store(other / "quantailor.db") as two:
        return first_difference(one, two)


def n_scores(home: Path) -> int:
    with Store(home / "quantailor.db") as store:
        return len(store.result_rows()["mix_scores"])


def n_measured(home: Path) -> int:
    """Scores that workers of the last job gave back, twice given ones included."""
    workers = result(start(home, "jobs", "show", 2))["cluster"]["workers"]
    return sum(each["n_done"] for each in workers)


@pytest.mark.long
def test_make_on_two_workers_is_make(base: Path, text: Path, tmp_path: Path) -> None:
    made = {}
    for name, words in (("one", ()), ("two", ("--cluster", "local:2"))):
        folder = tmp_path / name
        command = start(folder / "home", "make", base, "-f", text, *MAKE, *EVALS, "--threads", 1, "-o", folder / "out", *words)
        made[name] = result(command)
    assert same_rows(tmp_path / "one" / "home", tmp_path / "two" / "home") is None
    for pattern in ("out/*.gguf", "out/strategy.yaml", "out/verdict.json"):
        ours, theirs = (sorted((tmp_path / name).glob(pattern)) for name in made)
        assert [path.name for path in ours] == [path.name for path in theirs] != []
        assert all(one.read_bytes() == two.read_bytes() for one, two in zip(ours, theirs, strict=True)), pattern
    assert made["one"]["verify"]["verdict"]["evals"][0]["n_items"] == 4
    assert made["one"]["verify"]["verdict"] == made["two"]["verify"]["verdict"]


def test_jobs_show_the_workers(base: Path, text: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with cluster(tmp_path / "cluster", 1) as dask:
        result(start(home, "measure", base, "--types", TYPES, "--threads", 1, "--cluster", dask.address))
    shown = result(start(home, "jobs", "show", 1))
    assert shown["cluster"]["address"] == dask.address
    (worker,) = shown["cluster"]["workers"]
    assert (worker["state"], worker["n_done"] > 0, worker["per_second"] > 0) == ("ready", True, True)


@pytest.mark.long
@pytest.mark.parametrize("number", range(10 if fuzzing.LONG else 1))
@pytest.mark.parametrize("what", ["killed", "stopped", "full"])
def test_chaos_a_worker_that_fails_at_any_moment_changes_nothing(
    what: str, number: int, alone: Path, measured: Path, home: Path, base: Path, text: Path, tmp_path: Path
) -> None:
    moments = random.Random(f"{what} {fuzzing.seed() + number}")
    with cluster(tmp_path / "cluster", 2) as dask:
        command = start(home, *swept(base, text), "--cluster", dask.address)
        n_before = moments.randrange(300)
        wait_until(lambda: n_scores(home) >= n_before or command.poll() is not None)
        time.sleep(moments.random() * 0.3)
        FAILURES[what](moments.choice(dask.workers).pid)
        result(command)
    assert same_rows(alone, home) is None
    assert n_measured(home) == n_scores(home) - n_scores(measured), "what came back was measured once"


@pytest.mark.parametrize("number", range(5 if fuzzing.LONG else 1))
def test_chaos_a_scheduler_that_dies_pauses_the_job_and_it_goes_on(
    number: int, alone: Path, home: Path, base: Path, text: Path, tmp_path: Path
) -> None:
    moments = random.Random(f"scheduler {fuzzing.seed() + number}")
    with cluster(tmp_path / "cluster", 2) as dask:
        command = start(home, *swept(base, text), "--cluster", dask.address)
        n_before = moments.randrange(1, 200)
        wait_until(lambda: n_scores(home) >= n_before or command.poll() is not None)
        dask.end()
        out, err = command.communicate(timeout=120)
        assert command.returncode != 0
        assert "does not answer" in out + err
        assert result(start(home, "jobs", "show", 2))["state"] == "paused"
        n_kept = n_scores(home)
        dask.start_scheduler()
        dask.add_worker()
        assert n_kept > 0
        result(start(home, "jobs", "resume", 2))
    assert same_rows(alone, home) is None


def test_the_benchmark_measures_passes_on_workers(tmp_path: Path) -> None:
    bench = Bench(MODELS[0], tmp_path, 1)
    bench.names = bench.names[:9]
    with workers(1, tmp_path) as executor:
        assert passes_per_second(bench, executor, bench.indexes[:1]) > 0
