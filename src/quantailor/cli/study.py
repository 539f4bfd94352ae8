"""Measuring in one go, what it will take, and the models that are worked on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from quantailor.app import Workspace, steps
from quantailor.app.library.projects import ProjectReport, list_projects
from quantailor.app.measuring.cost import CostReport, StageCost, study_cost
from quantailor.app.steps import AUTO, COMPUTE, NONE, Compute, StudyStep
from quantailor.cli import hub, options
from quantailor.cli.execution import execute
from quantailor.cli.output import console, print_json, table
from quantailor.cli.root import app
from quantailor.cli.values import imatrix_choice, optional_path, split_list
from quantailor.present import words
from quantailor.present.words import plural

Level = Annotated[
    steps.Level,
    typer.Option("--level", help="quick ranks mixes; balanced probes too; thorough measures every row; exhaustive sweeps tensor x type."),
]


@app.command(epilog="Example: quantailor study ./Llama-3.2-1B --level balanced --cost")
def study(
    model: options.Model,
    level: Level = "balanced",
    types: options.Types = None,
    text: options.Text = None,
    imatrix: options.MakeImatrix = AUTO,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where the base of a Hugging Face directory goes.")] = None,
    cost: Annotated[bool, typer.Option("--cost", help="Say what it will take, without starting it.")] = False,
    revision: hub.Revision = None,
    token_file: hub.TokenFile = None,
    gguf_file: hub.GgufFile = None,
    converter: options.Converter = None,
    way: options.Way = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    requantize: options.Requantize = False,
    threads: options.Threads = None,
    gpu_layers: options.GpuLayers = 0,
    home: options.Home = None,
    as_json: options.Json = False,
    detach: options.Detach = False,
) -> None:
    """Everything that measuring needs, in one job: base, importance matrix, weight errors, probes, sweep. Run it again to resume."""
    repository = hub.repository(model, revision, token_file, gguf_file)
    task = StudyStep(
        model=hub.place(model, repository),
        hub=repository,
        level=level,
        types=split_list(types),
        text=optional_path(text),
        imatrix=imatrix_choice(imatrix, of_repository=repository is not None, words=(AUTO, COMPUTE, NONE)),
        output=optional_path(output),
        allow_requantize=requantize,
        compute=Compute(n_gpu_layers=gpu_layers, n_threads=threads),
        conversion=options.conversion(converter, way, trust_remote_code, repository),
    )
    if cost:
        _tell_cost(task, home, as_json=as_json)
    else:
        execute(task, home=home, as_json=as_json, detach=detach)


def _tell_cost(task: StudyStep, home: Path | None, *, as_json: bool) -> None:
    if task.hub is not None:
        here = hub.here(Path(task.model), task.hub, task.imatrix)
        task = replace(task, model=str(here.path), hub=None, imatrix=here.imatrix)
    with Workspace.open(home) as workspace:
        found = study_cost(workspace, task)
    if as_json:
        print_json("study-cost", found)
    else:
        _show_cost(found)


def _show_cost(found: CostReport) -> None:
    out = console()
    columns = {"stage": "left", "time": "left", "done": "right", "disk": "right", "memory": "right"}
    rows = [(stage.stage, *_cost(stage)) for stage in found.stages]
    out.print(table(f"Cost of a {found.level} study", columns, [*rows, ("in all", *_cost(found))]))
    out.print(f"by {found.basis}")
    for shortfall in found.shortfalls:
        out.print(f"[red]cannot start: {shortfall}[/red]", soft_wrap=True)


def _cost(item: StageCost | CostReport) -> tuple[str, ...]:
    return words.span(*item.seconds), words.percent(item.share_done, 0), words.size(item.disk_bytes), words.size(item.memory_bytes)


@app.command(epilog="Example: quantailor models")
def models(home: options.Home = None, as_json: options.Json = False) -> None:
    """The models you have worked on, the latest first: what is known of each, and where its files are."""
    with Workspace.open(home) as workspace:
        found = list_projects(workspace)
    if as_json:
        print_json("models", found)
    elif found:
        columns = {"identity": "left", "model": "left", "size": "right", "known": "left", "where": "left"}
        rows = [(item.fingerprint[:12], item.name, words.size(item.size_bytes), _known(item), _place(item)) for item in found]
        console().print(table("Models", columns, rows))
    else:
        console().print("No models yet. `quantailor study MODEL` measures one.")


def _known(item: ProjectReport) -> str:
    parts = {
        "importance matrix": item.has_imatrix,
        plural(item.n_cells, "cell"): item.n_cells,
        "probes": item.is_probed,
        plural(item.n_strategies, "strategy"): item.n_strategies,
        f"{item.n_builds} built files": item.n_builds,
        plural(item.n_verdicts, "verdict"): item.n_verdicts,
        f"{len(item.active_jobs)} jobs": item.active_jobs,
    }
    return ", ".join(text for text, there in parts.items() if there) or "nothing yet"


def _place(item: ProjectReport) -> str:
    return item.source or "its files are gone"
