"""Patterns, precedence and ties, as a user meets them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from quantailor.errors import InfeasibleError, OptionError, StrategyError
from quantailor.records import Cell, TensorCells
from quantailor.strategy.constraints import (
    Budget,
    Constraints,
    apply,
    matches,
    parse_allowed,
    parse_bits,
    parse_budget,
    parse_pin,
    parse_tie,
)
from quantailor.strategy.rules import optimal

CELLS = (Cell("Q8_0", 1088, 8.5, 1.0), Cell("Q6_K", 840, 6.5625, 3.0), Cell("Q4_K", 576, 4.5, 20.0), Cell("Q2_K", 336, 2.625, 90.0))


def tensor(name: str, *types: str) -> TensorCells:
    return TensorCells(name, 1024, tuple(cell for cell in CELLS if not types or cell.type_name in types))


LAYER = [tensor(f"blk.0.{role}.weight") for role in ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up", "ffn_down")]


def allowed(constraints: Constraints, name: str = "blk.0.attn_v.weight") -> set[str]:
    groups = apply(LAYER, constraints)
    return next({cell.type_name for cell in group.cells} for group in groups if name in [each.name for each in group.tensors])


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("attn_v", "blk.3.attn_v.weight", True),
        ("attn_v", "blk.3.attn_v_b.weight", False),
        ("ffn_*", "blk.3.ffn_down_exps.weight", True),
        ("output", "output.weight", True),
        ("output", "blk.0.attn_output.weight", False),
        ("blk.[0-3].*", "blk.2.attn_q.weight", True),
        ("blk.[0-3].*", "blk.4.attn_q.weight", False),
        ("role:attn_q", "blk.4.attn_q.weight", True),
        ("name:attn_q", "blk.4.attn_q.weight", False),
        ("layer:2", "blk.2.attn_q.weight", True),
        ("layer:0-1", "blk.2.attn_q.weight", False),
        ("layer:0-99", "output.weight", False),
        ("ATTN_V", "blk.3.attn_v.weight", False),
    ],
)
def test_patterns(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, name) is expected


def test_the_more_specific_rule_replaces_the_overall_one() -> None:
    assert allowed(Constraints(allowed=("Q4_K",), allowed_by_pattern={"attn_v": ("Q6_K", "Q8_0")})) == {"Q6_K", "Q8_0"}
    assert allowed(Constraints(min_bits=6.0, min_bits_by_pattern={"attn_*": 4.0})) == {"Q8_0", "Q6_K", "Q4_K"}
    assert allowed(Constraints(max_bits=6.0, min_bits=3.0)) == {"Q4_K"}
    assert allowed(Constraints(allowed=("Q*_K",))) == {"Q6_K", "Q4_K", "Q2_K"}


@pytest.mark.parametrize("turn", [1, -1])
def test_a_narrower_pattern_is_an_exception_to_a_wider_one(turn: int) -> None:
    def ordered(*pairs: tuple[str, Any]) -> dict[str, Any]:
        return dict(pairs[::turn])

    pins = ordered(("attn_v", "Q2_K"), ("attn_*", "Q8_0"), ("blk.0.attn_k.weight", "Q6_K"), ("attn_k", "Q4_K"))
    assert allowed(Constraints(pins=pins, allowed=("Q4_K",))) == {"Q2_K"}, "a pin may leave the overall list"
    assert allowed(Constraints(pins=pins), "blk.0.attn_q.weight") == {"Q8_0"}
    assert allowed(Constraints(pins=pins), "blk.0.attn_k.weight") == {"Q6_K"}, "a whole name is the narrowest"
    low = ordered(("attn_v", 6.0), ("attn_*", 4.0))
    assert allowed(Constraints(min_bits_by_pattern=low)) == {"Q6_K", "Q8_0"}
    assert allowed(Constraints(min_bits_by_pattern=low), "blk.0.attn_q.weight") == {"Q4_K", "Q6_K", "Q8_0"}
    types = ordered(("*_v.weight", ("Q6_K",)), ("attn_*", ("Q4_K", "Q8_0")))
    assert allowed(Constraints(allowed_by_pattern=types)) == {"Q6_K"}


@pytest.mark.parametrize(
    ("constraints", "words"),
    [
        (Constraints(pins={"attn_v": "Q2_K", "role:attn_v": "Q8_0"}), "--pin attn_v=Q2_K and --pin role:attn_v=Q8_0 contradict"),
        (Constraints(pins={"*.attn_[qv].weight": "Q2_K", "attn_[vk]": "Q8_0"}), r"contradict each other for blk\.0\.attn_v\.weight"),
        (Constraints(min_bits_by_pattern={"attn_v": 4.5, "role:attn_v": 6.0}), "--min attn_v=4.5 and --min role:attn_v=6 contradict"),
        (Constraints(max_bits_by_pattern={"attn_v": 4.5, "role:attn_v": 6.0}), "--max attn_v=4.5 and --max role:attn_v=6 contradict"),
        (Constraints(allowed_by_pattern={"attn_v": ("Q4_K",), "role:attn_v": ("Q6_K",)}), "--allow attn_v=Q4_K and --allow role:attn_v"),
        (Constraints(pins={"attn_v": "Q2_K"}, min_bits=4.0), "--pin attn_v=Q2_K contradicts --min 4: Q2_K has 2.625 bits"),
        (Constraints(pins={"attn_v": "Q2_K"}, min_bits_by_pattern={"attn_*": 4.0}), r"--pin attn_v=Q2_K contradicts --min attn_\*=4"),
        (Constraints(pins={"attn_*": "Q8_0"}, max_bits=5.0), r"--pin attn_\*=Q8_0 contradicts --max 5"),
        (Constraints(pins={"attn_v": "Q2_K"}, allowed_by_pattern={"attn_*": ("Q4_K",)}), "--pin attn_v=Q2_K contradicts --allow attn_"),
        (Constraints(pins={"attn_q": "Q6_K", "attn_k": "Q4_K"}, ties=("qkv",)), "given --pin attn_k=Q4_K and --pin attn_q=Q6_K"),
        (Constraints(budgets=(Budget("attn_*", 5), Budget("attn_*", 6))), r"--budget attn_\*=5 and --budget attn_\*=6 contradict"),
        (Constraints(ties=("re:no such name",)), "the tie re:no such name ties no two tensors"),
    ],
)
def test_contradictions_are_refused_and_both_are_named(constraints: Constraints, words: str) -> None:
    with pytest.raises(InfeasibleError, match=words):
        apply(LAYER, constraints)


def test_a_budget_that_pins_exceed_names_them() -> None:
    limits = Constraints(pins={"attn_*": "Q8_0"}, budgets=(Budget("layer:0", 3000),))
    with pytest.raises(InfeasibleError, match=r"the budget layer:0=3000 is too small.* at least 4,\d\d\d bytes, with --pin attn_\*=Q8_0"):
        optimal.solve(LAYER, constraints=limits)


def test_ties_share_one_type_and_add_up() -> None:
    groups = apply([*LAYER, tensor("blk.1.attn_q.weight")], Constraints(ties=("qkv", "gate_up")))
    assert [[each.role for each in group.tensors] for group in groups] == [
        ["attn_q", "attn_k", "attn_v"],
        ["ffn_gate", "ffn_up"],
        ["ffn_down"],
        ["attn_q"],
    ]
    cell = next(cell for cell in groups[0].cells if cell.type_name == "Q4_K")
    assert (cell.size_bytes, cell.damage, cell.bits_per_weight) == (3 * 576, 60.0, 4.5)


def test_experts_gate_and_up_are_tied_apart_from_the_shared_ones() -> None:
    names = ("ffn_gate_exps", "ffn_up_exps", "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_exps")
    groups = apply([tensor(f"blk.0.{name}.weight") for name in names], Constraints(ties=("gate_up",)))
    assert [len(group.tensors) for group in groups] == [2, 2, 1]


def test_overlapping_ties_merge() -> None:
    groups = apply(LAYER, Constraints(ties=("qkv", r"re:^blk\.(\d+)\.(?:attn_v|ffn_down)")))
    assert sorted(len(group.tensors) for group in groups) == [1, 1, 4]
    assert [len(group.tensors) for group in apply(LAYER, Constraints(ties=("layer",)))] == [6]


def test_a_pin_pulls_its_tie_along() -> None:
    assert allowed(Constraints(pins={"attn_q": "Q6_K"}, ties=("qkv",))) == {"Q6_K"}


@pytest.mark.parametrize(
    ("constraints", "words"),
    [
        (Constraints(pins={"attn_v": "IQ1_S"}), r"blk\.0\.attn_v\.weight cannot take IQ1_S, to which attn_v pins it.*It can take Q2_K"),
        (Constraints(pins={"attn_z": "Q4_K"}), "the pattern of --pin attn_z=Q4_K matches no tensor"),
        (Constraints(allowed=("IQ4_XS",)), r"can take none of the allowed types \(IQ4_XS\)"),
        (Constraints(allowed_by_pattern={"ffn_up": ("F16",)}), "the allowed types for ffn_up"),
        (Constraints(min_bits=9), "has no type with at least 9 bits"),
        (Constraints(max_bits_by_pattern={"ffn_up": 2}), r"ffn_up.* at most 2 bits \(for ffn_up\)"),
        (Constraints(pins={"attn_q": "Q6_K", "attn_k": "Q4_K"}, ties=("qkv",)), "the tie qkv leaves no common type for 3 tensors"),
        (Constraints(budgets=(Budget("nothing", 5),)), "the pattern of --budget nothing=5 matches no tensor"),
    ],
)
def test_what_cannot_be_met_is_named(constraints: Constraints, words: str) -> None:
    with pytest.raises(InfeasibleError, match=words):
        apply(LAYER, constraints)


def test_the_command_lines_strings() -> None:
    assert parse_pin("attn_v=Q6_K") == ("attn_v", "Q6_K")
    assert parse_allowed("Q4_K, Q5_K") == (None, ("Q4_K", "Q5_K"))
    assert parse_allowed("role:ffn_down=Q4_K,Q5_K") == ("role:ffn_down", ("Q4_K", "Q5_K"))
    assert parse_bits("4.5") == (None, 4.5)
    assert parse_bits("output=6") == ("output", 6.0)
    assert parse_tie(" qkv ") == "qkv"
    assert parse_budget("layer:0-3=1000") == Budget("layer:0-3", 1000)
    assert parse_budget("layer:0-3=2GiB") == Budget("layer:0-3", 2**31)


@pytest.mark.parametrize("text", ["attn_v", "=Q6_K", "attn_v="])
def test_bad_pins(text: str) -> None:
    with pytest.raises(StrategyError, match="PATTERN=TYPE"):
        parse_pin(text)


def test_other_bad_strings() -> None:
    with pytest.raises(StrategyError, match="allows no type"):
        parse_allowed("attn_v=")
    with pytest.raises(StrategyError, match="not a number of bits"):
        parse_bits("output=many")
    with pytest.raises(StrategyError, match="there is no tie 'all'"):
        parse_tie("all")
    with pytest.raises(StrategyError, match="not a regular expression"):
        parse_tie("re:(")
    with pytest.raises(StrategyError, match="not a range of layers"):
        matches("layer:x", "blk.0.attn_q.weight")
    with pytest.raises(OptionError, match="'many' is not a size"):
        parse_budget("layer:0=many")


def test_constraints_are_recorded_as_plain_data() -> None:
    constraints = Constraints(pins={"output": "Q6_K"}, ties=("qkv",), budgets=(Budget("layer:0", 5),))
    assert constraints.as_parameters() == {"pins": {"output": "Q6_K"}, "ties": ["qkv"], "budgets": {"layer:0": 5}}


EVERYTHING = Constraints(
    pins={"output": "Q6_K", "attn_v": "Q8_0"},
    allowed=("Q4_K", "IQ*"),
    allowed_by_pattern={"ffn_*": ("Q3_K", "Q4_K")},
    min_bits=2.5,
    max_bits=8.5,
    min_bits_by_pattern={"layer:0": 4.5},
    max_bits_by_pattern={"ffn_*": 6},
    ties=("qkv", "re:^blk"),
    budgets=(Budget("layer:0-3", 10**10), Budget("output", 5)),
)


@pytest.mark.parametrize("constraints", [EVERYTHING, Constraints(), Constraints(pins={"output": "Q6_K"}), Constraints(min_bits=3.0)])
def test_constraints_come_back_from_a_strategys_record(constraints: Constraints) -> None:
    plain = constraints.as_parameters()
    assert Constraints.from_parameters(plain) == constraints
    assert Constraints.from_parameters(json.loads(json.dumps(plain))) == constraints


def test_a_record_holds_every_limit_that_is_set() -> None:
    assert set(EVERYTHING.as_parameters()) == set(Constraints.__slots__)


@pytest.mark.parametrize("plain", [{"pin": {"output": "Q6_K"}}, {"min_bits": 3.0, "rule": "knee"}])
def test_a_record_of_something_else_is_refused(plain: dict[str, Any]) -> None:
    with pytest.raises(StrategyError, match=r"the unknown constraint (pin|rule)"):
        Constraints.from_parameters(plain)
