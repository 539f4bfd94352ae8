"""Runs commands in this process and reads what they print."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Command, Outcome, Workbench

from quantailor import cli

TYPES = "Q2_K,Q3_K,Q4_K,Q5_K,Q6_K,Q8_0,IQ3_XXS,IQ4_XS"


@pytest.fixture
def quantailor(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command: `quantailor("inspect", path)`."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


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
