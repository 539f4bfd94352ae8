"""A job that is killed at any moment goes on where it stopped and ends with the same store."""

import sys
import time
from pathlib import Path

import pytest
from kill_harness import kill_until_done

from quantailor.store import Store, first_difference

WORKER = Path(__file__).with_name("counting_worker.py")


def argv(folder: Path) -> list[str]:
    folder.mkdir(exist_ok=True)
    return [sys.executable, str(WORKER), str(folder / "quantailor.db"), str(folder / "journal")]


def unit_lines(folder: Path) -> list[str]:
    return (folder / "journal").read_text().splitlines()


def kill_at_random_moments(folder: Path, n_kills: int, first_seed: int) -> int:
    """Kill runs in fresh folders until there were `n_kills`; each must end like a run that was left alone."""
    begun = time.monotonic()
    kill_until_done(argv(folder / "alone"), longest_s=0, max_kills=0, seed=0)
    longest_s = time.monotonic() - begun
    kills, rounds = 0, 0
    while kills < n_kills:
        killed = folder / f"killed {rounds}"
        report = kill_until_done(argv(killed), longest_s=longest_s, max_kills=n_kills - kills, seed=first_seed + rounds)
        with Store(folder / "alone" / "quantailor.db") as alone, Store(killed / "quantailor.db") as resumed:
            assert first_difference(alone, resumed) is None
            assert [job.state for job in resumed.jobs.all()] == ["done"]
        units = unit_lines(killed)
        assert set(units) == set(unit_lines(folder / "alone"))
        assert len(units) - len(set(units)) <= report.n_kills
        kills, rounds = kills + report.n_kills, rounds + 1
    return kills


def test_two_kills_change_nothing_in_the_results(tmp_path: Path) -> None:
    assert kill_at_random_moments(tmp_path, 2, first_seed=100) == 2


@pytest.mark.slow
def test_thirty_kills_change_nothing_in_the_results(tmp_path: Path) -> None:
    assert kill_at_random_moments(tmp_path, 30, first_seed=200) == 30
