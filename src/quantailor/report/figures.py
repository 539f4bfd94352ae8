"""Figures as people read them: with an error where there is one, and no more digits than it allows."""

from __future__ import annotations

import math

from quantailor.records import Estimate
from quantailor.words import format_size

file_size = format_size

_SMALLEST_FIXED, _LARGEST_FIXED = -3, 6
"""Powers of ten between which a figure is written without an exponent."""
_LARGEST_TICK = 4
_SPACE = "\u00a0"
"""A figure never breaks into two lines."""
_PLUS_MINUS = f"{_SPACE}±{_SPACE}"
Z95 = 1.96
"""Half a 95 % interval, in standard errors."""


def figure(value: float, digits: int = 3) -> str:
    """ "0.0123", "1.23e-5" or "12,300"; "n/a" for what is no number."""
    if not math.isfinite(value):
        return "n/a" if math.isnan(value) else "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = int(exponent)
    if not _SMALLEST_FIXED <= power < _LARGEST_FIXED:
        return f"{mantissa}e{power}"
    return f"{value:,.{max(0, digits - 1 - power)}f}"


def tick(value: float) -> str:
    """A value beside an axis, with two digits and no zeros to fill up: "0.01", "2", "1e-4", "1e5"."""
    mantissa, exponent = f"{value:.1e}".split("e")
    power = int(exponent)
    if value == 0 or -3 < power < _LARGEST_TICK:
        return f"{float(f'{value:.1e}'):g}"
    return f"{mantissa.removesuffix('.0')}e{power}"


def counted(n: int, noun: str, several: str | None = None) -> str:
    """ "one tensor", "two tensors", "12 tensors"; `several` is the plural where it is no mere s."""
    return f"{number_word(n)} {noun if n == 1 else several or f'{noun}s'}"


def number_word(n: int) -> str:
    """ "one" to "five", and digits for more."""
    return ("no", "one", "two", "three", "four", "five")[n] if n <= 5 else f"{n:,}"


def with_error(estimate: Estimate, digits: int = 2) -> str:
    """ "0.01234 ± 0.00056": the error with so many digits, the value to the same place; without an error the value alone."""
    value, se = estimate.value, estimate.se
    if not (math.isfinite(value) and math.isfinite(se)) or se <= 0:
        return figure(value)
    last = _power(se, digits) - (digits - 1)
    power = max(_power(value) if value else last, last + digits - 1)
    if _SMALLEST_FIXED <= power < _LARGEST_FIXED:
        return f"{value:,.{max(0, -last)}f}{_PLUS_MINUS}{se:,.{max(0, -last)}f}"
    places = max(0, power - last)
    return f"({value / 10.0**power:.{places}f}{_PLUS_MINUS}{se / 10.0**power:.{places}f})e{power}"


def percent(estimate: Estimate) -> str:
    """A share with its error, in per cent: "12.3 ± 0.4 %"."""
    return f"{with_error(hundredths(estimate))}{_SPACE}%"


def hundredths(share: Estimate) -> Estimate:
    """A share as per cent."""
    return Estimate(100 * share.value, 100 * share.se)


def count(n: float) -> str:
    """ "8.03 billion", "1.24 million" or "12,345"."""
    for size, word in ((1e9, " billion"), (1e6, " million")):
        if n >= size:
            return f"{n / size:.2f}{word}"
    return f"{n:,.0f}"


def plural(n: int, noun: str) -> str:
    """ "1 tensor", "2 tensors"."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def listed(items: list[str]) -> str:
    """ "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def t95(degrees_of_freedom: int) -> float:
    """Half a 95 % interval of Student's t, in standard deviations.

    Exact for 1 and 2 degrees of freedom, else the expansion in 1/n of Abramowitz and Stegun 26.7.5, within 1 %.
    """
    n = max(1, degrees_of_freedom)
    if n <= 2:
        return (12.706, 4.303)[n - 1]
    z = 1.959964
    terms = (z, (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return math.fsum(term / n**power for power, term in enumerate(terms))


def shortened(name: str, limit: int) -> str:
    """A name cut in the middle where it is too long for its place."""
    return name if len(name) <= limit else f"{name[: (limit - 1) // 2]}…{name[-(limit // 2) :]}"


def _power(value: float, digits: int = 3) -> int:
    """The power of ten of the first digit, after rounding to so many digits."""
    return int(f"{value:.{digits - 1}e}".split("e")[1])
