"""Knee, greedy, bins and the door to all rules: what each does, and what holds in every one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from benchmarks import synthetic
from hypothesis import given
from hypothesis import strategies as st
from strategy_tables import MODELS, measured, size_at

from quantailor.errors import InfeasibleError, StrategyError, StrategyMismatchError
from quantailor.records import Cell, Strategy, TensorCells
from quantailor.strategy import choose, file
from quantailor.strategy.constraints import Budget, Constraints, padded
from quantailor.strategy.importance import with_importance
from quantailor.strategy.rules import bins, greedy, knee, optimal

FACTS = choose.ModelFacts("f" * 64, "a model", "llama", fixed_bytes=5000, fixed_tensor_bytes=4000, fixed_elements=1000)


def cell(type_name: str, bits: float, error: float) -> Cell:
    return Cell(type_name, int(1024 * bits / 8), bits, error**2 * 1024, error**2, error**2, error, 5 * error)


ONE = (cell("Q8_0", 8.5, 0.005), cell("Q6_K", 6.5, 0.02), cell("Q5_K", 5.5, 0.04), cell("Q4_K", 4.5, 0.08), cell("Q2_K", 2.5, 0.9))


def test_each_test_stops_above_its_jump() -> None:
    assert knee.find(ONE, test="relative", base=3 * 150.0).cell.type_name == "Q4_K"
    assert knee.find(ONE, test="absolute", base=3 * 0.03).cell.type_name == "Q5_K"
    assert knee.find(ONE, test="statistical").cell.type_name == "Q4_K"
    assert knee.find(ONE, test="second_difference").cell.type_name == "Q4_K"
    assert knee.find(ONE, test="fitted").cell.type_name == "Q4_K"


def test_the_threshold_tightens_with_importance() -> None:
    chosen = [
        knee.find(ONE, test="absolute", base=0.09, epsilon=1, importance=share).cell.bits_per_weight for share in (0.0, 0.5, 1.0, 5.0)
    ]
    assert chosen == sorted(chosen)
    assert chosen[0] < chosen[-1]


def test_the_reason_tells_the_jump() -> None:
    assert "jumps by" in knee.find(ONE, test="statistical").reason
    assert "(to Q2_K" in knee.find(ONE, test="statistical").reason
    assert knee.find(ONE[:1]).reason == "the only type allowed here"
    assert "jumps nowhere" in knee.find(ONE, test="absolute", base=100).reason


def test_a_curve_is_found_again() -> None:
    bits = np.array([8.5, 6.6, 5.5, 4.5, 3.4, 2.6, 2.0])
    offset, scale, power = (float(figure[0]) for figure in knee.fit_curves(bits[None], (0.01 + 7 / bits**2.5)[None]))
    assert (offset, scale, power) == pytest.approx((0.01, 7, 2.5), rel=0.02)


@pytest.mark.parametrize("model", MODELS)
def test_knees_of_real_models_are_of_sensible_size(model: str) -> None:
    tables, _ = measured(model)
    for test in ("relative", "absolute", "statistical", "fitted"):
        choices = knee.choose(tables, test=test)
        bits = [tensor.cell(choice.type_name).bits_per_weight for tensor, choice in zip(tables, choices, strict=True)]
        assert 2.5 < np.mean(bits) < 9


def test_greedy_is_close_to_the_optimum() -> None:
    tables, _ = measured("books-llama")
    budget = size_at(tables, 4.5)
    best = optimal.solve(tables, budget_bytes=budget)
    damage = sum(choice.damage for choice in greedy.choose(tables, budget_bytes=budget))
    assert best.objective <= damage <= 1.02 * best.objective


def test_greedy_starts_where_it_is_told_and_keeps_its_caps() -> None:
    tables, _ = measured("books-moe")
    choices = greedy.choose(
        tables,
        budget_bytes=size_at(tables, 5.0),
        start="Q6_K",
        penalty="rmse",
        max_rmse_growth=6,
        important_percentile=90,
        important_max_error=0.05,
    )
    bar = np.percentile([tensor.importance for tensor in tables], 90)
    for tensor, choice in zip(tables, choices, strict=True):
        chosen = tensor.cell(choice.type_name)
        assert chosen.bits_per_weight <= tensor.cell("Q6_K").bits_per_weight
        assert chosen.rmse <= 6 * tensor.cell("Q6_K").rmse
        assert tensor.importance <= bar or chosen.max_abs_error <= 0.05


def test_greedy_says_when_caps_stand_in_the_way() -> None:
    tables, _ = measured("books-llama")
    with pytest.raises(InfeasibleError, match="the smallest that the constraints allow"):
        greedy.choose(tables, budget_bytes=size_at(tables, 3), start="Q6_K", max_rmse_growth=2)
    with pytest.raises(InfeasibleError, match="no type with a maximum error"):
        greedy.choose(tables, budget_bytes=size_at(tables, 3), start="Q6_K", important_percentile=0, important_max_error=1e-9)


def test_bins_give_the_important_more() -> None:
    tables, _ = measured("books-llama")
    choices = bins.choose(tables, bins=((10, "Q6_K"), (50, "Q5_K"), (100, "Q4_K")))
    ranked = sorted(zip(tables, choices, strict=True), key=lambda pair: -pair[0].importance)
    types = [choice.type_name for _, choice in ranked]
    assert types == ["Q6_K"] * 5 + ["Q5_K"] * 24 + ["Q4_K"] * 29


def test_bins_are_minimums_where_a_size_leaves_room() -> None:
    tables, _ = measured("books-llama")
    low = {choice.name: choice.type_name for choice in bins.choose(tables)}
    choices = bins.choose(tables, budget_bytes=size_at(tables, 7))
    for tensor, choice in zip(tables, choices, strict=True):
        assert tensor.cell(choice.type_name).bits_per_weight >= tensor.cell(low[tensor.name]).bits_per_weight
    with pytest.raises(InfeasibleError):
        bins.choose(tables, budget_bytes=size_at(tables, 4))


def test_bins_from_text() -> None:
    assert bins.parse_bins("10=Q6_K, 100=Q4_K") == ((10.0, "Q6_K"), (100.0, "Q4_K"))
    for text in ("Q6_K", "x=Q6_K", "10="):
        with pytest.raises(StrategyError, match="is not a bin"):
            bins.parse_bins(text)


REQUESTS: tuple[tuple[str, dict[str, object]], ...] = (
    ("optimal", {}),
    ("greedy", {}),
    ("greedy", {"start": "Q8_0", "penalty": "max_abs_error"}),
    ("knee", {"test": "statistical"}),
    ("knee", {"test": "fitted"}),
    ("bins", {"bins": ((20, "Q5_K"), (60, "Q3_K"))}),
)


@pytest.mark.slow
@given(st.integers(1, 40), st.integers(0, 1000), st.floats(2.0, 12.0), st.sampled_from(REQUESTS), st.booleans())
def test_limits_hold_in_every_rule(n_tensors: int, seed: int, bits: float, request: tuple[str, dict[str, object]], tied: bool) -> None:
    tables = synthetic.tables(n_tensors, seed=seed)
    size = size_at(tables, bits) + FACTS.fixed_bytes
    inner = Budget("layer:0", size_at([tensor for tensor in tables if tensor.layer == 0], 3.5))
    limits = Constraints(
        pins={} if tied else {"attn_q": "Q4_K"},
        min_bits=2.0,
        max_bits_by_pattern={"blk.0.*": 9.0},
        ties=("qkv",) if tied else (),
        budgets=(inner,),
    )
    method, parameters = request
    try:
        strategy = choose.select(tables, model=FACTS, method=method, parameters=parameters, target={"size_bytes": size}, constraints=limits)
    except InfeasibleError:
        return
    types = strategy.types
    assert list(types) == [tensor.name for tensor in tables]
    cells = {tensor.name: tensor.cell(types[tensor.name]) for tensor in tables}
    assert strategy.prediction is not None
    assert sum(padded(each.size_bytes) for each in cells.values()) + 5000 == strategy.prediction.file_size_bytes <= size
    assert sum(padded(cells[tensor.name].size_bytes) for tensor in tables if tensor.layer == 0) <= inner.size_bytes
    for choice in strategy.tensors:
        assert choice.reason
        assert choice.knee
        assert choice.pinned == ("attn_q" in choice.name and not tied)
        assert not choice.pinned or choice.type_name == "Q4_K"
        assert cells[choice.name].bits_per_weight >= 2.0
    if tied:
        for layer in {tensor.layer for tensor in tables}:
            assert (
                len({types[tensor.name] for tensor in tables if tensor.layer == layer and tensor.role in ("attn_q", "attn_k", "attn_v")})
                <= 1
            )


def test_targets_in_bits_count_every_tensor() -> None:
    tables = synthetic.tables(50)
    strategy = choose.select(tables, model=FACTS, target={"bits_per_weight": 4.5})
    assert strategy.prediction is not None
    assert 4.49 < strategy.prediction.bits_per_weight <= 4.5


def test_a_header_that_depends_on_the_strategy_still_fits() -> None:
    tables, size = synthetic.tables(50), size_at(synthetic.tables(50), 4.5)

    def exact_size(strategy: Strategy) -> int:
        assert strategy.prediction is not None
        return strategy.prediction.file_size_bytes + len(file.dumps(strategy, format="json", include_prediction=False))

    strategy = choose.select(tables, model=FACTS, target={"size_bytes": size}, exact_size=exact_size)
    assert strategy.prediction is not None
    assert 0.999 * size < strategy.prediction.file_size_bytes <= size


def test_a_budget_that_the_answer_does_not_use_up_still_shrinks_by_what_the_file_takes() -> None:
    cells = (Cell("Q4_K", 1000 * 32, 4.5, 2.0), Cell("Q8_0", 2000 * 32, 8.5, 1.0))
    tables = [TensorCells("blk.0.attn_q.weight", 60_000, cells)]
    size = FACTS.fixed_bytes + 2500 * 32

    def exact_size(strategy: Strategy) -> int:
        return FACTS.fixed_bytes + strategy.tensors[0].type_name.count("8") * 2600 * 32 + 100

    strategy = choose.select(tables, model=FACTS, target={"size_bytes": size}, exact_size=exact_size)
    assert strategy.types == {"blk.0.attn_q.weight": "Q4_K"}


def test_the_record_tells_what_was_asked() -> None:
    tables = synthetic.tables(20)
    strategy = choose.select(
        tables,
        model=FACTS,
        method="greedy",
        target={"size_bytes": size_at(tables, 5), "like": "Q4_K_M"},
        parameters={"start": "Q8_0", "penalty": None},
        constraints=Constraints(ties=("qkv",)),
        inputs={"imatrix": None},
    )
    assert strategy.target["like"] == "Q4_K_M"
    assert strategy.parameters == {"start": "Q8_0", "constraints": {"ties": ["qkv"]}}
    assert (strategy.method, strategy.basis, strategy.model_fingerprint) == ("greedy", "ranking only", FACTS.fingerprint)


def test_an_edited_mix_is_predicted() -> None:
    tables = synthetic.tables(3)
    types = {tensor.name: "Q4_K" for tensor in tables}
    assert choose.predict(types, tables, model=FACTS).damage == math.fsum(tensor.cell("Q4_K").damage for tensor in tables)
    with pytest.raises(StrategyMismatchError, match="has not been measured at Q9"):
        choose.predict({**types, tables[0].name: "Q9"}, tables, model=FACTS)
    with pytest.raises(StrategyMismatchError, match="gives no type for"):
        choose.predict({}, tables, model=FACTS)


@pytest.mark.parametrize(
    ("method", "target", "parameters", "words"),
    [
        ("best", {}, {}, "there is no method 'best'"),
        ("optimal", {}, {}, "the optimum needs a target"),
        ("greedy", {}, {}, "greedy needs a target"),
        ("knee", {"damage": 1.0}, {}, "knee cannot aim at a damage"),
        ("optimal", {"size_bytes": 1, "damage": 1.0}, {}, "several targets"),
        ("optimal", {"size_bytes": 0}, {}, "the target size_bytes is 0"),
        ("optimal", {"bits_per_weight": math.nan}, {}, "the target bits_per_weight is nan"),
        ("knee", {}, {"tests": "fitted"}, "knee has no parameter 'tests'"),
        ("knee", {}, {"test": "eye"}, "there is no knee test 'eye'"),
        ("knee", {}, {"error": "eye"}, "there is no error 'eye'"),
        ("knee", {}, {"epsilon": 0.0}, "epsilon is 0"),
        ("greedy", {"size_bytes": 1}, {"penalty": "x"}, "there is no penalty 'x'"),
        ("greedy", {"size_bytes": 1}, {"start": "Q9"}, "no tensor can start at Q9"),
        ("greedy", {"size_bytes": 1}, {"important_percentile": 5.0}, "needs a percentile and a maximum error"),
        ("bins", {}, {"bins": ()}, "bins need rising percentiles"),
        ("bins", {}, {"bins": ((50, "Q9"),)}, "the bin's type Q9"),
        ("knee", {}, {"importance_type": "Q9"}, "no tensor has been measured at Q9"),
    ],
)
def test_wrong_requests_are_told(method: str, target: dict[str, float], parameters: dict[str, object], words: str) -> None:
    with pytest.raises(StrategyError, match=words):
        choose.select(synthetic.tables(5), model=FACTS, method=method, target=target, parameters=parameters)


def test_broken_tables_are_refused() -> None:
    table = synthetic.tables(1)[0]
    for broken, words in (
        ((), "no tensor that can be quantized"),
        ((table, table), "twice"),
        ((replace(table, cells=()),), "has no measured type"),
        ((replace(table, cells=(replace(table.cells[0], damage=math.nan),)),), "has the damage nan"),
    ):
        with pytest.raises(StrategyError, match=words):
            choose.select(broken, model=FACTS, target={"bits_per_weight": 4})


def test_importance_is_a_share() -> None:
    tables = with_importance(synthetic.tables(9), type_name="Q2_K")
    assert sum(tensor.importance for tensor in tables) == pytest.approx(1)
    flat = with_importance([TensorCells("a", 1, (Cell("Q8_0", 1, 8.5, 0.0),)), TensorCells("b", 1, (Cell("Q8_0", 1, 8.5, 0.0),))])
    assert [tensor.importance for tensor in flat] == [0.5, 0.5]
