"""What llama.cpp's converter says when it fails, as errors with a remedy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantailor.errors import ConverterError, ModelError, OutputError, QuantailorError, ResourceError, UnsupportedModelError

NEWER = "A newer llama-cpp-python may, or a newer llama.cpp given with --converter"
OLDER = "It needs transformers 4: name a Python that has it in QUANTAILOR_CONVERT_PYTHON"
_MEMORY = re.compile(
    r"^MemoryError|can't allocate memory|Cannot allocate memory|bad_alloc|CUDA out of memory|Unable to allocate", re.MULTILINE
)
_KILLED = -9
"""How a process ends that the system kills for its memory."""
_DISK = re.compile(r"No space left on device|Disk quota exceeded|\[Errno 28\]|\[Errno 122\]")
_ARCHITECTURE = re.compile(r"Model (\S+) is not supported|Architecture '([^']*)' not supported")
_PRE_TOKENIZER = re.compile(r"pre-tokenizer was not recognized")
_PACKAGES = (
    re.compile(r"No module named '([\w-]+)"),
    re.compile(r"pip install (?:-U )?[`'\"]?([\w-]+)"),
    re.compile(r"requires? (?:the )?[`'\"]?([\w-]+)[`'\"]? (?:library|package)\b"),
)
_MISSING = re.compile(
    r"File not found: (\S+)|No such file or directory: '([^']+)'|Can't load (tokenizer) for|Cannot find (\S+)|"
    r"does not appear to have a file named (\S+)|(Couldn't) instantiate the backend tokenizer"
)
_TENSOR = re.compile(r"Can not map tensor '([^']*)'")
_DATA = re.compile(r"^(?:\w+\.)*(?:\w*(?:Error|Exception|Interrupt|NotImplemented))(?:: |$)")
_MAX_SHOWN = 300


@dataclass(frozen=True, slots=True)
class FailedRun:
    """A run of the converter that failed."""

    lines: Sequence[str]
    """The last lines of its output."""
    status: int
    """How its process ended; negative for a signal."""
    folder: Path
    """The checkpoint."""
    name: str
    """Of the converter."""
    log: Path
    """The file that holds its whole output."""

    @property
    def last(self) -> str:
        """The line that says what went wrong."""
        return last_line(self.lines) or f"it ended with status {self.status}"


def failure(run: FailedRun) -> QuantailorError:
    """The error for a conversion that failed."""
    lines, status, folder, name, log, last = run.lines, run.status, run.folder, run.name, run.log, run.last
    where = f"its output is in {log}"
    text = "\n".join([*lines[-40:], last])
    if status == _KILLED or _MEMORY.search(text):
        return ResourceError(
            f"{name} needs more memory for {folder} than is available ({where})", remedy="Close other programs or use a larger machine"
        )
    if _DISK.search(text):
        return OutputError(f"{name} cannot write: the disk is full ({where})", remedy="Free some space, or write the base elsewhere")
    if match := _ARCHITECTURE.search(text):
        return unknown_architecture(folder, _first(match), name)
    if _PRE_TOKENIZER.search(text):
        return UnsupportedModelError(f"{folder} has a tokenizer whose pre-tokenizer {name} does not recognize ({where})", remedy=NEWER)
    if package := next((match[1] for pattern in _PACKAGES if (match := pattern.search(last))), None):
        return ConverterError(
            f"{name} needs the Python package {package!r} for {folder} ({where})",
            remedy=f"pip install 'quantailor[convert]' {package}, then try again",
        )
    if match := _MISSING.search(last):
        return ModelError(
            f"{folder} does not have a file that {name} needs: {Path(_first(match)).name} ({where})",
            remedy="Download the model again, including its tokenizer files",
        )
    if match := _TENSOR.search(last):
        return UnsupportedModelError(f"{folder} has the tensor {_first(match)[:120]}, which {name} does not know ({where})", remedy=NEWER)
    return ConverterError(f"{name} cannot convert {folder}: {last[:_MAX_SHOWN]}", remedy=f"Its output is in {log}. {OLDER}")


def unknown_architecture(folder: Path, architecture: str, name: str) -> UnsupportedModelError:
    """The error for a converter, called `name`, that does not know an architecture."""
    return UnsupportedModelError(f"{folder} has the architecture {architecture[:80]!r}, which {name} does not know either", remedy=NEWER)


def last_line(lines: Sequence[str]) -> str:
    """The line that says what went wrong: of a traceback its last, else the last that is not empty."""
    said = [line.strip() for line in lines if line.strip()]
    raised = [line for line in said if _DATA.match(line)]
    logged = [line for line in said if line.startswith("ERROR:")]
    if raised and ":" not in raised[-1]:
        code = [line for line in said[: said.index(raised[-1])] if line.strip("^~ ")]
        return f"{raised[-1]} at {code[-1]}" if code else raised[-1]
    candidates = (raised or logged or said)[-1:]
    return candidates[0] if candidates else ""


def _first(match: re.Match[str]) -> str:
    return next((group for group in match.groups() if group), "")
