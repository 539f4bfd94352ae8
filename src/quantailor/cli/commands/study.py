"""Measuring in one go, what it will take, and the models that are worked on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from quantailor.app import steps
from quantailor.app.library.projects import ProjectReport, list_projects
from quantailor.app.steps import AUTO, StudyStep
from quantailor.cli import options
from quantailor.cli.commands.cost import tell_cost
from quantailor.cli.output import console, table
from quantailor.cli.root import command
from quantailor.cli.values import optional_path
from quantailor.present import words
from quantailor.present.words import plural

Level = Annotated[
    steps.Level,
    typer.Option("--level", help="quick only ranks mixes; balanced also probes; thorough measures every row; exhaustive also sweeps."),
]


@command(epilog="Example: quantailor study ./Llama-3.2-1B --level balanced --cost")
def study(
    asked: options.SpreadWay,
    converting: options.Converting,
    run: options.Run,
    level: Level = "balanced",
    imatrix: options.MakeImatrix = AUTO,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where the base of a Hugging Face directory goes.")] = None,
    cost: Annotated[bool, typer.Option("--cost", help="Say what it will take, without starting it.")] = False,
) -> None:
    """Do everything that measuring needs, in one job: base, importance matrix and covariances, weight errors, probes, sweep.

    Run it again to resume. Rounding is compensated unless --rounding plain, or where no text runs through the model.
    """
    conversion = converting.conversion(asked.repository_of_model)
    task = StudyStep(**asked.fields(imatrix), level=level, output=optional_path(output), conversion=conversion)
    if cost:
        tell_cost(task, run, "study-cost")
    else:
        run.execute(task)


@command(epilog="Example: quantailor models")
def models(answer: options.Answer) -> None:
    """List the models you have worked on, the latest first: what is known about each, and where its files are."""
    with answer.workspace() as workspace:
        found = list_projects(workspace)
    answer.tell("models", found, lambda: _show_models(found))


def _show_models(found: Sequence[ProjectReport]) -> None:
    if found:
        columns = {"identity": "left", "model": "left", "size": "right", "known": "left", "where": "left"}
        gone = "its files are gone"
        rows = [(item.fingerprint[:12], item.name, words.size(item.size_bytes), _known(item), item.source or gone) for item in found]
        console().print(table("Models", columns, rows))
    else:
        console().print("No models yet. `quantailor study MODEL` measures one.")


def _known(item: ProjectReport) -> str:
    parts = {
        "importance matrix": item.has_imatrix,
        "covariances": item.has_covariances,
        plural(item.n_cells, "cell"): item.n_cells,
        "probes": item.is_probed,
        plural(item.n_strategies, "strategy"): item.n_strategies,
        plural(item.n_builds, "built file"): item.n_builds,
        plural(item.n_verdicts, "verdict"): item.n_verdicts,
        plural(len(item.active_jobs), "job"): item.active_jobs,
    }
    return ", ".join(text for text, there in parts.items() if there) or "nothing yet"
