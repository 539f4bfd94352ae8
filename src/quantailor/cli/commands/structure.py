"""What `inspect` shows on demand: a configuration file, or the largest tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantailor.app.library.structure import ConfigurationText, LargestTensors, configuration_text, inspect, largest_tensors
from quantailor.cli import options, show
from quantailor.cli.output import console, table
from quantailor.cli.progress import reading
from quantailor.files import expanded
from quantailor.present import words
from quantailor.present.words import plural

Config = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", help="Print this text file of a Hugging Face directory, e.g. config.json."),
]
Largest = Annotated[
    int | None, typer.Option("--largest", metavar="N", min=1, max=1_000_000, help="The N largest tensors and their share of all bytes.")
]


def configuration(model: Path, file_name: str, answer: options.Answer) -> None:
    """`quantailor inspect MODEL --config FILE`."""
    found = configuration_text(expanded(model), file_name)
    answer.tell("inspect", found, lambda: _show_text(found))


def _show_text(found: ConfigurationText) -> None:
    typer.echo(found.text, nl=not found.text.endswith("\n"))
    if not found.is_whole:
        typer.echo(f"... {words.size(found.size_bytes)} in all", err=True)


def largest(model: Path, n: int, answer: options.Answer) -> None:
    """`quantailor inspect MODEL --largest N`."""
    with reading() as listener:
        found = largest_tensors(inspect(model, listener=listener).tensors, n)
    answer.tell("inspect", found, lambda: _show_largest(found))


def _show_largest(found: LargestTensors) -> None:
    rows = [(show.plain(item.name), words.size(item.size_bytes), words.percent(item.share, 1)) for item in found.tensors]
    out = console()
    out.print(table("Largest tensors", {"tensor": "left", "size": "right", "share": "right"}, rows))
    whole = f"{words.size(found.size_bytes)} of {words.size(found.total_bytes)}"
    out.print(f"{len(found.tensors)} of {plural(found.n_tensors, 'tensor')} hold {words.percent(found.share, 1)} of the bytes: {whole}")
