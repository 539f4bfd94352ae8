"""Two models' sensitivity profiles side by side, as one HTML document that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence

from quantailor.present.words import count, listed, percent_with_error, size, with_error
from quantailor.records import Estimate
from quantailor.report import html
from quantailor.report.data import ReportData, common_type, error_basis, layers_of, probe_basis, role_order
from quantailor.report.figures import hundredths
from quantailor.report.grid import mark_legend
from quantailor.report.html import Column, Sorted, TableCell, mono, paragraph
from quantailor.report.markup import Markup, element, join
from quantailor.report.page import footer
from quantailor.report.pair import ABSENT, Side, dumbbells, heat_maps, roles_of_both, side_legend
from quantailor.report.profile import ALL_DEPTHS, DEPTHS, ProfileRow, role_profile, sensitivity_profile
from quantailor.report.summary import PROBE_COMMAND
from quantailor.report.svg import Ramp, ramp_legend, ramp_over

_SECTIONS = (
    *(("models", "The models"), ("depth", "Shares by depth"), ("roles", "Shares by role")),
    *(("weight", "Sensitivity per weight"), ("table", "Table")),
)


def render_comparison(a: ReportData, b: ReportData) -> str:
    """The document as text, to be written as UTF-8. Both profiles are at one common type where the models share one."""
    type_name = common_type(a, b)
    sides = tuple(
        Side(letter, data, sensitivity_profile(data, type_name=type_name), role_profile(data, type_name=type_name))
        for letter, data in (("A", a), ("B", b))
    )
    lead = "Sensitivity profiles: where in each model the damage of quantization would sit."
    head = join([element("h1", f"{a.model_name} and {b.model_name}"), paragraph(lead, class_="sub")])
    missing = [side for side in sides if not side.rows]
    parts = [_models(sides, type_name)]
    if not missing:
        parts += [_depth_section(sides), _role_section(sides), _weight_section(sides), _table_section(sides)]
    sections = _SECTIONS[:1] if missing else _SECTIONS
    return html.page(f"{a.model_name} and {b.model_name}: Quantailor comparison", *parts, footer(a, b), sections=sections, head=head)


def _models(sides: Sequence[Side], type_name: str | None) -> Markup:
    columns = (Column("Fact"), *(Column(side.name, "prose") for side in sides))
    facts = [_facts(side.data) for side in sides]
    rows: list[Sequence[TableCell]] = [(name, facts[0][name], facts[1][name]) for name in facts[0]]
    table = html.table(columns, rows, caption="The two models")
    words = [html.todo(f"No sensitivities and weight errors of {side.name} yet", PROBE_COMMAND) for side in sides if not side.rows]
    words = words or [*_findings(sides), paragraph(_caveats(sides, type_name))]
    return html.section("models", "The models", element("div", element("div", *words), table, class_="halves"))


def _facts(data: ReportData) -> dict[str, str]:
    return {
        "Architecture": data.architecture,
        "Parameters": count(data.n_parameters),
        "Base": size(data.base_size_bytes),
        "Blocks": f"{len(layers_of(data.tensors)):,}",
        "Quantizable tensors": f"{len(data.tensors):,}",
        "Probes": f"{data.n_chunks:,} chunks of {data.n_ctx:,} tokens of {data.calibration_name}" if data.sensitivities else "none",
        "Importance matrix": data.imatrix.fingerprint[:12] if data.imatrix else "none",
        "Fingerprint": data.fingerprint[:16],
    }


def _caveats(sides: Sequence[Side], type_name: str | None) -> str:
    a, b = (side.data for side in sides)
    words = [f"A tensor's sensitivity is alpha × weighted error at {type_name}, and shares are of its sum over the probed tensors."]
    if (a.calibration_name, a.n_ctx) != (b.calibration_name, b.n_ctx):
        words.append("The models were probed on different texts or contexts, which can shift shares.")
    if (a.imatrix is None) != (b.imatrix is None):
        words.append("Only one has an importance matrix, which lowers the errors of some types and so can shift shares.")
    bounds = [(side.letter, sum(s.status == "drowned" for s in side.data.sensitivities)) for side in sides]
    if any(n for _, n in bounds):
        words.append(f"Upper bounds count as they are ({listed([f'{n:,} in {letter}' for letter, n in bounds])}).")
    return " ".join(words)


def _findings(sides: Sequence[Side]) -> list[Markup]:
    """The role that holds most in each model, the role whose share differs most, and what only one has."""
    first = [max(side.roles, key=lambda row: row.share.value) for side in sides]
    most = [
        join([f"In {side.letter} the role ", mono(row.role), f" holds most: {percent_with_error(row.share)}. "])
        for side, row in zip(sides, first, strict=True)
    ]
    pairs = [(row, other) for row in sides[0].roles for other in sides[1].roles if row.role == other.role]
    words = [paragraph(*most)]
    if pairs:
        row, other = max(pairs, key=lambda pair: abs(pair[0].share.value - pair[1].share.value))
        shares = f": {percent_with_error(row.share)} in A, {percent_with_error(other.share)} in B."
        words.append(paragraph("Of the roles that both have, the share of ", mono(row.role), " differs most", shares))
    only = [_only(*order) for order in (sides, sides[::-1])]
    return [*words, paragraph(*only)] if any(only) else words


def _only(side: Side, other: Side) -> Markup | None:
    """Which roles the first has and the second has not."""
    roles = sorted({row.role for row in side.roles} - {row.role for row in other.roles}, key=role_order)
    if not roles:
        return None
    more = f" and {len(roles) - 8} more" if len(roles) > 8 else ""
    return join([f"Only {side.letter} has ", join([mono(role) for role in roles[:8]], ", "), f"{more}. "])


def _depth_section(sides: Sequence[Side]) -> Markup:
    ramp = ramp_over((100 * row.share.value for side in sides for row in side.rows), decades=4)
    lead = "Per cent of each model's sensitivity by role and relative depth, ± one standard error. Both maps have one colour scale."
    maps = heat_maps(sides, ramp, lambda row: hundredths(row.share), title="Share of the sensitivity", unit=" %")
    legend = _legend(sides, ramp, "per cent of the model's sensitivity (log scale)")
    return html.section("depth", "Shares by depth", paragraph(lead), maps, legend, html.basis(_basis(sides)))


def _role_section(sides: Sequence[Side]) -> Markup:
    lead = "Each role's share over all depths. Bars are 95 % intervals, figures ± one standard error."
    drawn = element("figure", dumbbells(sides))
    return html.section("roles", "Shares by role", paragraph(lead), side_legend(sides), drawn, html.basis(_basis(sides)))


def _weight_section(sides: Sequence[Side]) -> Markup:
    ramp = ramp_over((row.per_weight.value for side in sides for row in side.rows), decades=5)
    lead = (
        "Share of the sensitivity over share of the weights: 1 is the model's average weight, 10 a weight that matters ten times as much."
    )
    maps = heat_maps(sides, ramp, lambda row: row.per_weight, title="Sensitivity per weight")
    legend = _legend(sides, ramp, "sensitivity per weight (1 is the average; log scale)")
    return html.section("weight", "Sensitivity per weight", paragraph(lead), maps, legend, html.basis(_basis(sides)))


def _legend(sides: Sequence[Side], ramp: Ramp, name: str) -> Markup:
    bounds = any(row.bounds == len(row.tensors) for side in sides for row in side.rows)
    keys = mark_legend([("bound", "upper bounds only")]) if bounds else None
    return element("div", ramp_legend(ramp, name), keys, class_="legend")


def _basis(sides: Sequence[Side]) -> str:
    a, b = (f"{probe_basis(side.data)}; {error_basis(side.data)}" for side in sides)
    return f"A and B: {a}" if a == b else f"A: {a}. B: {b}"


def _table_section(sides: Sequence[Side]) -> Markup:
    lead = "± is one standard error; the ratio's assumes that the two models' errors are independent."
    columns = (
        Column("Role"),
        Column("Depth"),
        *(Column(f"Share in {side.letter}", "number") for side in sides),
        Column("A / B", "number", "Ratio of the shares."),
        *(Column(f"Per weight in {side.letter}", "number", "Share of the sensitivity over share of the weights.") for side in sides),
        Column("A / B per weight", "number"),
    )
    a, b = ({(row.role, row.depth): row for row in (*side.roles, *side.rows)} for side in sides)
    keys = [(role, depth) for role in roles_of_both(sides) for depth in (ALL_DEPTHS, *DEPTHS) if (role, depth) in a or (role, depth) in b]
    has = [{row.role for row in side.roles} for side in sides]
    rows = [_row(role, depth, (a.get((role, depth)), b.get((role, depth))), (role in has[0], role in has[1])) for role, depth in keys]
    classes = ["sum" if depth == ALL_DEPTHS else None for _, depth in keys]
    table = html.table(columns, rows, caption="Shares by role and depth", sortable=True, row_classes=classes)
    return html.section("table", "Table", paragraph(lead), table, html.basis(_basis(sides)))


def _row(role: str, depth: str, pair: tuple[ProfileRow | None, ProfileRow | None], has: tuple[bool, bool]) -> tuple[TableCell, ...]:
    shares = [row.share if row else None for row in pair]
    per_weight = [row.per_weight if row else None for row in pair]
    return (
        role,
        depth,
        *(_share(share, present) for share, present in zip(shares, has, strict=True)),
        _ratio_cell(*shares),
        *(Sorted(with_error(estimate), estimate.value) if estimate else Sorted("", None) for estimate in per_weight),
        _ratio_cell(*per_weight),
    )


def _share(share: Estimate | None, present: bool) -> Sorted:
    if share is None:
        return Sorted("none at this depth" if present else ABSENT, None)
    return Sorted(percent_with_error(share), share.value)


def _ratio_cell(a: Estimate | None, b: Estimate | None) -> Sorted:
    found = None if a is None or b is None else ratio(a, b)
    return Sorted("", None) if found is None else Sorted(with_error(found), found.value)


def ratio(a: Estimate, b: Estimate) -> Estimate | None:
    """a / b with its standard error, to first order and for independent errors; None where b is nothing."""
    if not b.value > 0 or math.isnan(a.value):
        return None
    value = a.value / b.value
    return Estimate(value, math.hypot(a.se, value * b.se) / b.value)
