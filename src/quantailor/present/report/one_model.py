"""One model's report: where its sensitivity sits, what types cost, and what was proved."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantailor.present.charts.colours import LogScale, bits_colour
from quantailor.present.charts.describe import Chart
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
from quantailor.present.report.page import render
from quantailor.present.report.profile import joint_share, tensor_shares
from quantailor.present.words import Z95, counted, figure, kld, percent, percent_with_error, plural, size, target, tick
from quantailor.records import Comparison, Curve, CurvePoint, Estimate, Sensitivity, Strategy, Verdict, VerdictRow

_TOP = 5


def render_report(data: ReportData) -> str:
    """The document as text, to be written as UTF-8."""
    is_small = len(data.cells) <= figures.MOST_CELLS
    type_name = common_type(data)
    shares = tensor_shares(data, type_name=type_name)
    probed = {sensitivity.tensor for sensitivity in data.sensitivities}
    is_grouped = any(sensitivity.group for sensitivity in data.sensitivities)
    there = [s.alpha for s in data.sensitivities if s.status != "not in the graph"]
    whisker_scale = LogScale.over([alpha.value + side * Z95 * alpha.se for alpha in there for side in (0, 1)], decades=8)
    context = {
        "data": data,
        "title": f"{data.model_name}: Quantailor report",
        "common_type": type_name,
        "probe_basis": probe_basis(data),
        "error_basis": error_basis(data),
        "top": most_sensitive(data)[:_TOP],
        "facts": _facts(data),
        "findings": _findings(data),
        "most_shares": _most_shares(data, shares, type_name),
        "alpha_maps": figures.alpha_maps(data) if data.sensitivities else (),
        "alpha_scale": figures.alpha_scale(data),
        "alpha_signs": figures.alpha_signs(data),
        "damage_charts": figures.damage_charts(data) if damage_curves(data) else (),
        "is_ranking": damage_basis(data) == "ranking only",
        "alpha_spread": _alpha_spread(data),
        "sweep": figures.sweep_map(data) if data.cells else None,
        "sweep_is_small": is_small,
        "sweep_drowns": is_small and any(figures.is_drowned(cell, data) for cell in data.cells),
        "sweep_chunks": _from_to({cell.n_chunks for cell in data.cells}),
        "by_alpha": sorted(data.sensitivities, key=lambda s: (s.status == "not in the graph", -s.alpha.value, s.tensor)),
        "alpha_heads": _alpha_heads(data, type_name, whisker_scale, has_shares=bool(shares), is_grouped=is_grouped),
        "whisker_scale": whisker_scale,
        "shares": shares,
        "blocks": _blocks(data),
        "grouped": is_grouped,
        "unprobed": [tensor for tensor in data.tensors if tensor.name not in probed],
        "fit": figures.fit_chart(data.curve) if data.curve is not None and data.curve.points else None,
        "predictions": _predictions(data.curve),
        "factor": figures.residual_factor(data.curve) if data.curve is not None else 1.0,
        "verdicts": [_verdict(verdict) for verdict in data.verdicts],
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
        facts.append(("sensitivities above the floor", f"{len(found):,} of {len(data.sensitivities):,}"))
    if factor := _factor(found):
        facts.append(("largest alpha / smallest", f"{figure(factor, 2)} ×"))
    if data.curve is not None and data.no_prediction is None:
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


def _most_shares(data: ReportData, shares: Mapping[str, Estimate], type_name: str | None) -> tuple[str, list[str]] | None:
    """Which tensors hold most of the sensitivity at one common type, and how much."""
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


def _alpha_heads(
    data: ReportData, type_name: str | None, scale: LogScale, *, has_shares: bool, is_grouped: bool
) -> list[tuple[str, str, str]]:
    """(title, class, hint) of every column."""
    heads = [("Tensor", "", ""), ("Status", "", ""), ("Alpha (nats)", "n", "")]
    heads.append((f"95 %, log scale {tick(scale.low)} to {tick(scale.high)}", "picture", ""))
    if has_shares:
        heads.append((f"Share at {type_name}", "n", "Of the sum of alpha × weighted error over all tensors."))
    heads += [(f"Noise, {block} (nats)", "n", f"Kernels that round inputs in blocks of {block}.") for block in _blocks(data)]
    return [*heads, ("Probes", "", ""), *([("Probed with", "", "")] if is_grouped else [])]


def _blocks(data: ReportData) -> list[int]:
    return sorted({block for sensitivity in data.sensitivities for block in sensitivity.noise})


def _predictions(curve: Curve | None) -> list[tuple[CurvePoint, float, Estimate]]:
    """Every measured mix, what is predicted of it, and measured over predicted."""
    found = []
    for point in curve.points if curve is not None else ():
        predicted, measured = predicted_kld(curve, point) if curve is not None else 0.0, point.measured
        factor = Estimate(measured.value / predicted, measured.se / predicted) if predicted > 0 else Estimate(math.nan)
        found.append((point, predicted, factor))
    return found


def _verdict(verdict: Verdict) -> tuple[Verdict, Chart, LogScale, list[tuple[VerdictRow, Comparison | None]]]:
    """A verdict with its figure, the scale of its ratios, and its rows with what ours is against each."""
    ends = [math.exp(end) for item in verdict.comparisons for end in (*item.interval, item.ln_kld_ratio)]
    compared = {item.reference: item for item in verdict.comparisons}
    order = sorted(verdict.rows, key=lambda row: (row.kind != "base", -row.size_bytes))
    rows = [(row, compared.get(row.label)) for row in order]
    return verdict, verdict_chart(verdict), LogScale.over([*ends, 1.0], margin=1.05), rows


# Strategies


@dataclass(frozen=True, slots=True)
class TypeMix:
    """The types of one strategy."""

    label: str
    words: str
    types: tuple[tuple[str, float, str], ...]
    """Type, its share of the weights, its colour; the widest type first."""
    roles: tuple[tuple[str, tuple[int, ...]], ...]
    """A role's tensors by type."""
    totals: tuple[int, ...]
    has_weights: bool
    """Whether the tensors' sizes are known."""


def _mix(item: LabelledStrategy, data: ReportData) -> TypeMix:
    weights = {tensor.name: tensor.n_elements for tensor in data.tensors}
    roles = {tensor.name: tensor.role for tensor in data.tensors}
    bits, types = bits_by_type(data), item.strategy.types
    widths = {name: bits.get(name, nominal_bits(name)) for name in set(types.values())}
    order = sorted(widths, key=lambda name: (-widths[name], name))
    weights_by_type: Counter[str] = Counter()
    for name, type_name in types.items():
        weights_by_type[type_name] += weights.get(name, 0)
    total = weights_by_type.total()
    counts, totals = Counter((roles.get(name, name), type_name) for name, type_name in types.items()), Counter(types.values())
    return TypeMix(
        item.label,
        _strategy_words(item.strategy),
        tuple((name, weights_by_type[name] / total if total else 0.0, bits_colour(widths[name])) for name in order),
        tuple((role, tuple(counts[role, name] for name in order)) for role in sorted({role for role, _ in counts}, key=role_order)),
        tuple(totals[name] for name in order),
        bool(total),
    )


def _strategy_words(strategy: Strategy) -> str:
    rule = ", ".join(part for part in (strategy.method, target(strategy.target)) if part)
    words = f"Rule: {rule}; {plural(len(strategy.tensors), 'tensor')}; basis: {strategy.basis}."
    if (prediction := strategy.prediction) is None:
        return words
    sizes = f"{size(prediction.file_size_bytes)}, {prediction.bits_per_weight:.3f} bpw"
    nats = f"; {prediction.no_prediction}" if prediction.no_prediction else ""
    if prediction.kld_nats is not None:
        nats = f", KLD {kld(prediction.kld_nats, prediction.kld_interval_nats)} nats"
    return f"{words} Predicted: {sizes}{nats}."


def nominal_bits(type_name: str) -> float:
    """Bits per weight by a type's name, for types that were not measured: "Q6_K" -> 6."""
    match = re.search(r"\d+", type_name)
    return float(match.group()) if match else 16.0
