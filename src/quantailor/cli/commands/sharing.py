"""Commands that hand a strategy or a file on: to llama.cpp's quantizer, to the hub, to a sceptical eye."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from quantailor.app.choosing.comparing import DiffSide, StrategyDiff, compare_strategies
from quantailor.app.library import experts as experts_module
from quantailor.app.library.experts import ExpertLayer, ExpertsReport
from quantailor.app.products import exporting
from quantailor.app.products.card import CardResult, write_card
from quantailor.app.products.checking import BuildCheck, check_build
from quantailor.app.products.exporting import ExportFormat, ExportReport, read_strategy
from quantailor.app.steps import AUTO, absolute
from quantailor.cli import EXIT_ERROR, options
from quantailor.cli.output import console, table
from quantailor.cli.root import command
from quantailor.cli.values import imatrix_choice
from quantailor.errors import StrategyMismatchError
from quantailor.present import words
from quantailor.present.words import plural

_MANY = 40
_MARK = {"ok": "[green]as the strategy says[/green]", "bad": "[red]not as the strategy says[/red]"}

BaseOption = Annotated[Path, typer.Option("--base", help="The 16-bit base it was made from.")]
StrategyArgument = Annotated[Path, typer.Argument(metavar="STRATEGY", help="A strategy file, or a GGUF file that carries one.")]


@command(epilog="Example: quantailor export s.yaml --base base.gguf -o tensor-types.txt")
def export(
    answer: options.Answer,
    strategy: StrategyArgument,
    base: BaseOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="The text to write.")],
    format: Annotated[ExportFormat, typer.Option("--format", help="For llama.cpp, for ik_llama.cpp, or the strategy itself.")] = (
        "llama-quantize"
    ),
    gguf: Annotated[
        Path | None, typer.Option("--gguf", help="The file that the command will write; by default named after the strategy.")
    ] = None,
    imatrix: options.Imatrix = AUTO,
    force: options.Force = False,
) -> None:
    """Write a strategy for llama.cpp's own llama-quantize (--tensor-type-file) or ik_llama.cpp's (--custom-q), and the line to run."""
    with answer.workspace() as workspace:
        paths = tuple(Path(absolute(path)) for path in (base, strategy, output))
        target = None if gguf is None else Path(absolute(gguf))
        found = exporting.export(workspace, *paths, output=target, format=format, imatrix=imatrix_choice(imatrix), overwrite=force)
    answer.tell("export", found, lambda: _show_export(found))


def _show_export(report: ExportReport) -> None:
    out = console()
    out.print(f"wrote     {report.text_path}", markup=False)
    for note in report.notes:
        out.print(f"note      {note}", markup=False)
    if report.line:
        out.print("\nWith llama.cpp:" if report.format == "llama-quantize" else "\nWith ik_llama.cpp:")
        out.print(report.line, markup=False, soft_wrap=True)
    out.print("\nWith Quantailor:")
    for line in report.own_lines:
        out.print(line, markup=False, soft_wrap=True)


@command(epilog="Example: quantailor diff base.gguf s.yaml Q4_K_M")
def diff(
    answer: options.Answer,
    base: options.Source,
    a: Annotated[str, typer.Argument(metavar="A", help="A strategy file, a GGUF file of this model, or a preset's name.")],
    b: Annotated[str, typer.Argument(metavar="B", help="What to compare it with.")],
    all_tensors: Annotated[bool, typer.Option("--all", help="Show every tensor that differs.")] = False,
    imatrix: options.Imatrix = AUTO,
) -> None:
    """Compare two choices of types for one model: sizes, predicted KL divergence, and every tensor that differs."""
    with answer.workspace() as workspace:
        found = compare_strategies(workspace, base, a, b, imatrix=imatrix_choice(imatrix))
    answer.tell("diff", found, lambda: _show_diff(found, most=None if all_tensors else _MANY))


def _show_diff(found: StrategyDiff, *, most: int | None) -> None:
    out = console()
    is_timed = found.a.speed is not None or found.b.speed is not None
    columns = {"": "left", "kind": "left", "size": "right", "bits per weight": "right", "predicted KLD (95 %)": "left"}
    columns |= {words.PREDICTED_SPEED: "right"} if is_timed else {}
    sides = [_side_row(name, side, is_timed=is_timed) for name, side in (("A", found.a), ("B", found.b))]
    out.print(table(found.model_name, {**columns, "types": "left"}, sides))
    for name, side in (("A", found.a), ("B", found.b)):
        if side.no_prediction:
            out.print(f"{name} has no prediction: {side.no_prediction}", markup=False)
    if not found.tensors:
        out.print("No tensor differs.")
        return
    rows = [
        (row.role, f"{row.n_changed} of {row.n_tensors}", words.size_change(row.size_b_bytes - row.size_a_bytes)) for row in found.roles
    ]
    out.print(table("By role", {"role": "left", "changed": "right", "B - A": "right"}, rows))
    shown = found.tensors[:most]
    tensors = [(row.tensor, row.type_a, row.type_b, words.size_change(row.size_b_bytes - row.size_a_bytes)) for row in shown]
    out.print(table("Tensors", {"tensor": "left", "A": "left", "B": "left", "B - A": "right"}, tensors))
    if len(shown) < len(found.tensors):
        out.print(f"and {len(found.tensors) - len(shown)} more; --all shows them")


def _side_row(name: str, side: DiffSide, *, is_timed: bool) -> tuple[str, ...]:
    kld = words.kld(side.kld_nats, side.kld_interval_nats, side.no_prediction)
    types = ", ".join(f"{count} x {type_name}" for type_name, count in side.type_counts.items())
    speed = (words.generation_speed(side.speed),) if is_timed else ()
    head = (f"{name}: {side.label}", side.kind, words.size(side.size_bytes), f"{side.bits_per_weight:.3f}")
    return (*head, kld, *speed, types)


@command(epilog="Example: quantailor card out.gguf --base base.gguf -o README.md")
def card(
    answer: options.Answer,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The quantized GGUF file, or the first part of a split one.")],
    base: BaseOption,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file to write; shown if not given.")] = None,
    repo_id: Annotated[str | None, typer.Option("--base-model", help="The original model's name on the hub, ORG/NAME.")] = None,
    force: options.Force = False,
) -> None:
    """Write a model card (README.md) for the hub: what was measured, what is predicted, what is unknown, and how to reproduce it."""
    with answer.workspace() as workspace:
        found = write_card(workspace, base, file, output, repo_id=repo_id, overwrite=force)
    answer.tell("card", found, lambda: _show_card(found, file, base))


def _show_card(found: CardResult, file: Path, base: Path) -> None:
    if found.path is None:
        sys.stdout.write(found.text)
        return
    out = console()
    out.print(f"wrote     {found.path}", markup=False)
    command = shlex.join(("quantailor", "verify", str(file), "--base", str(base)))
    out.print(f"verdict   {found.verdict or f'none; measure the file with: {command}'}", markup=False)
    if not found.name_is_listed:
        out.print(f"note      The hub's list does not show the type of {file.name}; it would for {found.suggested_name}", markup=False)


@command(epilog="Example: quantailor experts base.gguf")
def experts(
    answer: options.Answer,
    base: options.Base,
    imatrix: options.Imatrix = AUTO,
) -> None:
    """Show how the router of a mixture spreads the calibration text over its experts, and how much each layer's experts matter."""
    with answer.workspace() as workspace:
        found = experts_module.experts(workspace, base, imatrix=imatrix_choice(imatrix))
    answer.tell("experts", found, lambda: _show_experts(found))


def _show_experts(found: ExpertsReport) -> None:
    out = console()
    out.print(f"{found.model_name}: {plural(found.n_experts, 'expert')}, {found.n_used or 'an unknown number'} per token", markup=False)
    out.print(f"text      {', '.join(found.datasets) or 'unknown'}, {plural(found.n_tokens, 'token')}", markup=False)
    columns = {"layer": "right", "least used": "right", "most used": "right", "most important": "right", "entropy": "right"}
    columns |= {"unseen": "right", "alpha of its tensors": "left"}
    out.print(table("Experts by layer (shares of the routed tokens)", columns, [_expert_row(layer) for layer in found.layers]))
    n_unseen = sum(len(layer.unseen) for layer in found.layers)
    if n_unseen:
        out.print(
            f"[yellow]{plural(n_unseen, 'expert')} saw no token of the text: types are chosen there without knowledge of inputs.[/yellow]"
        )
    if not found.probed:
        out.print("Their sensitivity is unknown: the model has not been probed with this importance matrix.")


def _expert_row(layer: ExpertLayer) -> tuple[str, ...]:
    alphas = (f"{item.role} {item.alpha.value:.3g}" for item in layer.tensors if item.alpha is not None)
    return (
        str(layer.layer),
        _named_share(layer.shares, min(layer.shares)),
        _named_share(layer.shares, max(layer.shares)),
        _named_share(layer.importance, max(layer.importance)),
        f"{layer.normalized_entropy:.3f}",
        str(len(layer.unseen)),
        ", ".join(alphas),
    )


def _named_share(shares: tuple[float, ...], share: float) -> str:
    return f"{shares.index(share)}: {words.percent(share, 1)}"


@command(epilog="Example: quantailor check out.gguf s.yaml --base base.gguf")
def check(
    answer: options.Answer,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The built GGUF file, or the first part of a split one.")],
    strategy: StrategyArgument,
    base: BaseOption,
) -> None:
    """Check that a file is what its strategy says: every tensor's type and the exact size; show its SHA-256. Exit code 1 if it is not."""
    with answer.workspace() as workspace:
        found = check_build(workspace, base, read_strategy(strategy), file)
    answer.tell("check", found, lambda: _show_check(found))
    if answer.as_json:
        raise typer.Exit(0 if found.ok else EXIT_ERROR)
    if not found.ok:
        raise StrategyMismatchError(f"{file} is not what {strategy} says", remedy="Build it again, or give the strategy it was built by")


def _show_check(found: BuildCheck) -> None:
    out = console()
    out.print(f"types     {plural(found.n_tensors, 'tensor')}, {_MARK['bad' if found.differences else 'ok']}")
    rows = [(item.tensor, item.expected or "missing", item.found or "missing") for item in found.differences]
    if rows:
        out.print(table("Differences", {"tensor": "left", "strategy": "left", "file": "left"}, rows))
    expected = found.expected_size_bytes
    if expected is None:
        verdict = "another program's header; its tensors " + ("are" if found.tensor_bytes == found.expected_tensor_bytes else "are not")
        out.print(f"size      {found.size_bytes:,} bytes, {verdict} as large as the strategy says")
    else:
        out.print(
            f"size      {found.size_bytes:,} bytes, " + (_MARK["ok"] if expected == found.size_bytes else f"[red]not {expected:,}[/red]")
        )
    for part in found.parts:
        out.print(f"sha256    {part.sha256}  {part.path}", markup=False)
