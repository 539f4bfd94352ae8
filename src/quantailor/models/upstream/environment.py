"""The interpreter that runs llama.cpp's converter: ours where it has torch and the rest, else one of its own in the cache."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement

from quantailor.control import Control
from quantailor.errors import ConverterError
from quantailor.models.upstream.pip_tool import Begin, pip
from quantailor.models.upstream.places import cache_folder, new_folder
from quantailor.processes import child

EXTRA = "convert"
VARIABLE = "QUANTAILOR_CONVERT_PYTHON"
MARKER = ".whole"
MADE_FOR = ("transformers<5",)
"""What llama.cpp asks for. Ours may be newer, with which most families work too; a new environment need not be."""
LARGE = "torch is large: this may download gigabytes, once"


def requirements() -> tuple[str, ...]:
    """What the extra `quantailor[convert]` names. Raises ConverterError where the installed Quantailor has no such extra."""
    stored = map(Requirement, importlib.metadata.requires("quantailor") or ())
    wanted = [
        item
        for item in stored
        if item.marker is not None and item.marker.evaluate({"extra": EXTRA}) and not item.marker.evaluate({"extra": ""})
    ]
    if not wanted:
        raise ConverterError(f"the installed Quantailor has no extra {EXTRA!r}", remedy="Install Quantailor again")
    for item in wanted:
        item.marker = None
    return tuple(map(str, wanted))


def interpreter(*, begin: Begin, needed: Sequence[str] | None = None, cache: Path | None = None) -> Path:
    """An interpreter that has what the converter imports: the one that QUANTAILOR_CONVERT_PYTHON names, ours, or one made for it once.

    Args:
        begin: called where one is made.
        needed: requirements as pip takes them; those of the extra by default.
        cache: where the environment goes; the user's cache by default.

    Raises:
        ConverterError: it is not there or cannot be made, or pip cannot get what is needed.
        OutputError: the cache cannot be written.
    """
    if given := os.environ.get(VARIABLE):
        if not Path(given).is_file():
            raise ConverterError(f"{VARIABLE} names {given}, which is not a file", remedy="Name a Python that has torch and transformers")
        return Path(given).absolute()
    wanted = tuple(requirements() if needed is None else needed)
    if all(_is_here(Requirement(text)) for text in wanted):
        return Path(sys.executable)
    key = hashlib.sha256("\n".join((sys.version, sys.base_prefix, *sorted(wanted))).encode()).hexdigest()[:12]
    place = (cache or cache_folder()) / f"convert-{sys.version_info.major}.{sys.version_info.minor}-{key}"
    if not _is_whole(place):
        _make(place, wanted, begin)
    return _python(place)


def _is_here(item: Requirement) -> bool:
    try:
        return item.specifier.contains(importlib.metadata.version(item.name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return False


def _make(place: Path, wanted: Sequence[str], begin: Begin) -> None:
    names = [Requirement(text).name for text in wanted]
    control = begin(f"set up {', '.join(names)} for llama.cpp's converter ({LARGE})")
    with new_folder(place, is_whole=_is_whole) as folder:
        _create(folder, control)
        bounds = [text for text in MADE_FOR if Requirement(text).name in names]
        pip(_python(folder), ("install", "--quiet", *wanted, *bounds), what=", ".join(names), control=control)
        (folder / MARKER).write_text("\n".join(wanted), encoding="utf-8")


def _create(folder: Path, control: Control) -> None:
    lines: list[str] = []
    arguments = ("-m", "venv", str(folder))
    status = child.run(Path(sys.executable), arguments, environment=child.environment(), control=control, on_line=lines.append)
    if status != 0:
        why = " ".join(lines[-3:])[:300] or f"venv ended with status {status}"
        raise ConverterError(f"cannot make an environment for llama.cpp's converter: {why}", remedy="pip install 'quantailor[convert]'")


def _python(folder: Path) -> Path:
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def _is_whole(folder: Path) -> bool:
    return (folder / MARKER).is_file() and _python(folder).exists()
