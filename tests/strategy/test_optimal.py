"""The optimum against brute force, against HiGHS, and what must always hold."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from benchmarks import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st
from strategy_tables import MODELS, highs_bound, measured, size_at

from quantailor.errors import InfeasibleError, StrategyError
from quantailor.records import Cell, TensorCells
from quantailor.strategy.constraints import Budget, Constraints, padded
from quantailor.strategy.rules import optimal
from quantailor.strategy.rules.highs import Program, solve
from quantailor.strategy.rules.knapsack import Knapsack, Options

BITS = (1.6, 2.1, 2.7, 3.5, 4.25, 4.5, 4.83, 5.7, 6.6, 9.0, 12.0)


@st.composite
def small_tables(draw: st.DrawFn) -> tuple[TensorCells, ...]:
    """A few tensors with few types; sizes and damages may be equal, dominated or zero."""
    tables = []
    for index in range(draw(st.integers(1, 5))):
        cells = draw(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 40)), min_size=1, max_size=4))
        named = (Cell(f"T{number}", size * 32, size / 4, float(damage)) for number, (size, damage) in enumerate(cells))
        tables.append(TensorCells(f"blk.{index}.attn_q.weight", 2560, tuple(named)))
    return tuple(tables)


def brute_force(tables: tuple[TensorCells, ...], budget: int) -> float:
    mixes = itertools.product(*(tensor.cells for tensor in tables))
    return min((sum(cell.damage for cell in mix) for mix in mixes if sum(cell.size_bytes for cell in mix) <= budget), default=math.inf)


@given(small_tables(), st.integers(0, 10_000))
def test_equals_brute_force(tables: tuple[TensorCells, ...], budget: int) -> None:
    best = brute_force(tables, budget)
    if best == math.inf:
        with pytest.raises(InfeasibleError, match="the smallest that the constraints allow takes"):
            optimal.solve(tables, budget_bytes=budget)
    else:
        assert optimal.solve(tables, budget_bytes=budget).objective == pytest.approx(best, abs=1e-9)


@given(small_tables(), st.integers(0, 200))
def test_a_damage_target_takes_the_fewest_bytes(tables: tuple[TensorCells, ...], damage: int) -> None:
    mixes = itertools.product(*(tensor.cells for tensor in tables))
    sizes = [sum(cell.size_bytes for cell in mix) for mix in mixes if sum(cell.damage for cell in mix) <= damage]
    if not sizes:
        with pytest.raises(InfeasibleError, match="the least that the constraints allow"):
            optimal.solve(tables, max_damage=damage)
    else:
        assert optimal.solve(tables, max_damage=damage).size_bytes == min(sizes)


@given(st.integers(1, 60), st.integers(0, 10_000), st.lists(st.floats(1.0, 17.0), min_size=2, max_size=6))
def test_more_bytes_never_do_more_damage(n_tensors: int, seed: int, bits: list[float]) -> None:
    tables = synthetic.tables(n_tensors, seed=seed)
    damage = math.inf
    for budget in sorted(size_at(tables, each) for each in bits):
        try:
            solution = optimal.solve(tables, budget_bytes=budget)
        except InfeasibleError:
            assert damage == math.inf
            continue
        assert solution.size_bytes <= budget
        assert solution.objective <= damage * (1 + 1e-12)
        damage = solution.objective


@pytest.mark.slow
@settings(max_examples=5)
@given(st.integers(0, 1000), st.integers(30, 60))
def test_monotone_even_where_the_search_is_cut_short(seed: int, n_tensors: int) -> None:
    knapsack = Knapsack([_options(tensor) for tensor in synthetic.tables(n_tensors, seed=seed)], work_limit=1)
    budgets = [int(knapsack.smallest * (1 + step / 29)) for step in range(60)]
    answers = [answer for budget in budgets if (answer := knapsack.within(budget))]
    assert all(answer.size <= budget for answer, budget in zip(answers, budgets, strict=True))
    assert all(later.damage <= earlier.damage * (1 + 1e-12) for earlier, later in itertools.pairwise(answers))
    assert all(answer.lower_bound <= answer.damage for answer in answers)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_within_1e_4_of_the_bound_of_highs_on_real_models(model: str) -> None:
    tables, _ = measured(model)
    for bits in BITS:
        solution = optimal.solve(tables, budget_bytes=size_at(tables, bits))
        bound = highs_bound(tables, size_at(tables, bits), scale=1e3 / solution.objective)
        assert solution.size_bytes <= size_at(tables, bits)
        assert solution.objective <= bound * (1 + 1e-4)
        assert solution.lower_bound <= solution.objective


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_within_1e_4_of_the_bound_of_highs_on_a_thousand_tensors(seed: int) -> None:
    tables = synthetic.tables(1000, seed=seed)
    for bits in (2.3, 4.5, 7.0):
        solution = optimal.solve(tables, budget_bytes=size_at(tables, bits))
        bound = highs_bound(tables, size_at(tables, bits), scale=1e3 / solution.objective)
        assert solution.objective <= bound * (1 + 1e-4)
        assert solution.gap < 1e-4


def test_fixed_bytes_and_padding_count() -> None:
    tables = (TensorCells("output.weight", 64, (Cell("Q8_0", 68, 8.5, 1.0), Cell("Q4_0", 36, 4.5, 9.0))),)
    assert optimal.solve(tables, budget_bytes=1096, fixed_bytes=1000).choices[0].type_name == "Q8_0"
    assert optimal.solve(tables, budget_bytes=1095, fixed_bytes=1000).choices[0].type_name == "Q4_0"


def test_a_choice_stands_within_its_price_range() -> None:
    tables, _ = measured("books-llama")
    solution = optimal.solve(tables, budget_bytes=size_at(tables, 4.5))
    assert solution.price is not None
    followers = [choice for choice in solution.choices if "common price" not in choice.reason]
    assert len(followers) > 50
    for choice in followers:
        assert choice.price_range is not None
        low, high = choice.price_range
        assert low * (1 - 1e-9) <= solution.price <= high * (1 + 1e-9)


def test_separate_budgets_are_each_kept() -> None:
    tables, _ = measured("books-llama")
    budgets = (Budget("layer:0-3", 1_400_000), Budget("layer:4-7", 900_000))
    solution = optimal.solve(tables, constraints=Constraints(budgets=budgets))
    for budget, layers in zip(budgets, (range(4), range(4, 8)), strict=True):
        part = [tensor for tensor in tables if tensor.layer in layers]
        types = {choice.name: choice.type_name for choice in solution.choices}
        assert sum(padded(tensor.cell(types[tensor.name]).size_bytes) for tensor in part) <= budget.size_bytes
        alone = optimal.solve(part, budget_bytes=budget.size_bytes)
        assert sum(tensor.cell(types[tensor.name]).damage for tensor in part) == pytest.approx(alone.objective)
    assert all(choice.type_name == "BF16" for choice in solution.choices if not choice.name.startswith("blk"))


def test_a_budget_within_the_whole_goes_to_highs() -> None:
    tables = synthetic.tables(21, seed=3)
    free = optimal.solve(tables, budget_bytes=size_at(tables, 4.5))
    inner = Budget("ffn_*", int(0.8 * sum(_size(tables, free, role) for role in ("ffn_gate", "ffn_up", "ffn_down"))))
    bound = optimal.solve(tables, budget_bytes=size_at(tables, 4.5), constraints=Constraints(budgets=(inner,)))
    assert sum(_size(tables, bound, role) for role in ("ffn_gate", "ffn_up", "ffn_down")) <= inner.size_bytes
    assert bound.size_bytes <= size_at(tables, 4.5)
    assert free.objective < bound.objective
    assert bound.gap < 1e-5


def test_a_damage_target_with_a_separate_budget() -> None:
    tables = synthetic.tables(14, seed=5)
    inner = Budget("layer:0", size_at(tables[:7], 4.5))
    target = 2 * optimal.solve(tables, constraints=Constraints(budgets=(inner,))).objective
    solution = optimal.solve(tables, max_damage=target, constraints=Constraints(budgets=(inner,)))
    assert solution.objective <= target * (1 + 1e-6)


def test_highs_says_when_there_is_nothing() -> None:
    options = _options(synthetic.tables(1)[0])
    program = Program((len(options.sizes),), options.damages, options.sizes[None, :].astype(float), options.sizes.min(keepdims=True) - 1.0)
    assert solve(program) is None


def test_impossible_requests_say_why() -> None:
    tables, budget = synthetic.tables(7), Budget("ffn_*", 10)
    with pytest.raises(StrategyError, match="needs a target"):
        optimal.solve(tables)
    with pytest.raises(StrategyError, match="both a size and a damage"):
        optimal.solve(tables, budget_bytes=10, max_damage=1.0)
    with pytest.raises(InfeasibleError, match="no strategy fits 10 bytes"):
        optimal.solve(tables, budget_bytes=10)
    with pytest.raises(InfeasibleError, match=r"the budget ffn_\*=10 is too small"):
        optimal.solve(tables, constraints=Constraints(budgets=(budget,)))


def _options(tensor: TensorCells) -> Options:
    sizes = np.array([cell.size_bytes for cell in tensor.cells], dtype=np.int64)
    return Options(sizes, np.array([cell.damage for cell in tensor.cells]))


def _size(tables: tuple[TensorCells, ...], solution: optimal.Solution, role: str) -> int:
    types = {choice.name: choice.type_name for choice in solution.choices}
    return sum(padded(tensor.cell(types[tensor.name]).size_bytes) for tensor in tables if tensor.role == role)


@pytest.mark.slow
def test_a_dial_of_thousands_of_tensors_is_near_the_optimum() -> None:
    tables = synthetic.tables(1200, n_types=12)
    optimum = optimal.OptimumBySize(tables, Constraints())
    for share in (0.2, 0.5, 0.8):
        budget = round(optimum.smallest + share * (optimum.largest - optimum.smallest))
        cells = [table.cell(optimum.types(budget)[table.name]) for table in tables]
        assert sum(padded(cell.size_bytes) for cell in cells) <= budget
        best = optimal.solve(tables, budget_bytes=budget)
        assert sum(cell.damage for cell in cells) <= 1.01 * best.objective
