"""Results as tables and sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from math import exp
from typing import Any

from rich.console import Console

from quantailor.app.choosing.predicting import PredictResult
from quantailor.app.jobs import JobReport
from quantailor.app.library.structure import ModelReport, TensorReport
from quantailor.app.measuring.reporting import CompareResult, ReportResult
from quantailor.app.steps import (
    BuildReport,
    ConvertResult,
    ImatrixReport,
    MakeResult,
    MeasureResult,
    PlanResult,
    ProbeResult,
    RefineResult,
    StepResult,
    StudyResult,
    SweepCellReport,
    SweepResult,
    VerifyResult,
)
from quantailor.cli.output import console, table
from quantailor.present import words
from quantailor.present.words import plural
from quantailor.records import Estimate, Grounds, MetadataValue, Prediction, Verdict, VerdictRow, WeightError


def model(report: ModelReport, *, all_types: bool = False) -> None:
    """The structure of a model."""
    out = console()
    out.print(f"[bold]{report.name}[/bold]  {report.architecture}, {words.count(report.n_parameters)} parameters")
    out.print(f"tensors   {len(report.tensors)}, {words.size(report.tensor_bytes)}, {words.bits(report.bits_per_weight)}")
    out.print(f"location  {report.location}")
    out.print(f"identity  {report.fingerprint}")
    if report.config_files:
        out.print(f"files     {', '.join(report.config_files)}")
    if report.other_contents is not None:
        out.print(f"[yellow]This is {report.other_contents}.[/yellow]")
    elif report.is_quantized:
        out.print("[yellow]This model is quantized already; quantizing it again loses quality twice.[/yellow]")
    out.print()
    configuration(out, report.metadata)
    out.print()
    tensors(out, report.tensors, all_types=all_types)


def configuration(out: Console, metadata: Mapping[str, MetadataValue]) -> None:
    """Metadata without the vocabulary."""
    keys = [(key, _short(value.value)) for key, value in metadata.items() if not key.startswith("tokenizer.ggml")]
    out.print(table("Configuration", {"key": "left", "value": "left"}, keys))


def tensors(out: Console, reports: Sequence[TensorReport], *, all_types: bool) -> None:
    """Tensors and what they can become, and why not."""
    rows = [(item.name, words.shape(item.shape), item.type_name, words.size(item.size_bytes), _type_summary(item)) for item in reports]
    columns = {"tensor": "left", "shape": "left", "type": "left", "size": "right", "can become": "left"}
    out.print(table("Tensors", columns, rows))
    _reasons(out, reports, all_types)


def plain(text: str) -> str:
    """Text from elsewhere without markup."""
    return text.replace("[", r"\[")


def _short(value: object) -> str:
    text = f"[{len(value)} values]" if isinstance(value, tuple) else str(value).replace("\n", " ")
    text = text if len(text) <= 100 else text[:97] + "..."
    return text.replace("[", r"\[")


def _type_summary(item: TensorReport) -> str:
    total = len(item.available_types) + len(item.unavailable_types)
    if not total:
        return ""
    if item.available_types == (item.type_name,):
        return f"stays {item.type_name}: {next(iter(item.unavailable_types.values()), '')}"
    return f"{len(item.available_types)} of {total} types"


def _reasons(out: Console, reports: Sequence[TensorReport], all_types: bool) -> None:
    grouped: dict[tuple[str, str], list[str]] = {}
    for item in reports:
        if item.available_types == (item.type_name,):
            continue
        for type_name, reason in item.unavailable_types.items():
            grouped.setdefault((type_name, reason), []).append(item.name)
        if all_types and item.available_types:
            out.print(f"{item.name}: {', '.join(item.available_types)}")
    if grouped:
        out.print()
        rows = [(type_name, _names(names), reason) for (type_name, reason), names in grouped.items()]
        out.print(table("Why not", {"type": "left", "tensors": "left", "reason": "wrap"}, rows))


def _names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _several(names: Sequence[str]) -> str:
    """Names, the first six of many."""
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:6])} and {len(names) - 6} more"


def converted(result: ConvertResult) -> None:
    console().print(f"{result.path}: {plural(result.n_tensors, 'tensor')}, {words.size(result.size_bytes)}")
    console().print(result.why, markup=False, soft_wrap=True)
    if result.left_out:
        console().print(f"left out: {', '.join(result.left_out)}", markup=False)


def imatrix(report: ImatrixReport) -> None:
    """An importance matrix with its statistics."""
    out = console()
    out.print(
        f"importance matrix {report.fingerprint[:12]}: {plural(report.n_tensors, 'tensor')}, "
        f"{plural(report.chunk_count, 'chunk')} of {report.chunk_size}"
    )
    out.print(f"file      {report.path}")
    out.print(f"text      {', '.join(report.datasets) or 'unknown'}")
    if report.missing_tensors:
        out.print(f"[yellow]It lacks {_names(list(report.missing_tensors))}: types that need it are unavailable there.[/yellow]")
    if report.left_out:
        out.print(f"[yellow]Left out, because their lengths are not those of this model's tensors: {_several(report.left_out)}.[/yellow]")
    if report.unseen_tensors:
        out.print(f"[yellow]No token reached {_several(report.unseen_tensors)}: all columns count alike there.[/yellow]")
    if unseen := [item for item in report.statistics if item.n_unseen_experts]:
        what = _several([f"{item.tensor} ({item.n_unseen_experts} of {item.n_experts})" for item in unseen])
        out.print(f"[yellow]Experts that no token reached, in which all columns count alike: {what}.[/yellow]")
    rows = [
        (
            item.tensor,
            f"{item.sum_of_squares:.4g}",
            f"{item.minimum:.3g}",
            f"{item.maximum:.3g}",
            f"{item.mean:.3g}",
            f"{item.standard_deviation:.3g}",
            words.percent(item.active_share, 1),
            words.percent(item.normalized_entropy, 1),
            f"{item.n_unseen_experts} of {item.n_experts}" if item.n_experts > 1 else "",
        )
        for item in report.statistics
    ]
    if rows:
        headings = ("sum E\\[x2]", "min", "max", "mean", "sd", "active", "entropy", "unseen")
        out.print(table("Statistics of E\\[x2]", {"tensor": "left", **dict.fromkeys(headings, "right")}, rows))


def measured(result: MeasureResult) -> None:
    """A summary of a measurement, one line per type."""
    out = console()
    weighting = f"importance matrix {result.imatrix_fingerprint[:12]}" if result.imatrix_fingerprint else "no importance matrix"
    out.print(
        f"{plural(result.n_cells, 'cell')}: {plural(result.n_tensors, 'tensor')} x {plural(result.n_types, 'type')}, "
        f"{weighting}, {result.settings}"
    )
    out.print(f"{result.n_already_measured:,} were already there, {result.n_unavailable:,} are unavailable")
    if result.without_importances:
        out.print(
            f"[yellow]The importance matrix has nothing that fits {_several(result.without_importances)}: measured without it.[/yellow]"
        )
    if result.unseen_experts:
        total = sum(result.unseen_experts.values())
        out.print(f"[yellow]{total} experts in {plural(len(result.unseen_experts), 'tensor')} saw no calibration token.[/yellow]")
    by_type: dict[str, list[WeightError]] = {}
    for cell in result.cells:
        if cell.unavailable is None:
            by_type.setdefault(cell.type_name, []).append(cell)
    rows = [_type_row(name, cells) for name, cells in by_type.items()]
    rows.sort(key=lambda row: float(row[1]), reverse=True)
    columns = {
        "type": "left",
        "bits": "right",
        "tensors": "right",
        "relative error": "right",
        "weighted error": "right",
        "largest": "right",
    }
    out.print(table("Mean over tensors", columns, rows))


def _type_row(name: str, cells: list[WeightError]) -> tuple[str, ...]:
    def mean(values: list[float]) -> str:
        return f"{sum(values) / len(values):.3e}" if values else ""

    return (
        name,
        f"{cells[0].bits_per_weight:.4g}",
        str(len(cells)),
        mean([cell.relative_mse for cell in cells if cell.relative_mse is not None]),
        mean([cell.weighted_mse for cell in cells if cell.weighted_mse is not None]),
        ("≥ " if any(cell.sampled for cell in cells) else "") + f"{max(cell.max_abs_error or 0.0 for cell in cells):.3g}",
    )


def probed(result: ProbeResult) -> None:
    """alpha of every tensor, and how well whole mixes are predicted."""
    out = console()
    weighting = f"importance matrix {result.imatrix_fingerprint[:12]}" if result.imatrix_fingerprint else "no importance matrix"
    out.print(
        f"{plural(len(result.sensitivities), 'tensor')} on {result.corpus_name}, "
        f"{plural(result.n_chunks, 'chunk')} of {result.n_ctx}, {weighting}"
    )
    out.print(
        f"{result.n_scored - result.n_scored_before:,} chunks of mixes were scored now, {result.n_scored_before:,} were already there"
    )
    out.print(f"floor     {result.floor_nats:.2g} nats" + (f"; the base as stored: {result.stored_nats:.2g}" if result.stored_nats else ""))
    rows = [
        (
            item.tensor,
            item.status if not item.group else f"{item.status}, with {item.group}",
            f"{item.alpha.value:.4g}" if item.probes else "–",
            f"± {item.alpha.se:.2g}" if item.probes else "",
            f"{item.noise[32]:.2g}" if 32 in item.noise else "",
            f"{item.noise[256]:.2g}" if 256 in item.noise else "",
            ", ".join(item.probes),
        )
        for item in sorted(result.sensitivities, key=lambda item: -item.alpha.value)
    ]
    columns = {"tensor": "left", "status": "left", "alpha": "right", "error": "left", "noise 32": "right", "noise 256": "right"}
    out.print(table("Sensitivities (nats per unit of weighted error; noise of kernels in nats)", {**columns, "probes": "left"}, rows))
    _curve(out, result)


def _curve(out: Console, result: ProbeResult) -> None:
    curve = result.curve
    n_memory = sum(point.kind == "memory" for point in curve.points)
    if not n_memory:
        out.print("[yellow]No whole mixes were measured: predictions have a wide interval. Run it with --mixes 24.[/yellow]")
        return
    out.print(
        f"KLD = {curve.gamma:.3f} (S {curve.kappa:+.2f} S^2) + {curve.c0_nats:.2g}, "
        f"fitted to {plural(n_memory, 'mix')} and {plural(len(curve.points) - n_memory, 'file')}; "
        f"a new mix lies within {words.percent(curve.residual_sd, 1)} (1 sd)"
    )


def swept(result: SweepResult) -> None:
    """A summary of a sweep, one line per type, and the cells that cost most."""
    out = console()
    out.print(f"{plural(result.n_cells, 'cell')} on {result.corpus_name}, {plural(result.n_chunks, 'chunk')} of {result.n_ctx}")
    out.print(f"{result.n_already_measured:,} were already there, {result.n_skipped:,} were skipped because the probes predict them")
    by_type: dict[str, list[SweepCellReport]] = {}
    for cell in result.cells:
        by_type.setdefault(cell.type_name, []).append(cell)
    rows = [_sweep_row(name, cells) for name, cells in by_type.items()]
    columns = {"type": "left", "bits": "right", "cells": "right", "sum of KLD": "right", "largest": "right", "at": "left"}
    out.print(table("Every tensor alone at this type (KLD in nats)", columns, sorted(rows, key=lambda row: float(row[1]))))


def _sweep_row(name: str, cells: list[SweepCellReport]) -> tuple[str, ...]:
    found = [(cell.measured.kld.value, cell) for cell in cells if cell.measured]
    head = (name, f"{cells[0].bits_per_weight:.4g}", f"{len(found)} of {len(cells)}")
    if not found:
        return (*head, "", "", "")
    largest, worst = max(found, key=lambda pair: pair[0])
    error = f" ± {worst.measured.kld.se:.1g}" if worst.measured else ""
    return (*head, f"{sum(value for value, _ in found):.4g}", f"{largest:.3g}{error}", worst.tensor)


_N_CONTRIBUTIONS = 10


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
    out.print(f"basis     {words.grounds(result.grounds)}", markup=False, soft_wrap=True)
    out.print(f"curve     fitted to {plural(result.n_mixes, 'whole mix')} in memory and {plural(result.n_anchors, 'file')}")
    rows = [
        (item.tensor, item.type_name, f"{item.damage.value:.3g}", f"± {item.damage.se:.1g}", words.percent(item.share, 1))
        for item in result.contributions[:_N_CONTRIBUTIONS]
    ]
    columns = {"tensor": "left", "type": "left", "damage": "right", "error": "left", "share": "right"}
    out.print(table("Where it comes from (nats)", columns, rows))


def _show_kld(out: Console, label: str, prediction: Prediction, found: Grounds | None, more: str = "") -> None:
    """The predicted KLD with its interval; where it is too early for one, why, and what would make one possible."""
    if prediction.kld_nats is not None:
        out.print(f"{label} {words.kld(prediction.kld_nats, prediction.kld_interval_nats)} (95 %){more}")
    elif prediction.no_prediction is not None:
        out.print(f"{label} {prediction.no_prediction}", markup=False, soft_wrap=True)
        if found is not None:
            out.print(f"to do so  {found.command}", markup=False, soft_wrap=True)


def _show_grounds(out: Console, found: Grounds | None) -> None:
    out.print(f"stands on {words.grounds(found)}", markup=False, soft_wrap=True)
    if found is not None and found.n_probed < found.n_tensors:
        out.print("[yellow]The tensors that were not probed count as the median of their role.[/yellow]")
        out.print(f"for all   {found.command}", markup=False, soft_wrap=True)


def studied(result: StudyResult) -> None:
    """What a study found, by stage."""
    out = console()
    out.print(f"base      {result.base}")
    matrix = f"{result.imatrix_fingerprint[:12]}, {result.imatrix_chunks} chunks" if result.imatrix_fingerprint else "none"
    out.print(f"imatrix   {matrix}")
    out.print(
        f"errors    {plural(result.n_cells, 'cell')} of {plural(result.n_tensors, 'tensor')} x {plural(result.n_types, 'type')}, "
        f"{result.settings}; "
        f"{result.n_unavailable} are unavailable"
    )
    if result.basis == "probes":
        out.print(f"probes    {plural(result.n_probed, 'tensor')} measured, {plural(result.n_scored, 'chunk')} scored")
    if result.n_swept:
        out.print(f"sweep     {plural(result.n_swept, 'cell')}")
    ranking = " (ranking only: no probes were made, so no KL divergence can be predicted)" if result.basis != "probes" else ""
    out.print(f"next      quantailor plan {result.base} --size ...{ranking}")


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
    out.print(f"saved     {result.path}")


def reported(result: ReportResult) -> None:
    """What a report holds."""
    out = console()
    out.print(
        f"{result.model_name}: {plural(result.n_tensors, 'tensor')}, {result.n_probed} of them probed, "
        f"{plural(result.n_cells, 'cell')} measured in the model, "
        f"{plural(result.n_mixes, 'whole mix')}, {plural(result.n_verdicts, 'verdict')}"
    )
    _show_grounds(out, result.grounds)
    for path in result.paths:
        out.print(f"wrote     {path}")


def compared(result: CompareResult) -> None:
    """Two profiles side by side, whole roles only."""
    out = console()
    rows = [
        (row.role, _share(row.share_a, row.parameter_share_a), _share(row.share_b, row.parameter_share_b))
        for row in result.profiles
        if row.depth == _WHOLE
    ]
    out.print(table("Share of the sensitivity (and of the weights)", {"role": "left", **dict.fromkeys(result.models, "right")}, rows))
    for name, n in zip(result.models, result.left_out, strict=True):
        if n:
            out.print(f"left out  {plural(n, 'tensor')} of {plain(name)}: not probed or not measured")
    for path in result.paths:
        out.print(f"wrote     {path}")


_WHOLE = "all depths"


def _share(share: Estimate | None, weights: float | None) -> str:
    if share is None or weights is None:
        return "not in this model" if weights == 0 else "– (not measured)"
    return f"{words.percent_with_error(share)} ({words.percent(weights, 1)})"


def planned(result: PlanResult, *, all_tensors: bool = False) -> None:
    """A strategy: size, mix of types, and the choice per tensor."""
    out = console()
    prediction = result.prediction
    out.print(
        f"[bold]{result.method}[/bold]: {words.exact_size(prediction.file_size_bytes)}, "
        f"{words.bits(prediction.bits_per_weight, 3)}, damage {prediction.damage:.4g} ({result.basis})"
    )
    _show_kld(out, "predicted mean KLD", prediction, result.grounds)
    _show_grounds(out, result.grounds)
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
        out.print(f"saved     {result.path}")


def built(report: BuildReport) -> None:
    """The file that was written."""
    out = console()
    out.print(f"{', '.join(report.paths)}: {words.exact_size(report.size_bytes)}, {report.bits_per_weight:.3f} bpw")
    if report.size_bytes != report.predicted_size_bytes:
        out.print(f"[red]the prediction was {report.predicted_size_bytes:,} bytes[/red]")


def verified(result: VerifyResult) -> None:
    """The verdict table and its sentence."""
    out = console()
    out.print(_verdict_table(result.verdict))
    out.print(f"floor (base through the same pipeline): {result.verdict.floor_kld_nats:.2e} nats")
    out.print(f"[bold]{result.verdict.sentence}[/bold]")
    for path in result.files:
        out.print(f"wrote     {path}")


def _verdict_table(verdict: Verdict) -> Any:
    columns = {"file": "left", "size": "right", "bpw": "right", "PPL": "right", "ln PPL ratio": "right", "mean KLD": "right"}
    columns |= {"median": "right", "p99": "right", "p99.9": "right", "same top-1": "right", "KLD ours / it": "right"}
    ratios = {item.reference: item for item in verdict.comparisons}
    rows = [_verdict_row(row, ratios) for row in verdict.rows]
    return table(f"{verdict.corpus_name}, {verdict.rows[0].statistics.n_chunks} chunks of {verdict.n_ctx}", columns, rows)


def _verdict_row(row: VerdictRow, ratios: Mapping[str, Any]) -> tuple[str, ...]:
    s = row.statistics
    head = (f"[bold]{row.label}[/bold]" if row.kind == "ours" else row.label, words.size(row.size_bytes), f"{row.bits_per_weight:.2f}")
    ppl = f"{s.perplexity.value:.4f} ± {s.perplexity.se:.3f}"
    if row.kind == "base":
        return (*head, ppl, "", "", "", "", "", "", "")
    return (
        *head,
        ppl,
        f"{s.ln_ppl_ratio.value:+.5f} ± {s.ln_ppl_ratio.se:.5f}",
        f"{s.kld_mean.value:.5f} ± {s.kld_mean.se:.5f}",
        f"{s.kld_median:.5f}",
        f"{s.kld_p99:.4f}",
        f"{s.kld_p999:.4f}",
        words.percent(s.top_agreement.value, 2),
        _ratio(ratios.get(row.label)),
    )


def _ratio(comparison: Any) -> str:
    if comparison is None:
        return ""
    low, high = (exp(value) for value in comparison.interval)
    return f"{exp(comparison.ln_kld_ratio):.3f} [{low:.3f}, {high:.3f}] {comparison.outcome}".replace("[", r"\[")


def made(result: MakeResult) -> None:
    """The end of the whole way."""
    planned(result.plan)
    built(result.build)
    if result.verify is not None:
        verified(result.verify)


def jobs(reports: list[JobReport]) -> None:
    """The job table."""
    if not reports:
        console().print("No jobs. Long commands make one each; --detach sends them to the background.")
        return
    rows = [
        (str(job.id), job.kind, job.state, words.percent(job.progress, 0), words.time_left(job.eta_seconds), job.created, job.title)
        for job in reports
    ]
    columns = {"id": "right", "kind": "left", "state": "left", "done": "right", "left": "left", "created": "left", "what": "left"}
    console().print(table("Jobs", columns, rows))


def job(report: JobReport) -> None:
    """One job with its log."""
    out = console()
    stage = f"stage {report.stage_number} of {report.n_stages}, " if report.n_stages and report.state != "done" else ""
    elapsed = "" if report.elapsed_seconds is None else f"after {words.duration(report.elapsed_seconds)}"
    parts = (f"{stage}{words.percent(report.progress, 0)}", elapsed, words.time_left(report.eta_seconds))
    out.print(f"job {report.id}: {report.kind}, {report.state}, {'  '.join(part for part in parts if part)}")
    out.print(f"what      {report.title}")
    if report.origin:
        out.print(f"model     {report.origin}")
    if report.message:
        out.print(f"now       {report.message}")
    if report.error:
        out.print(f"error     {report.error}")
    for line in report.log:
        out.print(line, markup=False)


SHOW: dict[type, Callable[[Any], None]] = {
    ConvertResult: converted,
    ImatrixReport: imatrix,
    MeasureResult: measured,
    ProbeResult: probed,
    SweepResult: swept,
    StudyResult: studied,
    RefineResult: refined,
    BuildReport: built,
    VerifyResult: verified,
    MakeResult: made,
}


def result(value: StepResult) -> None:
    """Whatever a step answered: as its kind is shown, else field by field."""
    SHOW.get(type(value), _fields)(value)
    if value.origin:
        console().print(f"model     {value.origin}")


def _fields(value: StepResult) -> None:
    items = [(item.name.replace("_", " "), getattr(value, item.name)) for item in fields(value) if item.name != "origin"]
    width = max((len(name) for name, _ in items), default=0)
    for name, figure in items:
        console().print(f"{name:{width}}  {figure}", markup=False)
