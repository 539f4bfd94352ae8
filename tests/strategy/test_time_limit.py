"""A limit on time beside a size: against brute force, and what must always hold."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from benchmarks import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st

from quantailor.errors import InfeasibleError, StrategyError
from quantailor.records import Cell, TensorCells
from quantailor.strategy.choose import ModelFacts, select
from quantailor.strategy.constraints import Constraints, apply
from quantailor.strategy.pace import TimeLimit
from quantailor.strategy.rules import optimal

Timed = tuple[tuple[TensorCells, ...], dict[str, dict[str, float]]]
MODEL = ModelFacts("f" * 64, "made up", "llama")


@st.composite
def timed_tables(draw: st.DrawFn) -> Timed:
    """A few tensors with few types; sizes, damages and times may be equal, and times below those of the reference."""
    tables, parts = [], {}
    for index in range(draw(st.integers(1, 4))):
        cell = st.tuples(st.integers(1, 30), st.integers(0, 40), st.integers(-20, 20))
        cells = draw(st.lists(cell, min_size=1, max_size=4))
        named = tuple(Cell(f"T{number}", size * 32, size / 4, float(damage)) for number, (size, damage, _) in enumerate(cells))
        tables.append(TensorCells(f"blk.{index}.attn_q.weight", 2560, named))
        parts[tables[-1].name] = {f"T{number}": time * 1e-5 for number, (_, _, time) in enumerate(cells)}
    return tuple(tables), parts


def mixes(timed: Timed) -> list[tuple[int, float, float]]:
    """(bytes, damage, seconds) of every mix."""
    tables, parts = timed
    return [
        (
            sum(cell.size_bytes for cell in mix),
            sum(cell.damage for cell in mix),
            sum(parts[table.name][cell.type_name] for table, cell in zip(tables, mix, strict=True)),
        )
        for mix in itertools.product(*(table.cells for table in tables))
    ]


def seconds(parts: dict[str, dict[str, float]], solution: optimal.Solution) -> float:
    return sum(parts[choice.name][choice.type_name] for choice in solution.choices)


@settings(max_examples=40)
@given(timed_tables(), st.integers(32, 4_000), st.integers(-60, 60))
def test_the_least_damage_within_bytes_and_time_equals_brute_force(timed: Timed, budget: int, time: int) -> None:
    tables, parts = timed
    limit = TimeLimit(time * 1e-5 + 5e-6, parts)  # between what sums can be, so that rounding decides nothing
    small = [mix for mix in mixes(timed) if mix[0] <= budget]
    able = [mix for mix in small if mix[2] <= limit.seconds]
    if able:
        solution = optimal.solve(tables, budget_bytes=budget, time=limit)
        assert solution.objective == pytest.approx(min(mix[1] for mix in able), rel=2e-6, abs=1e-6)
        assert solution.size_bytes <= budget
        assert seconds(parts, solution) <= limit.seconds
    else:
        with pytest.raises(InfeasibleError) as caught:
            optimal.solve(tables, budget_bytes=budget, time=limit)
        assert (caught.value.smallest_bytes is not None) == (not small)
        if small:
            assert caught.value.least_seconds == pytest.approx(min(mix[2] for mix in small))


@settings(max_examples=20)
@given(timed_tables(), st.integers(0, 120), st.integers(-60, 60))
def test_the_fewest_bytes_for_damage_and_time_equal_brute_force(timed: Timed, damage: int, time: int) -> None:
    tables, parts = timed
    limit = TimeLimit(time * 1e-5 + 5e-6, parts)
    able = [mix for mix in mixes(timed) if mix[1] <= damage and mix[2] <= limit.seconds]
    if able:
        assert optimal.solve(tables, max_damage=damage, time=limit).size_bytes == min(mix[0] for mix in able)
    else:
        with pytest.raises(InfeasibleError):
            optimal.solve(tables, max_damage=damage, time=limit)


def made_up(n_tensors: int) -> tuple[Sequence[TensorCells], dict[str, dict[str, float]], int]:
    """Tables of many types, half of which are slow, and 4.5 bits per weight of room."""
    tables = synthetic.tables(n_tensors, seed=3)
    slow = {cell.type_name: 1.0 + 2.0 * (number % 2) for number, cell in enumerate(tables[0].cells)}
    parts = {table.name: {cell.type_name: 1e-9 * table.n_elements * slow[cell.type_name] for cell in table.cells} for table in tables}
    return tables, parts, int(sum(table.n_elements for table in tables) * 4.5 / 8)


def test_a_time_that_the_optimum_keeps_changes_nothing() -> None:
    tables, parts, size = made_up(60)
    free = optimal.solve(tables, budget_bytes=size)
    assert optimal.solve(tables, budget_bytes=size, time=TimeLimit(seconds(parts, free) * (1 + 1e-12), parts)) == free


def test_less_time_costs_more_damage_and_pins_ties_and_budgets_hold() -> None:
    tables, parts, size = made_up(35)
    limits = Constraints(pins={"attn_v": "Q6_K"}, ties=("gate_up",), allowed_by_pattern={"blk.0.ffn_*": ("Q4_K", "Q5_K", "Q8_0", "Q3_K")})
    objectives = []
    free = optimal.solve(tables, budget_bytes=size, constraints=limits)
    for share in (0.99, 0.9, 0.8):
        solution = optimal.solve(tables, budget_bytes=size, constraints=limits, time=TimeLimit(share * seconds(parts, free), parts))
        types = {choice.name: choice.type_name for choice in solution.choices}
        assert seconds(parts, solution) <= share * seconds(parts, free)
        assert {types[name] for name in types if "attn_v" in name} == {"Q6_K"}
        assert all(types[name] == types[name.replace("gate", "up")] for name in types if "gate" in name)
        objectives.append(solution.objective)
    assert free.objective <= objectives[0] <= objectives[1] <= objectives[2]


def test_groups_count_what_all_their_tensors_take() -> None:
    tables, parts, _ = made_up(14)
    group = next(group for group in apply(tables, Constraints(ties=("role",))) if len(group.tensors) == 2)
    cell = group.cells[0]
    assert TimeLimit(0.0, parts).of_cell(group, cell) == pytest.approx(sum(parts[each.name][cell.type_name] for each in group.tensors))
    assert TimeLimit(0.0, {}).of_cell(group, cell) == 0


def test_other_rules_hold_no_time() -> None:
    tables, parts, size = made_up(7)
    with pytest.raises(StrategyError, match="knee cannot hold a speed"):
        select(tables, model=MODEL, method="knee", target={"size_bytes": size}, time=TimeLimit(1.0, parts))
