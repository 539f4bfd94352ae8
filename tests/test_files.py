"""Files appear whole or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from quantailor import files
from quantailor.errors import OutputError


def test_a_file_appears_when_the_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "text.txt"
    with files.whole_file(path) as stream:
        stream.write(b"half")
        assert not path.exists()
    assert path.read_bytes() == b"half"
    assert [item.name for item in path.parent.iterdir()] == ["text.txt"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = files.write_text(tmp_path / "text.txt", "old")
    with pytest.raises(ZeroDivisionError), files.whole_file(path) as stream:
        stream.write(b"new" * (1 // 0))
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["text.txt"]


def test_an_existing_file_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = files.write_text(tmp_path / "text.txt", "old")
    with pytest.raises(OutputError, match=r"text\.txt exists.*--force"):
        files.write_text(path, "new", overwrite=False)
    assert files.write_text(path, "new").read_text() == "new"


def test_a_folder_that_is_a_file_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        files.write_text(tmp_path / "file" / "text.txt", "new")


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    dead = tmp_path / f".out.gguf.{ended.stdout.strip()}.part"
    alive = tmp_path / ".out.gguf.1.part"
    other = tmp_path / ".other.gguf.1.part"
    for leftover in (dead, alive, other):
        leftover.write_bytes(b"x")
    files.remove_leftovers(path)
    assert [dead.exists(), alive.exists(), other.exists()] == [False, True, True]
