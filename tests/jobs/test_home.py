"""Where things are kept: the option, the variable, the platform's place."""

from pathlib import Path

import pytest

from quantailor.errors import StoreError
from quantailor.jobs import Home, resolve


def test_an_explicit_folder_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTAILOR_HOME", str(tmp_path / "variable"))
    assert resolve(tmp_path / "option") == Home(tmp_path / "option")


def test_the_variable_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTAILOR_HOME", str(tmp_path))
    assert resolve().database == tmp_path / "quantailor.db"


def test_the_platform_decides_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUANTAILOR_HOME", raising=False)
    assert resolve().path.name == "quantailor"


def test_a_tilde_is_the_users_folder() -> None:
    assert resolve(Path("~/here")).path == Path.home() / "here"


def test_a_relative_folder_stays_the_same_when_the_process_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve(Path("home")).path == tmp_path / "home"


def test_its_folders_are_made(tmp_path: Path) -> None:
    home = Home(tmp_path / "a" / "b").create()
    assert all(folder.is_dir() for folder in (home.logs, home.references, home.imatrices))
    assert home.log_of(3) == home.logs / "job-3.log"


def test_a_place_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot create the folder .*QUANTAILOR_HOME"):
        Home(tmp_path / "file" / "home").create()
