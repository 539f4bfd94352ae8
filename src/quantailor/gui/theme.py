"""Colours: two palettes, the fixed ramp of bit widths, and what charts need to follow the theme."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from typing import Literal

from nicegui import ui

from quantailor.app.steps import type_bits

ThemeName = Literal["dark", "light"]
COOKIE = "quantailor_theme"


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of one theme; the style sheet knows them as `--qt-NAME`."""

    ground: str
    surface: str
    raised: str
    line: str
    text: str
    muted: str
    accent: str
    on_accent: str
    good: str
    bad: str
    warn: str
    knee: str


DARK = Palette(
    ground="#0d1117",
    surface="#151b23",
    raised="#1d2530",
    line="#2b3543",
    text="#e8edf3",
    muted="#9aa7b6",
    accent="#5eead4",
    on_accent="#06281f",
    good="#4ade80",
    bad="#fb7185",
    warn="#fbbf24",
    knee="#fbbf24",
)
LIGHT = Palette(
    ground="#f5f7fa",
    surface="#ffffff",
    raised="#eef2f6",
    line="#d5dde6",
    text="#17202b",
    muted="#536173",
    accent="#0f766e",
    on_accent="#ffffff",
    good="#15803d",
    bad="#be123c",
    warn="#a16207",
    knee="#a16207",
)
PALETTES: dict[ThemeName, Palette] = {"dark": DARK, "light": LIGHT}
SERIES: dict[ThemeName, tuple[str, ...]] = {
    "dark": ("#5eead4", "#7dd3fc", "#c4b5fd", "#fcd34d", "#fda4af", "#86efac", "#f0abfc", "#fdba74", "#93c5fd", "#d9f99d"),
    "light": ("#0f766e", "#0369a1", "#6d28d9", "#a16207", "#be123c", "#15803d", "#a21caf", "#c2410c", "#1d4ed8", "#4d7c0f"),
}
"""Colours of lines that stand for roles or models."""

RAMP: tuple[tuple[float, tuple[int, int, int]], ...] = (
    (1.5, (240, 95, 90)),
    (2.5, (250, 145, 75)),
    (3.4, (250, 205, 75)),
    (4.25, (165, 222, 85)),
    (4.5, (85, 220, 185)),
    (5.5, (75, 185, 250)),
    (6.6, (140, 150, 250)),
    (8.5, (190, 150, 245)),
    (16.0, (200, 195, 215)),
)
"""Bits per weight -> colour, from warm (few bits) to cool; all are light enough for dark text."""
ON_RAMP = "#0b1220"


def bits_colour(bits: float) -> str:
    """The ramp's colour at so many bits per weight, as "#rrggbb"."""
    low, high = RAMP[0], RAMP[-1]
    if bits <= low[0]:
        return _hex(low[1])
    for (left, colour), (right, next_colour) in pairwise(RAMP):
        if bits <= right:
            share = (bits - left) / (right - left)
            return _hex(tuple(round(a + share * (b - a)) for a, b in zip(colour, next_colour, strict=True)))
    return _hex(high[1])


def _hex(colour: tuple[int, ...]) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour)


@cache
def type_colours() -> dict[str, str]:
    """Every ggml type's colour."""
    return {name: bits_colour(bits) for name, bits in type_bits().items()}


def theme() -> ThemeName:
    """The theme of the page that is being built."""
    return "dark" if ui.context.client.request.cookies.get(COOKIE) == "dark" else "light"


def palette() -> Palette:
    """The colours of the page that is being built."""
    return PALETTES[theme()]


def series_colours() -> tuple[str, ...]:
    """Line colours of the page that is being built."""
    return SERIES[theme()]


def variables() -> str:
    """The style sheet's variables for both themes."""
    return "\n".join(f"body.body--{name} {{ {_declarations(colours)} }}" for name, colours in PALETTES.items())


def _declarations(colours: Palette) -> str:
    return " ".join(f"--qt-{key.replace('_', '-')}: {value};" for key, value in asdict(colours).items())


def chart_base() -> dict[str, object]:
    """ECharts options that every chart starts from: text, grid and axes in the theme's colours."""
    colours = palette()
    return {
        "backgroundColor": "transparent",
        "animation": False,
        "textStyle": {"color": colours.text, "fontFamily": "system-ui, sans-serif"},
        "color": list(series_colours()),
        "aria": {"enabled": True},
        "tooltip": {"backgroundColor": colours.raised, "borderColor": colours.line, "textStyle": {"color": colours.text, "fontSize": 12}},
    }


def axis(name: str, *, log: bool = False, **more: object) -> dict[str, object]:
    """An ECharts axis in the theme's colours."""
    colours = palette()
    return {
        "type": "log" if log else "value",
        "name": name,
        "nameLocation": "middle",
        "nameGap": 30,
        "nameTextStyle": {"color": colours.muted},
        "axisLabel": {"color": colours.muted},
        "axisLine": {"lineStyle": {"color": colours.line}},
        "splitLine": {"lineStyle": {"color": colours.line, "opacity": 0.5}},
        **more,
    }
