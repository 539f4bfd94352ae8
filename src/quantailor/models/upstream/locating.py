"""Where llama.cpp's converter is: given, named by LLAMA_CPP_DIR, or that of the installed llama-cpp-python."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quantailor.errors import ConverterError
from quantailor.files import expanded
from quantailor.models.random_access import unreadable
from quantailor.models.upstream.pip_tool import Begin
from quantailor.models.upstream.places import cache_folder
from quantailor.models.upstream.sdist import PACKAGE, SCRIPT, converter_folder

VARIABLE = "LLAMA_CPP_DIR"


@dataclass(frozen=True, slots=True)
class Converter:
    """A converter that can be run."""

    script: Path
    name: str
    """For people: "llama.cpp's converter 0.3.36", the version being llama-cpp-python's."""

    def sources(self) -> tuple[str, str]:
        """The texts of the script and of the modules beside it, which newer ones have. Raises ModelError."""
        modules = sorted((self.script.parent / "conversion").glob("*.py"))
        try:
            script, *texts = (path.read_text(encoding="utf-8", errors="replace") for path in (self.script, *modules))
        except OSError as error:
            raise unreadable(self.script, error) from error
        return script, "".join(texts)


def locate(
    given: Path | None,
    *,
    begin: Begin,
    version: str | None = None,
    cache: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Converter:
    """Find the converter.

    Args:
        given: the script, or a folder that holds it; goes before everything else.
        begin: called where it is downloaded.
        version: of llama-cpp-python, whose sources have one; the installed one by default.
        cache: where downloads are kept; the user's cache by default.
        environ: where LLAMA_CPP_DIR may be.

    Raises:
        ConverterError: it is not where it should be, or cannot be downloaded.
        OutputError: the cache cannot be written.
    """
    if given is not None:
        return _at(given, "--converter")
    if place := environ.get(VARIABLE):
        return _at(Path(place), VARIABLE)
    try:
        wanted = version or importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise ConverterError(f"{PACKAGE} is not installed", remedy="Install it, or give llama.cpp's folder with --converter") from error
    folder = converter_folder(wanted, cache or cache_folder(), Path(sys.executable), begin=begin)
    return Converter(folder / SCRIPT, f"llama.cpp's converter {wanted}")


def _at(given: Path, origin: str) -> Converter:
    place = expanded(given).absolute()
    script = place / SCRIPT if place.is_dir() else place
    if not script.is_file():
        raise ConverterError(
            f"{origin} names {given}, which is neither {SCRIPT} nor a folder that contains it",
            remedy="Give llama.cpp's folder or the script",
        )
    return Converter(script, f"llama.cpp's converter at {script}")
