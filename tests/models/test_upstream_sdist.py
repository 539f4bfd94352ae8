"""Where llama.cpp's converter comes from: a path, LLAMA_CPP_DIR, or the sources of llama-cpp-python by a real pip and a real index."""

from __future__ import annotations

import compileall
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from package_index import PackageIndex, Stages, only_index, sdist, serving

from quantailor.errors import ConverterError, OutputError
from quantailor.models.upstream import Converter, locate
from quantailor.models.upstream.sdist import converter_folder

VERSION = "9.9.9"
NAME = f"llama_cpp_python-{VERSION}.tar.gz"
FILES = {
    "convert_hf_to_gguf.py": "import conversion",
    "conversion/__init__.py": "",
    "conversion/base.py": "x = 1",
    "gguf-py/gguf/__init__.py": "",
    "gguf-py/tests/test_it.py": "",
    "ggml/src/ggml.c": "int main(void);",
}


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageIndex]:
    with serving(monkeypatch) as index:
        index.add("llama-cpp-python", NAME, sdist(VERSION, FILES))
        yield index


def find(cache: Path, stages: Stages | None = None, *, version: str = VERSION) -> Converter:
    return locate(None, begin=(stages or Stages()).begin, version=version, cache=cache, environ={})


def kept(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*")) if cache.exists() else []


# Given


def test_a_given_folder_or_script_goes_first(tmp_path: Path) -> None:
    script = tmp_path / "convert_hf_to_gguf.py"
    script.touch()
    other = tmp_path / "mine.py"
    other.touch()
    begin = Stages().begin

    assert locate(tmp_path, begin=begin, environ={"LLAMA_CPP_DIR": "/nowhere"}).script == script
    assert locate(other, begin=begin, environ={}).script == other
    assert locate(None, begin=begin, environ={"LLAMA_CPP_DIR": str(tmp_path)}).script == script


def test_a_place_without_the_script_is_named(tmp_path: Path) -> None:
    begin = Stages().begin
    with pytest.raises(ConverterError, match=rf"--converter names {tmp_path}, which is neither convert_hf_to_gguf\.py nor a folder"):
        locate(tmp_path, begin=begin, environ={})
    with pytest.raises(ConverterError, match="LLAMA_CPP_DIR names /nowhere"):
        locate(None, begin=begin, environ={"LLAMA_CPP_DIR": "/nowhere"})


# Fetched


def test_it_is_fetched_once_and_only_the_converter_is_kept(index: PackageIndex, tmp_path: Path) -> None:
    stages = Stages()

    found = find(tmp_path / "cache", stages)
    again = find(tmp_path / "cache", stages)

    assert (found, found.name) == (again, f"llama.cpp's converter {VERSION}")
    assert index.fetched == [NAME]
    assert stages.names == [f"fetch llama.cpp's converter with the sources of llama-cpp-python {VERSION}"]
    files = sorted(str(path.relative_to(found.script.parent)) for path in found.script.parent.rglob("*") if path.is_file())
    assert files == ["conversion/__init__.py", "conversion/base.py", "convert_hf_to_gguf.py", "gguf-py/gguf/__init__.py", "quantailor.json"]
    assert kept(tmp_path / "cache") == [f"converter-{VERSION}"]


@pytest.mark.slow
def test_an_index_that_tells_another_hash_is_not_believed(index: PackageIndex, tmp_path: Path) -> None:
    index.told_hashes[NAME] = "0" * 64

    with pytest.raises(ConverterError, match="has the wrong hash"):
        find(tmp_path / "cache")
    assert kept(tmp_path / "cache") == []


@pytest.mark.slow
def test_nothing_of_a_known_version_with_another_hash_is_run(index: PackageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index.add("llama-cpp-python", "llama_cpp_python-0.3.36.tar.gz", sdist("0.3.36", FILES))
    monkeypatch.setenv("BACKEND_RAN", str(ran := tmp_path / "ran"))

    with pytest.raises(ConverterError, match="has the wrong hash"):
        find(tmp_path / "cache", version="0.3.36")
    assert kept(tmp_path / "cache") == []
    assert not ran.exists()
    find(tmp_path / "cache")
    assert ran.exists()


@pytest.mark.slow
def test_a_damaged_copy_is_fetched_anew_and_must_be_the_same(index: PackageIndex, tmp_path: Path) -> None:
    script = find(tmp_path / "cache").script
    script.write_text("import else_where", encoding="utf-8")

    assert find(tmp_path / "cache").script.read_text(encoding="utf-8") == FILES["convert_hf_to_gguf.py"]
    assert index.fetched == [NAME, NAME]

    script.unlink()
    index.add("llama-cpp-python", NAME, sdist(VERSION, {**FILES, "conversion/base.py": "x = 2"}))
    with pytest.raises(ConverterError, match="wrong hash"):
        find(tmp_path / "cache")
    assert kept(tmp_path / "cache") == [f"converter-{VERSION}"]


@pytest.mark.slow
def test_what_python_compiles_there_is_no_damage(index: PackageIndex, tmp_path: Path) -> None:
    folder = find(tmp_path / "cache").script.parent
    compileall.compile_dir(folder, quiet=1)
    assert any(folder.rglob("*.pyc"))

    find(tmp_path / "cache")
    assert index.fetched == [NAME]


@pytest.mark.slow
def test_what_is_not_there_is_told(index: PackageIndex, tmp_path: Path) -> None:
    with pytest.raises(ConverterError, match=r"pip's index does not have the sources of llama-cpp-python 8\.8\.8.*--converter"):
        find(tmp_path / "cache", version="8.8.8")


@pytest.mark.slow
def test_no_network_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_index(monkeypatch, "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(ConverterError, match="cannot reach its index"):
        find(tmp_path / "cache")
    assert kept(tmp_path / "cache") == []


@pytest.mark.slow
def test_no_pip_is_told(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    bare = tmp_path / "bare" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    with pytest.raises(ConverterError, match=r"bare.*has no pip.*Install pip"):
        converter_folder(VERSION, tmp_path / "cache", bare, begin=Stages().begin)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"README.md": ""}, r"holds no convert_hf_to_gguf\.py"),
        ({**FILES, "conversion/../../../../../out.py": ""}, "pip cannot get|no intact archive"),
    ],
)
def test_other_archives_are_refused(files: dict[str, str], told: str, index: PackageIndex, tmp_path: Path) -> None:
    index.add("llama-cpp-python", NAME, sdist(VERSION, files))
    with pytest.raises(ConverterError, match=told):
        find(tmp_path / "deep" / "cache")
    assert kept(tmp_path / "deep" / "cache") == []
    assert not list(tmp_path.rglob("out.py"))


def test_a_cache_that_cannot_be_written_is_named(index: PackageIndex, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(OutputError, match=r"cannot write .*cache"):
        find(tmp_path / "cache")


@pytest.mark.slow
def test_leftovers_of_killed_processes_go(index: PackageIndex, tmp_path: Path) -> None:
    (tmp_path / "cache" / f".converter-{VERSION}.999999999.part" / "deep").mkdir(parents=True)
    find(tmp_path / "cache")
    assert kept(tmp_path / "cache") == [f"converter-{VERSION}"]


@pytest.mark.slow
def test_two_processes_at_once_both_have_it(index: PackageIndex, tmp_path: Path) -> None:
    code = f"""
import sys; sys.path[:0] = {sys.path!r}
from pathlib import Path
from test_upstream_sdist import find
print(find(Path({str(tmp_path / "cache")!r})).script.read_text())"""
    commands = [[sys.executable, "-c", code]] * 2
    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(lambda command: subprocess.check_output(command, text=True), commands))

    assert outputs == [f"{FILES['convert_hf_to_gguf.py']}\n"] * 2
    assert kept(tmp_path / "cache") == [f"converter-{VERSION}"]
