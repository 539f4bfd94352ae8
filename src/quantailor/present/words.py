"""Figures as people read them: the one home of every size, interval, duration, count and percentage as text."""

from __future__ import annotations

import difflib
import math
import re
import time
from collections.abc import Collection, Mapping, Sequence

from quantailor.errors import OptionError
from quantailor.records import Estimate, Grounds, PredictedSpeed

Z95 = 1.96
"""Half a 95 % interval of a normal distribution, in standard errors."""
_SMALLEST_FIXED, _LARGEST_FIXED = -3, 6
"""Powers of ten between which a figure is written without an exponent."""
_SMALLEST_TICK, _LARGEST_TICK = -4, 4


# Amounts


def size(n_bytes: float) -> str:
    """Bytes in the largest unit that keeps the figure above one: "4.20 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n_bytes) < 1024:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.2f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.2f} TiB"


def enough_mib(n_bytes: int) -> str:
    """No less than so many bytes, with six digits: "1.73398 MiB"."""
    places = 5 - _power(n_bytes / 2**20)
    return f"{math.ceil(n_bytes / 2**20 * 10.0**places) / 10.0**places:.{max(0, places)}f} MiB"


def size_change(n_bytes: int) -> str:
    """ "+11.00 MiB", "−2.30 GiB"."""
    return f"{'−' if n_bytes < 0 else '+'}{size(abs(n_bytes))}"


def exact_size(n_bytes: int) -> str:
    """ "4.20 GiB (4,509,715,660 bytes)"."""
    return f"{size(n_bytes)} ({n_bytes:,} bytes)"


def count(n: float) -> str:
    """ "8.03 B", "1.24 M" or "12,345"."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if n >= limit:
            return f"{figure(n / limit)} {unit}"
    return f"{n:,.0f}"


def plural(n: int, noun: str, several: str | None = None) -> str:
    """ "1 strategy", "2 strategies"; `several` is a plural that follows no rule."""
    return f"{n:,} {_of_number(n, noun, several)}"


def not_finite(n: int) -> str:
    """ "1 weight that is NaN or Inf"."""
    return f"{plural(n, 'weight')} that {'is' if n == 1 else 'are'} NaN or Inf"


def count_of(n: int, noun: str) -> str:
    """As `plural`, with large numbers as `count` has them: "1 weight", "1.24 M weights"."""
    return f"{count(n)} {_of_number(n, noun, None)}"


def counted(n: int, noun: str) -> str:
    """As `plural`, with small numbers as words: "no tensors", "one tensor", "two tensors", "12 tensors"."""
    return f"{number_word(n)} {_of_number(n, noun, None)}"


def number_word(n: int) -> str:
    """ "no", "one" to "five", and digits for more."""
    return ("no", "one", "two", "three", "four", "five")[n] if n <= 5 else f"{n:,}"


def _of_number(n: int, noun: str, several: str | None) -> str:
    if n == 1:
        return noun
    if several is not None:
        return several
    return f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2] not in "aeiou" else f"{noun}es" if noun.endswith("x") else f"{noun}s"


def listed(items: Sequence[str]) -> str:
    """ "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def shape(lengths: Sequence[int]) -> str:
    """ "768 x 256", slowest dimension first."""
    return " x ".join(str(length) for length in lengths)


def shortened(name: str, limit: int) -> str:
    """A name cut in the middle where it is too long for its place."""
    return name if len(name) <= limit else f"{name[: (limit - 1) // 2]}…{name[-(limit // 2) :]}"


# Time


def duration(seconds: float) -> str:
    """ "40 s", "12 min", "3.2 h", "2.1 days"."""
    if seconds < 90:
        return f"{max(0.0, seconds):.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 36 * 3600 else f"{seconds / 86400:.1f} days"


def span(low: float, high: float) -> str:
    """A range of seconds: "3 to 5 min"."""
    first, second = duration(low), duration(high)
    if first == second:
        return first
    number, _, unit = first.partition(" ")
    return f"{number} to {second}" if second.endswith(f" {unit}") else f"{first} to {second}"


def time_left(seconds: tuple[float, float] | None) -> str:
    """ "3 to 5 min left"; nothing while it is unknown."""
    return "" if seconds is None else f"{span(*seconds)} left"


def done_by(seconds: tuple[float, float]) -> str:
    """ "done by 14:32", with the weekday from tomorrow on: the later end of the time left."""
    at = time.time()
    end = at + seconds[1]
    same_day = time.localtime(at)[:3] == time.localtime(end)[:3]
    return f"done by {time.strftime('%H:%M' if same_day else '%a %H:%M', time.localtime(end))}"


def rate(per_second: float, unit: str) -> str:
    """ "12.0 M weights per second", "3.10 MiB per second" for bytes."""
    if unit == "bytes":
        return f"{size(per_second)} per second"
    return f"{count(per_second) if per_second >= 100 else f'{per_second:.2g}'} {unit} per second"


# Figures


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
    """A value beside an axis, with two digits and no zeros to fill up: "0.005", "2", "1e-5", "1e5"."""
    mantissa, exponent = f"{value:.1e}".split("e")
    power = int(exponent)
    if value == 0 or _SMALLEST_TICK <= power < _LARGEST_TICK:
        return f"{float(f'{value:.1e}'):g}"
    return f"{mantissa.removesuffix('.0')}e{power}"


def with_error(estimate: Estimate, digits: int = 2) -> str:
    """ "0.01234 ± 0.00056": the error with so many digits, the value to the same place; without an error the value alone."""
    value, se = estimate.value, estimate.se
    if not (math.isfinite(value) and math.isfinite(se)) or se <= 0:
        return figure(value)
    last = _power(se, digits) - (digits - 1)
    power = max(_power(value) if value else last, last + digits - 1)
    if _SMALLEST_FIXED <= power < _LARGEST_FIXED:
        return f"{value:,.{max(0, -last)}f} ± {se:,.{max(0, -last)}f}"
    places = max(0, power - last)
    return f"({value / 10.0**power:.{places}f} ± {se / 10.0**power:.{places}f})e{power}"


def interval(ends: tuple[float, float], digits: int = 3) -> str:
    """ "0.0104 to 0.0146"."""
    return " to ".join(figure(end, digits) for end in ends)


def around(value: float, ends: tuple[float, float]) -> str:
    """A figure with its interval: "0.651 (0.589 to 0.733)"."""
    return f"{figure(value)} ({interval(ends)})"


EARLY = "too early to predict"
UNKNOWN = "not predicted"
UNPROBED = "has not been probed"


COMPENSATION = (
    "Weights are rounded together, so that their errors cancel: the same types and the same size, but less divergence. "
    "Any llama.cpp reads the file."
)
"""What compensated rounding is, for somebody who decides whether to have it."""


def rounding(*, is_compensated: bool) -> str:
    """How a file's weights became codes."""
    return "compensated rounding" if is_compensated else "plain rounding"


def kld(nats: float | None, ends: tuple[float, float] | None, no_prediction: str | None = None) -> str:
    """A predicted KL divergence with its interval: "0.0121 (0.0104 to 0.0146)"; where none is predicted, why not in two or three words."""
    if nats is None:
        if no_prediction is None or no_prediction.endswith(UNPROBED):
            return "ranking only"
        return EARLY if no_prediction.startswith(EARLY) else UNKNOWN
    return figure(nats) if ends is None else around(nats, ends)


def grounds(found: Grounds | None) -> str:
    """What a plan stands on: "probes: 58 of 58 tensors, calibration.txt, 16 chunks; 24 mixes"."""
    if found is None:
        return "estimates from weight errors, no probes"
    share = "" if found.n_probed == found.n_tensors else f" ({percent(found.weight_share, 0)} of the weights)"
    other = f", with {found.rounding} rounding" if found.rounding else ", with another importance matrix" if found.carried else ""
    other += f", with the base in {found.rest}" if found.rest else ""
    probes = f"{found.n_probed} of {plural(found.n_tensors, 'tensor')}{share}, {found.text}, {plural(found.n_chunks, 'chunk')}{other}"
    mixes = plural(found.n_mixes, "mix") if found.n_mixes else "no mixes"
    return f"probes: {probes}; {mixes}"


def target(asked: Mapping[str, object]) -> str:
    """What a strategy was to be like: "a file of at most 700.00 MiB (734,003,200 bytes)"; "" where nothing was asked for."""
    said = {key: value for key, value in asked.items() if value is not None}
    parts = [f"as large as {said['like']}"] if "like" in said else []
    if "like" not in said and isinstance(n_bytes := said.get("size_bytes"), int):
        parts.append(f"a file of at most {exact_size(n_bytes)}")
    if isinstance(width := said.get("bits_per_weight"), (int, float)):
        parts.append(f"at most {width:g} bits per weight")
    if isinstance(nats := said.get("kld_nats"), (int, float)):
        parts.append(f"a predicted KL divergence of at most {nats:g} nats")
    if "speed" in said:
        parts.append(f"{'prompts' if said.get('speed_of') == 'prompt' else 'generation'} at a speed of {said['speed']} at least")
    return ", ".join(parts)


def speed_figure(speed: PredictedSpeed | None) -> tuple[str, str]:
    """Tokens per second of generation as a large figure, and what stands below it: "41.2", "tokens per second ± 2 %"."""
    if speed is None:
        return "not known", "tokens per second: a type was not timed"
    error = "" if speed.generation_error is None else f" ± {percent(speed.generation_error, 0)}"
    return figure(speed.generation_tokens_per_second), f"tokens per second{error}"


PREDICTED_SPEED = "tokens per second (predicted)"


def generation_speed(speed: PredictedSpeed | None) -> str:
    """ "41.2 ± 2.0 %"; nothing where it is not known."""
    if speed is None:
        return ""
    error = "" if speed.generation_error is None else f" ± {percent(speed.generation_error, 1)}"
    return f"{figure(speed.generation_tokens_per_second)}{error}"


def tokens_per_second(speed: PredictedSpeed) -> str:
    """ "41.2 tokens per second of generation (± 2.0 %), 512 of a prompt (± 5.1 %), with 2 threads"."""
    layers = f" and {plural(speed.n_gpu_layers, 'layer')} on the GPU" if speed.n_gpu_layers else ""
    errors = ["" if error is None else f" (± {percent(error, 1)})" for error in (speed.generation_error, speed.prompt_error)]
    generation, prompt = figure(speed.generation_tokens_per_second), figure(speed.prompt_tokens_per_second)
    return (
        f"{generation} tokens per second of generation{errors[0]}, {prompt} of a prompt{errors[1]}, "
        f"with {plural(speed.n_threads, 'thread')}{layers}"
    )


def percent(share: float, places: int | None = None) -> str:
    """A share in per cent with so many decimals: "12.3 %"; with three digits where none are given: "0.490 %"."""
    return f"{100 * share:.{places}f} %" if places is not None else f"{figure(100 * share)} %"


def percent_with_error(share: Estimate) -> str:
    """A share with its error, in per cent: "12.3 ± 0.4 %"."""
    return f"{with_error(Estimate(100 * share.value, 100 * share.se))} %"


def bits(bits_per_weight: float, places: int = 2) -> str:
    """ "4.58 bits per weight"."""
    return f"{bits_per_weight:.{places}f} bits per weight"


def _power(value: float, digits: int = 3) -> int:
    """The power of ten of the first digit, after rounding to so many digits."""
    return int(f"{value:.{digits - 1}e}".split("e")[1])


def nearest(name: str, known: Collection[str]) -> str:
    """What to say of a name that is none of the known ones: those it was probably meant to be, then all."""
    close = difflib.get_close_matches(name.upper(), sorted(known), n=3)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}Known: {', '.join(known)}"


_UNITS = {"": 1, "B": 1} | {
    letter + ending: base**exponent
    for exponent, letter in enumerate("KMGT", start=1)
    for ending, base in (("", 1000), ("B", 1000), ("I", 1024), ("IB", 1024))
}
_SIZE = re.compile(r"\s*([0-9]+(?:[_,][0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-z]*)\s*")


def parse_duration(text: str) -> float:
    """Seconds of "90s", "30m", "30 min", "1.5h" or "2 days".

    Raises:
        OptionError: it is no length of time, or has no unit.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise OptionError(f"{text!r} is not a length of time", remedy="Write for example 90s, 30m, 1.5h or 2d")
    return float(match[1]) * _SECONDS[match[2][0].lower()]


_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(s|secs?|seconds?|m|mins?|minutes?|h|hours?|d|days?)\s*", re.IGNORECASE)
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str) -> int:
    """Bytes of "4.2GiB", "700 MB", "4G", "4_000_000" or "4,000,000"; G is GB, 1000^3 bytes, and only GiB is 1024^3.

    Raises:
        OptionError: it is no size, or not from 1 byte to 1 EiB.
    """
    match = _SIZE.fullmatch(text)
    unit = None if match is None else _UNITS.get(match[2].upper())
    if match is None or unit is None:
        remedy = "Write for example 4.2GiB (1024^3 bytes each), 700MB or 700M (1000^2 bytes each), or 123456"
        raise OptionError(f"{text!r} is not a size", remedy=remedy)
    number = re.sub("[_,]", "", match[1])
    size = int(number) * unit if number.isdecimal() else int(float(number) * unit)
    if not 1 <= size <= 2**60:
        raise OptionError(f"{text!r} is not a size of a file", remedy="Give a size from 1 byte to 1,048,576 TiB")
    return size
