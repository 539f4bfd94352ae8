"""The command that lists what a home holds and removes what can be computed again."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer

from quantailor.app.library.cleaning import CLEANED, REMOVABLE, CleanReport, KeptItem, clean
from quantailor.cli import options
from quantailor.cli.output import console, table
from quantailor.cli.root import command
from quantailor.present import words


@command("clean", epilog="Examples: quantailor clean | quantailor clean --yes --kind references --older-than 30")
def clean_home(
    answer: options.Answer,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", help=f"What to remove: {', '.join(REMOVABLE)}; the first three where none is named.")
    ] = None,
    older_than: Annotated[
        float,
        typer.Option(
            "--older-than", metavar="DAYS", min=0.0, max=36_500.0, help="Only what was last written more than this many days ago."
        ),
    ] = 0.0,
    model: Annotated[Path | None, typer.Option("--model", metavar="PATH", help="Only what belongs to this model.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; otherwise it is only listed.")] = False,
) -> None:
    """List what the home holds, with the converter's environment and half downloads, and remove what can be computed or fetched again.

    Measurements are never removed, and nothing is while a job runs.
    """
    kinds = [name for name in REMOVABLE if name in (kind or ())]
    if unknown := sorted(set(kind or ()) - set(kinds)):
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(REMOVABLE)}", param_hint="--kind")
    with answer.workspace() as workspace:
        found = clean(workspace, kinds=kinds or CLEANED, older_than_days=older_than, model=model, remove=yes)
    answer.tell("clean", found, lambda: _show(found))


def _show(found: CleanReport) -> None:
    out = console()
    groups: dict[tuple[str, str], list[KeptItem]] = defaultdict(list)
    for item in found.items:
        groups[item.kind, item.stays or ""].append(item)
    gone = "removed" if found.removed else "can be removed"
    rows = [
        (kind, str(len(items)), words.size(sum(item.size_bytes for item in items)), why or gone, items[0].again or "")
        for (kind, why), items in groups.items()
    ]
    columns = {"kind": "left", "things": "right", "size": "right", "": "wrap", "how it comes back": "wrap"}
    out.print(table(f"What {found.home} holds{', and what lies in caches' if found.outside_bytes else ''}", columns, rows))
    for item in (item for item in found.items if item.stays is None):
        out.print(f"{words.size(item.size_bytes):>12}  {item.path}  {item.model}", markup=False, soft_wrap=True)
    done = "removed" if found.removed else "can be removed"
    advice = "; `quantailor clean --yes` removes it" if found.removable_bytes and not found.removed else ""
    out.print(f"{words.size(found.removable_bytes)} of {words.size(found.size_bytes)} {done}{advice}")
