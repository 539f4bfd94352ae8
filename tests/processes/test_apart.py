"""Functions in a process of their own: what comes back, and what happens when that process, or ours, ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import ended
import psutil
import pytest

from quantailor.control import NullControl
from quantailor.errors import CrashError, ImatrixError, Paused
from quantailor.processes import apart

PATIENCE_S = 20.0


def wait_until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Noting(NullControl):
    """Notes progress, and asks to stop when so much is done."""

    def __init__(self, stop_at: float | None = None) -> None:
        self.heard: list[tuple[float, float, str]] = []
        self._stop_at = stop_at

    def check(self) -> None:
        if self._stop_at is not None and self.heard and self.heard[-1][0] >= self._stop_at:
            raise Paused("enough")

    def advance(self, done: float, total: float, message: str = "") -> None:
        self.heard.append((done, total, message))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("abort", "aborted, SIGABRT: ggml.c:12: GGML_ASSERT(a->ne[0] > 0) failed"),
        ("SIGSEGV", "segmentation fault, SIGSEGV: ggml.c:12: GGML_ASSERT(a->ne[0] > 0) failed"),
        ("exit", "exit status 3: ggml.c:12: GGML_ASSERT(a->ne[0] > 0) failed"),
        ("SIGKILL", "it was killed, probably for lack of memory"),
    ],
)
def test_the_end_of_the_process_is_an_error_of_one_line(how: str, reason: str) -> None:
    with pytest.raises(CrashError) as caught:
        apart.call(ended.end, how)
    assert str(caught.value).startswith(f"llama.cpp ended its process while loading tiny.gguf: {reason}. ")
    assert apart.call(ended.pid) != os.getpid()


def test_what_was_held_by_a_process_that_ended_can_be_let_go(tmp_path: Path) -> None:
    held = apart.holding(ended.Counter, 1, tmp_path / "closed")
    counter = held.__enter__()
    for _ in range(2):
        with pytest.raises(CrashError):
            counter.call(ended.Counter.end)
    with pytest.raises(CrashError):
        held.__exit__(None, None, None)


def test_one_process_is_kept_for_the_next_call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = apart.call(ended.pid)
    with pytest.raises(ImatrixError) as caught:
        apart.call(ended.refuse)
    assert (caught.value.message, caught.value.remedy) == ("it does not fit", "Take another")
    monkeypatch.chdir(tmp_path)
    assert (apart.call(ended.pid), apart.call(Path.cwd)) == (first, tmp_path)


def test_items_and_progress_arrive_in_order() -> None:
    control = Noting()
    seen = [(number, len(control.heard)) for number in apart.stream(ended.count, 3, control=control)]
    assert seen == [(0, 0), (1, 1), (2, 2)]
    assert control.heard[-1] == (3, 3, "number 2")


def test_a_control_stops_it() -> None:
    numbers = apart.stream(ended.count, 1000, control=Noting(2))
    assert [next(numbers), next(numbers)] == [0, 1]
    with pytest.raises(Paused):
        next(numbers)


def test_whoever_stops_listening_ends_it(tmp_path: Path) -> None:
    numbers = apart.stream(ended.count_and_wait, tmp_path / "pid")
    assert next(numbers) == 1
    process = psutil.Process(int((tmp_path / "pid").read_text()))
    numbers.close()  # type: ignore[attr-defined]
    assert not process.is_running()


def test_an_object_is_held_until_the_block_ends(tmp_path: Path) -> None:
    with apart.holding(ended.Counter, 5, tmp_path / "state") as counter:
        assert [counter.call(ended.Counter.next) for _ in range(2)] == [6, 7]
        assert not (tmp_path / "state").exists()
    assert (tmp_path / "state").read_text() == "closed"


def test_callers_in_threads_have_a_process_each() -> None:
    meeting, found = threading.Barrier(2), []

    def hold() -> None:
        with apart.holding(ended.Counter, 0, Path(os.devnull)) as counter:
            meeting.wait(PATIENCE_S)
            found.append(counter.call(ended.Counter.next))

    threads = [threading.Thread(target=hold) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1, 1]


@pytest.mark.skipif(sys.platform == "win32", reason="processes are killed otherwise")
def test_it_ends_with_us_and_removes_what_it_had_half_written(tmp_path: Path) -> None:
    place = tmp_path / "pid"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, ended.__file__, str(place)], env=environment) as ours:
        wait_until(lambda: place.exists() and place.read_text())
        other = psutil.Process(int(place.read_text()))
        assert other.is_running()
        assert place.with_suffix(".part").exists()
        ours.kill()
    wait_until(lambda: not other.is_running() or other.status() == psutil.STATUS_ZOMBIE)
    assert not place.with_suffix(".part").exists()
