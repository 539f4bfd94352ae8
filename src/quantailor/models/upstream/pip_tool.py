"""pip in a process of its own, its failures as errors with a remedy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from quantailor.control import Control
from quantailor.errors import ConverterError, OutputError, QuantailorError
from quantailor.processes import child

Begin = Callable[[str], Control]
"""Begins a stage of that name; called only where there is something to set up."""
NETWORK = (
    *("NewConnectionError", "Failed to establish a new connection", "Name or service not known", "Temporary failure in name resolution"),
    *("ProxyError", "Network is unreachable", "Connection refused", "timed out", "ConnectTimeoutError", "Max retries exceeded"),
    *("Could not fetch URL", "connection broken by"),
)
_MAX_SHOWN = 300
_ELSEWHERE = "Give llama.cpp's folder with --converter or LLAMA_CPP_DIR"


def pip(python: Path, arguments: Sequence[str], *, what: str, control: Control) -> None:
    """Run `python -m pip ARGUMENTS`.

    Args:
        python: the interpreter whose pip it is.
        arguments: a pip command with its options.
        what: what it gets, for messages: "the sources of llama-cpp-python 0.3.36".
        control: see `child.run`.

    Raises:
        ConverterError: no pip, no network, no such version, a wrong hash, or whatever else pip says.
        OutputError: the disk is full.
    """
    lines: list[str] = []
    command = ["-m", "pip", *arguments, "--disable-pip-version-check", "--no-input"]
    try:
        status = child.run(python, command, environment=child.environment(), control=control, on_line=lines.append)
    except OSError as error:
        raise ConverterError(
            f"cannot start {python}: {error.strerror or error}", remedy="Give llama.cpp's folder with --converter"
        ) from error
    if status != 0:
        raise _failure(python, lines, what, status)


def _failure(python: Path, lines: Sequence[str], what: str, status: int) -> QuantailorError:
    said = "\n".join(lines)
    if "No module named pip" in said:
        return ConverterError(f"{python} has no pip, which gets {what}", remedy="Install pip, or give llama.cpp's folder with --converter")
    if "No space left on device" in said or "Disk quota exceeded" in said:
        return OutputError(f"the disk is full: pip cannot get {what}", remedy="Free some space, or set TMPDIR and XDG_CACHE_HOME")
    if "DO NOT MATCH THE HASHES" in said:
        return ConverterError(f"what pip downloaded for {what} has the wrong hash and was not used", remedy="Check the index that pip uses")
    if any(word in said for word in NETWORK):
        return ConverterError(
            f"pip cannot reach its index for {what}",
            remedy="Check the network and pip's settings, or give llama.cpp's folder with --converter",
        )
    if "No matching distribution found" in said:
        unreached = ", or cannot be reached" if "(from versions: none)" in said else ""
        return ConverterError(f"pip's index does not have {what}{unreached}", remedy=_ELSEWHERE)
    errors = [line for line in lines if line.lower().startswith("error")] or [line for line in lines if line.strip()]
    why = errors[-1][:_MAX_SHOWN] if errors else f"it ended with status {status}"
    return ConverterError(f"pip cannot get {what}: {why}", remedy=_ELSEWHERE)
