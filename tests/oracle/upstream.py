"""Fetches llama.cpp's converter and runs it in a process of its own."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import platformdirs
from filelock import FileLock

RUNNER = Path(__file__).parent / "upstream_converter.py"
N_PROCESSES = 2
_WANTED = ("conversion/", "gguf-py/", "convert_hf_to_gguf.py", "models/ggml-vocab-", "models/templates/")


def fetch(version: str, place: Path) -> None:
    """Put what the tests need of llama-cpp-python's source distribution into `place`."""
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        command = (*("pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"), "--dest", folder, f"llama-cpp-python=={version}")
        subprocess.run([sys.executable, "-m", *command], check=True)
        archive = next(Path(folder).glob("*.tar.gz"))
        with tarfile.open(archive) as stored:
            root = f"{archive.name.removesuffix('.tar.gz')}/vendor/llama.cpp/"
            members = [member for member in stored.getmembers() if member.name.startswith(tuple(root + name for name in _WANTED))]
            stored.extractall(folder, members=members, filter="data")
        (Path(folder) / root).replace(place)


def llama_cpp_sources() -> Path:
    """The llama.cpp sources: `QUANTAILOR_LLAMA_CPP`, or what the source distribution holds, kept in the user's cache."""
    if given := os.environ.get("QUANTAILOR_LLAMA_CPP"):
        return Path(given)
    version = importlib.metadata.version("llama-cpp-python")
    place = platformdirs.user_cache_path("quantailor") / f"llama.cpp-{version}-templates"
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):
        if not place.is_dir():
            fetch(version, place)
    return place


class Upstream:
    """Converts directories in processes of their own, half of them in each; importing torch takes longer than many conversions."""

    def __init__(self, llama_cpp: Path, folder: Path) -> None:
        self.llama_cpp, self._folder = llama_cpp, folder

    def convert(self, models: Mapping[str, Path], pre_tokenizers: Mapping[str, str]) -> dict[str, Path]:
        """Files by the models' names; `pre_tokenizers` name vocabularies that are in no list of hashes."""
        outputs = {name: self._folder / f"{name}.gguf" for name in models}
        jobs = [{"model": str(models[name]), "output": str(outputs[name]), "pre": pre_tokenizers.get(name)} for name in models]
        with ThreadPoolExecutor(N_PROCESSES) as pool:
            for done in pool.map(self._run, [jobs[number::N_PROCESSES] for number in range(min(N_PROCESSES, len(jobs)))]):
                assert done.returncode == 0, done.stderr[-4000:]
        return outputs

    def _run(self, jobs: Sequence[Mapping[str, str | None]]) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(RUNNER), str(self.llama_cpp), json.dumps(jobs)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
