"""A new kind of step is one class: its job, progress, resuming, listing, JSON and place in the dock come with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from tools.output_schema import output_schema

from quantailor import cli
from quantailor.app.jobs import job_places, list_jobs, run_job, show_job, submit
from quantailor.cli.options import Run
from quantailor.costs.needs import Needs
from quantailor.errors import Paused, ResourceError
from quantailor.session import Workspace
from quantailor.steps import step as steps
from quantailor.steps.stages import Stages
from quantailor.steps.step import Screen, Step, StepResult
from quantailor.store import Progress


@dataclass(frozen=True, slots=True)
class CountResult(StepResult):
    """What was counted."""

    n_counted: int
    n_now: int


@pytest.fixture
def counting() -> Iterator[type[Step[StepResult]]]:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class CountStep(Step[CountResult], kind="count", result=CountResult):
        """Count to a number, one line of a file after the other."""

        units: ClassVar[Mapping[str, str]] = {"counting": "chunks"}
        screen: ClassVar[Screen | None] = "measure"

        file: str
        to: int
        stop_at: int = 0
        n_bytes: int = 0

        def run(self, workspace: Workspace, stages: Stages) -> CountResult:
            path, control = Path(self.file), stages.begin("counting")
            lines = path.read_text().splitlines() if path.exists() else []
            for number in range(len(lines) + 1, self.to + 1):
                path.write_text("\n".join([*lines, str(number)]))
                lines.append(str(number))
                control.advance(number, self.to, f"number {number}")
                if number == self.stop_at:
                    workspace.store.jobs.request(stages.job_id, "pause")
                    raise Paused("paused")
            return CountResult(self.to, self.to - len(lines))

        def needs(self, workspace: Workspace) -> Needs:
            return Needs(memory_bytes=self.n_bytes)

    yield CountStep
    del steps._KINDS["count"]


def test_it_runs_reports_and_resumes(counting: type[Step[StepResult]], tmp_path: Path) -> None:
    step = counting(file=str(tmp_path / "numbers"), to=5, stop_at=3)  # type: ignore[call-arg]
    seen: list[Progress] = []
    with Workspace.open(tmp_path / "home") as workspace:
        job = submit(workspace, step)
        with pytest.raises(Paused):
            run_job(workspace, job, seen.append)
        assert (seen[0].stage, seen[0].unit) == ("counting", "chunks")
        paused = show_job(workspace, job)
        assert (paused.state, paused.progress, paused.unit) == ("paused", 0.6, "chunks")
        assert submit(workspace, step) == job
        assert run_job(workspace, job) == CountResult(5, 0)
        assert show_job(workspace, job).progress == 1.0
        assert [place.job.kind for place in job_places(workspace)] == ["count"]
        assert list_jobs(workspace)[0].title == "numbers"
    assert (tmp_path / "numbers").read_text().split() == ["1", "2", "3", "4", "5"]
    assert steps.kinds()["count"].screen == "measure"


def test_what_it_needs_is_asked_before_it_starts(counting: type[Step[StepResult]], tmp_path: Path) -> None:
    step = counting(file=str(tmp_path / "numbers"), to=1, n_bytes=1 << 60)  # type: ignore[call-arg]
    with Workspace.open(tmp_path / "home") as workspace, pytest.raises(ResourceError, match=r"cannot start: needs .* of memory"):
        submit(workspace, step)


def test_the_command_line_shows_it(counting: type[Step[StepResult]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = counting(file=str(tmp_path / "numbers"), to=2)  # type: ignore[call-arg]
    Run(home=tmp_path / "home", as_json=True).execute(step)
    document = json.loads(capsys.readouterr().out)
    assert document == {"version": 2, "command": "count", "result": {"origin": None, "n_counted": 2, "n_now": 0}}
    assert any(one["properties"]["command"] == {"const": "count"} for one in output_schema()["oneOf"])
    Run(home=tmp_path / "home", as_json=False).execute(step)
    assert "n counted  2" in capsys.readouterr().out
    assert cli.run(["jobs", "list", "--home", str(tmp_path / "home")]) == 0
    assert "count" in capsys.readouterr().out
