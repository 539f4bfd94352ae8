"""A strategy for llama.cpp's own quantizer: the file of tensor types, and the command line that uses it."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quantailor import files, jobs
from quantailor.evidence.presets import preset_of
from quantailor.evidence.strategies import is_gguf, require_whole, strategy_imatrix
from quantailor.evidence.strategies import read_strategy as read_strategy
from quantailor.ggml import library
from quantailor.making import building
from quantailor.qtypes import IMATRIX_REQUIRED, UNQUANTIZED
from quantailor.records import Strategy
from quantailor.session import AUTO, OpenedModel, Workspace, gguf_path, quantizable_tensors
from quantailor.strategy import file as strategy_file
from quantailor.strategy import interchange


@dataclass(frozen=True, slots=True)
class ExportReport:
    """A strategy for another quantizer: a text, and the command that uses it."""

    format: str
    """"llama-quantize", "ik" or "yaml"."""
    text: str
    """The content of `text_path`."""
    text_path: str
    text_written: bool
    arguments: tuple[str, ...]
    """The command, word by word; empty for "yaml"."""
    line: str
    """The same, quoted for a shell."""
    own_lines: tuple[str, ...]
    """Our own commands that build the same file, quoted for a shell."""
    base_type: str
    """The preset in the command; it decides no tensor, only `general.file_type`. Empty for "yaml"."""
    notes: tuple[str, ...]
    """What a reader of the line must know, sentence by sentence."""


ExportFormat = Literal["llama-quantize", "ik", "yaml"]

_SAFE_PRESETS = {"Q8_0": "Q8_0", "Q6_K": "Q6_K", "Q5_K_M": "Q5_K", "Q4_K_M": "Q4_K", "Q3_K_M": "Q3_K", "Q2_K": "Q2_K"}
"""Presets that every llama.cpp knows and that need no importance matrix, with the type that most weights get."""
_UNKNOWN_PRESETS = frozenset({*UNQUANTIZED, "NVFP4"})
"""With unquantized presets llama.cpp ignores overrides; it has a number for NVFP4, but no preset."""


def llama_quantize_command(
    workspace: Workspace,
    base: Path,
    strategy: Strategy,
    output: Path,
    *,
    strategy_path: Path | None = None,
    text_path: Path | None = None,
    format: ExportFormat = "llama-quantize",
    imatrix: str = AUTO,
) -> ExportReport:
    """The command that makes a strategy's file with llama.cpp's quantizer; nothing is written.

    Args:
        workspace: where the importance matrix lies.
        base: a GGUF file that the strategy was made for.
        strategy: what the file is to be.
        output: the GGUF file that the command is to write.
        strategy_path: the strategy's file, or a GGUF file that carries it, for our own lines; None is beside `output`.
        text_path: where the tensor types (the expressions, the strategy) will be; None is beside `output`.
        format: "llama-quantize" (llama.cpp), "ik" (ik_llama.cpp), or "yaml": the strategy itself.
        imatrix: "auto" is the one the strategy was made with.

    Raises:
        StrategyError: the strategy is another model's or has a type that the quantizer lacks.
        TypeUnavailableError: a tensor cannot take its type.
        UnsupportedModelError: the base is not a GGUF file.
    """
    with workspace.model(base, allow_requantize=True) as model:
        require_whole(strategy, model)
        matrix = strategy_imatrix(workspace, model, strategy, imatrix)
        building.output_tensors(model.source, strategy.types, imatrix=matrix)
        file = None if matrix is None else workspace.imatrices.path(model.fingerprint, matrix.fingerprint)
        place = text_path or output.with_name(f"{output.stem}{_ENDINGS[format]}")
        own = _own_lines(workspace, model, strategy_path or output.with_suffix(".strategy.yaml"), output, place, format)
        if format == "yaml":
            return ExportReport(format, strategy_file.dumps(strategy), str(place), False, (), "", own, "", ())
        return _export(model, strategy, file, output, place, format, own)


def export(
    workspace: Workspace,
    base: Path,
    strategy_path: Path,
    text_path: Path,
    *,
    output: Path | None = None,
    format: ExportFormat = "llama-quantize",
    imatrix: str = AUTO,
    overwrite: bool = False,
) -> ExportReport:
    """Write the text of `llama_quantize_command` to `text_path`; `output` is beside it, named by the strategy, by default.

    Raises OutputError where the text cannot be written, and what `llama_quantize_command` raises.
    """
    files.refuse_existing(text_path, overwrite=overwrite)
    is_file = strategy_path.suffix == ".gguf"
    target = output or text_path.with_name(f"{strategy_path.stem}{'-again' if is_file else ''}.gguf")
    strategy = read_strategy(strategy_path)
    report = llama_quantize_command(
        workspace, base, strategy, target, strategy_path=strategy_path, text_path=text_path, format=format, imatrix=imatrix
    )
    files.write_text(text_path, report.text, overwrite=overwrite)
    return dataclasses.replace(report, text_written=True)


_ENDINGS: Mapping[ExportFormat, str] = {"llama-quantize": ".tensor-types.txt", "ik": ".custom-q.txt", "yaml": ".yaml"}


def _export(
    model: OpenedModel, strategy: Strategy, imatrix: Path | None, output: Path, place: Path, format: ExportFormat, own: tuple[str, ...]
) -> ExportReport:
    types = interchange.all_types(strategy, {tensor.name: tensor.type_name for tensor in quantizable_tensors(model.source)})
    preset = closest_preset(model, types, has_imatrix=imatrix is not None, presets=_SAFE_PRESETS if format == "ik" else None)
    if format == "ik":
        text = interchange.ik_custom_q(types)
        matrix, chosen = None if imatrix is None else imatrix.with_suffix(".dat"), ("--custom-q", text)
    else:
        text = "".join(f"{line}\n" for line in interchange.tensor_type_lines(types))
        matrix, chosen = imatrix, ("--tensor-type-file", str(place))
    arguments = (
        "llama-quantize",
        *(("--allow-requantize",) if library.quantized_types(model.source.tensors) else ()),
        *(() if matrix is None else ("--imatrix", str(matrix))),
        *interchange.type_switches(types),
        *chosen,
        *(str(gguf_path(model)), str(output), preset),
    )
    notes = _notes(strategy, imatrix, preset, format)
    return ExportReport(format, text, str(place), False, arguments, shlex.join(arguments), own, preset, notes)


def closest_preset(model: OpenedModel, types: Mapping[str, str], *, has_imatrix: bool, presets: Mapping[str, str] | None = None) -> str:
    """The preset to name beside a type for every tensor: that of the type which most weights have, as our own files say.

    Where llama-quantize has none such or would ignore overrides, it is the plain preset of the nearest size. `presets`
    (name -> type of most weights) narrows the choice.
    """
    name = preset_of(model.source, types)
    usable = name not in _UNKNOWN_PRESETS and (has_imatrix or name not in IMATRIX_REQUIRED) and (presets is None or name in presets)
    if usable:
        return name
    qtypes = library.types()
    weights = quantizable_tensors(model.source)
    total = sum(tensor.n_elements for tensor in weights)
    bits = sum(8 * qtypes[types.get(tensor.name, tensor.type_name)].tensor_bytes(tensor) for tensor in weights) / max(1, total)
    choice = presets or _SAFE_PRESETS
    return min(choice, key=lambda preset: abs(qtypes[choice[preset]].bits_per_weight - bits))


def _notes(strategy: Strategy, imatrix: Path | None, preset: str, format: ExportFormat) -> tuple[str, ...]:
    notes = [f"{preset} decides no tensor: every one is named. It only becomes the file's general.file_type."]
    if format == "ik" and imatrix is not None:
        words = ("llama-imatrix", "--in-file", str(imatrix), "--output-format", "dat", "-o", str(imatrix.with_suffix(".dat")))
        notes.append(f"ik_llama.cpp reads importance matrices in the older form, which llama.cpp writes: {shlex.join(words)}")
    if strategy.inputs.get("rounding") == "compensated":
        notes.append(
            "The strategy's rounding is compensated, which llama-quantize cannot do: its file has these types and sizes, but other and "
            "worse codes. `quantailor build` writes the file that was planned."
        )
    if imatrix is None:
        notes.append("The strategy was made without an importance matrix, so the command has none.")
    return tuple(notes)


def _own_lines(
    workspace: Workspace, model: OpenedModel, strategy: Path, output: Path, place: Path, format: ExportFormat
) -> tuple[str, ...]:
    """Our commands for the same file, from the base to the verdict."""
    base = Path(model.source.location)
    first: list[Sequence[str]] = []
    if format == "yaml":
        strategy = place
    elif is_gguf(strategy):
        source, strategy = strategy, output.with_suffix(".yaml")
        first.append(("export", str(source), "--base", str(base), "--format", "yaml", "-o", str(strategy)))
    return own_commands(workspace, base, strategy, output, first=first)


def own_commands(
    workspace: Workspace, base: Path, strategy: Path, output: Path, *, options: Sequence[str] = (), first: Sequence[Sequence[str]] = ()
) -> tuple[str, ...]:
    """The commands that build, check and verify a file, quoted for a shell; `options` are for the build, `first` comes before it."""
    lines = (
        *first,
        ("build", str(base), str(strategy), "-o", str(output), *options),
        ("check", str(output), str(strategy), "--base", str(base)),
        ("verify", str(output), "--base", str(base)),
    )
    home = () if workspace.home == jobs.resolve() else ("--home", str(workspace.home.path))
    return tuple(shlex.join(("quantailor", *line, *home)) for line in lines)
