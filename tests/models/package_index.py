"""A package index on 127.0.0.1 for pip, and source distributions and wheels to put into it."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from quantailor.control import Control, NullControl

ROOT = "vendor/llama.cpp"
BACKEND = """
import os, pathlib
def prepare_metadata_for_build_wheel(folder, settings=None):
    if "BACKEND_RAN" in os.environ:
        pathlib.Path(os.environ["BACKEND_RAN"]).touch()
    name = "{name}-{version}.dist-info"
    (pathlib.Path(folder) / name).mkdir()
    (pathlib.Path(folder) / name / "METADATA").write_text("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return name
"""


def sdist(version: str, files: Mapping[str, str]) -> bytes:
    """A source distribution of llama-cpp-python: `files` by their paths in llama.cpp, and what pip needs to take it as one."""
    name = "llama_cpp_python"
    contents = {f"{ROOT}/{path}": text for path, text in files.items()}
    contents["PKG-INFO"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    contents["pyproject.toml"] = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    contents["backend.py"] = BACKEND.replace("{name}", name).replace("{version}", version)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for path, text in contents.items():
            member = tarfile.TarInfo(f"{name}-{version}/{path}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return stream.getvalue()


def wheel(name: str, version: str) -> bytes:
    """A wheel with one module of that name, whose `VERSION` tells its version."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},sha256={_record_hash(text)},{len(text)}\n" for path, text in files.items()) + f"{info}/RECORD,,\n"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)
    return stream.getvalue()


def _record_hash(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


class Stages:
    """Remembers which stages began."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def begin(self, name: str) -> Control:
        self.names.append(name)
        return NullControl()


@dataclass
class PackageIndex:
    """What it holds, by project and file name, and how often files were fetched."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    told_hashes: dict[str, str] = field(default_factory=dict)
    """By file names, instead of the true ones."""
    fetched: list[str] = field(default_factory=list)
    address: str = ""

    def add(self, project: str, name: str, data: bytes) -> None:
        """Publish a file."""
        self.files.setdefault(project, {})[name] = data

    def page(self, project: str) -> bytes:
        """The links of a project."""
        links = (
            f'<a href="/files/{project}/{name}#sha256={self.told_hashes.get(name) or hashlib.sha256(data).hexdigest()}">{name}</a>'
            for name, data in self.files[project].items()
        )
        return f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode()


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageIndex]:
    """An index that pip uses, and nothing else, until the block ends."""
    index = PackageIndex()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _, kind, project, *rest = self.path.split("/")
            if kind == "simple" and project in index.files:
                self._answer(index.page(project), "text/html")
            elif kind == "files" and rest[0] in index.files.get(project, {}):
                index.fetched.append(rest[0])
                self._answer(index.files[project][rest[0]], "application/octet-stream")
            else:
                self.send_error(404)

        def _answer(self, data: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        index.address = f"http://127.0.0.1:{server.server_address[1]}/simple"
        only_index(monkeypatch, index.address)
        yield index
        server.shutdown()


def only_index(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Let pip know this index alone."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    settings = {"CONFIG_FILE": os.devnull, "INDEX_URL": address, "NO_CACHE_DIR": "1", "RETRIES": "0", "DEFAULT_TIMEOUT": "5"}
    for name, value in settings.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
