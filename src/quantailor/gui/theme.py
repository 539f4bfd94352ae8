"""The theme of a page: its palette, the colours of types, and what charts need to follow it."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache

from nicegui import ui

from quantailor.app.steps import type_bits
from quantailor.present.charts.colours import PALETTES, Palette, ThemeName, bits_colour

COOKIE = "quantailor_theme"
PLAIN_COOKIE = "quantailor_plain"


@cache
def type_colours() -> dict[str, str]:
    """Every ggml type's colour."""
    return {name: bits_colour(bits) for name, bits in type_bits().items()}


def theme() -> ThemeName:
    """The theme of the page that is being built."""
    return "dark" if ui.context.client.request.cookies.get(COOKIE) == "dark" else "light"


def is_plain() -> bool:
    """Whether the visitor wants pages without rules, limits and other settings that have a default."""
    return ui.context.client.request.cookies.get(PLAIN_COOKIE) == "yes"


def palette() -> Palette:
    """The colours of the page that is being built."""
    return PALETTES[theme()]


def variables() -> str:
    """The style sheet's variables for both themes."""
    return "\n".join(f"body.body--{name} {{ {_declarations(colours)} }}" for name, colours in PALETTES.items())


def _declarations(colours: Palette) -> str:
    single = {key: value for key, value in asdict(colours).items() if isinstance(value, str)}
    return " ".join(f"--qt-{key.replace('_', '-')}: {value};" for key, value in single.items())
