"""Verdicts on built files, and which types strategies chose."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from quantailor.present.words import figure, plural, size, with_error
from quantailor.records import Comparison, Strategy, Verdict, VerdictRow
from quantailor.report import html
from quantailor.report.data import LabelledStrategy, ReportData, bits_by_type, role_order
from quantailor.report.html import Column, Sorted, TableCell, paragraph
from quantailor.report.markup import Markup, element, join
from quantailor.report.style import bit_color
from quantailor.report.svg import Scale, log_scale

VERIFY_COMMAND = "quantailor verify FILE --base BASE --against Q4_K_M"
PLAN_COMMAND = "quantailor plan BASE --size 700MiB -o strategy.yaml"
_WORDS = {"better": ("▲ better", "good"), "no better": ("= no better", None), "worse": ("▼ worse", "bad")}
_TEXT_SHARE = 0.055
"""A part of the bar that is at least this wide holds its name."""


def verdicts_section(data: ReportData) -> Markup:
    """Every verdict with its table and sentence."""
    title = "Verdicts"
    if not data.verdicts:
        return html.section("verdicts", title, html.todo("No verdict yet", VERIFY_COMMAND))
    return html.section("verdicts", title, *(_verdict(verdict) for verdict in data.verdicts))


def _verdict(verdict: Verdict) -> Markup:
    n_chunks = max((row.statistics.n_chunks for row in verdict.rows), default=0)
    ours = next((row.label for row in verdict.rows if row.kind == "ours"), "a file")
    compared = {comparison.reference: comparison for comparison in verdict.comparisons}
    scale = _ratio_scale(verdict.comparisons)
    columns = (
        Column("File"),
        Column("Size", "number"),
        Column("bpw", "number"),
        Column("PPL ± se", "number"),
        Column("KLD ± se (nats)", "number"),
        Column(html.lines("Top-1", "agreement ± se"), "number"),
        Column(html.lines("KLD of ours / this", "[95 %]"), "number", "Paired bootstrap over chunks; below 1 ours is closer to the base."),
        Column(html.lines("95 %, log scale,", "line at 1"), sortable=False),
        Column("Ours is"),
    )
    order = sorted(verdict.rows, key=lambda row: (row.kind != "base", -row.size_bytes))
    rows = [_verdict_row(row, compared.get(row.label) if row.kind == "reference" else None, scale) for row in order]
    classes = ["ours" if row.kind == "ours" else None for row in order]
    caption = f"{verdict.corpus_name}, {n_chunks:,} chunks of {verdict.n_ctx:,} tokens"
    basis = f"{caption}; standard errors are over chunks; floor {figure(verdict.floor_kld_nats, 2)} nats (the base against itself)"
    table = html.table(columns, rows, caption=caption, row_classes=classes)
    return join([element("h3", ours), paragraph(verdict.sentence), table, html.basis(basis)])


def _ratio_scale(comparisons: Sequence[Comparison]) -> Scale:
    ends = [math.exp(end) for comparison in comparisons for end in (*comparison.interval, comparison.ln_kld_ratio)]
    return log_scale([*ends, 1.0], 0, 1, margin=1.05)


def _verdict_row(row: VerdictRow, comparison: Comparison | None, scale: Scale) -> tuple[TableCell, ...]:
    figures = row.statistics
    name = f"{row.label} (ours)" if row.kind == "ours" else row.label
    base = row.kind == "base"
    shown: tuple[TableCell, ...] = (
        name,
        Sorted(size(row.size_bytes), row.size_bytes),
        Sorted(f"{row.bits_per_weight:.2f}", row.bits_per_weight),
        Sorted(with_error(figures.perplexity), figures.perplexity.value),
        Sorted("" if base else with_error(figures.kld_mean), None if base else figures.kld_mean.value),
        Sorted("" if base else with_error(figures.top_agreement), None if base else figures.top_agreement.value),
    )
    return (*shown, *_comparison(comparison, scale))


def _comparison(comparison: Comparison | None, scale: Scale) -> tuple[TableCell, ...]:
    if comparison is None:
        return (Sorted("", None), None, None)
    ratio, low, high = (math.exp(value) for value in (comparison.ln_kld_ratio, *comparison.interval))
    words, class_ = _WORDS[comparison.outcome]
    outcome = element("span", words, class_=class_)
    return (Sorted(f"{figure(ratio)} [{figure(low)}, {figure(high)}]", ratio), html.whisker(ratio, low, high, scale, at=1.0), outcome)


def strategies_section(data: ReportData) -> Markup:
    """The type mix of every strategy."""
    title = "Strategies"
    if not data.strategies:
        return html.section("strategies", title, html.todo("No strategy yet", PLAN_COMMAND))
    lead = paragraph("Share of the weights at each type, widest type first; the tables count tensors by role.")
    weights = {tensor.name: tensor.n_elements for tensor in data.tensors}
    roles = {tensor.name: tensor.role for tensor in data.tensors}
    bits = bits_by_type(data)
    return html.section("strategies", title, lead, *(_strategy(item, weights, roles, bits) for item in data.strategies))


def _strategy(item: LabelledStrategy, weights: Mapping[str, int], roles: Mapping[str, str], bits: Mapping[str, float]) -> Markup:
    types = item.strategy.types
    order = sorted(set(types.values()), key=lambda name: (-bits.get(name, nominal_bits(name)), name))
    counted: Counter[str] = Counter()
    for name, type_name in types.items():
        counted[type_name] += weights.get(name, 0)
    total = sum(counted.values())
    shares = {name: counted[name] / total if total else 0.0 for name in order}
    colors = {name: bit_color(bits.get(name, nominal_bits(name))) for name in order}
    table = _role_table(types, order, roles, colors, shares)
    bar = _bar(shares, colors) if total else None
    return join([element("h3", item.label), paragraph(_words(item.strategy)), bar, table])


def _words(strategy: Strategy) -> str:
    target = ", ".join(_target(key, value) for key, value in strategy.target.items())
    words = f"Rule: {strategy.method}{f', {target}' if target else ''}; {plural(len(strategy.tensors), 'tensor')}; basis: {strategy.basis}."
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


def _bar(shares: Mapping[str, float], colors: Mapping[str, str]) -> Markup:
    parts = [
        element(
            "span",
            f"{name} {100 * share:.0f} %" if share >= _TEXT_SHARE * (1.6 if len(name) > 5 else 1) else "",
            title=f"{name}: {100 * share:.1f} % of the weights",
            style=f"flex:{share:.4f} 0 0;background:{colors[name]}",
        )
        for name, share in shares.items()
    ]
    spoken = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())
    return element("div", *parts, class_="mix", role="img", aria_label=f"Shares of the weights: {spoken}")


def _role_table(
    types: Mapping[str, str], order: Sequence[str], roles: Mapping[str, str], colors: Mapping[str, str], shares: Mapping[str, float]
) -> Markup:
    counts = Counter((roles.get(name, name), type_name) for name, type_name in types.items())
    rows: list[Sequence[TableCell]] = [
        (role, *(Sorted(f"{counts[role, name]:,}" if counts[role, name] else "", counts[role, name]) for name in order))
        for role in sorted({role for role, _ in counts}, key=role_order)
    ]
    totals = Counter(types.values())
    rows.append(("all tensors", *(Sorted(f"{totals[name]:,}", totals[name]) for name in order)))
    rows.append(("share of weights", *(Sorted(f"{100 * shares[name]:.1f} %", shares[name]) for name in order)))
    columns = (Column("Role"), *(Column(name, "number", swatch=colors[name]) for name in order))
    classes = [*[None] * (len(rows) - 2), "sum", "sum"]
    return html.table(columns, rows, caption="Tensors by role and type", row_classes=classes)


def nominal_bits(type_name: str) -> float:
    """Bits per weight by a type's name, for types that were not measured: "Q6_K" -> 6."""
    match = re.search(r"\d+", type_name)
    return float(match.group()) if match else 16.0
