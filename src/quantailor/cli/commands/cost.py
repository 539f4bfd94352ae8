"""What work will take on this machine, before it starts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from quantailor.app import steps
from quantailor.app.measuring.cost import CostReport, job_cost
from quantailor.app.measuring.counted import Pipeline, StageCost
from quantailor.app.steps import AUTO, COMPUTE, DEFAULT_PROBE_CHUNKS, Grouping, LadderStep, MakeStep, PlanOptions, StudyStep, absolute
from quantailor.cli import options
from quantailor.cli.commands import hub as hub_commands
from quantailor.cli.commands.planning import BasisOption, TargetOptions
from quantailor.cli.output import console, table
from quantailor.cli.root import command
from quantailor.cli.values import split_list
from quantailor.present import words


@command(
    epilog="Examples: quantailor cost base.gguf | quantailor cost ./Llama-3.2-1B --level thorough --json | "
    "quantailor cost base.gguf --sizes Q3_K_M,Q4_K_M"
)
def cost(
    target: TargetOptions,
    asked: options.WholeWay,
    evaluations: options.Evaluations,
    answer: options.Answer,
    sizes: Annotated[str | None, typer.Option("--sizes", help="Cost of several files, as for `make`.", rich_help_panel="Target")] = None,
    level: Annotated[
        steps.Level | None,
        typer.Option("--level", help="Cost of a study of this level; by default of `make`, up to the verdict."),
    ] = None,
    basis: BasisOption = "auto",
    probe_chunks: options.ProbeChunks = DEFAULT_PROBE_CHUNKS,
    group: Annotated[Grouping | None, typer.Option("--group", help="As for `make`.")] = None,
    imatrix: options.MakeImatrix | None = None,
    imatrix_chunks: Annotated[
        int | None, options.number("imatrix_chunks", "--imatrix-chunks", help="Use at most this many chunks of the calibration text.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="With or without a verdict.")] = True,
    chunks: options.Chunks = None,
    against: options.Against = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where `make` would write.")] = Path("out"),
) -> None:
    """Estimate what `make`, or a `study` of a level, will take here: passes, time, memory and disk of each step. Nothing is started.

    The speed of this machine comes from earlier jobs in this home, or else from a trial of about a second. What has been measured is not
    counted.
    """
    task: Pipeline
    if sizes is not None and (level is not None or any(value is not None for value in target.target(needed=False).values())):
        raise typer.BadParameter("--sizes goes with neither --level nor another size")
    if level is not None:
        if evaluations.evals.names:
            raise typer.BadParameter("--level costs a study, which verifies nothing: --eval goes without it")
        task = StudyStep(**asked.fields(imatrix or AUTO), level=level)
    else:
        made = MakeStep if sizes is None else partial(LadderStep, sizes=split_list(sizes))
        task = made(
            **asked.fields(imatrix or COMPUTE),
            output=absolute(output),
            plan=PlanOptions(**target.target(needed=False), basis=basis),
            probe_chunks=probe_chunks,
            group=group,
            imatrix_chunks=imatrix_chunks,
            verify=verify,
            chunks=chunks,
            against=None if against is None else split_list(against),
            evals=evaluations.evals,
        )
    tell_cost(task, answer, "cost")


def tell_cost(task: Pipeline, answer: options.Answer, name: str) -> None:
    """Find a job's cost and say it; `name` is the command of the JSON document."""
    if task.hub is not None:
        here = hub_commands.here(Path(task.model), task.hub, task.imatrix)
        task = replace(task, model=str(here.path), hub=None, imatrix=here.imatrix)
    with answer.workspace() as workspace:
        found = job_cost(workspace, task)
    answer.tell(name, found, lambda: _show(found))


def _show(found: CostReport) -> None:
    out = console()
    columns = {"stage": "left", "passes": "right", "time": "left", "done": "right", "disk": "right", "memory": "right"}
    rows = [(stage.stage, _passes(stage.passes), *_cost(stage)) for stage in found.stages]
    what = "make" if found.level == MakeStep.kind else "several files" if found.level == LadderStep.kind else f"a {found.level} study"
    out.print(table(f"Cost of {what}", columns, [*rows, ("in all", "", *_cost(found))]))
    out.print(f"A pass is a chunk of text run through the model. By {found.basis}.", soft_wrap=True)
    out.print(found.gain, soft_wrap=True)
    for shortfall in found.shortfalls:
        out.print(f"[red]cannot start: {shortfall}[/red]", soft_wrap=True)


def _passes(passes: tuple[int, int]) -> str:
    low, high = passes
    return "" if not high else f"{high:,}" if low == high else f"{low:,} to {high:,}"


def _cost(item: StageCost | CostReport) -> tuple[str, ...]:
    return words.span(*item.seconds), words.percent(item.share_done, 0), words.size(item.disk_bytes), words.size(item.memory_bytes)
