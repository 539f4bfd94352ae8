"""Exit codes and one-line errors."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import Command, Workbench
from typer.core import TyperGroup
from typer.main import get_command

from quantailor.cli.app import app

COMMANDS = (
    *("inspect", "download", "convert", "imatrix", "calibrate", "measure", "probe", "sweep", "plan", "predict", "refine", "build"),
    *("verify", "make"),
    *("study", "models"),
    *("report", "compare-models"),
    "status",
    *("export", "diff", "card", "experts", "check"),
    *("verdicts", "builds"),
    "rpc-server",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(quantailor: Command, command: str) -> None:
    shown = quantailor(command, "--help")
    assert shown.code == 0
    assert f"quantailor {command}" in shown.out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_documentation_shows_every_command(command: str) -> None:
    assert any(words[0] == command for words in documented_commands())


def test_documented_commands_have_the_options_that_are_shown() -> None:
    root = get_command(app)
    for command, *words in documented_commands():
        assert isinstance(root, TyperGroup)
        described = root.commands[command]
        if isinstance(described, TyperGroup) and words:
            described = described.commands[words[0]]
        options = {name for parameter in described.params for name in (*parameter.opts, *parameter.secondary_opts)}
        shown = {word.partition("=")[0] for word in words if word.startswith("-")}
        assert shown <= options | {"--help"}, f"quantailor {command}: {shown - options}"


def documented_commands() -> list[list[str]]:
    """The words of every `quantailor ...` line of README and the documentation."""
    root = Path(__file__).parents[2]
    pages = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    lines = [line.strip() for page in pages for line in page.read_text(encoding="utf-8").splitlines()]
    commands = [re.fullmatch(r"(?:\$ )?quantailor ([a-z].*)", line) for line in lines]
    return [shlex.split(command[1], comments=True) for command in commands if command is not None]


@pytest.mark.parametrize(
    "arguments",
    [
        ("unknown",),
        ("inspect",),
        ("plan", "base.gguf"),
        ("plan", "base.gguf", "--size", "many"),
        ("plan", "base.gguf", "--size", "1GiB", "--bpw", "4"),
        ("plan", "base.gguf", "--bpw", "-3"),
        ("plan", "base.gguf", "--knee", "relative", "--greedy", "damage"),
        ("imatrix", "base.gguf", "--chunks", "0"),
        ("jobs", "show", "one"),
    ],
)
def test_wrong_usage_is_exit_2(quantailor: Command, arguments: Any) -> None:
    assert quantailor(*arguments).code == 2


def test_missing_things_are_named_in_one_line(quantailor: Command, tmp_path: Path, workbench: Workbench) -> None:
    home = ("--home", workbench.home)
    missing = tmp_path / "missing.gguf"
    assert str(missing) in quantailor("inspect", missing).error_line
    assert "no preset Q9" in quantailor("plan", workbench.base, "--like", "Q9", *home).error_line
    assert "Q9_K" in quantailor("measure", workbench.base, "--types", "Q9_K", *home).error_line
    assert "no job 999" in quantailor("jobs", "show", 999, *home).error_line


def test_a_command_starts_without_what_takes_long_to_import() -> None:
    heavy = ("scipy", "numba", "matplotlib", "nicegui")
    code = f"import sys, quantailor.cli.app; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_gui_without_its_extra_says_what_to_install(quantailor: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nicegui", None)
    assert "pip install 'quantailor[gui]'" in quantailor("gui").error_line


def test_an_impossible_budget_says_what_is_possible(quantailor: Command, workbench: Workbench) -> None:
    line = quantailor("plan", workbench.base, "--size", "1MB", "--home", workbench.home).error_line
    assert "1,000,000" in line
    assert "smallest" in line


def test_errors_are_json_too(quantailor: Command, tmp_path: Path) -> None:
    import json

    outcome = quantailor("inspect", tmp_path / "missing.gguf", "--json")
    document = json.loads(outcome.out)
    assert document["command"] == "inspect"
    assert document["error"]["type"] == "ModelError"
    assert "missing.gguf" in document["error"]["message"]


def test_plan_without_measurements_says_what_to_run(quantailor: Command, books_llama_base: Path, tmp_path: Path) -> None:
    line = quantailor("plan", books_llama_base, "--bpw", "4", "--home", tmp_path).error_line
    assert "quantailor measure" in line
