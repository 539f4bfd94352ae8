"""One description of a figure, drawn twice: ECharts options and matplotlib artists show the same points."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from made_up_models import verdict_of

from quantailor.present.charts import drawing, echarts
from quantailor.present.charts.colours import (
    DARK,
    LIGHT,
    N_SHADES,
    PALETTES,
    LogScale,
    Palette,
    bits_colour,
    contrast,
    log_ticks,
)
from quantailor.present.charts.describe import Axis, Band, Chart, HeatCell, HeatMap, Point, Rule, Series
from quantailor.present.charts.roles import role_look
from quantailor.present.charts.verdict import verdict_chart, verdict_csv

EVERYTHING = Chart(
    "Everything at once",
    Axis("bits", 0, 10),
    Axis.log("error", [0.001, 2.0]),
    (
        Series("ours", (Point(4, 0.1, "mine", "mine\n4 bits", low=0.05, high=0.2),), "accent", "star", is_labelled=True, is_strong=True),
        Series("others", (Point(3, 0.4, "a"), Point(8, 0.01, "b", colour="#112233")), "series 1", stroke="dashed", is_labelled=True),
        Series("hollow", (Point(5, 1.0),), "warm", "hollow", in_legend=True),
        Series("plain", (Point(1, 1.0), Point(9, 1.0)), "text", "", stroke="solid"),
    ),
    bands=(Band("usual", (1, 5, 9), (0.2, 0.1, 0.01), (0.9, 0.5, 0.1), "series 2"),),
    rules=(Rule(0.02, "floor"),),
    note="made up",
)


def series_of(options: dict[str, Any], name: str) -> dict[str, Any]:
    return next(series for series in options["series"] if series["name"] == name)


@pytest.mark.parametrize("measure", ["kld", "ppl"])
def test_csv_rows_are_the_plotted_points(measure: Literal["kld", "ppl"]) -> None:
    verdict = verdict_of()
    rows = list(csv.DictReader(io.StringIO(verdict_csv(verdict, measure))))
    chart = verdict_chart(verdict, measure)
    plotted = sorted((point.x, point.y, point.low, point.high) for point in chart.points)
    figures = ("value", "low_95", "high_95")
    assert plotted == sorted(
        (int(row["size_bytes"]) / 2**20, *(float(row[name]) for name in figures)) for row in rows if row["kind"] != "base"
    )
    bases = [float(row["value"]) for row in rows if row["kind"] == "base"]
    assert [rule.y for rule in chart.rules] == bases


@pytest.mark.parametrize("chart", [EVERYTHING, verdict_chart(verdict_of()), verdict_chart(verdict_of(), "ppl")])
def test_a_page_and_a_file_show_the_same(chart: Chart) -> None:
    options: Any = echarts.options(chart, LIGHT)
    picture = drawing.picture(chart)
    axes = picture.axes[0]
    assert axes.get_xlim() == (options["xAxis"]["min"], options["xAxis"]["max"]) == (chart.x.low, chart.x.high)
    assert axes.get_ylim() == (options["yAxis"]["min"], options["yAxis"]["max"])
    assert axes.get_yscale() == {"log": "log", "value": "linear"}[options["yAxis"]["type"]]
    lines = {str(line.get_label()): np.asarray(line.get_xydata()).tolist() for line in axes.lines}
    for series in chart.series:
        expected = [[point.x, point.y] for point in series.points]
        data = series_of(options, series.name)["data"]
        assert [datum["value"] if isinstance(datum, dict) else datum for datum in data] == lines[series.name] == expected
    bars = [row[:3] for one in options["series"] if one["name"].endswith(echarts.INTERVALS) for row in one["data"]]
    assert bars == [[point.x, point.low, point.high] for point in chart.points if point.low is not None]
    drawn = [part.get_segments()[0].tolist() for part in axes.collections if hasattr(part, "get_segments")]
    assert drawn == [[[x, low], [x, high]] for x, low, high in bars]
    marks = [mark["yAxis"] for one in options["series"] for mark in one.get("markLine", {}).get("data", ())]
    assert marks == [rule.y for rule in chart.rules]
    texts = [text.get_text() for text in axes.texts]
    names = [datum["name"] for one in options["series"] if "label" in one for datum in one["data"]]
    assert all(any(text.startswith(name) for text in texts) for name in names)
    assert {chart.note, *(rule.name for rule in chart.rules)} <= set(texts)


def code_in(option: object) -> set[str]:
    """What options would have run as JavaScript."""
    if isinstance(option, dict):
        own = {str(value) for key, value in option.items() if key.startswith(":")}
        return own.union(*map(code_in, option.values()))
    return set().union(*map(code_in, option)) if isinstance(option, list) else set()


def test_only_our_own_functions_are_code_in_options() -> None:
    assert code_in(echarts.options(EVERYTHING, LIGHT)) <= set(echarts.FUNCTIONS)
    hostile = replace(EVERYTHING, series=(Series(":x => alert(1)", (Point(1, 1, ":y => 1", "z => 1"),), "accent", is_labelled=True),))
    assert code_in(echarts.options(hostile, LIGHT)) <= set(echarts.FUNCTIONS)


def test_text_in_tooltips_is_escaped_and_stays_text_beside_points() -> None:
    name = "<img src=x onerror=alert(1)>"
    chart = replace(EVERYTHING, series=(Series("s", (Point(1, 1, name, f"{name}\nline"),), "accent", is_labelled=True),))
    datum = series_of(echarts.options(chart, LIGHT), "s")["data"][0]
    assert datum["tip"] == "&lt;img src=x onerror=alert(1)&gt;<br>line"
    assert datum["name"] == name


@pytest.mark.parametrize("palette", [DARK, LIGHT], ids=["dark", "light"])
def test_a_heat_map_shades_by_value_and_writes_what_fits(palette: Palette) -> None:
    cells = (
        HeatCell(0, 0, 1e-4, "low", ("0.00010 ± 0.00001", "1e-4")),
        HeatCell(1, 0, 1.0, "high", ("1",)),
        HeatCell(1, 1, None, "not probed", ("·",)),
    )
    heat = HeatMap("map", ("one", "two"), ("attn_q", "attn_k"), cells, LogScale(1e-4, 1.0), max_column=60)
    options: Any = echarts.heat_options(heat, palette)
    shaded, blank = (series["data"] for series in options["series"])
    assert [datum["value"] for datum in shaded] == [[0, 0, 0], [1, 0, N_SHADES - 1]]
    assert [datum["name"] for datum in (*shaded, *blank)] == ["1e-4", "1", "·"]
    assert shaded[1]["label"]["color"] == palette.on_shades[-1]
    assert echarts.heat_height(heat) >= 2 * heat.row_height


@pytest.mark.parametrize("palette", PALETTES.values(), ids=PALETTES)
def test_shades_keep_their_order_in_grey_and_carry_readable_text(palette: Palette) -> None:
    to_white = [contrast(colour, "#ffffff") for colour in palette.shades]
    assert to_white in (sorted(to_white), sorted(to_white, reverse=True))
    assert len(set(to_white)) == N_SHADES
    assert all(contrast(*pair) >= 4.5 for pair in zip(palette.shades, palette.on_shades, strict=True))


def test_black_text_is_readable_on_every_bit_width() -> None:
    assert min(contrast(bits_colour(bits / 4), "#000000") for bits in range(2, 80)) >= 4.5


def test_zeros_are_drawn_at_the_edge_of_a_log_scale() -> None:
    scale = LogScale(1e-4, 1.0)
    assert scale.share(0.0) == scale.share(-1.0) == 0
    assert scale.share(0.01) == pytest.approx(0.5)
    assert scale.share(5.0) == 1
    assert log_ticks(1e-4, 1.0) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])


@pytest.mark.parametrize(("values", "ends"), [([0.0], (0.05, 20)), ([], (0.1, 1.0)), ([3.0], (1.5, 6.0)), ([1e-9, 1.0], (1e-4, 1.0))])
def test_a_log_scale_always_has_room(values: Sequence[float], ends: tuple[float, float]) -> None:
    scale = LogScale.over(list(values), decades=4)
    assert 0 < scale.low < scale.high
    assert all(math.isfinite(scale.share(value)) for value in (0.0, *values, *ends))


def _lab(colour: str) -> tuple[float, float, float]:
    """Where a colour lies in CIELAB, in which equal distances look equal."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    rows = ((0.4124, 0.3576, 0.1805, 0.9505), (0.2126, 0.7152, 0.0722, 1.0), (0.0193, 0.1192, 0.9505, 1.089))
    x, y, z = (sum(a * b for a, b in zip(row, linear, strict=False)) / row[3] for row in rows)
    x, y, z = (value ** (1 / 3) if value > 0.008856 else 7.787 * value + 16 / 116 for value in (x, y, z))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("palette", PALETTES.values(), ids=PALETTES)
def test_colours_of_lines_can_be_told_apart_and_seen(palette: Palette) -> None:
    places = [_lab(colour) for colour in palette.series]
    assert min(math.dist(one, other) for at, one in enumerate(places) for other in places[:at]) > 25
    assert min(contrast(colour, palette.surface) for colour in palette.series) > 3


def test_a_role_looks_the_same_in_every_model_and_unlike_the_others() -> None:
    dense = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "token_embd", "output")
    mixture = (*dense[:4], "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "token_embd", "output")
    for roles in (dense, mixture):
        looks = [role_look(role) for role in roles]
        assert len({(look.colour, look.stroke) for look in looks}) == len(roles)
    assert len({role_look(role).colour for role in dense}) == len(dense)
    assert {role_look(role).stroke for role in dense[:4]} == {"solid"}
    assert {role_look(role).stroke for role in dense[4:7]} == {"dashed"}
    assert role_look("ssm_in") == role_look("ssm_in"), "a role that nobody listed has its place too"


def test_a_long_legend_is_one_row_to_leaf_through_where_a_chart_is_narrow() -> None:
    lines = tuple(
        Series(f"a role with a long name {n}", (Point(1, 1.0), Point(2, 0.5)), f"series {n}", stroke="dashed", in_legend=True)
        for n in range(6)
    )
    chart = Chart("roles", Axis("bits", 0, 3), Axis.log("error", [0.1, 2.0]), lines)
    options: dict[str, Any] = echarts.options(chart, LIGHT)
    narrow, wide = options["media"]
    assert narrow["query"] == {"maxWidth": echarts.NARROW}
    assert [each["option"]["legend"]["type"] for each in (narrow, wide)] == ["scroll", "plain"]
    assert narrow["option"]["legend"]["data"] == wide["option"]["legend"]["data"]
    few = Chart("roles", Axis("bits", 0, 3), Axis.log("error", [0.1, 2.0]), lines[:1])
    assert "media" not in echarts.options(few, LIGHT)
