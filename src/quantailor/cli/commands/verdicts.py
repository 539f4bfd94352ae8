"""Commands that look back: the files that were built from a model, the verdicts on them, and which of them run where."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from quantailor.app.products.builds import BuiltFile, list_builds
from quantailor.app.products.fitting import FitReport, FittingFile, fit
from quantailor.app.products.projectors import AUTO, NONE, ProjectorNeeds
from quantailor.app.products.verdicts import (
    VerdictsReport,
    export_verdict,
    find_verdict,
    list_verdicts,
    verdict_speeds,
)
from quantailor.app.steps import absolute
from quantailor.cli import options
from quantailor.cli.output import console, table
from quantailor.cli.root import command
from quantailor.cli.values import parse_size
from quantailor.present import words
from quantailor.present.charts.verdict import Measure, verdict_points

_SHORT = 8


@command(epilog="Example: quantailor verdicts base.gguf --export verdict.svg")
def verdicts(
    answer: options.Answer,
    base: options.Source,
    verdict: Annotated[
        str, typer.Option("--verdict", help="The one to show, by the beginning of its fingerprint; by default the latest.")
    ] = "",
    export: Annotated[Path | None, typer.Option("--export", help="Write its graph (.png, .svg) or the points of the graph (.csv).")] = None,
    measure: Annotated[Measure, typer.Option("--measure", help="What the graph shows against size: KLD or perplexity.")] = "kld",
    force: options.Force = False,
) -> None:
    """List the verdicts on a model's files, show one, and export its graph."""
    with answer.workspace() as workspace:
        with workspace.model(base) as model:
            fingerprint = model.fingerprint
        found = tuple(list_verdicts(workspace, fingerprint))
        if verdict or export is not None:
            found = (find_verdict(workspace, fingerprint, verdict),)
        written = None
        if export is not None:
            place = Path(absolute(export))
            written = str(export_verdict(workspace, fingerprint, place, fingerprint=found[0].fingerprint, measure=measure, overwrite=force))
        speeds = verdict_speeds(workspace, base, found[0].verdict) if len(found) == 1 else {}
    report = VerdictsReport(found, written, speeds)
    answer.tell("verdicts", report, lambda: _show(report, measure))


def _show(report: VerdictsReport, measure: Measure) -> None:
    out, found, written = console(), report.verdicts, report.exported
    for item in found:
        out.print(f"{item.fingerprint[:_SHORT]}  {item.verdict.sentence}", markup=False, soft_wrap=True)
    if not found:
        out.print("No verdict yet; make one with: quantailor verify FILE --base BASE")
    if len(found) == 1:
        columns = {"file": "left", "size": "right", "bits per weight": "right", measure.upper(): "right", "95 %": "left"}
        columns |= {words.PREDICTED_SPEED: "right"} if report.speeds else {}
        points = verdict_points(found[0].verdict, measure)
        rows = [
            (
                point.label,
                words.size(point.size_bytes),
                f"{point.bits_per_weight:.2f}",
                words.figure(point.value, 4),
                words.interval((point.low, point.high), 4),
                *((words.generation_speed(report.speeds.get(point.label)),) if report.speeds else ()),
            )
            for point in points
        ]
        out.print(table("", columns, rows))
    if written:
        out.print(f"wrote     {written}", markup=False)


@command(epilog="Example: quantailor builds base.gguf")
def builds(answer: options.Answer, base: options.Source) -> None:
    """List the files that were built from a model and are still there."""
    with answer.workspace() as workspace:
        with workspace.model(base) as model:
            fingerprint = model.fingerprint
        found = list_builds(workspace, fingerprint)
    answer.tell("builds", found, lambda: _show_builds(found))


def _show_builds(found: Sequence[BuiltFile]) -> None:
    columns = {"file": "left", "size": "right", "bits per weight": "right", "rule": "left", "predicted KLD": "right", "verdicts": "left"}
    console().print(table("Built files", columns, [_row(item) for item in found]))


def _row(item: BuiltFile) -> tuple[str, ...]:
    kld = "" if item.predicted_kld_nats is None else f"{item.predicted_kld_nats:.4g}"
    judged = ", ".join(fingerprint[:_SHORT] for fingerprint in item.verdicts)
    return (item.path, words.size(item.size_bytes), f"{item.bits_per_weight:.2f}", item.method, kld, judged)


@command("fit", epilog="Example: quantailor fit base.gguf --memory 24GiB --ctx 32768 --kv q8_0")
def fitting(
    answer: options.Answer,
    model: options.Source,
    memory: Annotated[str, typer.Option("--memory", help="Memory that is available: 24GiB (1024^3), 24GB or 24G (1000^3).")],
    ctx: Annotated[int, options.number("n_ctx", "--ctx", "-c", help="Context length in tokens.")],
    kv: Annotated[str, typer.Option("--kv", help="Type of the KV cache, for example f16, q8_0, q4_0.")] = "f16",
    gpu_memory: Annotated[
        str | None,
        typer.Option("--gpu-memory", help="Split the model: this much on a GPU, without what its driver takes, and --memory beside it."),
    ] = None,
    mmproj: Annotated[
        str,
        typer.Option(
            "--mmproj",
            metavar="FILE|auto|none",
            help="The vision tower or audio encoder that counts, too; auto: the one beside the model or beside a file built from it.",
        ),
    ] = "auto",
    mmproj_offload: Annotated[
        bool, typer.Option("--mmproj-offload/--no-mmproj-offload", help="Put it on the GPU, as llama.cpp does, if it fits there.")
    ] = True,
) -> None:
    """Show which files of a model fit in this much memory with a context, by llama.cpp's own accounting; the best, and how to run it."""
    gpu_bytes = None if gpu_memory is None else parse_size(gpu_memory)
    with answer.workspace() as workspace:
        found = fit(
            workspace,
            model,
            parse_size(memory),
            n_ctx=ctx,
            kv_type=kv,
            gpu_memory_bytes=gpu_bytes,
            mmproj=mmproj if mmproj in (AUTO, NONE) else absolute(mmproj),
            mmproj_offload=mmproj_offload,
        )
    answer.tell("fit", found, lambda: _show_fit(found))


def _show_fit(found: FitReport) -> None:
    out = console()
    is_split = found.gpu_memory_bytes is not None
    parts = f"KV cache {words.size(found.kv_bytes)}, compute buffers {words.size(found.compute_bytes)}"
    rest = f"outputs {words.size(found.output_bytes)}, vocabulary and program {words.size(found.program_bytes)}"
    without = " (without a GPU)" if is_split else ""
    out.print(f"context   {found.n_ctx:,} tokens, {found.kv_type}{without}: {parts}, {rest}", markup=False, soft_wrap=True)
    if found.n_ctx_trained is not None and found.n_ctx > found.n_ctx_trained:
        out.print(f"[yellow]The model was made for {found.n_ctx_trained:,} tokens.[/yellow]")
    if found.mmproj is not None:
        out.print(f"projector {_projector(found.mmproj, is_split=is_split)}", markup=False, soft_wrap=True)
    for note in found.notes:
        out.print(f"[yellow]{escape(note)}[/yellow]", soft_wrap=True)
    room = f"about {words.size(found.room_bytes)}" if is_split else words.exact_size(found.room_bytes)
    out.print(f"room      {room} for the file")
    columns = {"file": "left", "kind": "left", "size": "right"}
    columns |= {"GPU": "right", "memory": "right", "split": "left"} if is_split else {"needs": "right"}
    columns |= {"fits": "left", "KLD": "left"}
    is_timed = any(each.speed is not None for each in found.files)
    columns |= {"tokens per second": "right"} if is_timed else {}
    out.print(table(found.model_name, columns, [_fitting_row(each)[: len(columns)] for each in found.files]))
    if found.shortfall:
        out.print(found.shortfall, markup=False, soft_wrap=True)
    if found.run_command:
        out.print(f"run       {found.run_command}", markup=False, soft_wrap=True)
    out.print(f"make      {found.make_command}", markup=False, soft_wrap=True)


def _projector(needs: ProjectorNeeds, *, is_split: bool) -> str:
    """A projector's parts, and what runs it."""
    encoded = "sound" if needs.picture is None else f"a picture of {needs.picture[0]} x {needs.picture[1]}"
    what = f"{words.size(needs.inputs_bytes + needs.work_bytes)} while it encodes {encoded}"
    parts = f"weights {words.size(needs.weights_bytes)}, compute buffers {words.size(needs.compute_bytes)}, {what}"
    where = "" if not is_split else "on the GPU: " if needs.on_gpu else "with the processor: "
    return f"{Path(needs.path).name}: {where}{parts}, program {words.size(needs.program_bytes)}"


def _fitting_row(each: FittingFile) -> tuple[str, ...]:
    kld = "" if each.kld_nats is None else f"{each.kld_nats:.4g} {'measured' if each.is_measured else 'predicted'}"
    speed = "" if each.speed is None else words.figure(each.speed.generation_tokens_per_second)
    needs: tuple[str, ...] = (words.size(each.needs_bytes),)
    if each.split is not None:
        needs = (words.size(each.split.gpu.needs_bytes), words.size(each.split.host.needs_bytes), " ".join(each.split.flags))
    return (each.shown_name, each.kind, words.size(each.size_bytes), *needs, "yes" if each.fits else "no", kld, speed)
