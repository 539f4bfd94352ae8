"""Commands that the program advises are commands that it knows, and name the home that they were advised in."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Command
from typer.core import TyperGroup
from typer.exceptions import TyperException
from typer.main import get_command

import quantailor as package
from quantailor.cli.app import app
from small_base import write_small_base

ROOT = get_command(app)
NAMES = frozenset(ROOT.commands)  # type: ignore[attr-defined]


ADVICE = re.compile(r"`(quantailor [a-z][^`\n\\[]*)`")
"""Not a regular expression that looks for advice."""
PART = re.compile(rf"`((?:{'|'.join(sorted(NAMES))}) --?[a-z][^`\n]*)`")
HINT = re.compile(rf"`(?:quantailor|{'|'.join(sorted(NAMES))}) ")
"""What a file has where it gives advice; the others need not be parsed, which takes longer than all the rest here."""


def texts() -> Iterator[str]:
    """Every text but docstrings of the source files that give advice; what is filled in stands as 1."""
    for path in Path(package.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if HINT.search(text) is None:
            continue
        nodes = list(ast.walk(ast.parse(text)))
        parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
        parts |= {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "1" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
                yield node.value


TEXTS = tuple(texts())
ADVISED = sorted({match for text in TEXTS for match in ADVICE.findall(text)})
PARTS = sorted({match for text in TEXTS for match in PART.findall(text)})


def missing(command: str) -> str | None:
    """The parameter that these words lack, if they lack one; "" where they only name a command. Raises for words that mean nothing."""
    words, node = shlex.split(command), ROOT
    while words and isinstance(node, TyperGroup) and words[0] in node.commands:
        node, words = node.commands[words[0]], words[1:]
    assert node is not ROOT, command
    if not words:
        return ""
    try:
        node.make_context("quantailor", words).close()
    except TyperException as error:
        if type(error).__name__ != "MissingParameter":
            raise
        return str(error)
    return None


@pytest.mark.parametrize("command", ADVISED)
def test_an_advised_command_is_one_that_is_known(command: str) -> None:
    assert not missing(command.removeprefix("quantailor "))


@pytest.mark.parametrize("part", PARTS)
def test_the_options_of_a_command_that_is_named_in_part_are_known(part: str) -> None:
    assert missing(part) in (None, "Missing parameter: model", "Missing parameter: base", "Missing parameter: output")


def test_there_is_advice_to_look_at() -> None:
    assert len(ADVISED) > 15
    assert PARTS


def test_advised_commands_name_the_home(quantailor: Command, tmp_path: Path) -> None:
    home = tmp_path / "the home"
    line = quantailor("jobs", "show", 7, "--home", home).error_line
    (advised,) = re.findall(r"`quantailor ([^`]*)`", line)
    assert shlex.split(advised) == ["jobs", "list", "--home", str(home)]
    assert quantailor(*shlex.split(advised)).code == 0
    base = write_small_base(tmp_path / "my base.gguf")
    remedy = quantailor("imatrix", base, "--show", "--home", home, "--json")
    assert f"`quantailor imatrix '{base}' --home '{home}'`" in remedy.err
    assert "--home" not in quantailor("inspect", tmp_path / "nothing.gguf").error_line
