"""The table of sensitivities."""

from __future__ import annotations

from collections.abc import Sequence

from quantailor.present.words import Z95, figure, percent_with_error, tick, with_error
from quantailor.records import Estimate, Sensitivity
from quantailor.report import html
from quantailor.report.data import ReportData, common_type, probe_basis
from quantailor.report.html import Column, Sorted, TableCell
from quantailor.report.markup import Markup, element
from quantailor.report.profile import tensor_shares
from quantailor.report.summary import PROBE_COMMAND
from quantailor.report.svg import Scale, log_scale


def alphas_section(data: ReportData) -> Markup:
    """Every tensor's alpha, largest first."""
    title = "Sensitivities"
    if not data.sensitivities:
        return html.section("alphas", title, html.todo("No sensitivities yet", PROBE_COMMAND), _unprobed(data))
    lead = (
        "Alpha: nats of KLD per unit of weighted error, ± one standard error. Noise: nats that a kernel costs that rounds "
        "inputs in blocks of so many. ≤ marks an upper bound. Click a heading to sort."
    )
    return html.section("alphas", title, html.paragraph(lead), _table(data), html.basis(probe_basis(data)))


def _unprobed(data: ReportData) -> Markup | None:
    """The tensors that could be probed."""
    if not data.tensors:
        return None
    columns = (Column("Tensor"), Column("Weights", "number"), Column("Type in the base"))
    rows = [(html.mono(tensor.name), Sorted(f"{tensor.n_elements:,}", tensor.n_elements), tensor.type_name) for tensor in data.tensors]
    return html.table(columns, rows, caption="Quantizable tensors", sortable=True)


def _table(data: ReportData) -> Markup:
    blocks = sorted({block for sensitivity in data.sensitivities for block in sensitivity.noise})
    grouped = any(sensitivity.group for sensitivity in data.sensitivities)
    type_name = common_type(data)
    shares = tensor_shares(data, type_name=type_name)
    alphas = [s.alpha.value + sign * Z95 * s.alpha.se for s in data.sensitivities if s.status != "not in the graph" for sign in (0, 1)]
    scale = log_scale(alphas, 0, 1, decades=8)
    columns = [
        Column("Tensor"),
        Column("Status"),
        Column("Alpha (nats)", "number"),
        Column(html.lines("95 %, log scale", f"{tick(scale.low)} to {tick(scale.high)}"), sortable=False),
        *([Column(f"Share at {type_name}", "number", "Of the sum of alpha × weighted error over all tensors.")] if shares else []),
        *(Column(f"Noise, {block} (nats)", "number", f"Kernels that round inputs in blocks of {block}.") for block in blocks),
        Column("Probes", "prose"),
        *([Column("Probed with", "prose")] if grouped else []),
    ]
    rows = [_row(sensitivity, shares, blocks, grouped, scale) for sensitivity in sorted(data.sensitivities, key=_order)]
    probed = {sensitivity.tensor for sensitivity in data.sensitivities}
    rest: list[TableCell] = [Sorted("", None)] * (len(columns) - 2)
    rows += [(html.mono(tensor.name), "not probed", *rest) for tensor in data.tensors if tensor.name not in probed]
    return html.table(columns, rows, caption="Sensitivity of every tensor, by alpha", sortable=True, sorted_by=2)


def _order(sensitivity: Sensitivity) -> tuple[bool, float, str]:
    return (sensitivity.status == "not in the graph", -sensitivity.alpha.value, sensitivity.tensor)


def _row(
    sensitivity: Sensitivity, shares: dict[str, Estimate], blocks: Sequence[int], grouped: bool, scale: Scale
) -> tuple[TableCell, ...]:
    absent = sensitivity.status == "not in the graph"
    share = shares.get(sensitivity.tensor)
    return (
        html.mono(sensitivity.tensor),
        sensitivity.status,
        Sorted(_alpha(sensitivity), None if absent else sensitivity.alpha.value),
        None if absent else _picture(sensitivity, scale),
        *((_share(share, sensitivity),) if shares else ()),
        *(_noise(sensitivity.noise.get(block)) for block in blocks),
        ", ".join(sensitivity.probes),
        *((sensitivity.group or "itself",) if grouped else ()),
    )


def _alpha(sensitivity: Sensitivity) -> str:
    if sensitivity.status == "not in the graph":
        return "none"
    return f"≤ {figure(sensitivity.alpha.value)}" if sensitivity.status == "drowned" else with_error(sensitivity.alpha)


def _picture(sensitivity: Sensitivity, scale: Scale) -> Markup:
    value, reach = sensitivity.alpha.value, Z95 * sensitivity.alpha.se
    if sensitivity.status == "drowned":
        return html.whisker(value, scale.low, value, scale, bound=True)
    return html.whisker(value, value - reach, value + reach, scale)


def _share(share: Estimate | None, sensitivity: Sensitivity) -> Sorted:
    if share is None or sensitivity.status == "not in the graph":
        return Sorted("", None)
    drowned = sensitivity.status == "drowned"
    return Sorted(f"≤ {figure(100 * share.value, 2)} %" if drowned else percent_with_error(share), share.value)


def _noise(nats: float | None) -> Sorted:
    return Sorted(element("span", figure(nats, 2)) if nats is not None else "", nats)
