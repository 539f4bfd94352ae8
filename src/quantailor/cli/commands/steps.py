"""The first steps of the way: inspect, convert, calibrate, measure, speed. Each gathers input, calls one function and shows the result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantailor.app import steps
from quantailor.app.library import structure as inspection
from quantailor.app.steps import (
    DEFAULT_TIMED_MIXES,
    CalibrateStep,
    ConvertStep,
    ImatrixStep,
    MeasureStep,
    SpeedStep,
    absolute,
    use_imatrix,
)
from quantailor.cli import options, show
from quantailor.cli.commands import hub as hub_commands
from quantailor.cli.commands.jobs import jobs_app
from quantailor.cli.output import console, table
from quantailor.cli.progress import reading
from quantailor.cli.root import app, command
from quantailor.cli.values import optional_path, parse_size, split_list
from quantailor.files import expanded
from quantailor.present import words
from quantailor.present.words import plural

app.add_typer(jobs_app, name="jobs")


Config = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", help="Print this text file of a Hugging Face directory, e.g. config.json."),
]
Largest = Annotated[
    int | None, typer.Option("--largest", metavar="N", min=1, max=1_000_000, help="The N largest tensors and their share of all bytes.")
]


def _version(value: bool) -> None:
    if value:
        typer.echo(steps.version())
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    del version


@command(epilog="Examples: quantailor inspect base.gguf --types | quantailor inspect meta-llama/Llama-3.2-1B")
def inspect(
    hub: options.Hub,
    model: options.Model,
    types: Annotated[bool, typer.Option("--types", help="List every tensor's types.")] = False,
    largest: Largest = None,
    config: Config = None,
    as_json: options.Json = False,
) -> None:
    """Show a model's structure: configuration, tensors, shapes, and which types each tensor can take and why not the others.

    ORG/NAME looks at a repository of the Hugging Face hub without downloading it: headers, size, licence, and the disk needed.
    """
    answer = options.Answer(as_json=as_json)
    if (types, largest is not None, config is not None).count(True) > 1:
        raise typer.BadParameter("--types, --largest and --config exclude each other")
    if repository := hub.repository(model):
        if largest is not None or config is not None:
            raise typer.BadParameter("--largest and --config are for models on this machine: download it first")
        hub_commands.peek(repository, hub.token_file, types=types, answer=answer)
        return
    if config is not None:
        _configuration(model, config, answer)
        return
    if largest is not None:
        _largest(model, largest, answer)
        return
    with reading() as listener:
        report = inspection.inspect(model, listener=listener)
    answer.tell("inspect", report, lambda: show.model(report, all_types=types))


def _configuration(model: Path, file_name: str, answer: options.Answer) -> None:
    """`quantailor inspect MODEL --config FILE`."""
    found = inspection.configuration_text(expanded(model), file_name)
    answer.tell("inspect", found, lambda: _show_text(found))


def _show_text(found: inspection.ConfigurationText) -> None:
    typer.echo(found.text, nl=not found.text.endswith("\n"))
    if not found.is_whole:
        typer.echo(f"... {words.size(found.size_bytes)} in all", err=True)


def _largest(model: Path, n: int, answer: options.Answer) -> None:
    """`quantailor inspect MODEL --largest N`."""
    with reading() as listener:
        found = inspection.largest_tensors(inspection.inspect(model, listener=listener).tensors, n)
    answer.tell("inspect", found, lambda: _show_largest(found))


def _show_largest(found: inspection.LargestTensors) -> None:
    rows = [(item.name, words.size(item.size_bytes), words.percent(item.share, 1)) for item in found.tensors]
    out = console()
    out.print(table("Largest tensors", {"tensor": "left", "size": "right", "share": "right"}, rows))
    whole = f"{words.size(found.size_bytes)} of {words.size(found.total_bytes)}"
    out.print(f"{len(found.tensors)} of {plural(found.n_tensors, 'tensor')} hold {words.percent(found.share, 1)} of the bytes: {whole}")


@command(
    epilog="Examples: quantailor convert ./Llama-3.2-1B -o base.gguf | quantailor convert meta-llama/Llama-3.2-1B -o base.gguf | "
    "quantailor convert ./gemma-3-4b-it -o base.gguf --mmproj mmproj-F16.gguf"
)
def convert(
    hub: options.Hub,
    converting: options.Converting,
    run: options.Run,
    model: Annotated[
        Path, typer.Argument(metavar="HF_DIR", parser=options.model_path, help="A Hugging Face directory, or ORG/NAME on the hub.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The base to write.")],
    mmproj: options.ProjectorFile = None,
    mmproj_type: options.ProjectorFileType = "f16",
    force: options.Force = False,
) -> None:
    """Write the 16-bit base GGUF of a Hugging Face directory or a repository; parts outside the text model are left out and listed.

    With --mmproj a vision tower or an audio encoder becomes a file of its own. That, and models that Quantailor does not convert itself, go
    through llama.cpp's converter, which needs torch and transformers.
    """
    repository = hub.repository(model)
    if mmproj is not None and mmproj.name.lower() in ("none", "f16", "bf16", "q8_0"):
        raise typer.BadParameter("--mmproj names the file to write; its type is --mmproj-type")
    task = ConvertStep(
        model=options.place(model, repository),
        hub=repository,
        output=absolute(output),
        overwrite=force,
        conversion=converting.conversion(repository, makes_projector=mmproj is not None),
        mmproj=optional_path(mmproj),
        mmproj_type=mmproj_type,
    )
    run.execute(task)


@command(epilog="Examples: quantailor imatrix base.gguf -f text.txt | quantailor imatrix base.gguf --import imatrix.dat")
def imatrix(
    model: options.SpreadRunning,
    run: options.Run,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", "--export", help="Also write it here: as GGUF, or FILE.dat as older tools read it.")
    ] = None,
    import_file: Annotated[Path | None, typer.Option("--import", help="Take this file (GGUF or .dat) instead of computing.")] = None,
    show_only: Annotated[bool, typer.Option("--show", help="Show the one that later commands use; compute nothing.")] = False,
    chunks: options.Chunks = None,
    process_output: options.ProcessOutput = False,
    force: options.Force = False,
) -> None:
    """Compute, import, export or show an importance matrix; later commands use the latest, unless an earlier one saw more."""
    if import_file is not None or show_only:
        if import_file is not None and (show_only or model.text is not None):
            raise typer.BadParameter("--import goes with neither --show nor --file")
        here = hub_commands.here(model.base, model.of_hub)
        with run.workspace() as workspace:
            report = use_imatrix(workspace, here.path, import_file=import_file, export=output, overwrite=force)
        run.tell("imatrix", report, lambda: show.imatrix(report))
        return
    task = ImatrixStep(
        **model.fields(),
        chunks=chunks,
        process_output=process_output,
        output=optional_path(output),
        overwrite=force,
    )
    run.execute(task)


@command(epilog="Example: quantailor calibrate base.gguf -f text.txt")
def calibrate(
    model: options.SpreadRunning,
    run: options.Run,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the covariances here.")] = None,
    chunks: options.Chunks = None,
    process_output: options.ProcessOutput = False,
    memory: Annotated[
        str | None,
        typer.Option("--memory", help="Memory for the sums, in addition to the model (1.5GiB): with more, the text runs fewer times."),
    ] = None,
    force: options.Force = False,
) -> None:
    """Compute an importance matrix and the covariances of inputs, from which compensated rounding lets errors cancel.

    Later commands use the model's covariances that saw most text. If the sums do not fit in memory, the text runs several times.
    """
    task = CalibrateStep(
        **model.fields(),
        chunks=chunks,
        process_output=process_output,
        memory_bytes=None if memory is None else parse_size(memory),
        output=optional_path(output),
        overwrite=force,
    )
    run.execute(task)


@command(epilog="Example: quantailor measure base.gguf --types Q3_K,Q4_K,Q5_K,Q6_K,Q8_0")
def measure(
    model: options.Weights,
    machine: options.SpreadThreads,
    quantized: options.Quantized,
    run: options.Run,
    types: options.Types = None,
    tensors: options.Tensors = None,
    exhaustive: Annotated[bool, typer.Option("--exhaustive", help="Measure every row instead of a sample with a stated error.")] = False,
    requantize: options.Requantize = False,
) -> None:
    """Measure the error of every tensor at every type. What the store already has is not measured again."""
    task = MeasureStep(
        **model.fields(),
        **quantized.fields(model.of_hub),
        types=split_list(types),
        tensors=split_list(tensors),
        exhaustive=exhaustive,
        allow_requantize=requantize,
        compute=machine.compute,
    )
    run.execute(task)


@command(epilog="Examples: quantailor speed base.gguf | quantailor speed base.gguf --types Q4_K,Q5_K,Q6_K --threads 8")
def speed(
    model: options.TimedHere,
    run: options.Run,
    mixes: Annotated[
        int, options.number("mixes", "--mixes", help="Random mixes that tell how far predictions are off.")
    ] = DEFAULT_TIMED_MIXES,
) -> None:
    """Time every type on this machine: tokens per second for prompts and for generation.

    Files of the model's structure are made for it and removed again. `plan` then says how fast a file will be, and takes --speed. What was
    timed before, of any model with the same structure, is not timed again.
    """
    run.execute(SpeedStep(**model.fields(), types=model.type_names, mixes=mixes, compute=model.compute))
