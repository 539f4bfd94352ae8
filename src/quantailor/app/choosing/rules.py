"""A rule from what a user typed: its short form, and its parameters."""

from __future__ import annotations

from collections.abc import Sequence

from quantailor.errors import StrategyError
from quantailor.steps.plan import Method, RuleOptions
from quantailor.strategy.rules.bins import parse_bins

_TESTS = {"second-difference": "second_difference"}
_PENALTIES = {"damage": "damage_per_byte", "max_error": "max_abs_error"}


def plan_rule(method: Method, rule: str | None = None, options: Sequence[str] = ()) -> RuleOptions:
    """A rule from what a user typed.

    Args:
        method: the rule's name.
        rule: its short form: "TEST[:THRESHOLD]" for knees, "PENALTY[:START]" for greedy, "10=Q6_K,..." for bins.
        options: "NAME=VALUE" pairs, the rule's parameters.

    Raises:
        StrategyError: a form that cannot be read.
    """
    parameters: dict[str, float | str] = {}
    bins: tuple[str, ...] = ()
    if method == "knee" and rule:
        test, _, threshold = rule.partition(":")
        parameters["test"] = _TESTS.get(test, test)
        if threshold:
            parameters["base"] = _number("the knee's threshold", threshold)
    elif method == "greedy" and rule:
        penalty, _, start = rule.partition(":")
        parameters["penalty"] = _PENALTIES.get(penalty, penalty)
        if start:
            parameters["start"] = start.upper()
    elif method == "bins" and rule:
        bins = tuple(part.strip() for part in rule.split(","))
        parse_bins(rule)
    for option in options:
        name, separator, value = option.partition("=")
        if not separator:
            raise StrategyError(f"the option {option!r} is not of the form NAME=VALUE", remedy="Write for example epsilon=3")
        parameters[name.strip()] = _value(value.strip())
    return RuleOptions(method=method, parameters=parameters, bins=bins)


def short_word(value: object) -> str:
    """A test's or penalty's name as a rule's short form has it."""
    return {long: short for short, long in (*_TESTS.items(), *_PENALTIES.items())}.get(str(value), str(value))


def _number(what: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise StrategyError(f"{what} is {text!r}, which is not a number", remedy="Write for example relative:300") from None


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
