"""A page as one file: templates, tables, and figures that the inlined ECharts draws in the reader's theme.

Names of models and tensors are untrusted: templates escape everything, the figures' data is JSON without a "<", and the policy in the
head lets no script run but the two that ship with us.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from markupsafe import Markup

from quantailor.present import words
from quantailor.present.charts import echarts
from quantailor.present.charts.colours import DARK, LIGHT, Palette
from quantailor.present.charts.describe import Chart, HeatMap
from quantailor.present.report.data import ReportData

if TYPE_CHECKING:
    from jinja2 import Environment


class Figures:
    """The figures of a page that is being written: each has its place, and its options go to the end of the page."""

    def __init__(self) -> None:
        self._options: list[echarts.Options] = []

    def place(self, figure: Chart | HeatMap, height: float = 420.0, *, is_small: bool = False) -> Markup:
        """The element that a figure is drawn in."""
        if isinstance(figure, HeatMap):
            options, height = echarts.heat_options(figure, _VARIABLES), echarts.heat_height(figure)
            width = f"min-width:{figure.gutter + figure.column_width * len(figure.columns) + 8:.0f}px;"
        else:
            options, width = echarts.options(figure, _VARIABLES, is_small=is_small), ""
        self._options.append(options)
        place = Markup('<div class="chart" role="img" aria-label="{}" style="{}height:{:.0f}px"></div>')
        return place.format(figure.title, width, height)

    def json(self) -> Markup:
        """The options of all figures in the order of their places; functions as their numbers, and safe inside a script element."""
        numbered = [_numbered(options) for options in self._options]
        return Markup(json.dumps(numbered, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))  # noqa: S704


def render(template: str, models: Sequence[ReportData], context: Mapping[str, object]) -> str:
    """One of the templates as a whole document."""
    versions = dict(pair for data in models for pair in data.versions.items())
    scripts = (_library(), _script())
    digests = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts)
    figures = Figures()
    return (
        _templates()
        .get_template(template)
        .render(
            context,
            figure=figures.place,
            figures=figures,
            library=Markup(scripts[0]),  # noqa: S704
            script=Markup(scripts[1]),  # noqa: S704
            style=Markup(_style()),  # noqa: S704
            policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {digests}",
            versions=words.listed([f"{name} {version}" for name, version in versions.items()]),
        )
    )


def _names(palette: Palette) -> dict[str, str]:
    """Every colour of a palette by the name of its CSS variable."""
    single = {key.replace("_", "-"): value for key, value in asdict(palette).items() if isinstance(value, str)}
    several = {"series": palette.series, "shade": palette.shades, "on-shade": palette.on_shades}
    return single | {f"{name}-{index}": colour for name, colours in several.items() for index, colour in enumerate(colours)}


def _variables() -> Palette:
    """The palette whose colours are CSS variables, which the page's script looks up when it draws."""
    variables = {name: f"var(--{name})" for name in _names(LIGHT)}
    several = {"series": LIGHT.series, "shade": LIGHT.shades, "on-shade": LIGHT.on_shades}
    series, shades, on_shades = (tuple(variables[f"{name}-{index}"] for index in range(len(them))) for name, them in several.items())
    single = {field.name: variables[field.name.replace("_", "-")] for field in fields(Palette) if field.type == "str"}
    return replace(LIGHT, series=series, shades=shades, on_shades=on_shades, **single)


_VARIABLES = _variables()


def _numbered(option: object) -> object:
    """Options with the number of a function for its source."""
    if isinstance(option, Mapping):
        return {key: echarts.FUNCTIONS.index(str(value)) if key.startswith(":") else _numbered(value) for key, value in option.items()}
    return [_numbered(item) for item in option] if isinstance(option, list) else option


@cache
def _templates() -> Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("quantailor.present.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_unbroken,
    )
    environment.globals |= {"words": words, "exp": math.exp, "probe": "quantailor probe BASE"}
    return environment


def _unbroken(value: object) -> object:
    """A figure never breaks into two lines."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return value.replace(" ± ", "\u00a0±\u00a0").replace(" %", "\u00a0%")


def _file(name: str) -> str:
    return resources.files("quantailor.present.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _library() -> str:
    return _file("echarts/echarts.min.js")


@cache
def _script() -> str:
    return f"const functions = [{', '.join(echarts.FUNCTIONS)}];\n{_file('templates/page.js')}"


@cache
def _style() -> str:
    light, dark = ("".join(f"--{name}:{colour};" for name, colour in _names(palette).items()) for palette in (LIGHT, DARK))
    return f":root{{color-scheme:light dark;{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{_file('templates/page.css')}"
