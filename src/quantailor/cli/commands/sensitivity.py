"""Commands that measure what a tensor's error does to the model, predict from it, and tell of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantailor.app.choosing import predicting
from quantailor.app.measuring import reporting
from quantailor.app.products.exporting import read_strategy
from quantailor.app.steps import (
    AUTO,
    DEFAULT_ANCHORS,
    DEFAULT_MIXES,
    DEFAULT_REFINE_CHUNKS,
    DEFAULT_SWEEP_CHUNKS,
    TIMED_EFFORT,
    USUAL_EFFORT,
    ProbeStep,
    RefineStep,
    SweepStep,
    absolute,
    effort,
)
from quantailor.cli import options, show
from quantailor.cli.root import command
from quantailor.cli.values import covariances_choice, optional_seconds, split_list

_TYPES = ", ".join(USUAL_EFFORT.types)


@command(epilog="Example: quantailor probe base.gguf -f text.txt --group role-depth")
def probe(
    model: options.SpreadRunning,
    run: options.Run,
    quantized: options.Quantized,
    chunks: Annotated[
        int | None,
        options.number(
            "chunks",
            "--chunks",
            help=f"Chunks per probe, at most: {USUAL_EFFORT.chunks}, or {TIMED_EFFORT.chunks} with --time or --passes.",
        ),
    ] = None,
    types: Annotated[
        str | None,
        typer.Option("--type", "--types", help=f"Types to probe at, separated by commas: {_TYPES}, or more with --time or --passes."),
    ] = None,
    time: options.Time = None,
    passes: options.Passes = None,
    rest: options.RestOption = "16",
    group: options.Group = "tensor",
    weighing: Annotated[
        int,
        options.number(
            "weighing", "--weighing", help="Random halves of all tensors to probe together, if single tensors are lost in noise."
        ),
    ] = 0,
    target_error: Annotated[float, options.number("target_error", "--target-error", help="Relative standard error to stop at.")] = 0.05,
    mixes: Annotated[int, options.number("mixes", "--mixes", help="Random whole mixes to fit the prediction to.")] = DEFAULT_MIXES,
    mix_chunks: Annotated[
        int | None,
        options.number(
            "mix_chunks", "--mix-chunks", help=f"Chunks per whole mix: {USUAL_EFFORT.mix_chunks}, or more with --time or --passes."
        ),
    ] = None,
    anchors: Annotated[int, options.number("anchors", "--anchors", help="Mixes to build as files.")] = DEFAULT_ANCHORS,
) -> None:
    """Measure how much each tensor's error matters to the model, by swapping quantized weights into it; only figures are written."""
    seconds = optional_seconds(time)
    usual = effort(seconds, passes)
    task = ProbeStep(
        **model.fields(),
        **quantized.fields(model.of_hub),
        chunks=chunks or usual.chunks,
        types=tuple(name.upper() for name in split_list(types)) or usual.types,
        seconds=seconds,
        passes=passes,
        rest=rest,
        group=group,
        weighing=weighing,
        target_error=target_error,
        mixes=mixes,
        mix_chunks=mix_chunks or usual.mix_chunks,
        anchors=anchors,
    )
    run.execute(task)


@command(epilog="Example: quantailor sweep base.gguf -f text.txt --types Q2_K,Q4_K --tensors attn_v")
def sweep(
    model: options.SpreadRunning,
    run: options.Run,
    quantized: options.Quantized,
    chunks: Annotated[int, options.number("chunks", "--chunks", help="Chunks per cell.")] = DEFAULT_SWEEP_CHUNKS,
    types: options.Types = None,
    tensors: options.Tensors = None,
    rest: options.RestOption = "16",
    only_uncertain: Annotated[bool, typer.Option("--only-uncertain", help="Skip types whose outcome the probes predict.")] = False,
) -> None:
    """Measure perplexity and KL divergence of every tensor at every type, with all others unquantized. Plans use the results."""
    task = SweepStep(
        **model.fields(),
        **quantized.fields(model.of_hub),
        chunks=chunks,
        types=split_list(types),
        tensors=split_list(tensors),
        rest=rest,
        only_uncertain=only_uncertain,
    )
    run.execute(task)


@command(epilog="Example: quantailor predict base.gguf strategy.yaml")
def predict(
    answer: options.Answer,
    rounded: options.Rounded,
    base: options.Base,
    strategy: options.Strategy,
    evidence: options.Evidence = None,
) -> None:
    """Predict a strategy's KL divergence, with intervals, before it is built, and show which tensors it comes from."""
    with answer.workspace() as workspace:
        found = predicting.predict(
            workspace,
            base,
            read_strategy(strategy),
            name=str(strategy),
            evidence=evidence,
            **rounded.rounded(),
        )
    answer.tell("predict", found, lambda: show.predicted(found))


@command(epilog="Example: quantailor refine base.gguf strategy.yaml -o better.yaml --swaps 100")
def refine(
    model: options.SpreadRunning,
    run: options.Run,
    rounded: options.Rounded,
    strategy: options.Strategy,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the better strategy goes.")],
    chunks: Annotated[int, options.number("chunks", "--chunks", help="Chunks per mix.", least=2)] = DEFAULT_REFINE_CHUNKS,
    relinearize: Annotated[bool, typer.Option(help="Probe again with all other tensors at their chosen types, and solve again.")] = True,
    swaps: Annotated[
        int, options.number("swaps", "--swaps", help="Exchanges of bytes between two tensors to try, judged by measured KLD.")
    ] = 0,
    evidence: options.Evidence = None,
    force: options.Force = False,
) -> None:
    """Improve a strategy at its size with measurements around it, and report the gain."""
    task = RefineStep(
        **model.fields(),
        **rounded.rounded(),
        strategy=absolute(strategy),
        output=absolute(output),
        chunks=chunks,
        relinearize=relinearize,
        swaps=swaps,
        evidence=evidence,
        overwrite=force,
    )
    run.execute(task)


Outputs = Annotated[
    list[Path], typer.Option("--output", "-o", help="A file that ends in .html, .json or .csv; may be given more than once.")
]


@command(epilog="Example: quantailor report base.gguf -o report.html -o cells.csv")
def report(
    answer: options.Answer,
    quantized: options.QuantizedHere,
    base: options.Source,
    output: Outputs,
    force: options.Force = False,
) -> None:
    """Write everything that is known about a model: heat maps, curves, sensitivities, predictions against measurements, verdicts."""
    with answer.workspace() as workspace:
        found = reporting.report(
            workspace,
            base,
            output,
            **quantized.fields(),
            overwrite=force,
        )
    answer.tell("report", found, lambda: show.reported(found))


@command("compare-models", epilog="Example: quantailor compare-models a.gguf b.gguf -o comparison.html")
def compare_models(
    answer: options.Answer,
    base_a: Annotated[Path, typer.Argument(metavar="BASE_A", help="A base that was probed.")],
    base_b: Annotated[Path, typer.Argument(metavar="BASE_B", help="Another one.")],
    output: Annotated[list[Path] | None, typer.Option("--output", "-o", help="A file that ends in .html, .json or .csv.")] = None,
    rounding: options.Rounding = "auto",
    covariances: Annotated[
        list[str] | None,
        typer.Option(
            "--covariances", help="Input covariances: auto (the newest of each model), none, or a file; given twice for A and for B."
        ),
    ] = None,
    force: options.Force = False,
) -> None:
    """Compare where two models are most sensitive, by role and relative depth."""
    chosen = [covariances_choice(value) for value in covariances or (AUTO,)]
    if len(chosen) > 2:
        raise typer.BadParameter(f"--covariances is given {len(chosen)} times for two models")
    with answer.workspace() as workspace:
        found = reporting.compare_models(
            workspace, base_a, base_b, output or (), rounding=rounding, covariances=(chosen[0], chosen[-1]), overwrite=force
        )
    answer.tell("compare-models", found, lambda: show.compared(found))
