"""Small changes of a strategy: steps on the hull, and exchanges that stay within what they may."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from benchmarks import synthetic
from hypothesis import given
from hypothesis import strategies as st

from quantailor.records import Cell, TensorCells
from quantailor.strategy.rules.neighbours import RATIO_RANGE, SHRINK_SD, exchanges, hull, rescaled, step


def table(cells: dict[str, tuple[int, float]], name: str = "blk.0.attn_q.weight") -> TensorCells:
    """A tensor from type -> (bytes, damage)."""
    return TensorCells(name, 256, tuple(Cell(type_name, size, size / 32, damage) for type_name, (size, damage) in cells.items()))


CURVE = table(
    {
        "Q8_0": (80, 1.0),
        "Q5_0": (56, 9.0),
        "Q6_K": (64, 2.0),
        "Q4_K": (48, 6.0),
        "Q3_K": (40, 20.0),
        "IQ3_S": (40, 16.0),
        "Q2_K": (32, 30.0),
    }
)
"""Q5_0 is beaten by Q4_K, Q3_K by IQ3_S; all others lie on the hull."""

any_table = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 40)), min_size=1, max_size=8).map(
    lambda drawn: table({f"T{at}": (size, float(damage)) for at, (size, damage) in enumerate(drawn)})
)


# The hull


def test_the_hull_of_a_tensor() -> None:
    assert [cell.type_name for cell in hull(CURVE)] == ["Q2_K", "IQ3_S", "Q4_K", "Q6_K", "Q8_0"]
    assert [cell.type_name for cell in hull(CURVE, {"Q2_K", "Q5_0", "Q8_0"})] == ["Q2_K", "Q5_0", "Q8_0"]


@pytest.mark.parametrize(("damage", "kept"), [(6.0, "AC"), (5.0, "AC"), (4.0, "ABC")])
def test_only_what_lies_below_the_line_between_two_others_is_kept(damage: float, kept: str) -> None:
    assert "".join(cell.type_name for cell in hull(table({"A": (10, 10.0), "B": (20, damage), "C": (30, 0.0)}))) == kept


@given(any_table)
def test_a_hull_is_convex_and_nothing_beats_it(tensor: TensorCells) -> None:
    kept = hull(tensor)
    slopes = [(after.damage - before.damage) / (after.size_bytes - before.size_bytes) for before, after in itertools.pairwise(kept)]
    assert all(slope < 0 for slope in slopes)
    assert all(before < after for before, after in itertools.pairwise(slopes))
    for price in (1e-6, 0.1, 0.5, 1.0, 3.0, 100.0):
        least = [min(cell.damage + price * cell.size_bytes for cell in cells) for cells in (kept, tensor.cells)]
        assert least[0] == pytest.approx(least[1])


# Steps


@pytest.mark.parametrize(
    ("present", "below", "above"),
    [("Q2_K", None, "IQ3_S"), ("Q4_K", "IQ3_S", "Q6_K"), ("Q8_0", "Q6_K", None), ("Q5_0", "Q4_K", "Q6_K"), ("Q3_K", "Q2_K", "Q4_K")],
)
def test_a_step_goes_to_the_next_type_on_the_hull(present: str, below: str | None, above: str | None) -> None:
    found = [step(CURVE, present, direction) for direction in (-1, 1)]
    assert [cell and cell.type_name for cell in found] == [below, above]


def test_a_step_takes_only_what_is_allowed() -> None:
    allowed = ("Q8_0", "Q2_K")
    assert step(CURVE, "Q4_K", 1, allowed) == CURVE.cell("Q8_0")
    assert step(CURVE, "Q4_K", -1, allowed) == CURVE.cell("Q2_K")
    assert step(CURVE, "Q4_K", 1, ("Q2_K",)) is None


# Damages after a measurement


@pytest.mark.parametrize(
    ("ratio", "relative_se", "factor"),
    [
        (2.0, 0.0, 2.0),
        (2.0, SHRINK_SD, 1.5),
        (0.5, 100.0, 1.0),
        (1.0, 0.1, 1.0),
        (100.0, 0.0, RATIO_RANGE[1]),
        (-1.0, 0.0, RATIO_RANGE[0]),
    ],
)
def test_a_ratio_counts_by_its_precision(ratio: float, relative_se: float, factor: float) -> None:
    found = rescaled(CURVE, ratio, relative_se)
    assert [cell.damage for cell in found.cells] == pytest.approx([factor * cell.damage for cell in CURVE.cells], rel=1e-4)
    assert [cell.size_bytes for cell in found.cells] == [cell.size_bytes for cell in CURVE.cells]


# Exchanges

TABLES = synthetic.tables(14, max_blocks=4)
TYPES = {tensor.name: str(np.random.default_rng(at).choice(["Q6_K", "Q4_K", "Q3_K"])) for at, tensor in enumerate(TABLES)}


def size_of(types: dict[str, str]) -> int:
    return sum(tensor.cell(types[tensor.name]).size_bytes for tensor in TABLES)


def damage_of(types: dict[str, str]) -> float:
    return sum(tensor.cell(types[tensor.name]).damage for tensor in TABLES)


@pytest.mark.parametrize("room", [-0.02, 0.0, 0.001, 0.1])
def test_exchanges_stay_within_the_budget_and_none_that_does_is_missed(room: float) -> None:
    budget = int(size_of(TYPES) * (1 + room))
    found = exchanges(TABLES, TYPES, budget_bytes=budget)
    everything = exchanges(TABLES, TYPES, budget_bytes=10**12)
    assert found
    assert max(size_of(exchange.applied(TYPES)) for exchange in found) <= budget
    assert set(found) == {exchange for exchange in everything if size_of(exchange.applied(TYPES)) <= budget}
    assert len(everything) == 14 * 13


def test_an_exchange_raises_one_tensor_and_lowers_another() -> None:
    by_name = {tensor.name: tensor for tensor in TABLES}
    for exchange in exchanges(TABLES, TYPES, budget_bytes=size_of(TYPES)):
        types = exchange.applied(TYPES)
        assert {name for name in TYPES if types[name] != TYPES[name]} == {exchange.raised, exchange.lowered}
        assert by_name[exchange.raised].cell(exchange.raised_to) == step(by_name[exchange.raised], TYPES[exchange.raised], 1)
        assert by_name[exchange.lowered].cell(exchange.lowered_to) == step(by_name[exchange.lowered], TYPES[exchange.lowered], -1)


def test_the_exchange_that_saves_most_comes_first() -> None:
    found = exchanges(TABLES, TYPES, budget_bytes=size_of(TYPES))
    saved = [damage_of(TYPES) - damage_of(exchange.applied(TYPES)) for exchange in found]
    assert [exchange.gain for exchange in found] == pytest.approx(saved)
    assert saved == pytest.approx(sorted(saved, reverse=True))
    assert saved[0] > 0 > saved[-1]


def test_fixed_tensors_are_left_alone_but_take_their_room() -> None:
    fixed, budget = [TABLES[0].name, TABLES[5].name], size_of(TYPES)
    found = exchanges(TABLES, TYPES, budget_bytes=budget, fixed=fixed)
    assert set(found) == {
        exchange
        for exchange in exchanges(TABLES, TYPES, budget_bytes=budget)
        if exchange.raised not in fixed and exchange.lowered not in fixed
    }
    assert not exchanges(TABLES, TYPES, budget_bytes=budget, fixed=list(TYPES))


def test_exchanges_choose_among_the_allowed_types() -> None:
    found = exchanges(TABLES, TYPES, budget_bytes=10**12, allowed=("Q8_0", "Q2_K"))
    assert {exchange.raised_to for exchange in found} == {"Q8_0"}
    assert {exchange.lowered_to for exchange in found} == {"Q2_K"}


def test_a_budget_may_be_used_up_to_the_last_byte() -> None:
    best = exchanges(TABLES, TYPES, budget_bytes=size_of(TYPES))[0]
    size = size_of(best.applied(TYPES))
    assert best in exchanges(TABLES, TYPES, budget_bytes=size)
    assert best not in exchanges(TABLES, TYPES, budget_bytes=size - 1)


def test_no_room_no_exchange() -> None:
    assert exchanges(TABLES, TYPES, budget_bytes=size_of(TYPES) // 2) == []


def test_an_exchange_does_not_change_what_it_is_applied_to() -> None:
    before = dict(TYPES)
    exchanges(TABLES, TYPES, budget_bytes=size_of(TYPES))[0].applied(TYPES)
    assert before == TYPES
