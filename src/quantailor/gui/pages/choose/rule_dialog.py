"""The rule, its parameters, the target and the limits: everything that `quantailor plan` takes, as one form."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from nicegui import ui

from quantailor.app.choosing.rules import plan_rule, short_word
from quantailor.app.steps import Method, PlanOptions, speed_asked, type_bits
from quantailor.errors import StrategyError
from quantailor.gui.widgets import box, named, primary, quiet, text, told
from quantailor.present.words import parse_size
from quantailor.records import SpeedOf

METHODS: dict[Method, str] = {
    "optimal": "Optimal: the least damage for the bytes",
    "knee": "Knee: every tensor at its own knee",
    "greedy": "Greedy: take bits where it hurts least, until it fits",
    "bins": "Bins: types by importance",
}
KNEE_TESTS = ("relative", "absolute", "statistical", "second-difference", "fitted")
PENALTIES = ("damage", "rmse", "max_error")
TIES = {"qkv": "Q, K and V of a layer", "gate_up": "gate and up of a layer", "layer": "whole layers", "role": "a role in all layers"}
PRESETS = ("Q2_K", "IQ3_XXS", "Q3_K_M", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0")
TARGETS = {"size": "File size, MiB", "bpw": "Bits per weight", "like": "As large as a preset", "kld": "Predicted KLD, nats", "none": "None"}
SPEEDS: dict[SpeedOf, str] = {"generation": "generation", "prompt": "prompts"}
_MIB = 2**20


class RuleDialog:
    """`open(options)` shows the form; `on_apply` hears the new options."""

    def __init__(self, *, probed: bool, timed: bool, on_apply: Callable[[PlanOptions], Any]) -> None:
        self._on_apply, self._timed = on_apply, timed
        targets = {key: label for key, label in TARGETS.items() if probed or key != "kld"}
        with named(ui.dialog(), "Rule and limits") as self._dialog, ui.card().classes("qt-dialog"):
            text("Rule and limits", "qt-title", tag="h2")
            self._method = (
                ui.select(dict(METHODS), label="Rule", value="optimal", on_change=self._show_fields)
                .props("outlined dense")
                .classes("full-width")
            )
            with box("qt-form"):
                self._test = ui.select(list(KNEE_TESTS), label="Knee test", value="relative").props("outlined dense")
                self._threshold = ui.number("Threshold", min=0).props("outlined dense clearable")
                self._penalty = ui.select(list(PENALTIES), label="Penalty", value="damage").props("outlined dense")
                self._start = ui.input("Start at type", placeholder="Q6_K").props("outlined dense")
                self._bins = ui.input("Bins: top per cent = type", placeholder="10=Q6_K,30=Q5_K,100=Q4_K").props(
                    'outlined dense hint="Tensors beyond the last one get their smallest type"'
                )
                self._target = ui.select(targets, label="Target", value="size", on_change=self._show_fields).props("outlined dense")
                self._amount = ui.number("Amount", min=0, format="%.6g").props("outlined dense")
                self._preset = ui.select(list(PRESETS), label="Preset", value="Q4_K_M").props("outlined dense")
            text("Limits", "qt-card-title", tag="h3")
            with box("qt-form"):
                self._allow = ui.select(list(type_bits()), label="Allowed types (none: all usual)", multiple=True, value=[])
                self._allow.props("outlined dense use-chips clearable").classes("qt-span")
                self._ties = ui.select(dict(TIES), label="One type for", multiple=True, value=[]).props("outlined dense use-chips")
                self._minimum = ui.input("Least bits or type", placeholder="3.5, Q3_K or ffn_down=Q4_K").props("outlined dense")
                self._maximum = ui.input("Most bits or type", placeholder="6.6 or attn_v=Q8_0").props("outlined dense")
                self._pins = ui.input("Pins by pattern", placeholder="attn_v=Q6_K, output=Q8_0").props("outlined dense")
                self._budgets = ui.input("Bytes for a pattern", placeholder="*_exps=8000000").props("outlined dense")
                self._speed = ui.input("Least speed", placeholder="0.95 or 40tok/s").props(
                    'outlined dense hint="Of the preset of that size, or tokens per second"'
                )
                self._speed_of = ui.select(dict(SPEEDS), label="Speed of", value="generation").props("outlined dense")
            text("Patterns are names or roles with * and ?, or layer:0-3. Several are separated by commas.", "qt-small qt-muted")
            with box("qt-row"):
                primary("Apply", told(self._apply))
                quiet("Close", self._dialog.close)

    def open(self, options: PlanOptions) -> None:
        """Show the form with these options in it."""
        self._method.set_value(options.method)
        self._test.set_value(short_word(options.parameters.get("test", "relative")))
        threshold = options.parameters.get("base")
        self._threshold.set_value(None if threshold is None else float(threshold))
        self._penalty.set_value(short_word(options.parameters.get("penalty", "damage")))
        self._start.set_value(str(options.parameters.get("start", "")))
        self._bins.set_value(",".join(options.bins))
        target, amount = _target_of(options)
        self._target.set_value(target)
        self._amount.set_value(amount)
        self._preset.set_value(options.like or "Q4_K_M")
        self._allow.set_value([name for text_ in options.allow if "=" not in text_ for name in text_.split(",")])
        self._ties.set_value([tie for tie in options.ties if tie in TIES])
        for field, values in ((self._minimum, options.minimum), (self._maximum, options.maximum), (self._pins, options.pins)):
            field.set_value(", ".join(values))
        self._budgets.set_value(", ".join(options.budgets))
        self._speed.set_value(options.speed or "")
        self._speed_of.set_value(options.speed_of)
        self._show_fields()
        self._dialog.open()

    def _show_fields(self) -> None:
        method, target = self._method.value, self._target.value
        self._test.set_visibility(method == "knee")
        self._threshold.set_visibility(method == "knee")
        self._penalty.set_visibility(method == "greedy")
        self._start.set_visibility(method == "greedy")
        self._bins.set_visibility(method == "bins")
        self._amount.set_visibility(target in ("size", "bpw", "kld"))
        self._preset.set_visibility(target == "like")
        for field in (self._speed, self._speed_of):
            field.set_visibility(self._timed and method == "optimal")

    async def _apply(self) -> None:
        options = PlanOptions(
            **plan_rule(self._method.value, self._rule_text()),
            **self._chosen_target(),
            pins=_parts(self._pins.value),
            allow=(",".join(self._allow.value),) if self._allow.value else (),
            minimum=_parts(self._minimum.value),
            maximum=_parts(self._maximum.value),
            ties=tuple(self._ties.value),
            budgets=_parts(self._budgets.value),
            **self._least_speed(),
        )
        result = self._on_apply(options)
        if result is not None:
            await result
        self._dialog.close()

    def _least_speed(self) -> dict[str, Any]:
        """Empty where it cannot be seen: other rules hold no speed. Raises OptionError for what is none."""
        asked = (self._speed.value or "").strip()
        if not asked or not self._timed or self._method.value != "optimal":
            return {}
        speed_asked(asked)
        return {"speed": asked, "speed_of": self._speed_of.value}

    def _rule_text(self) -> str | None:
        if self._method.value == "knee":
            threshold = self._threshold.value
            return self._test.value if threshold is None else f"{self._test.value}:{threshold:g}"
        if self._method.value == "greedy":
            return f"{self._penalty.value}:{self._start.value}" if self._start.value else str(self._penalty.value)
        if self._method.value == "bins":
            if not self._bins.value:
                raise StrategyError("no bins are given", remedy="Write for example 10=Q6_K,30=Q5_K,100=Q4_K")
            return str(self._bins.value)
        return None

    def _chosen_target(self) -> dict[str, Any]:
        kind, amount = self._target.value, self._amount.value
        if kind == "like":
            return {"like": self._preset.value}
        if kind == "none":
            if self._method.value in ("optimal", "greedy"):
                raise StrategyError(f"{self._method.value} needs a target", remedy="Choose a size, bits per weight, a preset or a KLD")
            return {}
        if not amount or amount <= 0:
            raise StrategyError(f"the target {TARGETS[kind]} is {amount or 'empty'}", remedy="Give a number above zero")
        if kind == "size":
            return {"size_bytes": int(amount * _MIB)}
        return {"bits_per_weight": float(amount)} if kind == "bpw" else {"kld_nats": float(amount)}


def _target_of(options: PlanOptions) -> tuple[str, float | None]:
    if options.like is not None:
        return "like", None
    if options.size_bytes is not None:
        return "size", round(options.size_bytes / _MIB, 4)
    if options.bits_per_weight is not None:
        return "bpw", options.bits_per_weight
    return ("kld", options.kld_nats) if options.kld_nats is not None else ("none", None)


def _parts(value: str | None) -> tuple[str, ...]:
    """The items of "a=1, b=2"; a comma inside one item's list of types does not occur here."""
    return tuple(part.strip() for part in (value or "").split(",") if part.strip())


def with_size(options: PlanOptions, size_bytes: int) -> PlanOptions:
    """The same rule and limits for another size."""
    return dataclasses.replace(options, size_bytes=size_bytes, bits_per_weight=None, like=None, kld_nats=None)


def with_target(options: PlanOptions, asked: str) -> PlanOptions:
    """The same rule and limits for what somebody typed: "4.5 GiB", "4.5 bpw" or "0.01 nats". Raises OptionError for anything else."""
    found = _TARGET.fullmatch(asked)
    if found is None:
        return with_size(options, parse_size(asked.strip()))
    amount, is_kld = float(found[1]), found[2].lower() == "nats"
    free = dataclasses.replace(options, size_bytes=None, like=None)
    return dataclasses.replace(free, kld_nats=amount if is_kld else None, bits_per_weight=None if is_kld else amount)


_TARGET = re.compile(r"\s*(\d+(?:\.\d+)?(?:e-?\d+)?)\s*(bpw|bits|nats)\s*", re.IGNORECASE)
