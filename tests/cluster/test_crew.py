"""The driver of a cluster: every task is done once, whatever workers do; and what it says of them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from made_up_workers import Driven, MadeUp, MadeUpConnection
from toy_work import Square, Squares

from quantailor.control import NullControl
from quantailor.errors import ClusterError, Paused
from quantailor.processes.crews import ModelFiles

N = 200
ALL = [(number, number * number) for number in range(N)]


def driven(*workers: MadeUp, lost_at: float = float("inf"), group_size: int = 4) -> Driven:
    named = {f"tcp://10.0.0.{number}:1": each for number, each in enumerate(workers)}
    return Driven(MadeUpConnection(named, lost_at=lost_at), Squares(ModelFiles(Path("model.gguf")), group_size=group_size))


def test_workers_share_the_tasks_and_a_faster_one_does_more() -> None:
    slow, fast = MadeUp(seconds=0.4), MadeUp(seconds=0.1)
    run = driven(slow, fast)
    assert sorted(run.squares(N)) == ALL
    assert len(slow.done) + len(fast.done) == N
    assert 3 < len(fast.done) / len(slow.done) < 5
    assert run.warnings == []
    named = {each.name: each for each in run.reports[-1].workers}
    assert named["tcp://10.0.0.0:1"].per_second == pytest.approx(2.5)
    assert [each.is_slow for each in run.reports[-1].workers] == [True, False]


def test_a_worker_keeps_to_its_group_until_others_have_nothing_left() -> None:
    workers = [MadeUp(seconds=3.0) for _ in range(3)]
    run = driven(*workers, group_size=8)
    run.squares(48)
    for each in workers:
        groups = [number // 8 for number in each.done]
        changes = sum(one != other for one, other in itertools.pairwise(groups))
        assert changes <= 3, "a mix is not set again for each chunk"


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (MadeUp(seconds=0.1, dies=1.0), "is gone"),
        (MadeUp(seconds=0.1, stops=1.0), "gives no sign of life"),
        (MadeUp(seconds=0.1, hangs_at=frozenset(range(4, N))), "does not finish"),
        (MadeUp(seconds=0.1, fails_always=True), "failed 3 times in a row"),
    ],
)
def test_what_a_broken_worker_has_goes_to_others(broken: MadeUp, words: str) -> None:
    good = MadeUp(seconds=0.1)
    run = driven(broken, good)
    assert sorted(run.squares(N)) == ALL
    assert any(words in line and "10.0.0.0" in line for line in run.warnings), run.warnings
    assert good.done.count(0) <= 1
    assert len(good.done) == len(set(good.done)), "nothing is done twice by one that works"


def test_a_task_that_fails_is_done_elsewhere_and_what_was_done_before_it_counts() -> None:
    one, other = MadeUp(seconds=0.1, fails_at=frozenset({6, 90})), MadeUp(seconds=0.1)
    run = driven(one, other)
    assert sorted(run.squares(N)) == ALL
    assert {6, 90}.isdisjoint(one.done)
    assert len(one.done) + len(other.done) == N, "no other task was done twice"


def test_after_three_failures_the_job_ends_with_the_workers_words() -> None:
    run = driven(*(MadeUp(seconds=0.1, fails_at=frozenset({7})) for _ in range(4)))
    with pytest.raises(ClusterError, match="number 7 failed 3 times") as caught:
        run.squares(N)
    assert "7 gives NaN" in str(caught.value)
    assert str(caught.value).count("10.0.0.") == 3, "each time elsewhere"


def test_one_that_was_started_anew_is_set_up_again() -> None:
    again = MadeUp(seconds=0.1, forgets=2.0)
    run = driven(again)
    assert sorted(run.squares(N)) == ALL
    assert again.holds


def test_late_workers_help() -> None:
    late = MadeUp(seconds=0.1, joins=3.0)
    assert sorted(driven(MadeUp(seconds=0.1), late).squares(N)) == ALL
    assert len(late.done) > N / 3


def test_a_worker_that_rounds_otherwise_is_refused_by_name_and_others_go_on() -> None:
    run = driven(MadeUp(refuses="has llama-cpp-python 0.3.40, and this machine llama-cpp-python 0.3.36"), MadeUp())
    assert sorted(run.squares(20)) == ALL[:20]
    (line,) = run.warnings
    assert line.startswith("worker tcp://10.0.0.0:1 on shelf has llama-cpp-python 0.3.40")
    assert [each.state for each in run.reports[-1].workers] == ["refused", "ready"]


def test_one_that_runs_the_model_otherwise_is_refused() -> None:
    run = driven(MadeUp(), MadeUp(facts="cubes"))
    assert sorted(run.squares(20)) == ALL[:20]
    assert "differently from the first" in run.warnings[0]


def test_with_nobody_fit_the_job_ends_in_words() -> None:
    with pytest.raises(ClusterError, match=r"no worker at tcp://127.0.0.1:8786 can take part: .* model.gguf is not there"):
        driven(MadeUp(refuses="says: model.gguf is not there")).squares(3)
    with pytest.raises(ClusterError, match=r"there are no workers at .* `dask worker tcp://127.0.0.1:8786`"):
        driven().squares(3)


def test_without_a_scheduler_or_any_worker_the_job_pauses() -> None:
    with pytest.raises(Paused, match="does not answer"):
        driven(MadeUp(), lost_at=15.0).squares(N)
    with pytest.raises(Paused, match="no worker is left"):
        driven(MadeUp(dies=5.0)).squares(N)


def test_a_pause_stops_at_once_and_what_came_is_there() -> None:
    class Pausing(NullControl):
        def __init__(self, n: int) -> None:
            self.left = n

        def check(self) -> None:
            if self.left <= 0:
                raise Paused("enough")

        def advance(self, done: float, total: float, message: str = "") -> None:
            self.left -= 1

    run, found = driven(MadeUp(seconds=0.1), MadeUp(seconds=0.1)), list[Square]()
    crew = run.crew()
    crew.gather()
    with pytest.raises(Paused):
        found.extend(crew.do(range(N), control=Pausing(30)))
    assert 30 <= len(found) < 80
    rest = [number for number in range(N) if number not in {item[0] for item in found}]
    found += crew.do(rest)
    assert sorted(found) == ALL, "what was under way then is not counted twice"


def test_sixty_four_workers_are_kept_busy() -> None:
    workers = [MadeUp(seconds=0.7) for _ in range(64)]
    run = driven(*workers, group_size=3)
    assert len(run.squares(3000)) == 3000
    busy = sum(each.busy_seconds for each in workers) / (64 * run.connection.now)
    assert busy >= 0.95, busy
