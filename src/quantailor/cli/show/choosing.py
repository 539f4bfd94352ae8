"""Strategies and what they are predicted to cost; reports and comparisons of models."""

from __future__ import annotations

from math import exp

from rich.console import Console

from quantailor.app.choosing.predicting import PredictResult
from quantailor.app.measuring.reporting import CompareResult, ReportResult
from quantailor.app.steps import PlanResult, RefineResult
from quantailor.cli.output import console, table
from quantailor.cli.show.text import plain
from quantailor.present import words
from quantailor.present.words import plural
from quantailor.records import Estimate, Grounds, Prediction

_N_CONTRIBUTIONS = 10
_WHOLE = "all depths"


def predicted(result: PredictResult) -> None:
    """A prediction with its intervals and the tensors it comes from."""
    out = console()
    prediction = result.prediction
    out.print(
        f"[bold]{words.size(prediction.file_size_bytes)}[/bold] ({prediction.file_size_bytes:,} bytes), "
        f"{words.bits(prediction.bits_per_weight, 3)}"
    )
    more = "" if result.kld_interval_80_nats is None else f", {words.interval(result.kld_interval_80_nats)} (80 %)"
    _show_kld(out, "mean KLD ", prediction, result.grounds, more)
    if result.speed is not None:
        out.print(f"speed     {words.tokens_per_second(result.speed)}", markup=False, soft_wrap=True)
    out.print(f"basis     {words.grounds(result.grounds)}", markup=False, soft_wrap=True)
    out.print(f"curve     fitted to {plural(result.n_mixes, 'whole mix')} in memory and {plural(result.n_anchors, 'file')}")
    rows = [
        (item.tensor, item.type_name, f"{item.damage.value:.3g}", f"± {item.damage.se:.1g}", words.percent(item.share, 1))
        for item in result.contributions[:_N_CONTRIBUTIONS]
    ]
    columns = {"tensor": "left", "type": "left", "damage": "right", "error": "left", "share": "right"}
    out.print(table("Where it comes from (nats)", columns, rows))


def planned(result: PlanResult, *, all_tensors: bool = False) -> None:
    """A strategy: size, mix of types, and the choice per tensor."""
    out = console()
    prediction = result.prediction
    out.print(
        f"[bold]{result.method}[/bold]: {words.exact_size(prediction.file_size_bytes)}, "
        f"{words.bits(prediction.bits_per_weight, 3)}, damage {prediction.damage:.4g} ({result.basis})"
    )
    _show_kld(out, "predicted mean KLD", prediction, result.grounds)
    if result.speed is not None:
        out.print(f"speed     {words.tokens_per_second(result.speed)}", markup=False, soft_wrap=True)
    _show_grounds(out, result.grounds)
    for note in result.notes:
        out.print(f"note      {note}", markup=False, soft_wrap=True)
    if result.probe_command is not None:
        advice = f"probes    usually lower the divergence by a sixth, and predict it: {result.probe_command}"
        out.print(advice, markup=False, soft_wrap=True)
    if result.preset_size_bytes is not None:
        out.print(f"the preset's own file: {words.exact_size(result.preset_size_bytes)}")
    out.print("types     " + ", ".join(f"{count} x {name}" for name, count in result.type_counts.items()))
    shown = result.tensors if all_tensors else result.tensors[:0]
    rows = [(choice.name, choice.type_name, choice.knee or "", f"{choice.damage:.4g}", choice.reason) for choice in shown]
    if rows:
        columns = {"tensor": "left", "type": "left", "knee": "left", "damage": "right", "reason": "wrap"}
        out.print(table("Choices", columns, rows))
    if result.path:
        out.print(f"saved     {result.path}", markup=False)


def refined(result: RefineResult) -> None:
    """What a refinement gained."""
    out = console()
    before, after, ratio = result.kld_before, result.kld_after, result.ln_kld_ratio
    out.print(f"measured  KLD {words.with_error(before)} before, {words.with_error(after)} after ({plural(result.n_chunks, 'chunk')})")
    out.print(
        f"gain      {100 * (1 - exp(ratio.value)):.1f} ± {words.percent(ratio.se, 1)}, {plural(result.n_changed, 'tensor')} changed type"
    )
    if result.n_swaps_tried:
        out.print(f"exchanges {result.n_swaps_tried} tried, {result.n_swaps_kept} kept")
    out.print("types     " + ", ".join(f"{count} x {name}" for name, count in result.type_counts.items()))
    out.print(f"file      {words.size(result.prediction.file_size_bytes)}")
    _show_kld(out, "predicted mean KLD", result.prediction, result.grounds)
    _show_grounds(out, result.grounds)
    out.print(f"saved     {result.path}", markup=False)


def _show_kld(out: Console, label: str, prediction: Prediction, found: Grounds | None, more: str = "") -> None:
    """The predicted KLD with its interval; where it is too early for one, why, and what would make one possible."""
    if prediction.kld_nats is not None:
        out.print(f"{label} {words.kld(prediction.kld_nats, prediction.kld_interval_nats)} (95 %){more}")
    elif prediction.no_prediction is not None:
        out.print(f"{label} {prediction.no_prediction}", markup=False, soft_wrap=True)
        if found is not None:
            out.print(f"to do so  {found.command}", markup=False, soft_wrap=True)


def _show_grounds(out: Console, found: Grounds | None) -> None:
    out.print(f"rests on  {words.grounds(found)}", markup=False, soft_wrap=True)
    if found is not None and found.n_probed < found.n_tensors:
        out.print("[yellow]Tensors that were not probed are estimated from the others.[/yellow]")
        out.print(f"for all   {found.command}", markup=False, soft_wrap=True)


def reported(result: ReportResult) -> None:
    """What a report holds."""
    out = console()
    out.print(
        f"{plain(result.model_name)}: {plural(result.n_tensors, 'tensor')}, {result.n_probed} of them probed, "
        f"{plural(result.n_cells, 'cell')} measured in the model, "
        f"{plural(result.n_mixes, 'whole mix')}, {plural(result.n_verdicts, 'verdict')}"
    )
    _show_grounds(out, result.grounds)
    with_covariances = f", covariances {result.covariances}" if result.covariances else ""
    out.print(f"rounding  {result.rounding}{with_covariances}", markup=False)
    for path in result.paths:
        out.print(f"wrote     {path}", markup=False)


def compared(result: CompareResult) -> None:
    """Two profiles side by side, whole roles only."""
    out = console()
    rows = [
        (row.role, _share(row.share_a, row.parameter_share_a), _share(row.share_b, row.parameter_share_b))
        for row in result.profiles
        if row.depth == _WHOLE
    ]
    out.print(table("Share of the sensitivity (and of the weights)", {"role": "left", **dict.fromkeys(result.models, "right")}, rows))
    out.print(f"rounding  {words.listed(list(dict.fromkeys(result.roundings)))}")
    for name, n in zip(result.models, result.left_out, strict=True):
        if n:
            out.print(f"left out  {plural(n, 'tensor')} of {plain(name)}: not probed or not measured")
    for path in result.paths:
        out.print(f"wrote     {path}", markup=False)


def _share(share: Estimate | None, weights: float | None) -> str:
    if share is None or weights is None:
        return "not in this model" if weights == 0 else "– (not measured)"
    return f"{words.percent_with_error(share)} ({words.percent(weights, 1)})"
