"""Random mixes and shuffled damages: what predictions and answers are compared with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import pytest
from benchmarks import synthetic
from benchmarks.shuffled_damage import with_shuffled_damage
from strategy_tables import MODELS, elements, measured, size_at

from quantailor.errors import InfeasibleError
from quantailor.records import TensorCells
from quantailor.strategy.random_mixes import TOLERANCE, random_mix


def size_of(tables: Sequence[TensorCells], types: dict[str, str]) -> int:
    assert list(types) == [table.name for table in tables]
    return sum(table.cell(types[table.name]).size_bytes for table in tables)


@pytest.mark.parametrize("bits", [2.5, 4.5, 6.0])
@pytest.mark.parametrize("model", MODELS)
def test_a_random_mix_has_the_size_that_was_asked_for(model: str, bits: float) -> None:
    tables, _ = measured(model)
    for seed in range(3):
        wanted = size_at(tables, bits)
        assert size_of(tables, random_mix(tables, wanted, seed=seed)) == pytest.approx(wanted, rel=TOLERANCE)


def test_the_tolerance_is_kept_where_it_is_small() -> None:
    tables = synthetic.tables(60)
    wanted = size_at(tables, 4.5)
    assert size_of(tables, random_mix(tables, wanted, seed=0, tolerance=1e-5)) == pytest.approx(wanted, rel=1e-5)


def test_equal_seeds_give_equal_mixes_and_others_do_not() -> None:
    tables = synthetic.tables(60)
    first, again, other = (random_mix(tables, size_at(tables, 4.5), seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert sum(first[name] != other[name] for name in first) > 30


def test_a_random_mix_knows_nothing_of_damage() -> None:
    tables = synthetic.tables(60)
    blind = [replace(table, cells=tuple(replace(cell, damage=0.0) for cell in table.cells)) for table in tables]
    assert random_mix(blind, size_at(tables, 4.5), seed=1) == random_mix(tables, size_at(tables, 4.5), seed=1)


@pytest.mark.parametrize("bits", [1.0, 17.0])
def test_a_size_that_no_mix_has(bits: float) -> None:
    tables = synthetic.tables(3)
    with pytest.raises(InfeasibleError, match=rf"no random mix of {size_at(tables, bits)} bytes"):
        random_mix(tables, size_at(tables, bits), seed=0)


def test_a_size_between_two_types_that_no_mix_has() -> None:
    (table,) = synthetic.tables(1, n_types=2)
    with pytest.raises(InfeasibleError):
        random_mix([table], int(elements([table]) * 12 / 8), seed=0)


# Shuffled damage


def rate(table: TensorCells) -> float:
    """Damage per weighted error."""
    return sum(cell.damage for cell in table.cells) / sum(cell.weighted_mse for cell in table.cells)


def rates_by_role(tables: Sequence[TensorCells]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for table in tables:
        found[table.role].append(rate(table))
    return {role: sorted(rates) for role, rates in found.items()}


def harmless(table: TensorCells) -> TensorCells:
    """A tensor whose probe showed nothing."""
    return replace(table, cells=tuple(replace(cell, damage=0.0) for cell in table.cells))


@pytest.mark.parametrize("n_harmless", [0, 3])
def test_a_role_keeps_its_rates_and_forgets_whose_they_are(n_harmless: int) -> None:
    tables = synthetic.tables(56)
    tables = (*map(harmless, tables[:n_harmless]), *tables[n_harmless:])
    shuffled = with_shuffled_damage(tables, seed=0)
    expected = rates_by_role(tables)
    assert rates_by_role(shuffled) == {role: pytest.approx(rates) for role, rates in expected.items()}
    assert sum(rate(one) != pytest.approx(rate(other)) for one, other in zip(tables, shuffled, strict=True)) > 28


def test_only_damage_is_shuffled_and_types_keep_their_order() -> None:
    tables = synthetic.tables(56)
    for before, after in zip(tables, with_shuffled_damage(tables, seed=0), strict=True):
        factor = after.cells[0].damage / before.cells[0].damage
        assert [cell.damage for cell in after.cells] == pytest.approx([factor * cell.damage for cell in before.cells])
        assert replace(after, cells=()) == replace(before, cells=())
        assert [replace(cell, damage=0.0) for cell in after.cells] == [replace(cell, damage=0.0) for cell in before.cells]


def test_a_tensor_alone_in_its_role_keeps_its_damage() -> None:
    tables = synthetic.tables(7)
    for before, after in zip(tables, with_shuffled_damage(tables, seed=0), strict=True):
        assert [cell.damage for cell in after.cells] == pytest.approx([cell.damage for cell in before.cells])


def test_shuffles_are_reproducible() -> None:
    tables = synthetic.tables(56)
    assert with_shuffled_damage(tables, seed=3) == with_shuffled_damage(tables, seed=3) != with_shuffled_damage(tables, seed=4)
