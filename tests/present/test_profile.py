"""Where sensitivity sits, what damage is predicted, and how figures are written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_up_models import BARE, DENSE, MOE, model, simple

from quantailor.present.report import ReportData, role_profile, sensitivity_profile
from quantailor.present.report.damage import damage_curves, predicted_kld, t95
from quantailor.present.report.data import common_type
from quantailor.present.report.profile import DEPTHS, quarters
from quantailor.records import Curve, CurvePoint, Estimate


@pytest.fixture(scope="module")
def dense() -> ReportData:
    return model("books-llama", DENSE, 8, sweep=False)


@pytest.fixture(scope="module")
def moe() -> ReportData:
    return model("books-moe", MOE, 6, seed=2, sweep=False)


def test_shares_sum_to_one(dense: ReportData, moe: ReportData) -> None:
    for data in (dense, moe):
        for rows in (sensitivity_profile(data), role_profile(data)):
            assert sum(row.share.value for row in rows) == pytest.approx(1)
            assert sum(row.parameter_share for row in rows) == pytest.approx(1)
    assert {row.depth for row in sensitivity_profile(dense)} == set(DEPTHS)


def test_a_share_is_alpha_times_error_over_the_sum() -> None:
    data = simple({"blk.0.attn_q.weight": (3.0, 0.0), "blk.1.attn_q.weight": (1.0, 0.0)})
    first, last = sensitivity_profile(data)[0], sensitivity_profile(data)[-1]
    assert first.share.value == pytest.approx(0.375)  # half of block 0: it spans two quarters
    assert last.share.value == pytest.approx(0.125)
    assert first.per_weight.value == pytest.approx(1.5)


def test_a_profiles_errors_are_those_of_alpha() -> None:
    alphas = {
        f"blk.{layer}.{role}.weight": (value, 0.1 * value) for layer in range(4) for role, value in (("attn_v", 2.0), ("ffn_up", 0.7))
    }
    data = simple(alphas)
    rng = np.random.default_rng(5)
    draws = np.array([[rng.normal(value, se) for value, se in alphas.values()] for _ in range(4000)])
    is_v = np.array([".attn_v." in name for name in alphas])
    shares = draws[:, is_v].sum(axis=1) / draws.sum(axis=1)
    row = next(row for row in role_profile(data) if row.role == "attn_v")
    assert row.share.se == pytest.approx(shares.std(), rel=0.06)
    assert row.per_weight.se == pytest.approx(row.share.se / row.parameter_share)


def test_tensors_probed_together_err_together() -> None:
    alphas = {f"blk.{layer}.{role}.weight": (1.0, 0.1) for layer in range(4) for role in ("attn_v", "ffn_up")}
    alone = role_profile(simple(alphas))[0].share.se
    grouped = role_profile(simple(alphas, groups={name: name.split(".")[2] for name in alphas}))[0].share.se
    everything = role_profile(simple(alphas, groups=dict.fromkeys(alphas, "all")))[0].share.se
    assert grouped == pytest.approx(2 * alone)
    assert everything == pytest.approx(0, abs=1e-9)
    weighed = role_profile(simple(alphas, groups=dict.fromkeys(alphas, "weighing")))[0].share.se
    assert weighed == pytest.approx(alone)


def test_blocks_that_straddle_a_border_count_by_their_overlap() -> None:
    assert quarters(0, 6) == pytest.approx({"0-25 %": 1.0})
    assert quarters(1, 6) == pytest.approx({"0-25 %": 0.5, "25-50 %": 0.5})
    assert quarters(0, 1) == pytest.approx(dict.fromkeys(DEPTHS[:4], 0.25))
    assert quarters(7, 8) == pytest.approx({"75-100 %": 1.0})


def test_a_tensor_that_is_not_in_the_graph_has_no_share_and_a_drowned_one_is_a_bound(dense: ReportData) -> None:
    rows = {row.role: row for row in role_profile(dense)}
    assert rows["ffn_down"].bounds == 1
    absent = next(found for found in dense.sensitivities if found.status == "not in the graph")
    role = absent.tensor.split(".")[2]
    louder = [replace(found, alpha=Estimate(99.0)) if found is absent else found for found in dense.sensitivities]
    changed = {row.role: row for row in role_profile(replace(dense, sensitivities=louder))}
    assert changed[role].share == rows[role].share


def test_a_model_without_probes_has_no_profile(dense: ReportData) -> None:
    assert sensitivity_profile(replace(dense, sensitivities=())) == ()
    assert sensitivity_profile(replace(dense, weight_errors=())) == ()


def test_the_common_type_is_near_four_and_a_half_bits_and_known_to_most(dense: ReportData) -> None:
    assert common_type(dense) == "Q4_K"
    without = [error for error in dense.weight_errors if error.type_name != "Q4_K" or error.tensor != "output.weight"]
    assert common_type(replace(dense, weight_errors=without)) == "IQ4_NL"
    assert common_type(BARE) is None


# --- damage, scales, figures, colours


def test_damage_is_alpha_times_error_plus_the_kernels_noise() -> None:
    data = simple({"blk.0.attn_q.weight": (2.0, 0.1)})
    noisy = [replace(data.sensitivities[0], noise={256: 0.003})]
    error = data.weight_errors[0]
    better = replace(error, type_name="Q4_0", weighted_mse=0.008)
    plain = replace(error, type_name="F16", bits_per_weight=16.0, weighted_mse=0.0)
    data = replace(data, sensitivities=noisy, weight_errors=[error, plain], activation_blocks={"Q4_K": 256, "Q4_0": 32})
    assert [point.damage for point in damage_curves(data)["blk.0.attn_q.weight"]] == pytest.approx([0.023])
    both = damage_curves(replace(data, weight_errors=[error, better]))["blk.0.attn_q.weight"]
    assert [point.type_name for point in both] == ["Q4_0"]
    assert both[0].damage == pytest.approx(0.019)


def test_noise_of_a_kernel_that_was_not_probed_is_the_worst_known_and_plain_floats_have_none() -> None:
    data = simple({"blk.0.attn_q.weight": (2.0, 0.1)})
    data = replace(data, sensitivities=[replace(data.sensitivities[0], noise={256: 0.003})])
    for block, expected in ((32, 0.023), (1, 0.020)):
        found = damage_curves(replace(data, activation_blocks={"Q4_K": block}))["blk.0.attn_q.weight"]
        assert [point.damage for point in found] == pytest.approx([expected])


def test_the_prediction_is_gamma_s_plus_kappa_s_squared_and_c0_for_files() -> None:
    point = CurvePoint("mix:a", "file", 4.5, 0.2, Estimate(0.19))
    curve = Curve(0.9, 0.5, 0.001, 0.1, 3)
    assert predicted_kld(curve, point) == pytest.approx(0.9 * 0.22 + 0.001)
    assert predicted_kld(curve, replace(point, kind="memory")) == pytest.approx(0.9 * 0.22)


@pytest.mark.parametrize(("degrees", "expected"), [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (1000, 1.962)])
def test_intervals_are_wide_where_little_is_known(degrees: int, expected: float) -> None:
    assert t95(degrees) == pytest.approx(expected, rel=0.01)
