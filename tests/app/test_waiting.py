"""A job that waits for another one, as users see it: in the list of jobs, on the command line, and how to start it all the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from quantailor import cli
from quantailor.app.jobs import submit
from quantailor.cli.options import Run
from quantailor.costs.needs import Needs
from quantailor.errors import JobError
from quantailor.jobs import this_worker
from quantailor.jobs.process import worker_of
from quantailor.pipeline import MakeStep, StudyStep
from quantailor.session import Workspace
from quantailor.steps import step as steps
from quantailor.steps.measure import MeasureStep
from quantailor.steps.plan import PlanOptions
from quantailor.steps.stages import Stages
from quantailor.steps.step import Step, StepResult
from quantailor.steps.verify import VerifyStep


@dataclass(frozen=True, slots=True, kw_only=True)
class LookStep(Step[StepResult]):
    """Something that runs a model."""

    kind: ClassVar[str] = "look"
    runs_model: ClassVar[bool] = True

    name: str
    n_bytes: int = 0

    def run(self, workspace: Workspace, stages: Stages) -> StepResult:
        return StepResult()

    def needs(self, workspace: Workspace) -> Needs:
        return Needs(memory_bytes=self.n_bytes)


del steps._KINDS["look"]  # it is there while `home` is


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home in which job 1 runs a model, in a process that lives until the test ends."""
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    worker = worker_of(process.pid)
    steps._KINDS["look"] = LookStep
    with Workspace.open(tmp_path / "home") as workspace:
        assert worker is not None
        workspace.store.jobs.claim(submit(workspace, LookStep(name="first")), worker)
    yield tmp_path / "home"
    del steps._KINDS["look"]
    process.kill()
    process.communicate()


def test_the_list_of_jobs_says_what_a_job_waits_for_and_how_it_starts_all_the_same(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Workspace.open(home) as workspace:
        job = submit(workspace, LookStep(name="second"))
        workspace.store.jobs.assign(job, this_worker())
        with pytest.raises(JobError, match=f"waits for job 1.*jobs resume {job} --now"):
            submit(workspace, LookStep(name="second"))
    assert cli.run(["jobs", "--home", str(home)]) == 0
    assert "waits for job 1" in capsys.readouterr().out
    assert cli.run(["jobs", "--json", "--home", str(home)]) == 0
    second, first = json.loads(capsys.readouterr().out)["result"]
    assert (first["waits_for"], second["waits_for"], second["state"]) == (None, 1, "queued")
    assert cli.run(["jobs", "resume", str(job), "--now", "--home", str(home)]) == 0
    with Workspace.open(home) as workspace:
        assert [one.state for one in workspace.store.jobs.all()] == ["done", "running"]


def test_memory_is_asked_for_when_the_turn_comes(home: Path) -> None:
    with Workspace.open(home) as workspace:
        job = submit(workspace, LookStep(name="third", n_bytes=1 << 60))
        workspace.store.jobs.remove(1)
        assert workspace.store.jobs.get(job).state == "queued"


def test_a_command_that_waits_says_for_what(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantailor.jobs.turns.LOOK_EVERY_S", 0.01)

    class EndsTheFirst(StringOut):
        def write(self, text: str) -> int:
            if text.startswith("waiting for job 1, look"):
                with Workspace.open(home) as workspace:
                    workspace.store.jobs.finish(1, 1, "done")
            return super().write(text)

    out = EndsTheFirst()
    monkeypatch.setattr(sys, "stderr", out)
    Run(home=home, as_json=True).execute(LookStep(name="second"))
    assert "--now" in "".join(out.lines)


class StringOut:
    """Takes what is written."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, text: str) -> int:
        self.lines.append(text)
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


def test_only_what_runs_a_model_takes_turns() -> None:
    make = MakeStep(model="m", output="o", imatrix="none", verify=False, plan=PlanOptions(basis="ranking"))
    assert VerifyStep(file="f", base="b").takes_turns
    assert StudyStep(model="m", level="quick").takes_turns
    assert not StudyStep(model="m", level="quick", imatrix="none").takes_turns
    assert MakeStep(model="m", output="o").takes_turns
    assert not make.takes_turns
    assert not MeasureStep(base="b").takes_turns
