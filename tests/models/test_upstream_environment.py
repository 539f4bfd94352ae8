"""The interpreter for llama.cpp's converter: a real virtual environment, filled by a real pip from a real index."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from package_index import PackageIndex, Stages, serving, wheel

from quantailor.errors import ConverterError
from quantailor.models.upstream import interpreter
from quantailor.models.upstream.environment import MARKER, requirements

NEEDED = ("tailored-thread>=2",)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageIndex]:
    monkeypatch.delenv("QUANTAILOR_CONVERT_PYTHON", raising=False)
    with serving(monkeypatch) as index:
        yield index


def test_the_extra_names_what_the_converter_imports() -> None:
    names = {text.split(">")[0].split("<")[0] for text in requirements()}
    assert {"torch", "transformers", "sentencepiece", "protobuf", "numpy", "safetensors"} <= names
    assert not any(";" in text for text in requirements())


def test_an_interpreter_that_has_it_all_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUANTAILOR_CONVERT_PYTHON", raising=False)
    stages = Stages()
    version = importlib.metadata.version("numpy")

    assert interpreter(begin=stages.begin, needed=("numpy", f"numpy=={version}"), cache=tmp_path) == Path(sys.executable)
    assert stages.names == []


def test_the_user_may_name_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTAILOR_CONVERT_PYTHON", sys.executable)
    assert interpreter(begin=Stages().begin, needed=NEEDED, cache=tmp_path) == Path(sys.executable)

    monkeypatch.setenv("QUANTAILOR_CONVERT_PYTHON", str(tmp_path / "none"))
    with pytest.raises(ConverterError, match=r"QUANTAILOR_CONVERT_PYTHON names .*none, which is not a file"):
        interpreter(begin=Stages().begin, needed=NEEDED, cache=tmp_path)


@pytest.mark.long
@pytest.mark.slow
def test_one_is_made_once_where_something_is_missing(index: PackageIndex, tmp_path: Path) -> None:
    index.add("tailored-thread", "tailored_thread-2.1-py3-none-any.whl", wheel("tailored_thread", "2.1"))
    stages = Stages()

    python = interpreter(begin=stages.begin, needed=NEEDED, cache=tmp_path)
    assert interpreter(begin=stages.begin, needed=NEEDED, cache=tmp_path) == python

    assert stages.names == ["set up tailored-thread for llama.cpp's converter (torch is large: this may download gigabytes, once)"]
    assert version_in(python) == "2.1"
    assert [path.name for path in tmp_path.iterdir()] == [python.parents[1].name]

    # Half of one, as a power cut could leave it.
    next(python.parents[1].rglob(MARKER)).unlink()
    next(python.parents[1].rglob("tailored_thread.py")).unlink()
    assert interpreter(begin=stages.begin, needed=NEEDED, cache=tmp_path) == python
    assert len(stages.names) == 2
    assert version_in(python) == "2.1"


def version_in(python: Path) -> str:
    code = "import tailored_thread; print(tailored_thread.VERSION)"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.long
@pytest.mark.slow
def test_what_the_index_does_not_have_leaves_nothing_behind(index: PackageIndex, tmp_path: Path) -> None:
    index.add("tailored-thread", "tailored_thread-1.0-py3-none-any.whl", wheel("tailored_thread", "1.0"))

    with pytest.raises(ConverterError, match="pip's index does not have tailored-thread"):
        interpreter(begin=Stages().begin, needed=NEEDED, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []
