"""One model's report: where its sensitivity sits, what types cost, and what was proved."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from quantailor.present.charts.colours import LogScale, bits_colour
from quantailor.present.charts.verdict import verdict_chart
from quantailor.present.report import figures
from quantailor.present.report.damage import damage_basis, damage_curves, predicted_kld
from quantailor.present.report.data import (
    LabelledStrategy,
    ReportData,
    bits_by_type,
    common_type,
    error_basis,
    most_sensitive,
    probe_basis,
    role_order,
)
from quantailor.present.report.page import Column, Table, TableCell, Whisker, render
from quantailor.present.report.profile import joint_share, tensor_shares
from quantailor.present.words import Z95, counted, figure, percent, percent_with_error, plural, ratio, size, tick, with_error
from quantailor.records import Comparison, Curve, Estimate, Sensitivity, Strategy, Verdict, VerdictRow

_TOP = 5
_OUTCOMES = {
    "better": TableCell("▲ better", tone="good"),
    "no better": TableCell("= no better"),
    "worse": TableCell("▼ worse", tone="bad"),
}


def render_report(data: ReportData) -> str:
    """The document as text, to be written as UTF-8."""
    few = len(data.cells) <= figures.MOST_CELLS
    context = {
        "data": data,
        "title": f"{data.model_name}: Quantailor report",
        "common_type": common_type(data),
        "probe_basis": probe_basis(data),
        "error_basis": error_basis(data),
        "top": most_sensitive(data)[:_TOP],
        "facts": _facts(data),
        "findings": _findings(data),
        "most_shares": _most_shares(data),
        "alpha_maps": figures.alpha_maps(data) if data.sensitivities else (),
        "alpha_scale": figures.alpha_scale(data),
        "alpha_signs": figures.alpha_signs(data),
        "damage_charts": figures.damage_charts(data) if damage_curves(data) else (),
        "is_ranking": damage_basis(data) == "ranking only",
        "alpha_spread": _alpha_spread(data),
        "sweep": figures.sweep_map(data) if data.cells else None,
        "sweep_drowns": few and any(figures.is_drowned(cell, data) for cell in data.cells),
        "sweep_chunks": _from_to({cell.n_chunks for cell in data.cells}),
        "sweep_table": _sweep_table(data) if few and data.cells else None,
        "alphas": _alpha_table(data) if data.sensitivities else _unprobed_table(data),
        "fit": figures.fit_chart(data.curve) if data.curve is not None and data.curve.points else None,
        "fit_table": _fit_table(data.curve) if data.curve is not None else None,
        "factor": figures.residual_factor(data.curve) if data.curve is not None else 1.0,
        "verdicts": [(verdict, verdict_chart(verdict), _verdict_table(verdict)) for verdict in data.verdicts],
        "mixes": [_mix(item, data) for item in data.strategies],
    }
    return render("report.html", (data,), context)


def _from_to(numbers: set[int]) -> str:
    """ "24" or "24 to 48"."""
    return " to ".join(f"{n:,}" for n in sorted({min(numbers, default=0), max(numbers, default=0)}))


# Summary


def _facts(data: ReportData) -> list[tuple[str, str]]:
    found = most_sensitive(data)
    facts = [("quantizable tensors", f"{len(data.tensors):,}")]
    if data.sensitivities:
        facts.append(("sensitivities told from the floor", f"{len(found):,} of {len(data.sensitivities):,}"))
    if factor := _factor(found):
        facts.append(("largest alpha / smallest", f"{figure(factor, 2)} ×"))
    if data.curve is not None:
        facts.append(("scatter of predictions, one sd", percent(data.curve.residual_sd, 1)))
    if data.floor_kld_nats is not None:
        facts.append(("floor (nats)", figure(data.floor_kld_nats, 2)))
    return facts


def _factor(found: Sequence[Sensitivity]) -> float | None:
    """Largest over smallest alpha."""
    positive = [sensitivity.alpha.value for sensitivity in found if sensitivity.alpha.value > 0]
    return positive[0] / positive[-1] if len(positive) > 1 else None


def _findings(data: ReportData) -> str:
    """How alpha spreads, and which tensors have none."""
    values = [sensitivity.alpha.value for sensitivity in most_sensitive(data)]
    if not values:
        return ""
    spread = f"Alpha runs from {figure(min(values))} to {figure(max(values))} nats, with a median of {figure(statistics.median(values))}"
    factor = f": a factor of {figure(times, 2)}. " if (times := _factor(most_sensitive(data))) else ". "
    statuses = Counter(sensitivity.status for sensitivity in data.sensitivities)
    probed = {sensitivity.tensor for sensitivity in data.sensitivities}
    parts = []
    if n := statuses["drowned"]:
        parts.append(f"{counted(n, 'tensor')} cannot be told from the floor and {'has' if n == 1 else 'have'} an upper bound only")
    if n := statuses["not in the graph"]:
        parts.append(f"{counted(n, 'tensor')} {'takes' if n == 1 else 'take'} no part in the computation")
    if n := sum(tensor.name not in probed for tensor in data.tensors):
        parts.append(f"{counted(n, 'tensor')} {'is' if n == 1 else 'are'} not probed")
    rest = "; ".join(parts) or "every tensor could be told from the floor"
    return f"{spread}{factor}{rest[0].upper()}{rest[1:]}."


def _most_shares(data: ReportData) -> tuple[str, list[str]] | None:
    """Which tensors hold most of the sensitivity at one common type, and how much."""
    type_name = common_type(data)
    shares = tensor_shares(data, type_name=type_name)
    if type_name is None or len(shares) <= _TOP:
        return None
    top = sorted(shares, key=lambda name: -shares[name].value)[:_TOP]
    return percent_with_error(joint_share(data, top, type_name=type_name)), top


def _alpha_spread(data: ReportData) -> str:
    relative = [abs(s.alpha.se / s.alpha.value) for s in most_sensitive(data) if s.alpha.value]
    if not relative:
        return ""
    return f"; relative standard error of alpha: median {percent(statistics.median(relative), 1)}, largest {percent(max(relative), 0)}"


# Tables


def _number(estimate: Estimate) -> TableCell:
    return TableCell(with_error(estimate), None if math.isnan(estimate.value) else estimate.value)


def _unprobed_table(data: ReportData) -> Table:
    columns = (Column("Tensor", "mono"), Column("Weights", "number"), Column("Type in the base"))
    rows = [
        (TableCell(tensor.name), TableCell(f"{tensor.n_elements:,}", tensor.n_elements), TableCell(tensor.type_name))
        for tensor in data.tensors
    ]
    return Table("Quantizable tensors", columns, rows, is_sortable=True)


def _alpha_table(data: ReportData) -> Table:
    """Every tensor's alpha, largest first."""
    blocks = sorted({block for sensitivity in data.sensitivities for block in sensitivity.noise})
    grouped = any(sensitivity.group for sensitivity in data.sensitivities)
    type_name = common_type(data)
    shares = tensor_shares(data, type_name=type_name)
    there = [s for s in data.sensitivities if s.status != "not in the graph"]
    scale = LogScale.over([s.alpha.value + side * Z95 * s.alpha.se for s in there for side in (0, 1)], decades=8)
    columns = [
        Column("Tensor", "mono"),
        Column("Status"),
        Column("Alpha (nats)", "number"),
        Column(f"95 %, log scale {tick(scale.low)} to {tick(scale.high)}", "picture"),
        *([Column(f"Share at {type_name}", "number", "Of the sum of alpha × weighted error over all tensors.")] if shares else []),
        *(Column(f"Noise, {block} (nats)", "number", f"Kernels that round inputs in blocks of {block}.") for block in blocks),
        Column("Probes", "prose"),
        *([Column("Probed with", "prose")] if grouped else []),
    ]
    rows = []
    for sensitivity in sorted(data.sensitivities, key=lambda s: (s.status == "not in the graph", -s.alpha.value, s.tensor)):
        share = shares.get(sensitivity.tensor)
        rows.append(
            [
                TableCell(sensitivity.tensor),
                TableCell(sensitivity.status),
                *_alpha_cells(sensitivity, scale),
                *((_share_cell(share, sensitivity),) if shares else ()),
                *(
                    TableCell(figure(nats, 2), nats) if (nats := sensitivity.noise.get(block)) is not None else TableCell()
                    for block in blocks
                ),
                TableCell(", ".join(sensitivity.probes)),
                *((TableCell(sensitivity.group or "itself"),) if grouped else ()),
            ]
        )
    probed = {sensitivity.tensor for sensitivity in data.sensitivities}
    rest = [TableCell()] * (len(columns) - 2)
    rows += [[TableCell(tensor.name), TableCell("not probed"), *rest] for tensor in data.tensors if tensor.name not in probed]
    return Table("Sensitivity of every tensor, by alpha", columns, rows, is_sortable=True, sorted_by=2)


def _alpha_cells(sensitivity: Sensitivity, scale: LogScale) -> tuple[TableCell, TableCell]:
    alpha = sensitivity.alpha
    if sensitivity.status == "not in the graph":
        return TableCell("none"), TableCell()
    if sensitivity.status == "drowned":
        bound = Whisker(100 * scale.share(alpha.value), 0, 100 * scale.share(alpha.value), tone="bound")
        return TableCell(f"≤ {figure(alpha.value)}", alpha.value), TableCell(whiskers=(bound,))
    whisker = Whisker.on(scale, alpha.value, alpha.value - Z95 * alpha.se, alpha.value + Z95 * alpha.se)
    return TableCell(with_error(alpha), alpha.value), TableCell(whiskers=(whisker,))


def _share_cell(share: Estimate | None, sensitivity: Sensitivity) -> TableCell:
    if share is None or sensitivity.status == "not in the graph":
        return TableCell()
    bound = f"≤ {figure(100 * share.value, 2)} %"
    return TableCell(bound if sensitivity.status == "drowned" else percent_with_error(share), share.value)


def _sweep_table(data: ReportData) -> Table:
    columns = (
        Column("Tensor", "mono"),
        Column("Type"),
        Column("KLD ± se (nats)", "number"),
        Column("ln(PPL / PPL base) ± se", "number", "Paired by chunk."),
        Column("PPL ± se", "number"),
        Column("Chunks", "number"),
    )
    rows = []
    for cell in data.cells:
        numbers = (_number(cell.kld), _number(cell.ln_ppl_ratio), _number(cell.perplexity), TableCell(f"{cell.n_chunks:,}", cell.n_chunks))
        rows.append((TableCell(cell.tensor), TableCell(cell.type_name), *numbers))
    return Table("Every swept cell", columns, rows, is_sortable=True)


def _fit_table(curve: Curve) -> Table:
    heads = ("bpw", "S (nats)", "Predicted KLD (nats)", "Measured KLD ± se (nats)", "Measured / predicted ± se")
    columns = (Column("Mix", "mono"), Column("Kind"), *(Column(head, "number") for head in heads))
    rows = []
    for point in curve.points:
        predicted, measured = predicted_kld(curve, point), point.measured
        factor = Estimate(measured.value / predicted, measured.se / predicted) if predicted > 0 else Estimate(math.nan)
        kind = "built file" if point.kind == "file" else "in memory"
        bits = TableCell(f"{point.bits_per_weight:.3f}", point.bits_per_weight)
        sums = (TableCell(figure(value), value) for value in (point.damage_nats, predicted))
        rows.append((TableCell(point.mix), TableCell(kind), bits, *sums, _number(measured), _number(factor)))
    return Table("Measured mixes", columns, rows, is_sortable=True)


def _verdict_table(verdict: Verdict) -> Table:
    compared = {comparison.reference: comparison for comparison in verdict.comparisons}
    ends = [math.exp(end) for item in verdict.comparisons for end in (*item.interval, item.ln_kld_ratio)]
    scale = LogScale.over([*ends, 1.0], margin=1.05)
    columns = (
        Column("File"),
        *(Column(name, "number") for name in ("Size", "bpw", "PPL ± se", "KLD ± se (nats)", "Top-1 agreement ± se")),
        Column("KLD of ours / this (95 %)", "number", "Paired bootstrap over chunks; below 1 ours is closer to the base."),
        Column("95 %, log scale, line at 1", "picture"),
        Column("Ours is"),
    )
    order = sorted(verdict.rows, key=lambda row: (row.kind != "base", -row.size_bytes))
    rows = [_verdict_row(row, compared.get(row.label) if row.kind == "reference" else None, scale) for row in order]
    n_chunks = max((row.statistics.n_chunks for row in verdict.rows), default=0)
    caption = f"{verdict.corpus_name}, {plural(n_chunks, 'chunk')} of {verdict.n_ctx:,} tokens"
    return Table(caption, columns, rows, strong=frozenset(i for i, row in enumerate(order) if row.kind == "ours"))


def _verdict_row(row: VerdictRow, comparison: Comparison | None, scale: LogScale) -> tuple[TableCell, ...]:
    found, is_base = row.statistics, row.kind == "base"
    cells = (
        TableCell(f"{row.label} (ours)" if row.kind == "ours" else row.label),
        TableCell(size(row.size_bytes), row.size_bytes),
        TableCell(f"{row.bits_per_weight:.2f}", row.bits_per_weight),
        _number(found.perplexity),
        TableCell() if is_base else _number(found.kld_mean),
        TableCell() if is_base else _number(found.top_agreement),
    )
    if comparison is None:
        return (*cells, TableCell(), TableCell(), TableCell())
    middle, low, high = (math.exp(value) for value in (comparison.ln_kld_ratio, *comparison.interval))
    whisker = Whisker.on(scale, middle, low, high, mark=1.0)
    return (*cells, TableCell(ratio(middle, (low, high)), middle), TableCell(whiskers=(whisker,)), _OUTCOMES[comparison.outcome])


# Strategies


@dataclass(frozen=True, slots=True)
class TypeMix:
    """The types of one strategy."""

    label: str
    words: str
    shares: tuple[tuple[str, float, str], ...]
    """Type, its share of the weights, its colour; the widest type first."""
    table: Table


def _mix(item: LabelledStrategy, data: ReportData) -> TypeMix:
    weights = {tensor.name: tensor.n_elements for tensor in data.tensors}
    roles = {tensor.name: tensor.role for tensor in data.tensors}
    bits, types = bits_by_type(data), item.strategy.types
    widths = {name: bits.get(name, nominal_bits(name)) for name in set(types.values())}
    order = sorted(widths, key=lambda name: (-widths[name], name))
    counted_weights: Counter[str] = Counter()
    for name, type_name in types.items():
        counted_weights[type_name] += weights.get(name, 0)
    total = counted_weights.total()
    shares = {name: counted_weights[name] / total if total else 0.0 for name in order}
    counts = Counter((roles.get(name, name), type_name) for name, type_name in types.items())
    rows = [
        [TableCell(role), *(TableCell(f"{counts[role, name]:,}" if counts[role, name] else "", counts[role, name]) for name in order)]
        for role in sorted({role for role, _ in counts}, key=role_order)
    ]
    totals = Counter(types.values())
    rows.append([TableCell("all tensors"), *(TableCell(f"{totals[name]:,}", totals[name]) for name in order)])
    rows.append([TableCell("share of weights"), *(TableCell(percent(shares[name], 1), shares[name]) for name in order)])
    columns = (Column("Role"), *(Column(name, "number", swatch=bits_colour(widths[name])) for name in order))
    table = Table("Tensors by role and type", columns, rows, strong=frozenset((len(rows) - 2, len(rows) - 1)))
    drawn = tuple((name, shares[name], bits_colour(widths[name])) for name in order) if total else ()
    return TypeMix(item.label, _strategy_words(item.strategy), drawn, table)


def _strategy_words(strategy: Strategy) -> str:
    target = ", ".join(_target(key, value) for key, value in strategy.target.items())
    rule = f"{strategy.method}{f', {target}' if target else ''}"
    words = f"Rule: {rule}; {plural(len(strategy.tensors), 'tensor')}; basis: {strategy.basis}."
    if (prediction := strategy.prediction) is None:
        return words
    words += f" Predicted: {size(prediction.file_size_bytes)}, {prediction.bits_per_weight:.3f} bpw"
    if prediction.kld_nats is not None:
        words += f", KLD {figure(prediction.kld_nats)} nats"
        if prediction.kld_interval_nats is not None:
            low, high = prediction.kld_interval_nats
            words += f" (interval {figure(low)} to {figure(high)})"
    return f"{words}."


def _target(key: str, value: str | int | float) -> str:
    if key == "size_bytes" and not isinstance(value, str):
        return f"file of at most {size(value)}"
    return f"{key.replace('_', ' ')} {figure(value) if isinstance(value, float) else value}"


def nominal_bits(type_name: str) -> float:
    """Bits per weight by a type's name, for types that were not measured: "Q6_K" -> 6."""
    match = re.search(r"\d+", type_name)
    return float(match.group()) if match else 16.0
