"""A job that is killed at any commit goes on where it stopped and ends with the same store."""

import os
from pathlib import Path

import pytest

import fuzzing
from faults import MOST_MOMENTS, Forked
from quantailor.store import Store
from stores import first_difference

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")


def count_in(forked: Forked, folder: Path, stop_at: int | None = None) -> list[str]:
    """Run the counting job in a folder; the moments at which it could have been killed."""
    folder.mkdir(exist_ok=True)
    ended = forked.run(folder / "quantailor.db", folder / "journal", function="counting_worker:count", stop_at=stop_at)
    assert ended.code == 0 if stop_at is None else ended.stopped_at(stop_at), ended
    return ended.moments


def unit_lines(folder: Path) -> list[str]:
    return (folder / "journal").read_text().splitlines()


@pytest.mark.slow
def test_kills_change_nothing_in_the_results(forked: Forked, tmp_path: Path) -> None:
    """Runs in fresh folders, each killed at one moment; each must end like a run that was left alone."""
    n_moments = len(count_in(forked, tmp_path / "alone"))
    assert n_moments > 180, "a commit for each of 90 units"
    for moment in fuzzing.some(range(n_moments), MOST_MOMENTS):
        killed = tmp_path / f"killed {moment}"
        count_in(forked, killed, moment)
        count_in(forked, killed)
        with Store(tmp_path / "alone" / "quantailor.db") as alone, Store(killed / "quantailor.db") as resumed:
            assert first_difference(alone, resumed) is None
            assert [job.state for job in resumed.jobs.all()] == ["done"]
        units = unit_lines(killed)
        assert set(units) == set(unit_lines(tmp_path / "alone"))
        assert len(units) - len(set(units)) <= 1


@pytest.mark.slow
def test_killed_again_and_again_it_still_ends(forked: Forked, tmp_path: Path) -> None:
    """Each run gets a little further than the one before."""
    n_moments = len(count_in(forked, tmp_path / "alone"))
    for _ in range(6):
        count_in(forked, tmp_path / "killed", n_moments // 8)
    count_in(forked, tmp_path / "killed")
    with Store(tmp_path / "alone" / "quantailor.db") as alone, Store(tmp_path / "killed" / "quantailor.db") as resumed:
        assert first_difference(alone, resumed) is None
