"""Colours of the two themes, the ramp of bit widths, and the sequential ramp of heat maps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

ThemeName = Literal["dark", "light"]
N_SERIES = 10
N_SHADES = 24
"""Shades of the sequential ramp."""


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of one theme, each in a form that CSS knows."""

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
    reference: str
    """What ours is held against."""
    warm: str
    """The other one of two."""
    series: tuple[str, ...]
    """N_SERIES colours of lines that stand for roles or models."""
    shades: tuple[str, ...]
    """N_SHADES colours from little to much."""
    on_shades: tuple[str, ...]
    """Black or white, whichever is read better on each of them."""

    def colour(self, name: str) -> str:
        """The colour that a figure's description names: "accent", "series 3", or a colour of its own such as "#1b3a4b"."""
        if name.startswith("series "):
            return self.series[int(name.removeprefix("series ")) % N_SERIES]
        named = {"accent": self.accent, "reference": self.reference, "warm": self.warm, "text": self.text, "muted": self.muted}
        return named.get(name, name)


def blend(one: str, other: str, share: float) -> str:
    """The colour at `share` of the way from one "#rrggbb" to another."""
    mixed = (round(a + (b - a) * share) for a, b in zip(_rgb(one), _rgb(other), strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def along(stops: tuple[str, ...], share: float) -> str:
    """The colour at `share`, from 0 to 1, of a ramp of evenly spaced stops."""
    place = min(max(share, 0.0), 1.0) * (len(stops) - 1)
    index = min(int(place), len(stops) - 2)
    return blend(stops[index], stops[index + 1], place - index)


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb" as WCAG defines it, 0 to 1."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (value / 255 for value in _rgb(colour))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two colours, 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def text_on(background: str) -> str:
    """Black or white, whichever has the greater contrast."""
    return max(("#000000", "#ffffff"), key=lambda colour: contrast(background, colour))


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


# From little to much; lightness rises or falls all the way, so that the order survives grey print and colour blindness.
_DARK_STOPS = ("#1d2c3a", "#1c4f66", "#1e7f84", "#43b597", "#a3dd97", "#f6f7b8")
_LIGHT_STOPS = ("#eef2d8", "#b5dfbf", "#62bdb5", "#2c8db0", "#22559a", "#18265f")
_DARK_SHADES, _LIGHT_SHADES = (
    tuple(along(stops, step / (N_SHADES - 1)) for step in range(N_SHADES)) for stops in (_DARK_STOPS, _LIGHT_STOPS)
)

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
    reference="#7dd3fc",
    warm="#ffa17d",
    series=("#5aa9ff", "#ff9a3d", "#4ade80", "#ff5d73", "#b48cff", "#c99b6d", "#ff7be0", "#a7b4c4", "#e3dc3f", "#33d6ee"),
    shades=_DARK_SHADES,
    on_shades=tuple(map(text_on, _DARK_SHADES)),
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
    reference="#35618f",
    warm="#b23c1e",
    series=("#1d6fd6", "#c65102", "#15803d", "#d11149", "#7a3fe0", "#7b4a12", "#b5179e", "#5b6675", "#7c7f00", "#0087a3"),
    shades=_LIGHT_SHADES,
    on_shades=tuple(map(text_on, _LIGHT_SHADES)),
)
PALETTES: dict[ThemeName, Palette] = {"dark": DARK, "light": LIGHT}

BIT_RAMP = (
    *((1.5, "#f05f5a"), (2.5, "#fa914b"), (3.4, "#facd4b"), (4.25, "#a5de55"), (4.5, "#55dcb9")),
    *((5.5, "#4bb9fa"), (6.6, "#8c96fa"), (8.5, "#be96f5"), (16.0, "#c8c3d7")),
)
"""Bits per weight -> colour, from warm (few bits) to cool; all are light enough for dark text."""


def bits_colour(bits_per_weight: float) -> str:
    """The ramp's colour at so many bits per weight, as "#rrggbb"."""
    for (low, before), (high, after) in pairwise(BIT_RAMP):
        if bits_per_weight <= high:
            return blend(before, after, max(0.0, (bits_per_weight - low) / (high - low)))
    return BIT_RAMP[-1][1]


@dataclass(frozen=True, slots=True)
class LogScale:
    """A logarithmic scale between two positive values."""

    low: float
    high: float

    @classmethod
    def over(cls, values: list[float], *, decades: float = 12.0, margin: float = 1.0) -> LogScale:
        """Over the positive ones of the values, at most `decades` long; `margin` is a factor left free at both ends."""
        positive = [value for value in values if value > 0 and math.isfinite(value)]
        high = max(positive, default=1.0)
        low = max(min(positive, default=high / 10), high * 10.0**-decades)
        if high < 1.02 * low:
            low, high = low / 2, high * 2
        return cls(low / margin, high * margin)

    def share(self, value: float) -> float:
        """Where the value lies between `low` (0) and `high` (1); what lies outside counts as the nearer end."""
        clamped = min(max(value, self.low), self.high)
        return math.log(clamped / self.low) / math.log(self.high / self.low)

    def step(self, value: float) -> int:
        """The shade of a value, 0 to N_SHADES - 1."""
        return min(N_SHADES - 1, int(N_SHADES * self.share(value)))


def log_ticks(low: float, high: float) -> list[float]:
    """Round values for a logarithmic axis: 1, 2 and 5 of every decade, only 1 where there are many, all nine where there are few."""
    decades = math.log10(high / low)
    steps = (1,) if decades > 3 else (1, 2, 5) if decades > 0.7 else tuple(range(1, 10))
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [value for exponent in exponents for step in steps if low <= (value := float(f"{step}e{exponent}")) <= high * 1.000001]
