"""Commands that choose by hand what the Choose screen chooses by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from quantailor.app.choosing import drafts as drafts_module
from quantailor.app.choosing.drafts import DraftInfo, EditResult, drafts_of, save_draft
from quantailor.cli import options
from quantailor.cli.output import console, table
from quantailor.cli.root import command
from quantailor.present import words


@command(epilog="Example: quantailor edit base.gguf s.yaml --set attn_v=Q6_K --set output=Q8_0 -o edited.yaml")
def edit(
    answer: options.Answer,
    quantized: options.QuantizedHere,
    base: options.Source,
    strategy: options.Strategy,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the edited strategy goes.")],
    changes: Annotated[list[str], typer.Option("--set", help="PATTERN=TYPE; may be given more than once.")],
    force: options.Force = False,
) -> None:
    """Change types in a strategy by pattern and pin them; show the size and the KL divergence that this gives the file."""
    with answer.workspace() as workspace:
        found = drafts_module.edit(
            workspace,
            base,
            strategy,
            changes,
            output,
            **quantized.fields(),
            overwrite=force,
        )
    answer.tell("edit", found, lambda: _show_edit(found))


def _show_edit(found: EditResult) -> None:
    out = console()
    out.print(f"wrote     {found.path}", markup=False)
    out.print(f"changed   {words.plural(found.n_changed, 'tensor')}, {found.n_pinned} pinned in all")
    out.print(f"file      {words.size(found.prediction.file_size_bytes)}, {words.bits(found.prediction.bits_per_weight, 3)}")
    if found.prediction.kld_nats is not None:
        out.print(f"KLD       {found.prediction.kld_nats:.3g} nats predicted")
    elif found.prediction.no_prediction is not None:
        out.print(f"KLD       {found.prediction.no_prediction}", markup=False)


@command(epilog="Example: quantailor drafts base.gguf --save draft -o s.yaml")
def drafts(
    answer: options.Answer,
    base: options.Source,
    save: Annotated[str | None, typer.Option("--save", help="Write this draft as a strategy file, to --output.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where the strategy goes.")] = None,
    force: options.Force = False,
) -> None:
    """List the drafts that the GUI keeps of a model, or write one as a strategy file."""
    if (save is None) != (output is None):
        raise typer.BadParameter("--save and --output go together")
    with answer.workspace() as workspace:
        if save is not None and output is not None:
            save_draft(workspace, base, save, output, overwrite=force)
        found = drafts_of(workspace, base)
    answer.tell("drafts", found, lambda: _show_drafts(found, output))


def _show_drafts(found: Sequence[DraftInfo], output: Path | None) -> None:
    if output is not None:
        console().print(f"wrote {output}", markup=False)
        return
    rows = [(item.name, item.changed, str(item.n_steps), str(item.n_pinned)) for item in found]
    console().print(table("Drafts", {"name": "left", "changed": "left", "steps of undo": "right", "pinned": "right"}, rows))
