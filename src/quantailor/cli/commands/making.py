"""Commands that write files and judge them: build, verify, and make, which goes the whole way."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from quantailor.app import Workspace
from quantailor.app.jobs import run_job
from quantailor.app.steps import (
    AUTO,
    COMPUTE,
    DEFAULT_N_CTX,
    DEFAULT_PROBE_CHUNKS,
    NAME,
    BuildStep,
    Grouping,
    LadderStep,
    MakeStep,
    PlanOptions,
    VerifyStep,
    absolute,
    reference_of,
)
from quantailor.cli import options
from quantailor.cli.commands.planning import BasisOption, ConstraintOptions, SpeedOptions, TargetOptions
from quantailor.cli.recipes import from_recipe
from quantailor.cli.root import app, command
from quantailor.cli.values import imatrix_choice, optional_path, parse_size, split_list


@command(
    epilog="Examples: quantailor build base.gguf strategy.yaml -o model-4.5bpw.gguf | "
    "quantailor build ORG/NAME strategy.yaml -o out.gguf | quantailor build base.gguf Q4_K_M --rounding compensated -o out.gguf"
)
def build(
    model: options.Weights,
    machine: options.SpreadThreads,
    quantized: options.Quantized,
    run: options.Run,
    strategy: Annotated[
        Path,
        typer.Argument(
            metavar="STRATEGY",
            help="A strategy file (YAML, JSON); or types from any GGUF file of this model, llama-quantize's tensor types, or a preset "
            "such as Q4_K_M.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The GGUF file to write.")],
    split_max_size: Annotated[str | None, typer.Option("--split-max-size", help="Write shards of at most this size.")] = None,
    requantize: options.Requantize = False,
    force: options.Force = False,
) -> None:
    """Write the file that a strategy describes; it appears under its name only when it is whole and checked."""
    task = BuildStep(
        **model.fields(),
        **quantized.fields(model.of_hub),
        strategy=reference_of(str(strategy)),
        output=absolute(output),
        split_max_bytes=None if split_max_size is None else parse_size(split_max_size),
        overwrite=force,
        allow_requantize=requantize,
        compute=machine.compute,
    )
    run.execute(task)


@command(
    epilog="Examples: quantailor verify out.gguf --base base.gguf --against Q6_K,Q4_K_M -f heldout.txt | "
    "quantailor verify ours.gguf theirs.gguf --base base.gguf"
)
def verify(
    hub: options.Hub,
    machine: options.SpreadMachine,
    run: options.Run,
    evaluations: options.Evaluations,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="The quantized GGUF file, and others to compare it with.")],
    base: Annotated[Path, typer.Option("--base", help="The 16-bit base it was made from: a file, or ORG/NAME of one on the hub.")],
    against: options.Against = None,
    beside: options.Beside = None,
    text: options.Text = None,
    chunks: options.Chunks = None,
    n_ctx: options.Context = DEFAULT_N_CTX,
    imatrix: options.AnyImatrix = AUTO,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Stem of the .json, .csv, .png and .svg files.")] = None,
    force: options.Force = False,
) -> None:
    """Measure the perplexity and KL divergence of files and of llama.cpp's presets against the base; end with a verdict and a graph.

    The first file is ours; with others, all pairs are compared, and each is held against the presets' line. A file of another model stops
    the command before anything runs.
    """
    repository = hub.repository(base)
    file, *others = map(absolute, files)
    task = VerifyStep(
        file=file,
        others=tuple(others),
        base=options.place(base, repository),
        hub=repository,
        against=None if against is None else split_list(against),
        beside=beside,
        text=optional_path(text),
        chunks=chunks,
        n_ctx=n_ctx,
        evals=evaluations.evals,
        imatrix=imatrix_choice(imatrix, of_repository=repository is not None),
        output=optional_path(output),
        overwrite=force,
        compute=machine.compute,
    )
    run.execute(task)


@command(
    epilog="Examples: quantailor make ./Llama-3.2-1B --size 700MiB -o out | "
    "quantailor make ORG/NAME --sizes Q3_K_M,Q4_K_M,4.0bpw,6.5GiB -o out | "
    "quantailor make ORG/NAME --imatrix imatrix.gguf --basis ranking --no-verify --like Q4_K_M -o out"
)
def make(
    target: TargetOptions,
    fast: SpeedOptions,
    constraints: ConstraintOptions,
    asked: options.SpreadWay,
    converting: options.Converting,
    run: options.Run,
    evaluations: options.Evaluations,
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory for everything that is made.")],
    sizes: Annotated[
        str | None,
        typer.Option(
            "--sizes",
            help="Several files from one measurement: presets, bits or bytes, for example Q3_K_M,Q4_K_M,4.0bpw,6.5GiB; with one verdict "
            "and one card.",
            rich_help_panel="Target",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of the files of --sizes, {model}-{size} by default; {bits} is also available."),
    ] = None,
    base_model: Annotated[str | None, typer.Option("--base-model", help="The original's name on the hub, for the card of --sizes.")] = None,
    basis: BasisOption = "auto",
    exhaustive: Annotated[bool, typer.Option("--exhaustive", help="Measure every row.")] = False,
    probe_chunks: options.ProbeChunks = DEFAULT_PROBE_CHUNKS,
    group: Annotated[
        Grouping | None,
        typer.Option("--group", help="Probe every tensor, or roles by depth; by default every tensor of small models and on GPUs."),
    ] = None,
    imatrix: options.MakeImatrix = COMPUTE,
    imatrix_chunks: Annotated[
        int | None, options.number("imatrix_chunks", "--imatrix-chunks", help="Use at most this many chunks of the calibration text.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Measure the file against its base; with --no-verify, a base may not be needed.")
    ] = True,
    verify_text: Annotated[
        Path | None,
        typer.Option("--verify-text", help=f"Held-out text instead of the one that ships with Quantailor: {options.TEXT_KINDS}."),
    ] = None,
    chunks: options.Chunks = None,
    against: options.Against = None,
    beside: options.Beside = None,
    mmproj: options.ProjectorWish = "none",
    force: Annotated[bool, typer.Option("--force", help="Replace the result of another make.", rich_help_panel="Common")] = False,
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe",
            "-r",
            is_eager=True,
            callback=from_recipe,
            help="Options from a file, such as the recipe.yaml that make writes; options on the command line override it.",
        ),
    ] = None,
) -> None:
    """Do all of it in one go: convert, calibrate, measure, probe, plan, build, verify. Run it again to resume.

    A base is written if a step runs the model, and rounding is then compensated unless --rounding plain. With --imatrix FILE,
    --basis ranking and --no-verify none does: the file is built from the checkpoint itself, rounded as ggml does.
    """
    del recipe  # its options are among the others already
    if sizes is None and (name is not None or base_model is not None):
        raise typer.BadParameter("--name and --base-model are for several files; give --sizes")
    plan_options = PlanOptions(**target.target(needed=sizes is None), **fast.fields(), **constraints.limits, basis=basis)
    made = MakeStep if sizes is None else partial(LadderStep, sizes=split_list(sizes), name=name or NAME, base_model=base_model)
    task = made(
        **asked.fields(imatrix),
        output=absolute(output),
        plan=plan_options,
        exhaustive=exhaustive,
        probe_chunks=probe_chunks,
        group=group,
        imatrix_chunks=imatrix_chunks,
        verify=verify,
        verify_text=optional_path(verify_text),
        chunks=chunks,
        against=None if against is None else split_list(against),
        beside=beside,
        evals=evaluations.evals,
        overwrite=force,
        conversion=converting.conversion(asked.repository_of_model, makes_projector=mmproj != "none"),
        mmproj=mmproj,
    )
    run.execute(task)


@app.command(hidden=True)
def worker(job: int, home: options.Home = None, now: Annotated[bool, typer.Option("--now")] = False) -> None:
    """Run a queued job; what --detach starts."""
    with Workspace.open(home) as workspace:
        run_job(workspace, job, now=now)
