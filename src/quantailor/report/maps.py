"""Heat maps of a report: alpha by layer and role, and the sweep's KLD by tensor and type."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from quantailor.present.words import Z95, figure, shortened, with_error
from quantailor.records import Estimate, Sensitivity, SwapCell, TensorInfo
from quantailor.report import html
from quantailor.report.data import ReportData, bits_by_type, layers_of, probe_basis, role_order, roles_of
from quantailor.report.grid import GridCell, Layout, Mark, grid, mark_legend
from quantailor.report.html import Column, Sorted
from quantailor.report.markup import Content, Markup, element
from quantailor.report.summary import PROBE_COMMAND
from quantailor.report.svg import Ramp, ramp_legend, ramp_over

SWEEP_COMMAND = "quantailor sweep BASE"
MOST_CELLS = 6000
"""A sweep of more cells is drawn by role, so that the page stays small."""
_OUTSIDE = "outside the blocks"
_NAMED_OUTSIDE, _OUTSIDE_PER_ROW = 9, 40
_MARKS: dict[str, Mark] = {"drowned": "bound", "not in the graph": "absent"}
_MEANINGS: tuple[tuple[Mark, str], ...] = (
    ("bound", "drowned: not told from the floor, alpha is an upper bound"),
    ("absent", "not in the graph: there is nothing to measure"),
    ("unknown", "not probed"),
)


def alpha_section(data: ReportData) -> Markup:
    """Alpha by layer and role."""
    title = "Sensitivity by layer and role"
    if not data.sensitivities:
        return html.section("map", title, html.todo("No sensitivities yet", PROBE_COMMAND))
    lead = (
        "Alpha is how much the weight error of a tensor matters: KLD = alpha × weighted error. "
        "Cells show alpha ± one standard error where there is room, and their name and all digits when pointed at."
    )
    return html.section("map", title, html.paragraph(lead), *_alpha_maps(data), html.basis(probe_basis(data)))


def _alpha_maps(data: ReportData) -> list[Markup]:
    found = {sensitivity.tensor: sensitivity for sensitivity in data.sensitivities}
    ramp = ramp_over(s.alpha.value for s in data.sensitivities if s.status != "not in the graph")
    blocks = [tensor for tensor in data.tensors if tensor.layer is not None]
    outside = [tensor for tensor in data.tensors if tensor.layer is None]
    layout = _layout([_OUTSIDE, *(shortened(role, 24) for role in roles_of(blocks))])
    maps = [_block_map(blocks, found, ramp, layout)] if blocks else []
    maps += [_outside_map(outside, found, ramp, layout)] if outside else []
    statuses = {_mark(found.get(tensor.name)) for tensor in data.tensors}
    keys = mark_legend([(mark, meaning) for mark, meaning in _MEANINGS if mark in statuses])
    return [*maps, element("div", ramp_legend(ramp, "alpha (nats per unit of weighted error, log scale)"), keys, class_="legend")]


def _block_map(tensors: Sequence[TensorInfo], found: dict[str, Sensitivity], ramp: Ramp, layout: Layout) -> Markup:
    rows, layers = roles_of(tensors), layers_of(tensors)
    row_at = {role: index for index, role in enumerate(rows)}
    column_at: dict[int | None, int] = {layer: index for index, layer in enumerate(layers)}
    cells = [_alpha_cell(tensor, row_at[tensor.role], column_at[tensor.layer], found.get(tensor.name)) for tensor in tensors]
    names = [shortened(role, 24) for role in rows]
    drawn = grid(cells, names, [str(layer) for layer in layers], ramp, title="Alpha by role and layer", layout=layout, axis="layer")
    return element("figure", drawn)


def _layout(names: Sequence[str]) -> Layout:
    return Layout(gutter=max(130, 14 + 7 * max((len(name) for name in names), default=0)))


def _outside_map(tensors: Sequence[TensorInfo], found: dict[str, Sensitivity], ramp: Ramp, layout: Layout) -> Markup:
    """Tensors outside the blocks: named columns where they are few, rows of unnamed cells where they are many."""
    ordered = sorted(tensors, key=lambda tensor: role_order(tensor.role))
    few = len(ordered) <= _NAMED_OUTSIDE
    width = len(ordered) if few else _OUTSIDE_PER_ROW
    cells = [_alpha_cell(tensor, index // width, index % width, found.get(tensor.name)) for index, tensor in enumerate(ordered)]
    columns = [shortened(tensor.role, 19) for tensor in ordered] if few else []
    rows = [_OUTSIDE] + [""] * ((len(ordered) - 1) // width)
    layout = replace(layout, max_cell=132 if few else 26)
    return element("figure", grid(cells, rows, columns, ramp, title="Alpha of tensors outside the blocks", layout=layout))


def _mark(sensitivity: Sensitivity | None) -> Mark:
    return "unknown" if sensitivity is None else _MARKS.get(sensitivity.status, "")


def _alpha_cell(tensor: TensorInfo, row: int, column: int, sensitivity: Sensitivity | None) -> GridCell:
    mark = _mark(sensitivity)
    if sensitivity is None or mark == "absent":
        return GridCell(row, column, f"{tensor.name}: {'not probed' if sensitivity is None else 'not in the graph'}", mark=mark)
    alpha = sensitivity.alpha
    if mark == "bound":
        bound = f"≤ {figure(alpha.value, 2)}"
        return GridCell(row, column, f"{tensor.name}: drowned, alpha {bound} nats", alpha.value, (bound,), mark)
    texts = (with_error(alpha, 1), figure(alpha.value, 2))
    return GridCell(row, column, f"{tensor.name}: alpha {with_error(alpha)} nats", alpha.value, texts)


def sweep_section(data: ReportData) -> Markup:
    """KLD of every tensor at every type."""
    title = "Sweep: every tensor at every type"
    if not data.cells:
        return html.section("sweep", title, html.todo("No sweep yet", SWEEP_COMMAND))
    few = len(data.cells) <= MOST_CELLS
    lead = "KLD of the model with one tensor at one type and all others as they are. Types by bits per weight."
    more = "" if few else f" {len(data.cells):,} cells are too many to draw: each shade is the median over the tensors of a role."
    ramp = ramp_over((cell.kld.value for cell in data.cells), decades=6)
    drawn = _sweep_map(data, ramp) if few else _role_sweep_map(data, ramp)
    keys = mark_legend([("bound", "not told from the floor: within 95 % of its error")]) if few and _any_drowned(data) else None
    legend = element("div", ramp_legend(ramp, "KLD (nats, log scale)"), keys, class_="legend")
    n_chunks = sorted({cell.n_chunks for cell in data.cells})
    chunks = f"{n_chunks[0]:,}" if len(n_chunks) == 1 else f"{n_chunks[0]:,} to {n_chunks[-1]:,}"
    basis = html.basis(f"measured on {chunks} chunks{_text(data)}; standard errors are over chunks")
    return html.section("sweep", title, html.paragraph(lead + more), drawn, legend, _sweep_table(data) if few else None, basis)


def _text(data: ReportData) -> str:
    return f" of {data.calibration_name}" if data.calibration_name else ""


def _drowned(cell: SwapCell, floor: float | None) -> bool:
    return cell.kld.value - Z95 * cell.kld.se <= (floor or 0.0)


def _any_drowned(data: ReportData) -> bool:
    return any(_drowned(cell, data.floor_kld_nats) for cell in data.cells)


def _type_order(data: ReportData) -> list[str]:
    """The swept types, fewest bits first; those of unknown size last."""
    known = list(bits_by_type(data))
    swept = {cell.type_name for cell in data.cells}
    return [name for name in known if name in swept] + sorted(swept.difference(known))


def _tensor_order(data: ReportData) -> list[str]:
    swept = {cell.tensor for cell in data.cells}
    known = [tensor.name for tensor in data.tensors if tensor.name in swept]
    return known + sorted(swept.difference(known))


def _sweep_map(data: ReportData, ramp: Ramp) -> Markup:
    rows, columns = _tensor_order(data), _type_order(data)
    row_at, column_at = ({name: index for index, name in enumerate(names)} for names in (rows, columns))
    cells = [
        GridCell(
            row_at[cell.tensor],
            column_at[cell.type_name],
            f"{cell.tensor} at {cell.type_name}: KLD {with_error(cell.kld)} nats",
            cell.kld.value,
            (with_error(cell.kld, 1), figure(cell.kld.value, 2)),
            "bound" if _drowned(cell, data.floor_kld_nats) else "",
        )
        for cell in data.cells
    ]
    names = [shortened(name, 32) for name in rows]
    layout = Layout(gutter=max(110, 14 + 6.8 * max(len(name) for name in names)), row_height=18, mono_rows=True)
    return element("figure", grid(cells, names, columns, ramp, title="KLD by tensor and type", layout=layout))


def _role_sweep_map(data: ReportData, ramp: Ramp) -> Markup:
    roles = {tensor.name: tensor.role for tensor in data.tensors}
    values: dict[tuple[str, str], list[float]] = {}
    for cell in data.cells:
        values.setdefault((roles.get(cell.tensor, cell.tensor), cell.type_name), []).append(cell.kld.value)
    rows, columns = sorted({role for role, _ in values}, key=role_order), _type_order(data)
    cells = [_median_cell(rows.index(role), columns.index(name), f"{role} at {name}", found) for (role, name), found in values.items()]
    names = [shortened(role, 24) for role in rows]
    return element("figure", grid(cells, names, columns, ramp, title="Median KLD by role and type", layout=_layout(names)))


def _median_cell(row: int, column: int, name: str, values: Sequence[float]) -> GridCell:
    middle = statistics.median(values)
    spread = f"from {figure(min(values))} to {figure(max(values))} over {len(values)}"
    return GridCell(row, column, f"{name}: median KLD {figure(middle)} nats, {spread}", middle, (figure(middle, 2),))


def _sweep_table(data: ReportData) -> Markup:
    columns = (
        Column("Tensor"),
        Column("Type"),
        Column("KLD ± se (nats)", "number"),
        Column("ln(PPL / PPL base) ± se", "number", "Paired by chunk."),
        Column("PPL ± se", "number"),
        Column("Chunks", "number"),
    )
    rows = [
        (
            html.mono(cell.tensor),
            cell.type_name,
            _sorted(cell.kld),
            _sorted(cell.ln_ppl_ratio),
            _sorted(cell.perplexity),
            Sorted(f"{cell.n_chunks:,}", cell.n_chunks),
        )
        for cell in data.cells
    ]
    return html.details("The sweep as a table", html.table(columns, rows, caption="Every swept cell", sortable=True))


def _sorted(estimate: Estimate) -> Sorted:
    content: Content = with_error(estimate)
    return Sorted(content, estimate.value)
