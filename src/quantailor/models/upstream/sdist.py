"""The converter that llama-cpp-python's source distribution carries, fetched once by pip and kept in the user's cache.

Only the converter is kept. Beside it stands the hash of the archive, to which a later download must be equal, and one of
the kept files, so that a damaged copy is noticed and fetched anew.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from quantailor.control import Control
from quantailor.errors import ConverterError, OutputError
from quantailor.models.upstream.pip_tool import Begin, pip
from quantailor.models.upstream.places import new_folder

PACKAGE = "llama-cpp-python"
SCRIPT = "convert_hf_to_gguf.py"
KNOWN_HASHES: Mapping[str, str] = {"0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"}
"""SHA-256 of source distributions by version."""
MOST_BYTES = 64 << 20
"""Of all kept files; they are a few megabytes."""
_WANTED = (SCRIPT, "LICENSE", "conversion/", "gguf-py/LICENSE", "gguf-py/gguf/")
_RECORD = "quantailor.json"


def converter_folder(version: str, cache: Path, python: Path, *, begin: Begin) -> Path:
    """The folder with `SCRIPT` of that version of llama-cpp-python, downloaded where the cache does not have it.

    Args:
        version: of llama-cpp-python.
        cache: where it is kept.
        python: the interpreter whose pip downloads.
        begin: called where it is downloaded.

    Raises:
        ConverterError: pip cannot get it, its hash is wrong, or it holds no converter.
        OutputError: it cannot be written.
    """
    place = cache / f"converter-{version}"
    if not _is_whole(place):
        control = begin(f"fetch llama.cpp's converter with the sources of {PACKAGE} {version}")
        expected = KNOWN_HASHES.get(version) or _recorded(place).get("archive")
        with new_folder(place, is_whole=_is_whole) as folder:
            archive = _download(version, folder, python, expected, control)
            _extract(archive, folder)
            record = {"archive": _sha256(archive), "files": _digest(folder)}
            archive.unlink()
            (folder / "requirements.txt").unlink()
            (folder / _RECORD).write_text(json.dumps(record), encoding="utf-8")
    return place


def _download(version: str, folder: Path, python: Path, expected: str | None, control: Control) -> Path:
    """The archive. pip compares with the index's hash, and with `expected` before anything of the archive runs."""
    pinned = f"{PACKAGE}=={version}" + (f" --hash=sha256:{expected}" if expected else "")
    wanted = folder / "requirements.txt"
    wanted.write_text(pinned + "\n", encoding="utf-8")
    strict = ("--require-hashes",) if expected else ()
    arguments = ("download", "--no-deps", "--no-binary", PACKAGE, *strict, "--dest", str(folder), "--requirement", str(wanted))
    pip(python, arguments, what=f"the sources of {PACKAGE} {version}", control=control)
    archives = list(folder.glob("*.tar.gz"))
    if len(archives) != 1:
        raise ConverterError(f"pip left {len(archives)} archives of {PACKAGE} {version}", remedy="Give llama.cpp's folder with --converter")
    return archives[0]


def _extract(archive: Path, folder: Path) -> None:
    """Put the converter's files into `folder`, as they lie in llama.cpp's own."""
    try:
        with tarfile.open(archive) as stored:
            wanted = {name: member for member in stored if (name := _wanted(member)) is not None}
            if SCRIPT not in wanted:
                raise ConverterError(f"{archive.name} holds no {SCRIPT}", remedy="Give llama.cpp's folder with --converter")
            if sum(member.size for member in wanted.values()) > MOST_BYTES:
                raise ConverterError(f"the converter in {archive.name} is too large to be one", remedy="Check the index that pip uses")
            for name, member in wanted.items():
                stored.extract(member.replace(name=name, deep=False), folder, filter="data")
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ConverterError(f"{archive.name} is not an intact archive: {error}", remedy="Check the index that pip uses") from error


def _wanted(member: tarfile.TarInfo) -> str | None:
    """A file's place in llama.cpp, where it is wanted."""
    _, _, name = member.name.partition("/vendor/llama.cpp/")
    wanted = any(name == part or (part.endswith("/") and name.startswith(part)) for part in _WANTED)
    return name if wanted and member.isfile() else None


# What is kept


def _is_whole(folder: Path) -> bool:
    record = _recorded(folder)
    try:
        return bool(record) and record.get("files") == _digest(folder)
    except OSError:
        return False


def _recorded(folder: Path) -> dict[str, str]:
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _digest(folder: Path) -> str:
    """SHA-256 over names and contents; what Python compiled of them does not count."""
    digest = hashlib.sha256()
    for part in _WANTED:
        path = folder / part
        for file in sorted(path.rglob("*") if part.endswith("/") else [path]):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(folder).as_posix()}\0{_sha256(file)}\n".encode())
    return digest.hexdigest()


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise OutputError(f"cannot read {file}: {error.strerror or error}", remedy="Remove it and try again") from error
