"""A verdict as a figure: file size across, divergence or perplexity up, 95 % intervals, references joined, ours on top."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from quantailor.present import words
from quantailor.present.charts.describe import Axis, Chart, Point, Rule, Series
from quantailor.records import PLAIN_TWIN, RowKind, Verdict, VerdictRow

Measure = Literal["kld", "ppl"]
MEASURE_NAMES: Mapping[Measure, str] = {"kld": "mean KLD (nats)", "ppl": "perplexity"}
REFERENCES = "llama.cpp's presets"
RIVALS = "other files"
_DRAWN: tuple[RowKind, ...] = ("reference", "ours", "rival")
_TITLES: Mapping[Measure, str] = {"kld": "Size against divergence from the unquantized model", "ppl": "Size against perplexity"}
_AXES: Mapping[Measure, str] = {"kld": "mean KL divergence from the base, nats (log)", "ppl": "perplexity"}
_LEAST_SHARE = 0.05
"""A logarithmic axis has no zero: an interval's lower end stays at this share of the value."""
_SMALLEST = 1e-9
_FLOOR_IN_SIGHT = 10
"""The floor is drawn when it is within this factor of the lowest point."""


@dataclass(frozen=True, slots=True)
class VerdictPoint:
    """One file in a verdict's figure."""

    label: str
    kind: RowKind
    size_bytes: int
    bits_per_weight: float
    value: float
    low: float
    """Ends of the 95 % interval over chunks."""
    high: float


def verdict_points(verdict: Verdict, measure: Measure = "kld") -> tuple[VerdictPoint, ...]:
    """What the figure of a verdict shows, the smallest file first; the base has no divergence from itself, so KLD leaves it out.

    The line through the presets is theirs alone: our own types rounded plainly are in the table.
    """
    shown = [row for row in verdict.rows if row.label != PLAIN_TWIN and (measure == "ppl" or row.kind != "base")]
    return tuple(_point(row, measure) for row in sorted(shown, key=lambda row: row.size_bytes))


def _point(row: VerdictRow, measure: Measure) -> VerdictPoint:
    estimate = row.statistics.kld_mean if measure == "kld" else row.statistics.perplexity
    half = words.Z95 * estimate.se
    low = max(estimate.value - half, _LEAST_SHARE * estimate.value)
    return VerdictPoint(row.label, row.kind, row.size_bytes, row.bits_per_weight, estimate.value, low, estimate.value + half)


def verdict_csv(verdict: Verdict, measure: Measure) -> str:
    """The points as CSV, one row for each."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("label", "kind", "size_bytes", "bits_per_weight", "measure", "value", "low_95", "high_95"))
    for point in verdict_points(verdict, measure):
        figures = (point.value, point.low, point.high)
        rows.writerow((point.label, point.kind, point.size_bytes, point.bits_per_weight, MEASURE_NAMES[measure], *figures))
    return text.getvalue()


def point_words(point: VerdictPoint, measure: Measure, *, line: str = ", ") -> str:
    """One point in words."""
    what = "KLD" if measure == "kld" else "perplexity"
    figures = f"{what} {words.figure(point.value, 4)} (95 %: {words.interval((point.low, point.high), 4)})"
    return line.join((point.label, f"{words.size(point.size_bytes)}, {words.bits(point.bits_per_weight)}", figures))


def verdict_chart(verdict: Verdict, measure: Measure = "kld") -> Chart:
    """The figure; perplexity has the base as a line across, KLD the floor where it is in sight."""
    points = verdict_points(verdict, measure)
    shown = [point for point in points if point.kind != "base"]
    unit, unit_bytes = ("GiB", 2**30) if max((point.size_bytes for point in shown), default=0) >= 2**30 else ("MiB", 2**20)
    rules = _rules(verdict, points, measure)
    n_chunks = max((row.statistics.n_chunks for row in verdict.rows), default=0)
    x = _across([point.size_bytes / unit_bytes for point in shown], f"file size, {unit}")
    heights = [_height(value, measure) for point in shown for value in (point.low, point.value, point.high)] + [rule.y for rule in rules]
    kinds = {kind: tuple(_placed(point, unit_bytes, measure) for point in shown if point.kind == kind) for kind in _DRAWN}
    rivals = Series(RIVALS, kinds["rival"], "warm", marker="diamond", size=12, is_labelled=True, in_legend=True)
    several = len(kinds["ours"]) > 1
    return Chart(
        _TITLES[measure],
        x,
        Axis.log(_AXES[measure], heights) if measure == "kld" else Axis.linear(_AXES[measure], heights),
        (
            # A single one of ours is named in the legend: beside its point, a long name would cross the line through the presets.
            Series(
                "these files" if several else ", ".join(f"{point.name}, {point.detail}" for point in kinds["ours"]) or "ours",
                kinds["ours"],
                "accent",
                marker="star",
                size=16 if several else 22,
                stroke="solid" if several else "",
                is_strong=True,
                in_legend=True,
            ),
            *([rivals] if rivals.points else []),
            Series(REFERENCES, kinds["reference"], "reference", stroke="solid", size=10, is_labelled=True, in_legend=True),
        ),
        rules=rules,
        note=f"{verdict.corpus_name}, {words.plural(n_chunks, 'chunk')} of {verdict.n_ctx} tokens. "
        "Bars: 95 % intervals. Lower and further left is better.",
    )


def _rules(verdict: Verdict, points: Sequence[VerdictPoint], measure: Measure) -> tuple[Rule, ...]:
    """What files are held against: the base, or the floor where it is in sight."""
    if measure == "ppl":
        return tuple(Rule(point.value, "the unquantized base") for point in points if point.kind == "base")
    lowest = min((_height(point.value, measure) for point in points), default=0.0)
    in_sight = lowest / _FLOOR_IN_SIGHT < verdict.floor_kld_nats
    return (Rule(verdict.floor_kld_nats, "floor: the base against itself"),) if in_sight else ()


def _height(value: float, measure: Measure) -> float:
    return max(value, _SMALLEST) if measure == "kld" else value


def _across(sizes: Sequence[float], name: str) -> Axis:
    """Room for names, most of it at the right."""
    low, high = min(sizes, default=1.0), max(sizes, default=1.0)
    width, middle = max(high - low, 0.1 * high), (low + high) / 2
    left, right = (float(f"{max(middle + side * width, 0.0):.3g}") for side in (-0.58, 0.72))
    return Axis(name, left, right)


def _placed(point: VerdictPoint, unit_bytes: int, measure: Measure) -> Point:
    value, low, high = (_height(value, measure) for value in (point.value, point.low, point.high))
    tip = point_words(point, measure, line="\n")
    return Point(point.size_bytes / unit_bytes, value, words.shortened(point.label, 34), tip, f"{point.bits_per_weight:.2f} bpw", low, high)
