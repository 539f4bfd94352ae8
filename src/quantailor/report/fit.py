"""Predictions against measurements: how well sums of damages tell the KLD of whole mixes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from quantailor.present.words import Z95, counted, figure, plural, with_error
from quantailor.records import Curve, CurvePoint, Estimate
from quantailor.report import html
from quantailor.report.damage import predicted_kld
from quantailor.report.data import ReportData, probe_basis
from quantailor.report.figures import t95
from quantailor.report.html import Column, Sorted
from quantailor.report.markup import Content, Markup, element, join
from quantailor.report.svg import Scale, axes, diamond, label, line, log_scale, path_of, svg, titled

FIT_COMMAND = "quantailor probe BASE"
_WIDTH, _HEIGHT = 620.0, 520.0
_NAMED_FILES = 12


def fit_section(data: ReportData) -> Markup:
    """The scatter and the fit in words."""
    title = "Predictions against measurements"
    if data.curve is None:
        return html.section("fit", title, html.todo("No measured mixes yet", FIT_COMMAND))
    drawn = element("figure", _scatter(data.curve), _legend(data.curve)) if data.curve.points else None
    side = element("div", drawn, _words(data.curve), class_="side" if drawn else None)
    basis = html.basis(f"{probe_basis(data)}; bars are 95 % intervals")
    return html.section("fit", title, side, _table(data.curve) if data.curve.points else None, basis)


def _words(curve: Curve) -> Markup:
    n_files = sum(point.kind == "file" for point in curve.points)
    fitted = f"{counted(len(curve.points) - n_files, 'mix', 'mixes')} in memory and {counted(n_files, 'built file')}"
    items: Sequence[tuple[str, str]] = (
        ("Prediction", f"KLD = {figure(curve.gamma)} × (S + {figure(curve.kappa)} × S²) + {figure(curve.c0_nats)}, in nats"),
        ("S", "the sum of the damages of a mix's tensors, nats"),
        (f"gamma = {figure(curve.gamma)}", "scale: how the KLD of a mix compares with the sum of its tensors' damages while that is small"),
        (f"kappa = {figure(curve.kappa)}", "curvature: how much faster than the sum the KLD grows, per nat"),
        (f"c0 = {figure(curve.c0_nats)} nats", "what a built file costs beyond its tensors' damages; mixes in memory have none of it"),
        (
            f"Residual: ± {100 * curve.residual_sd:.1f} % (one sd of the logarithm)",
            f"scatter of a new mix about its prediction: 95 % within a factor of {_factor(curve):.2f}",
        ),
        ("Fitted on", f"{fitted}; {plural(curve.degrees_of_freedom, 'degree')} of freedom left"),
    )
    return element("dl", *(join([element("dt", name), element("dd", meaning)]) for name, meaning in items), class_="words")


def _factor(curve: Curve) -> float:
    """The factor that 95 % of new mixes lie within, by the residual alone."""
    return math.exp(min(t95(curve.degrees_of_freedom) * curve.residual_sd, 20.0))


def _scatter(curve: Curve) -> Markup:
    points = [(point, predicted_kld(curve, point)) for point in curve.points]
    reach = [point.measured.value + Z95 * point.measured.se for point in curve.points]
    values = [*(predicted for _, predicted in points), *(point.measured.value for point in curve.points), *reach]
    x = log_scale(values, 66, _WIDTH - 14, margin=1.4, decades=9)
    y = Scale(x.low, x.high, _HEIGHT - 46, 12, log=True)
    return svg(
        _WIDTH,
        _HEIGHT,
        "Measured against predicted KLD",
        axes(x, y, x_label="predicted KLD (nats, log scale)", y_label="measured KLD (nats, log scale)"),
        element("path", d=_band(x, y, _factor(curve)), class_="band"),
        line(x.start, y.start, x.end, y.end, "identity"),
        *(_bar(point, predicted, x, y) for point, predicted in points),
        *(_point(point, predicted, x, y) for point, predicted in sorted(points, key=lambda item: item[0].kind == "file")),
        *_file_names(points, x, y),
    )


def _band(x: Scale, y: Scale, factor: float) -> str:
    """Where 95 % of new mixes are expected, within the frame."""
    low, high = x.low, x.high
    corners = [(low, low / factor), (low, low * factor), (high / factor, high), (high, high), (high, high / factor), (low * factor, low)]
    return path_of([(x(a), y(b)) for a, b in corners]) + "z"


def _bar(point: CurvePoint, predicted: float, x: Scale, y: Scale) -> Markup:
    reach = Z95 * point.measured.se
    class_ = "a bar" if point.kind == "memory" else "b bar"
    return line(x(predicted), y(point.measured.value - reach), x(predicted), y(point.measured.value + reach), class_)


def _point(point: CurvePoint, predicted: float, x: Scale, y: Scale) -> Markup:
    kind = "built file" if point.kind == "file" else "mix in memory"
    title = (
        f"{kind}, {point.bits_per_weight:.2f} bpw: predicted {figure(predicted)}, measured {with_error(point.measured)} nats ({point.mix})"
    )
    return _shape(point.kind, x(predicted), y(point.measured.value), title)


def _shape(kind: str, x: float, y: float, title: str | None) -> Markup:
    if kind == "file":
        return titled("path", title, d=diamond(x, y, 6), class_="b")
    return titled("circle", title, cx=x, cy=y, r=4.2, class_="a hollow")


def _file_names(points: Sequence[tuple[CurvePoint, float]], x: Scale, y: Scale) -> list[Markup]:
    """Sizes beside built files, where they are few; lower right of the point, and moved down where names would touch."""
    files = sorted(((point, predicted) for point, predicted in points if point.kind == "file"), key=lambda item: y(item[0].measured.value))
    names, last = [], -math.inf
    for point, predicted in files if len(files) <= _NAMED_FILES else ():
        at = max(y(point.measured.value) + 16, last + 13)
        last = at
        right = x(predicted) + 84 > x.end
        names.append(
            label(
                x(predicted) + (-9 if right else 9), at, f"{point.bits_per_weight:.2f} bpw", anchor="end" if right else None, class_="halo"
            )
        )
    return names


def _legend(curve: Curve) -> Markup:
    n_files = sum(point.kind == "file" for point in curve.points)
    names = (
        ("memory", f"mix set in memory ({len(curve.points) - n_files})"),
        ("file", f"built file, with its bits per weight ({n_files})"),
    )
    keys = [element("li", _key(_shape(kind, 7, 7, None)), name) for kind, name in names]
    identity = element("li", _key(line(0, 14, 14, 0, "identity")), "measured = predicted")
    band = element("li", _key(element("rect", x=0, y=2, width=14, height=10, class_="band")), "95 % of new mixes, by the residual")
    return element("ul", *keys, identity, band, class_="keys")


def _key(shape: Content) -> Markup:
    return element("svg", shape, viewBox="0 0 14 14", class_="key", aria_hidden="true")


def _table(curve: Curve) -> Markup:
    columns = (
        Column("Mix"),
        Column("Kind"),
        Column("bpw", "number"),
        Column("S (nats)", "number"),
        Column("Predicted KLD (nats)", "number"),
        Column("Measured KLD ± se (nats)", "number"),
        Column("Measured / predicted ± se", "number"),
    )
    rows = [_row(point, predicted_kld(curve, point)) for point in curve.points]
    return html.details("The mixes as a table", html.table(columns, rows, caption="Measured mixes", sortable=True))


def _row(point: CurvePoint, predicted: float) -> tuple[Content | Sorted, ...]:
    ratio = Estimate(point.measured.value / predicted, point.measured.se / predicted) if predicted > 0 else Estimate(math.nan)
    return (
        html.mono(point.mix),
        "built file" if point.kind == "file" else "in memory",
        Sorted(f"{point.bits_per_weight:.3f}", point.bits_per_weight),
        Sorted(figure(point.damage_nats), point.damage_nats),
        Sorted(figure(predicted), predicted),
        Sorted(with_error(point.measured), point.measured.value),
        Sorted(with_error(ratio), None if math.isnan(ratio.value) else ratio.value),
    )
