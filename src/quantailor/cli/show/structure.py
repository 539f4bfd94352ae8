"""The structure of a model: its configuration, its tensors and what they can become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console

from quantailor.app.library.structure import ModelReport, TensorReport
from quantailor.cli.output import console, table
from quantailor.cli.show.text import plain
from quantailor.present import words
from quantailor.records import MetadataValue


def model(report: ModelReport, *, all_types: bool = False) -> None:
    """The structure of a model."""
    out = console()
    out.print(f"[bold]{plain(report.name)}[/bold]  {plain(report.architecture)}, {words.count(report.n_parameters)} parameters")
    out.print(f"tensors   {len(report.tensors)}, {words.size(report.tensor_bytes)}, {words.bits(report.bits_per_weight)}")
    out.print(f"location  {report.location}", markup=False)
    out.print(f"identity  {report.fingerprint}")
    if report.config_files:
        out.print(f"files     {', '.join(report.config_files)}", markup=False)
    if report.other_contents is not None:
        out.print(f"[yellow]This is {plain(report.other_contents)}.[/yellow]")
    elif report.is_quantized:
        out.print("[yellow]This model is quantized already; quantizing it again loses quality twice.[/yellow]")
    for sentence in report.reservations:
        out.print(f"[yellow]{plain(sentence)}[/yellow]")
    out.print()
    configuration(out, report.metadata)
    out.print()
    tensors(out, report.tensors, all_types=all_types)


def configuration(out: Console, metadata: Mapping[str, MetadataValue]) -> None:
    """Metadata without the vocabulary."""
    keys = [(key, _short(value.value)) for key, value in metadata.items() if not key.startswith("tokenizer.ggml")]
    out.print(table("Configuration", {"key": "left", "value": "left"}, keys))


def tensors(out: Console, reports: Sequence[TensorReport], *, all_types: bool) -> None:
    """Tensors and what they can become, and why not."""
    rows = [(item.name, words.shape(item.shape), item.type_name, words.size(item.size_bytes), _type_summary(item)) for item in reports]
    columns = {"tensor": "left", "shape": "left", "type": "left", "size": "right", "can become": "left"}
    out.print(table("Tensors", columns, rows))
    _reasons(out, reports, all_types)


def _short(value: object) -> str:
    text = f"[{len(value)} values]" if isinstance(value, tuple) else str(value).replace("\n", " ")
    return text if len(text) <= 100 else text[:97] + "..."


def _type_summary(item: TensorReport) -> str:
    total = len(item.available_types) + len(item.unavailable_types)
    if not total:
        return ""
    if item.available_types == (item.type_name,):
        return f"stays {item.type_name}: {next(iter(item.unavailable_types.values()), '')}"
    return f"{len(item.available_types)} of {words.plural(total, 'type')}"


def _reasons(out: Console, reports: Sequence[TensorReport], all_types: bool) -> None:
    grouped: dict[tuple[str, str], list[str]] = {}
    for item in reports:
        if item.available_types == (item.type_name,):
            continue
        for type_name, reason in item.unavailable_types.items():
            grouped.setdefault((type_name, reason), []).append(item.name)
        if all_types and item.available_types:
            out.print(f"{item.name}: {', '.join(item.available_types)}", markup=False)
    if grouped:
        out.print()
        rows = [
            (type_name, names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more", reason)
            for (type_name, reason), names in grouped.items()
        ]
        out.print(table("Why not", {"type": "left", "tensors": "left", "reason": "wrap"}, rows))
