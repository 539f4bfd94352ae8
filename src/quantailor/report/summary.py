"""The head of a report: which model, and what was found, in plain sentences."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from quantailor.present.words import count, counted, figure, listed, number_word, percent_with_error, plural, size, with_error
from quantailor.records import Sensitivity
from quantailor.report import html
from quantailor.report.data import ReportData, common_type, error_basis, most_sensitive, probe_basis
from quantailor.report.html import mono, paragraph
from quantailor.report.markup import Content, Markup, element, join
from quantailor.report.profile import joint_share, tensor_shares

PROBE_COMMAND = "quantailor probe BASE"
_TOP = 5


def head(data: ReportData, title: str) -> Markup:
    """The model's name and its facts."""
    sub = f"{data.architecture} · {count(data.n_parameters)} parameters · base {size(data.base_size_bytes)} · fingerprint "
    return join([element("h1", title), paragraph(sub, mono(data.fingerprint[:16]), class_="sub")])


def summary(data: ReportData) -> Markup:
    """What was found, and what the figures rest on."""
    parts: list[Content] = [html.facts(_facts(data))] if data.tensors else []
    if not data.sensitivities:
        parts.append(html.todo("No sensitivities yet", PROBE_COMMAND))
        parts += [paragraph(_ranking_only(data))] if data.weight_errors else []
    elif not most_sensitive(data):
        parts.append(paragraph("No tensor's sensitivity could be told from the floor; probe at fewer bits or on more chunks."))
    else:
        words = element("div", paragraph(_spread(data)), *_shares(data), paragraph(_basis(data)))
        parts.append(element("div", words, _top(data), class_="halves"))
    return html.section("summary", "Summary", *parts)


def _facts(data: ReportData) -> list[tuple[str, Content]]:
    found = most_sensitive(data)
    facts: list[tuple[str, Content]] = [("quantizable tensors", f"{len(data.tensors):,}")]
    if data.sensitivities:
        facts.append(("sensitivities told from the floor", f"{len(found):,} of {len(data.sensitivities):,}"))
    if span := _span(found):
        facts.append(("largest alpha / smallest", f"{figure(span, 2)} ×"))
    if data.curve is not None:
        facts.append(("scatter of predictions, one sd", f"{100 * data.curve.residual_sd:.1f} %"))
    if data.floor_kld_nats is not None:
        facts.append(("floor (nats)", figure(data.floor_kld_nats, 2)))
    return facts


def _span(found: Sequence[Sensitivity]) -> float | None:
    """Largest over smallest alpha."""
    positive = [sensitivity.alpha.value for sensitivity in found if sensitivity.alpha.value > 0]
    return positive[0] / positive[-1] if len(positive) > 1 else None


def _top(data: ReportData) -> Markup:
    """The most sensitive tensors as a list."""
    top = most_sensitive(data)[:_TOP]
    what = "most sensitive tensor" if len(top) == 1 else f"{number_word(len(top))} most sensitive tensors"
    lead = paragraph(f"The {what}, by alpha (nats of KL divergence per unit of weighted error, ± one standard error):")
    items = [element("li", mono(sensitivity.tensor), f": {with_error(sensitivity.alpha)}") for sensitivity in top]
    return element("div", lead, element("ol", *items, class_="top"))


def _spread(data: ReportData) -> str:
    found = most_sensitive(data)
    values = [sensitivity.alpha.value for sensitivity in found]
    middle = figure(statistics.median(values))
    span = f"Alpha runs from {figure(min(values))} to {figure(max(values))} nats, with a median of {middle}"
    factor = f": a factor of {figure(ratio, 2)}. " if (ratio := _span(found)) else ". "
    return span + factor + _rest(data)


def _rest(data: ReportData) -> str:
    counts = {status: sum(sensitivity.status == status for sensitivity in data.sensitivities) for status in ("drowned", "not in the graph")}
    probed = {sensitivity.tensor for sensitivity in data.sensitivities}
    missing = sum(tensor.name not in probed for tensor in data.tensors)
    words = []
    if n := counts["drowned"]:
        words.append(f"{counted(n, 'tensor')} cannot be told from the floor and {'has' if n == 1 else 'have'} an upper bound only")
    if n := counts["not in the graph"]:
        words.append(f"{counted(n, 'tensor')} {'takes' if n == 1 else 'take'} no part in the computation")
    if missing:
        words.append(f"{counted(missing, 'tensor')} {'is' if missing == 1 else 'are'} not probed")
    sentence = f"{'; '.join(words)}." if words else "every tensor could be told from the floor."
    return sentence[0].upper() + sentence[1:]


def _shares(data: ReportData) -> list[Markup]:
    """Which tensors hold most of the sensitivity at one common type."""
    type_name = common_type(data)
    shares = tensor_shares(data, type_name=type_name)
    if type_name is None or len(shares) <= _TOP:
        return []
    top = sorted(shares, key=lambda name: -shares[name].value)[:_TOP]
    together = percent_with_error(joint_share(data, top, type_name=type_name))
    names = join([mono(name) for name in top], ", ")
    lead = f"With every tensor at {type_name}, {together} of the sensitivity (alpha × weighted error) is in {number_word(_TOP)} tensors: "
    return [paragraph(lead, names, ".")]


def _ranking_only(data: ReportData) -> str:
    return f"Basis: {error_basis(data)}. Without probes, weight error only ranks tensors and mixes; it does not predict a KL divergence."


def _basis(data: ReportData) -> str:
    floor, matrix = data.floor_kld_nats, data.imatrix
    reads = "" if floor is None else f" The unmodified model through the same pipeline reads {figure(floor, 2)} nats (the floor)."
    texts = f" It was computed on {plural(matrix.n_chunks, 'chunk')} of {listed(list(matrix.texts))}." if matrix and matrix.texts else ""
    return f"Basis: {probe_basis(data)}; {error_basis(data)}.{texts}{reads}"
