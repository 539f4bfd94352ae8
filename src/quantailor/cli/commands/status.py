"""The command that tells how far a model's measurement is."""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from typing import Annotated

import typer

from quantailor.app.library.projects import open_project
from quantailor.app.measuring.progress import COMMON_TYPE, MeasurementMap, TensorProgress, measurement_map
from quantailor.cli import options
from quantailor.cli.output import console, table
from quantailor.cli.root import command
from quantailor.cli.show.text import plain
from quantailor.present import words

TypeOption = Annotated[str, typer.Option("--type", help="The type at which tensors are compared, or the measured type nearest to it.")]


@command(epilog="Example: quantailor status base.gguf")
def status(
    answer: options.Answer,
    model: options.Source,
    type_name: TypeOption = COMMON_TYPE,
) -> None:
    """Show how far the measurement of a model has come: cells, tensors, probes, its running job, and the errors by role so far."""
    with answer.workspace() as workspace:
        fingerprint = open_project(workspace, model).fingerprint
        found = measurement_map(workspace, fingerprint, type_name=type_name)
    answer.tell("status", found, lambda: _show(found))


def _show(found: MeasurementMap) -> None:
    out = console()
    out.print(f"[bold]{plain(found.model_name)}[/bold]")
    if not found.settings:
        out.print("cells     nothing is measured yet; `quantailor study MODEL` does it")
    else:
        matrix = f"importance matrix {found.imatrix_fingerprint[:12]}" if found.imatrix_fingerprint else "no importance matrix"
        out.print(
            f"cells     {found.n_cells:,} of {found.n_possible:,}, {found.n_unavailable:,} of them impossible; {matrix}, {found.settings}"
        )
        out.print(f"tensors   {found.n_tensors_done:,} of {len(found.tensors):,} done, {found.n_probed:,} probed")
    for note in found.notes:
        out.print(f"note      {note}", markup=False, soft_wrap=True)
    if found.evidence:
        out.print(f"rests on  {words.grounds(found.evidence[0])}", markup=False, soft_wrap=True)
        if found.no_prediction is not None:
            out.print(f"KLD       {found.no_prediction}", markup=False, soft_wrap=True)
        if found.no_prediction is not None or found.evidence[0].n_probed < found.evidence[0].n_tensors:
            out.print(f"next      {found.evidence[0].command}", markup=False, soft_wrap=True)
    if found.job is not None:
        job = found.job
        out.print(f"job       {job.id}: {job.kind}, {job.state}, {job.message} {words.time_left(job.eta_seconds)}".rstrip(), markup=False)
    if len(found.evidence) > 1:
        rows = [(item.name, words.grounds(item), str(item.n_ctx), (item.imatrix or "none")[:12]) for item in found.evidence]
        columns = {"--evidence": "left", "what it is": "wrap", "tokens": "right", "imatrix": "left"}
        out.print(table("Evidence; plans rest on the first", columns, rows))
    if found.common_type is not None:
        columns = {
            "role": "left",
            "tensors": "right",
            "done": "right",
            "least": "right",
            "median": "right",
            "largest": "right",
            "median alpha": "right",
        }
        out.print(table(f"Share of the output's energy lost at {found.common_type}", columns, _rows(found)))


def _rows(found: MeasurementMap) -> list[tuple[str, ...]]:
    roles: dict[str, list[TensorProgress]] = defaultdict(list)
    for tensor in found.tensors:
        roles[tensor.role].append(tensor)
    return [_row(role, tensors) for role, tensors in roles.items()]


def _row(role: str, tensors: list[TensorProgress]) -> tuple[str, ...]:
    errors = [tensor.error for tensor in tensors if tensor.error is not None]
    alphas = [tensor.sensitivity.alpha.value for tensor in tensors if tensor.sensitivity is not None]
    figures = [f"{figure:.3g}" for figure in (min(errors), median(errors), max(errors))] if errors else ["", "", ""]
    alpha = f"{median(alphas):.3g}" if alphas else ""
    return (role, str(len(tensors)), str(sum(tensor.is_done for tensor in tensors)), *figures, alpha)
