"""Measuring in one go, what it will take, and the models that are worked on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from quantailor.app import steps
from quantailor.app.library.projects import ProjectReport, list_projects
from quantailor.app.steps import AUTO, COMPUTE, NONE, StudyStep
from quantailor.cli import options
from quantailor.cli.commands.cost import tell_cost
from quantailor.cli.output import console, table
from quantailor.cli.root import command
from quantailor.cli.values import imatrix_choice, optional_path, optional_seconds, split_list
from quantailor.present import words
from quantailor.present.words import plural

Level = Annotated[
    steps.Level,
    typer.Option("--level", help="quick ranks mixes; balanced probes too; thorough measures every row; exhaustive sweeps tensor x type."),
]


@command(epilog="Example: quantailor study ./Llama-3.2-1B --level balanced --cost")
def study(
    hub: options.Hub,
    converting: options.Converting,
    machine: options.SpreadMachine,
    rounded: options.MadeRounding,
    run: options.Run,
    model: options.Model,
    level: Level = "balanced",
    types: options.UsualTypes = None,
    text: options.Text = None,
    imatrix: options.MakeImatrix = AUTO,
    time: options.Time = None,
    passes: options.Passes = None,
    rest: options.RestOption = "16",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where the base of a Hugging Face directory goes.")] = None,
    cost: Annotated[bool, typer.Option("--cost", help="Say what it will take, without starting it.")] = False,
    requantize: options.Requantize = False,
) -> None:
    """Everything that measuring needs, in one job: base, importance matrix and covariances, weight errors, probes, sweep.

    Run it again to resume. Rounding is compensated unless --rounding plain, or where no text runs through the model.
    """
    repository = hub.repository(model)
    task = StudyStep(
        model=options.place(model, repository),
        hub=repository,
        level=level,
        types=split_list(types),
        text=optional_path(text),
        imatrix=imatrix_choice(imatrix, of_repository=repository is not None, words=(AUTO, COMPUTE, NONE)),
        **rounded.rounded(),
        seconds=optional_seconds(time),
        passes=passes,
        rest=rest,
        output=optional_path(output),
        allow_requantize=requantize,
        compute=machine.compute,
        conversion=converting.conversion(repository),
    )
    if cost:
        tell_cost(task, run, "study-cost")
    else:
        run.execute(task)


@command(epilog="Example: quantailor models")
def models(answer: options.Answer) -> None:
    """The models you have worked on, the latest first: what is known of each, and where its files are."""
    with answer.workspace() as workspace:
        found = list_projects(workspace)
    answer.tell("models", found, lambda: _show_models(found))


def _show_models(found: Sequence[ProjectReport]) -> None:
    if found:
        columns = {"identity": "left", "model": "left", "size": "right", "known": "left", "where": "left"}
        rows = [(item.fingerprint[:12], item.name, words.size(item.size_bytes), _known(item), _place(item)) for item in found]
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


def _place(item: ProjectReport) -> str:
    return item.source or "its files are gone"
