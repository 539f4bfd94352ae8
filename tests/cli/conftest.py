"""Runs commands in this process and reads what they print."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from quantailor import cli

TYPES = "Q2_K,Q3_K,Q4_K,Q5_K,Q6_K,Q8_0,IQ3_XXS,IQ4_XS"


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> Any:
        """The result in its JSON document."""
        return json.loads(self.out)["result"]

    @property
    def error_line(self) -> str:
        """The one line of a command that failed."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert self.code == 1, f"exit {self.code}: {self.out}{self.err}"
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


Command = Callable[..., Outcome]


@pytest.fixture
def quantailor(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command: `quantailor("inspect", path)`."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@dataclass(frozen=True)
class Workbench:
    """A home in which the dense model has an importance matrix and measurements."""

    home: Path
    base: Path


@pytest.fixture(scope="session")
def workbench(books_llama_base: Path, calibration_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    home = tmp_path_factory.mktemp("home")
    steps = (
        ("imatrix", books_llama_base, "-f", calibration_text, "--chunks", 8),
        ("measure", books_llama_base, "--types", TYPES),
    )
    for step in steps:
        assert cli.run([str(word) for word in (*step, "--home", home, "--json")]) == 0
    return Workbench(home, books_llama_base)
