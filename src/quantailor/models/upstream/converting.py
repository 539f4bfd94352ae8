"""Runs llama.cpp's converter on a directory: a process of its own, offline, without secrets, whose file appears when it is whole."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from quantailor import files
from quantailor.control import Control
from quantailor.errors import AlreadyQuantizedError, ConverterError, ModelError, QuantailorError
from quantailor.models.gguf_file import GGUFSource
from quantailor.models.json_files import mapping, read_json_if_there
from quantailor.models.opening import require_unquantized
from quantailor.models.upstream.failures import FailedRun, failure, unknown_architecture
from quantailor.models.upstream.locating import Converter
from quantailor.models.upstream.trust import refuse_code
from quantailor.processes import child

N_KEPT_LINES = 400
MAX_LOG_BYTES = 16 << 20
_BAR = re.compile(r"\d{1,3}%\|[^|]*\| *(\d{1,9}(?:\.\d{1,9})?)([kMGT]?)/(\d{1,9}(?:\.\d{1,9})?)([kMGT]?) ?\[.*byte/s")
_LONGEST_BAR = 400
_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_MAX_MESSAGE = 80
_REGISTERS = re.compile(r"@Model(Base)?\.register\(")
"""How the converter's classes name the architectures that they convert."""


class _Check(Protocol):
    def __call__(self, source: GGUFSource, folder: Path, name: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Product:
    """What the converter is to make of a directory."""

    options: tuple[str, ...]
    """Of its command line."""
    check: _Check
    """Raises ConverterError or ModelError for the wrong file; called with the file, opened, the checkpoint and the converter's name."""
    failure: Callable[[FailedRun], QuantailorError]
    """The error for a run that failed."""
    mark: str = ""
    """What the name of the file must contain, which older converters put before it where it does not."""


def convert_directory(
    folder: Path,
    output: Path,
    *,
    converter: Converter,
    python: Path,
    log: Path,
    control: Control,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    product: Product | None = None,
    on_whole: Callable[[Path], None] | None = None,
) -> Path:
    """Write the base of a directory as llama.cpp's converter does, whose matrices keep 16 bits, or another `product` of it.

    Args:
        folder: the checkpoint.
        output: the GGUF file; it appears under this name only when it is whole and can be read.
        converter: what runs.
        python: the interpreter that has what it imports.
        log: where all of its output goes; deleted when all went well.
        control: progress in bytes, and stopping, which kills it.
        overwrite: replace a file of that name.
        trust_remote_code: let it run code of the checkpoint.
        product: what is made of it; None for the base.
        on_whole: called with the whole file just before it gets its name.

    Returns:
        `output`.

    Raises:
        UnsupportedModelError: the checkpoint brings code, or the converter does not know it.
        ModelError: the checkpoint lacks something, or what was written is not a model.
        AlreadyQuantizedError: what was written is quantized though the checkpoint is not.
        ResourceError: memory does not suffice.
        ConverterError: it failed otherwise.
        OutputError: the file cannot be written or exists.
    """
    check_before(folder, output, overwrite=overwrite, trust_remote_code=trust_remote_code)
    wanted = product or _BASE
    marked = output if wanted.mark in output.name else output.with_name(f"{wanted.mark}-{output.name}")
    partial = files.temporary_path(marked)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(marked)
        with tempfile.TemporaryDirectory(prefix="quantailor-") as modules:
            _run(folder, partial, converter, python, Path(modules), log, control, wanted)
        _check(partial, folder, converter, wanted)
        if on_whole is not None:
            on_whole(partial)
        _settle(partial, output, overwrite=overwrite)
    except OSError as error:
        raise files.cannot_write(output, error) from error
    finally:
        partial.unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    return output


def check_before(folder: Path, output: Path, *, overwrite: bool, trust_remote_code: bool) -> None:
    """Refuse what would be refused after a long setting up. Raises OutputError, UnsupportedModelError, ModelError."""
    files.refuse_existing(output, overwrite=overwrite)
    if not trust_remote_code:
        refuse_code(folder)


def refuse_unknown(folder: Path, converter: Converter) -> None:
    """Raise UnsupportedModelError where the converter's sources do not name the architecture: before an interpreter is set up for it."""
    config = read_json_if_there(folder / "config.json")
    stored = [*_names(config.get("architectures")), *_names(mapping(config.get("text_config")).get("architectures"))]
    text = "".join(converter.sources())
    if stored and _REGISTERS.search(text) and not any(f'"{name}"' in text for name in stored):
        raise unknown_architecture(folder, stored[0], converter.name)


def _names(stored: object) -> list[str]:
    return [name for name in stored if isinstance(name, str)] if isinstance(stored, list) else []


def _run(
    folder: Path, partial: Path, converter: Converter, python: Path, modules: Path, log: Path, control: Control, product: Product
) -> None:
    # The converter fills in braces of the file's name.
    name = partial.name.replace("{", "{{").replace("}", "}}")
    arguments = (str(converter.script), str(folder), "--outfile", str(partial.with_name(name)), *product.options)
    environment = child.environment(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_MODULES_CACHE=str(modules))
    environment.pop("NO_LOCAL_GGUF", None)
    with contextlib.closing(_Transcript(log, control)) as transcript:
        try:
            status = child.run(python, arguments, environment=environment, control=control, on_line=transcript.add, partial=partial)
        except OSError as error:
            remedy = "Name a Python in QUANTAILOR_CONVERT_PYTHON"
            raise ConverterError(f"cannot run {python}: {error.strerror or error}", remedy=remedy) from error
    if status != 0:
        raise product.failure(FailedRun(list(transcript.last), status, folder, converter.name, log))


class _Transcript:
    """Keeps what the converter says and turns its progress bar into ours."""

    def __init__(self, log: Path, control: Control) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._control = control
        self._writes = False
        self._stream = log.open("w", encoding="utf-8")
        self.last: deque[str] = deque(maxlen=N_KEPT_LINES)

    def add(self, line: str) -> None:
        if len(line) <= _LONGEST_BAR and (match := _BAR.search(line)):
            done, total = (float(match[n]) * _UNITS[match[n + 1]] for n in (1, 3))
            self._control.advance(min(done, total), max(total, 1.0), "llama.cpp's converter writes")
            self._writes = True
            return
        self.last.append(line)
        if self._stream.tell() < MAX_LOG_BYTES:
            self._stream.write(line + "\n")
            self._stream.flush()
        if line.startswith("INFO:") and not self._writes:
            self._control.advance(0, 1, line.split(":", 2)[-1].partition(",")[0].strip()[:_MAX_MESSAGE])

    def close(self) -> None:
        self._stream.close()


def _check(partial: Path, folder: Path, converter: Converter, product: Product) -> None:
    """That what was asked for was written, whole."""
    if not partial.is_file():
        raise ConverterError(f"{converter.name} wrote no file for {folder}", remedy="Check that it is convert_hf_to_gguf.py")
    try:
        source = GGUFSource(partial)
    except ModelError as error:
        raise type(error)(
            f"the file that {converter.name} wrote for {folder} cannot be read: {error.message}", remedy="Try a newer llama.cpp"
        ) from error
    with contextlib.closing(source):
        product.check(source, folder, converter.name)


def _check_base(source: GGUFSource, folder: Path, name: str) -> None:
    """That the base is quantized only where the checkpoint is. Raises AlreadyQuantizedError."""
    stored_quantized = bool(read_json_if_there(folder / "config.json").get("quantization_config"))
    try:
        require_unquantized(source, allow_requantize=stored_quantized)
    except AlreadyQuantizedError as error:
        raise AlreadyQuantizedError(
            f"the file that {name} wrote for {folder} is quantized, though the checkpoint is not",
            remedy="Check that it is convert_hf_to_gguf.py",
        ) from error


_BASE = Product(("--outtype", "auto"), _check_base, failure)


def _settle(partial: Path, output: Path, *, overwrite: bool) -> None:
    with partial.open("rb+") as stream:
        os.fsync(stream.fileno())
    files.give_name(partial, output, overwrite=overwrite)
    files.sync_folder(output.parent)
