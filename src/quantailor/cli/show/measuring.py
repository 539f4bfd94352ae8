"""What was measured: importance matrices, weight errors, sensitivities, sweeps, studies."""

from __future__ import annotations

import math

from rich.console import Console

from quantailor.app.steps import (
    CalibrateReport,
    ImatrixReport,
    MeasureResult,
    ProbeResult,
    SpeedResult,
    StudyResult,
    SweepCellReport,
    SweepResult,
)
from quantailor.cli.output import console, table
from quantailor.cli.show.text import plain, several
from quantailor.present import words
from quantailor.present.words import plural
from quantailor.records import WeightError


def imatrix(report: ImatrixReport) -> None:
    """An importance matrix with its statistics."""
    out = console()
    out.print(
        f"importance matrix {report.fingerprint[:12]}: {plural(report.n_tensors, 'tensor')}, "
        + (f"{plural(report.chunk_count, 'chunk')} of {report.chunk_size}" if report.chunk_count else "an unknown number of chunks")
    )
    out.print(f"file      {report.path}", markup=False)
    out.print(f"text      {', '.join(report.datasets) or 'unknown'}", markup=False)
    if not report.chunk_count:
        out.print("[yellow]The file says that it saw no chunk: there is no telling how reliable its figures are.[/yellow]")
    if report.missing_tensors:
        out.print(f"[yellow]It lacks {plain(several(report.missing_tensors))}: types that need it are unavailable there.[/yellow]")
    if report.left_out:
        out.print(f"[yellow]Left out, because their lengths are not those of this model's tensors: {several(report.left_out)}.[/yellow]")
    if report.other_model:
        out.print(f"[yellow]{plain(report.other_model)}[/yellow]", soft_wrap=True)
    if report.unseen_tensors:
        out.print(f"[yellow]No token reached {several(report.unseen_tensors)}: all columns count alike there.[/yellow]")
    if unseen := [item for item in report.statistics if item.n_unseen_experts]:
        what = several([f"{item.tensor} ({item.n_unseen_experts} of {item.n_experts})" for item in unseen])
        out.print(f"[yellow]Experts that no token reached, in which all columns count alike: {what}.[/yellow]")
    if report.passed_over:
        out.print(f"[yellow]{plain(report.passed_over)}[/yellow]", soft_wrap=True)
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
        headings = ("sum E[x2]", "min", "max", "mean", "sd", "active", "entropy", "unseen")
        out.print(table("Statistics of E[x2]", {"tensor": "left", **dict.fromkeys(headings, "right")}, rows))


def calibrated(report: CalibrateReport) -> None:
    """Covariances, and the importance matrix of the same run."""
    out = console()
    out.print(
        f"covariances {report.fingerprint[:12]}: {plural(report.n_inputs, 'input')}, {plural(report.n_matrices, 'matrix', 'matrices')}, "
        f"{plural(report.chunk_count, 'chunk')} of {report.chunk_size}"
    )
    out.print(f"file      {report.path}, {words.size(report.size_bytes)}", markup=False)
    if report.missing_tensors:
        out.print(f"[yellow]llama.cpp does not show the inputs of {plain(several(report.missing_tensors))}.[/yellow]")
    if report.n_few:
        few = plural(report.n_few, "matrix", "matrices")
        out.print(
            f"[yellow]{few} of experts have fewer tokens than columns and borrow from those of all experts: a longer text helps.[/yellow]"
        )
    imatrix(report.imatrix)


def measured(result: MeasureResult) -> None:
    """A summary of a measurement, one line per type."""
    out = console()
    weighting = f"importance matrix {result.imatrix_fingerprint[:12]}" if result.imatrix_fingerprint else "no importance matrix"
    out.print(
        f"{plural(result.n_cells, 'cell')}: {plural(result.n_tensors, 'tensor')} x {plural(result.n_types, 'type')}, "
        f"{weighting}, {result.settings}{', compensated rounding' if result.rounding == 'compensated' else ''}"
    )
    out.print(f"{result.n_already_measured:,} were already there, {result.n_unavailable:,} are unavailable")
    if result.without_importances:
        names = plain(several(result.without_importances))
        out.print(f"[yellow]The importance matrix has nothing that fits {names}: measured without it.[/yellow]")
    if result.unseen_experts:
        total = sum(result.unseen_experts.values())
        where = plain(several(list(result.unseen_experts)))
        out.print(f"[yellow]No token reached {total:,} of the matrices in {where}: all columns count alike there.[/yellow]")
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
        "weighted error" if result.covariances_fingerprint is None else "output error": "right",
        "largest": "right",
    }
    out.print(table("Mean over tensors", columns, rows))


def timed(result: SpeedResult) -> None:
    """Tokens per second of every type, and how far predictions of mixes are off."""
    out = console()
    layers = f", {plural(result.n_gpu_layers, 'layer')} on the GPU" if result.n_gpu_layers else ""
    out.print(
        f"{plural(result.n_files, 'file')} timed with {plural(result.n_threads, 'thread')}{layers}; "
        f"{result.n_already_timed:,} of them were timed before"
    )
    if result.failed:
        out.print(f"[yellow]llama.cpp did not run {several(result.failed)}: nothing is known of them.[/yellow]")
    rows = [
        (
            row.type_name,
            f"{row.bits_per_weight:.4g}",
            words.figure(row.prompt_tokens_per_second),
            words.figure(row.generation_tokens_per_second),
        )
        for row in result.types
    ]
    columns = {"type": "left", "bits": "right", f"prompt of {result.n_prompt}": "right", "generation": "right"}
    out.print(table("Tokens per second of the whole model at a type", columns, rows))
    if result.prompt_error is not None and result.generation_error is not None:
        errors = f"{words.percent(result.prompt_error, 1)} (prompt) and {words.percent(result.generation_error, 1)} (generation)"
        out.print(f"Predictions of random mixes are off by {errors}.")


def _type_row(name: str, cells: list[WeightError]) -> tuple[str, ...]:
    def mean(values: list[float]) -> str:
        return f"{sum(values) / len(values):.3e}" if values else ""

    return (
        name,
        f"{cells[0].bits_per_weight:.4g}",
        str(len(cells)),
        mean([cell.relative_mse for cell in cells if cell.relative_mse is not None]),
        mean([cell.error for cell in cells if cell.error is not None]),
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
        f"{plural(result.n_scored - result.n_scored_before, 'chunk')} of mixes scored now, {result.n_scored_before:,} were already there"
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
    if curve.unseen.value:
        factor = f"{math.exp(curve.unseen.value):.2f}"
        out.print(f"Predictions count the damage of rounding weights {factor} times, since they are about text that it was not fitted to")


def swept(result: SweepResult) -> None:
    """A summary of a sweep, one line per type, and the cells that cost most."""
    out = console()
    out.print(f"{plural(result.n_cells, 'cell')} on {plain(result.corpus_name)}, {plural(result.n_chunks, 'chunk')} of {result.n_ctx}")
    out.print(f"{result.n_already_measured:,} were already there, {result.n_skipped:,} were skipped because the probes predict them")
    by_type: dict[str, list[SweepCellReport]] = {}
    for cell in result.cells:
        by_type.setdefault(cell.type_name, []).append(cell)
    rows = sorted((_sweep_row(name, cells) for name, cells in by_type.items()), key=lambda row: float(row[1]))
    columns = {"type": "left", "bits": "right", "cells": "right", "sum of KLD": "right", "largest": "right", "at": "left"}
    out.print(table("Every tensor alone at this type (KLD in nats)", columns, rows))


def _sweep_row(name: str, cells: list[SweepCellReport]) -> tuple[str, ...]:
    found = [(cell.measured.kld.value, cell) for cell in cells if cell.measured]
    head = (name, f"{cells[0].bits_per_weight:.4g}", f"{len(found)} of {len(cells)}")
    if not found:
        return (*head, "", "", "")
    largest, worst = max(found, key=lambda pair: pair[0])
    error = f" ± {worst.measured.kld.se:.1g}" if worst.measured else ""
    return (*head, f"{sum(value for value, _ in found):.4g}", f"{largest:.3g}{error}", worst.tensor)


def studied(result: StudyResult) -> None:
    """What a study found, by stage."""
    out = console()
    out.print(f"base      {result.base}")
    matrix = f"{result.imatrix_fingerprint[:12]}, {plural(result.imatrix_chunks, 'chunk')}" if result.imatrix_fingerprint else "none"
    out.print(f"imatrix   {matrix}")
    if result.covariances_fingerprint:
        out.print(f"rounding  {result.rounding}, covariances {result.covariances_fingerprint}")
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
    out.print(f"next      {result.plan_command or f'quantailor plan {result.base}'} --size ...{ranking}", markup=False, soft_wrap=True)
