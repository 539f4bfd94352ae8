"""The limits that a plan's options spell out, read from what a user typed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeVar

from quantailor.errors import InfeasibleError, StrategyError
from quantailor.evidence.measurements import usual_types
from quantailor.evidence.speed_limits import SpeedLimit, rounded_down
from quantailor.ggml import library
from quantailor.present import words
from quantailor.records import Prediction, Strategy
from quantailor.strategy.constraints import (
    BitsOfType,
    Constraints,
    parse_allowed,
    parse_bits,
    parse_budget,
    parse_pin,
    parse_tie,
    said_bits,
)

if TYPE_CHECKING:
    from quantailor.steps.plan import PlanOptions

T = TypeVar("T")


def constraints_of(options: PlanOptions) -> Constraints:
    """The limits that the options spell out. Raises StrategyError for one that cannot be read."""
    allowed = [parse_allowed(text) for text in options.allow]
    minimum, maximum = ([_bits(text) for text in texts] for texts in (options.minimum, options.maximum))
    by_pattern: dict[str, tuple[str, ...]] = {}
    for pattern, names in allowed:
        if pattern is not None:
            by_pattern[pattern] = (*by_pattern.get(pattern, ()), *_types(names))
    overall = _types([name for pattern, names in allowed if pattern is None for name in names])
    return Constraints(
        pins=pins_of("--pin", options.pins),
        allowed=overall or usual_types(),
        allowed_by_pattern=by_pattern,
        min_bits=_overall("--min", minimum),
        max_bits=_overall("--max", maximum),
        min_bits_by_pattern=_once("--min", [(pattern, bits) for pattern, bits in minimum if pattern is not None]),
        max_bits_by_pattern=_once("--max", [(pattern, bits) for pattern, bits in maximum if pattern is not None]),
        ties=tuple(parse_tie(text) for text in options.ties),
        budgets=tuple(parse_budget(text) for text in options.budgets),
    )


def pins_of(use: str, texts: Sequence[str]) -> dict[str, str]:
    """Pattern -> type of "attn_v=Q6_K" and the like. Raises StrategyError for what cannot be read, or says two things."""
    return _once(use, [(pattern, library.type_named(name).name) for pattern, name in map(parse_pin, texts)])


def _types(names: Sequence[str]) -> tuple[str, ...]:
    """Types and globs of types, as ggml spells them. Raises TypeUnavailableError for one that is or selects none."""
    spelled = [name.upper() for name in names]
    return tuple(name if any(fnmatchcase(known, name) for known in library.types()) else library.type_named(name).name for name in spelled)


def _once(use: str, given: Sequence[tuple[str, T]]) -> dict[str, T]:
    """Pattern -> value. Raises StrategyError where a pattern is given two values."""
    values: dict[str, T] = {}
    for pattern, value in given:
        if values.setdefault(pattern, value) != value:
            both = " and ".join(f"{use} {pattern}={_said(each)}" for each in (values[pattern], value))
            raise StrategyError(f"{both} contradict each other", remedy="Drop one")
    return values


def _said(value: object) -> str:
    return said_bits(value) if isinstance(value, float) else str(value)


def _overall(use: str, limits: Sequence[tuple[str | None, float]]) -> float | None:
    given = dict.fromkeys(bits for pattern, bits in limits if pattern is None)
    if len(given) > 1:
        raise StrategyError(f"{' and '.join(f'{use} {said_bits(bits)}' for bits in given)} contradict each other", remedy="Drop one")
    return next(iter(given), None)


def _bits(text: str) -> tuple[str | None, float]:
    """A limit in bits, or by a type's name: "3.5", "Q4_K", "ffn_down=Q4_K"."""
    pattern, separator, value = text.rpartition("=")
    if re.fullmatch(r"[A-Za-z]+\d\w*", value.strip()):
        qtype = library.type_named(value.strip())
        return parse_bits(f"{pattern}{separator}1")[0], BitsOfType.of(qtype.name, qtype.bits_per_weight)
    return parse_bits(text)


def too_little(kld_nats: float, least_nats: float) -> InfeasibleError:
    """Less KLD was asked for than can be had; names what can."""
    digits = 2 - math.floor(math.log10(least_nats)) if least_nats > 0 else 0
    enough = math.ceil(least_nats * 10**digits + 1e-6) / 10**digits
    return InfeasibleError(
        f"no strategy has a predicted KLD of {kld_nats:g} nats: the least that the constraints allow has {enough:.3g}",
        remedy=f"Ask for {enough:.3g} or more, or allow larger types",
    )


def too_slow(
    limit: SpeedLimit, least_seconds: float, target: Mapping[str, str | int | float], chosen: Callable[[SpeedLimit | None], Strategy]
) -> InfeasibleError:
    """No mix is as fast as was asked for; names the fastest that there is, and what it would cost.

    `least_seconds` is the time of its tensors, and `chosen` gives the best strategy within a limit, or without one.
    """
    reached = rounded_down(limit.reached(least_seconds))
    costs = [_cost(chosen(each).prediction) for each in (limit.at(reached), None)]
    what = "generates" if limit.of == "generation" else "reads prompts at"
    asked = f"{words.figure(limit.tokens_per_second)} tokens per second" + (f" ({limit.words})" if limit.words else "")
    others = words.target({key: value for key, value in target.items() if key not in ("speed", "speed_of")})
    within = f"at the size of {target['like']}" if "like" in target else f"in {others or 'any size'}"
    return InfeasibleError(
        f"no strategy {what} {asked} {within}: the fastest is predicted to reach {reached:g}, at {costs[0]} in place of "
        f"{costs[1]} without --speed",
        remedy=f"Ask for --speed {reached:g}tok/s or less, another size, or allow faster types",
        least_seconds=least_seconds,
    )


def _cost(prediction: Prediction | None) -> str:
    if prediction is None:
        return "an unknown damage"
    if prediction.kld_nats is not None:
        return f"a predicted KLD of {words.figure(prediction.kld_nats)}"
    return f"a damage of {words.figure(prediction.damage)}"
