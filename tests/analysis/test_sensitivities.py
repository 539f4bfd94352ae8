"""From scores of probes to sensitivities: made-up scores, whose alphas and noise are known, are found again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from quantailor.analysis.sensitivity import (
    NULL_MIX,
    ProbeGroup,
    groups_of,
    is_drowned,
    is_readable,
    mean_kld,
    readable,
    sensitivity,
    swap_cell,
    weigh,
    weighing_mixes,
)
from quantailor.errors import InferenceError
from quantailor.numerics import Doubles
from quantailor.qtypes import QType
from quantailor.records import ChunkScore, Estimate, Mix, TensorInfo

QTYPES = {
    "Q2_K": QType(10, "Q2_K", 256, 84, True, activation_block=256),
    "Q4_K": QType(12, "Q4_K", 256, 144, True, activation_block=256),
    "Q6_K": QType(14, "Q6_K", 256, 210, True, activation_block=256),
    "Q8_0": QType(8, "Q8_0", 32, 34, True, activation_block=32),
}
ERRORS = {"Q2_K": 0.08, "Q4_K": 0.005, "Q6_K": 3e-4, "Q8_0": 2e-5}
PROBES = ("Q2_K", "Q6_K", "Q8_0")
TENSOR = ProbeGroup("blk.0.attn_v.weight", ("blk.0.attn_v.weight",))
PAIR = ProbeGroup("attn_v", ("blk.0.attn_v.weight", "blk.1.attn_v.weight"))
ALPHA, NOISE = 0.3, {32: 2e-5, 256: 7e-5}


def scores(klds: Sequence[float] | Doubles, n_tokens: Sequence[int] | int = 100, *, nll: float = 200.0) -> list[ChunkScore]:
    """One score per chunk from its mean KLD, nats."""
    counts = np.broadcast_to(n_tokens, len(klds)).tolist()
    return [ChunkScore(at, count, nll, kld * count, 90, 0.1) for at, (kld, count) in enumerate(zip(klds, counts, strict=True))]


def probed(
    group: ProbeGroup, klds: Mapping[str, Sequence[float] | Doubles], n_tokens: Sequence[int] | int = 100
) -> dict[str, list[ChunkScore]]:
    """Scores of a group's probes by type, beside those of the empty mix."""
    found = {group.mix(name).id: scores(each, n_tokens) for name, each in klds.items()}
    return {NULL_MIX.id: scores([0.0] * 4), **found}


def kld_of(type_name: str, error: float) -> float:
    return ALPHA * error + NOISE[QTYPES[type_name].activation_block]


# Groups


def tensors(n_layers: int) -> list[TensorInfo]:
    names = ["token_embd.weight", *(f"blk.{at}.{role}.weight" for at in range(n_layers) for role in ("attn_q", "ffn_up")), "output.weight"]
    return [TensorInfo(name, (32, 256), "F16", 16384) for name in names]


def test_every_tensor_is_a_group_of_its_own() -> None:
    assert groups_of(tensors(2), "tensor") == [ProbeGroup(tensor.name, (tensor.name,)) for tensor in tensors(2)]


def test_a_role_is_a_group_and_what_has_no_layer_stays_alone() -> None:
    found = {group.name: group.tensors for group in groups_of(tensors(3), "role")}
    assert list(found) == ["token_embd.weight", "attn_q", "ffn_up", "output.weight"]
    assert found["attn_q"] == tuple(f"blk.{layer}.attn_q.weight" for layer in range(3))
    assert found["output.weight"] == ("output.weight",)


def test_a_role_falls_into_quarters_of_the_depth() -> None:
    found = {group.name: group.tensors for group in groups_of(tensors(8), "role-depth")}
    assert [name for name in found if "attn_q" in name] == [f"attn_q, depth {depth} of 4" for depth in (1, 2, 3, 4)]
    assert found["ffn_up, depth 4 of 4"] == ("blk.6.ffn_up.weight", "blk.7.ffn_up.weight")


@pytest.mark.parametrize("grouping", ["tensor", "role", "role-depth"])
def test_groups_hold_every_tensor_once(grouping: str) -> None:
    members = [name for group in groups_of(tensors(5), grouping) for name in group.tensors]
    assert sorted(members) == sorted(tensor.name for tensor in tensors(5))


def test_a_groups_mix_has_all_its_tensors_at_one_type() -> None:
    assert PAIR.mix("Q2_K") == Mix.of({"blk.0.attn_v.weight": "Q2_K", "blk.1.attn_v.weight": "Q2_K"})


# Cells


def test_a_cell_is_compared_on_the_chunks_that_the_base_has() -> None:
    ours, base = scores([0.1, 0.3, 9.9], [100, 300, 50], nll=220), scores([0.0, 0.0], [100, 300])
    found = swap_cell("output.weight", "Q4_K", ours, base[::-1])
    assert (found.tensor, found.type_name, found.n_chunks) == ("output.weight", "Q4_K", 2)
    assert found.kld.value == pytest.approx(0.25)
    assert found.perplexity.value == pytest.approx(np.exp(440 / 400))
    assert found.ln_ppl_ratio.value == pytest.approx(40 / 400)
    assert found.kld.se == pytest.approx(np.sqrt(2 * 2 * (100 * 0.15) ** 2) / 400)


def test_a_cell_without_a_common_chunk() -> None:
    with pytest.raises(InferenceError, match="no chunk in common"):
        swap_cell("output.weight", "Q4_K", scores([0.1]), [])


# Sensitivities


@pytest.mark.parametrize("n_tokens", [100, [255, 10, 31, 400]])
def test_alpha_and_the_noise_of_both_kernels_are_found_again(n_tokens: list[int] | int) -> None:
    common = np.array([0.7, 1.1, 0.9, 1.3])
    common /= np.average(common, weights=np.broadcast_to(n_tokens, 4))
    klds = {name: kld_of(name, ERRORS[name]) * common for name in PROBES}
    (found,) = sensitivity(TENSOR, {TENSOR.name: ERRORS}, probed(TENSOR, klds, n_tokens), QTYPES, PROBES)
    assert (found.tensor, found.status, found.group, found.probes) == (TENSOR.name, "measured", "", PROBES)
    assert found.alpha.value == pytest.approx(ALPHA)
    assert found.noise == pytest.approx(NOISE)


def test_more_probes_than_unknowns_are_weighed_by_relative_error() -> None:
    off = {"Q2_K": 1.02, "Q4_K": 0.98, "Q6_K": 1.0, "Q8_0": 1.0}
    klds = {name: [kld_of(name, ERRORS[name]) * factor] * 4 for name, factor in off.items()}
    (found,) = sensitivity(TENSOR, {TENSOR.name: ERRORS}, probed(TENSOR, klds), QTYPES, tuple(off))
    assert found.alpha.value == pytest.approx(ALPHA, rel=0.02)
    assert found.noise == pytest.approx(NOISE, rel=0.03)


def test_a_probe_alone_counts_all_as_alpha() -> None:
    found = sensitivity(TENSOR, {TENSOR.name: ERRORS}, probed(TENSOR, {"Q2_K": [0.02, 0.04]}), QTYPES, PROBES)[0]
    assert found.alpha.value == pytest.approx(0.03 / 0.08)
    assert found.alpha.se == pytest.approx(0.01 / 0.08)
    assert (found.noise, found.probes) == ({}, ("Q2_K",))


def test_of_one_probe_per_kernel_the_larger_error_tells_alpha() -> None:
    klds = {"Q2_K": [0.024] * 4, "Q8_0": [3e-5] * 4}
    found = sensitivity(TENSOR, {TENSOR.name: ERRORS}, probed(TENSOR, klds), QTYPES, ("Q8_0", "Q2_K"))[0]
    assert found.alpha.value == pytest.approx(0.024 / 0.08)
    assert found.noise == pytest.approx({32: 3e-5 - 0.3 * 2e-5})


def test_nothing_found_is_negative() -> None:
    klds = {"Q2_K": [0.024] * 4, "Q6_K": [8e-5] * 4, "Q8_0": [5e-6] * 4}  # less than in proportion: noise would be below 0
    found = sensitivity(TENSOR, {TENSOR.name: ERRORS}, probed(TENSOR, klds), QTYPES, PROBES)[0]
    assert found.noise[256] == 0
    assert found.noise[32] >= 0
    assert 0.25 < found.alpha.value < 0.32


def test_a_group_shares_its_alpha_and_divides_its_noise() -> None:
    errors = {PAIR.tensors[0]: ERRORS, PAIR.tensors[1]: {name: 3 * error for name, error in ERRORS.items()}}
    klds = {name: [kld_of(name, 4 * ERRORS[name])] * 4 for name in PROBES}
    found = sensitivity(PAIR, errors, probed(PAIR, klds), QTYPES, PROBES)
    assert [(item.tensor, item.group, item.status) for item in found] == [(name, "attn_v", "measured") for name in PAIR.tensors]
    for item in found:
        assert item.alpha.value == pytest.approx(ALPHA)
        assert item.noise == pytest.approx({block: value / 2 for block, value in NOISE.items()})


def test_what_was_not_probed_is_not_in_the_graph() -> None:
    for group, own_name in ((TENSOR, ""), (PAIR, "attn_v")):
        found = sensitivity(group, dict.fromkeys(group.tensors, ERRORS), {NULL_MIX.id: scores([0.0])}, QTYPES, PROBES)
        assert [(item.tensor, item.status, item.alpha.value, item.group) for item in found] == [
            (name, "not probed", 0, own_name) for name in group.tensors
        ]


def test_a_probe_needs_the_errors_of_all_tensors_of_its_group() -> None:
    errors = {PAIR.tensors[0]: ERRORS, PAIR.tensors[1]: {"Q2_K": 0.08}}
    klds = {name: [0.01, 0.01] for name in PROBES}
    assert sensitivity(PAIR, errors, probed(PAIR, klds), QTYPES, PROBES)[0].probes == ("Q2_K",)


@pytest.mark.parametrize(
    ("klds", "floor", "status"),
    [
        ([0.010, 0.012], 0.003, "measured"),
        ([0.010, 0.012], 0.004, "drowned"),  # below three floors
        ([0.001, 0.021], 0.0, "drowned"),  # below two of its own errors
        ([-0.001, -0.002], 0.0, "drowned"),
    ],
)
def test_a_probe_drowns_in_the_floor_or_in_its_own_error(klds: list[float], floor: float, status: str) -> None:
    found = sensitivity(TENSOR, {TENSOR.name: ERRORS}, probed(TENSOR, {"Q2_K": klds}), QTYPES, PROBES, floor_nats=floor)[0]
    assert found.status == status
    assert is_drowned(mean_kld(scores(klds)), floor) is (status == "drowned")


def test_the_largest_probe_decides_whether_a_tensor_drowns() -> None:
    klds = {"Q2_K": [0.024] * 4, "Q8_0": [1e-6, -1e-6] * 2}
    assert sensitivity(TENSOR, {TENSOR.name: ERRORS}, probed(TENSOR, klds), QTYPES, PROBES, floor_nats=1e-4)[0].status == "measured"


def test_a_probe_on_fewer_chunks_is_compared_on_those_it_has() -> None:
    hard = np.array([1.0, 1.0, 1.0, 5.0])
    klds = {"Q2_K": kld_of("Q2_K", ERRORS["Q2_K"]) * hard, "Q4_K": kld_of("Q4_K", ERRORS["Q4_K"]) * hard[:2]}
    one, both = (sensitivity(TENSOR, {TENSOR.name: ERRORS}, probed(TENSOR, klds), QTYPES, types)[0] for types in (["Q2_K"], klds))
    assert both.probes == ("Q2_K", "Q4_K")
    assert both.alpha.value == pytest.approx(one.alpha.value, rel=0.03)


def test_what_a_large_error_has_too_much_is_not_noise() -> None:
    klds = {"Q2_K": [0.024] * 4, "Q4_K": [0.0024] * 4}  # 60 % more than in proportion
    (found,) = sensitivity(TENSOR, {TENSOR.name: ERRORS}, probed(TENSOR, klds), QTYPES, ("Q2_K", "Q4_K"))
    assert found.noise == {}
    assert 0.3 < found.alpha.value < 0.48


def test_text_that_the_base_was_never_taught_does_not_count() -> None:
    known, foreign = ChunkScore(0, 100, 450.0, 0.0, 100, 0.0), ChunkScore(1, 100, 1300.0, 0.0, 100, 0.0)
    assert [is_readable(score, 4096) for score in (known, foreign)] == [True, False]
    rows = {"both": scores([0.1, 0.9]), "foreign alone": scores([0.1, 0.9])[1:]}
    found = readable(rows, [known, foreign], 4096)
    assert {mix: [score.index for score in row] for mix, row in found.items()} == {"both": [0], "foreign alone": [1]}
    assert readable(rows, [foreign], 4096) == rows


# Standard errors


def noisy(n_chunks: int, seed: int = 0) -> dict[str, Doubles]:
    """Probes whose chunks scatter, together and each on its own."""
    rng = np.random.default_rng(seed)
    common = rng.gamma(4, size=n_chunks) / 4
    return {name: kld_of(name, ERRORS[name]) * common * (1 + 0.1 * rng.standard_normal(n_chunks)) for name in PROBES}


def solved(klds: Mapping[str, Doubles]) -> Doubles:
    """alpha of every chunk: three equations, three unknowns."""
    design = np.array([[ERRORS["Q2_K"], 0, 1], [ERRORS["Q6_K"], 0, 1], [ERRORS["Q8_0"], 1, 0]])
    result: Doubles = np.linalg.solve(design, np.stack([klds[name] for name in PROBES]))[0]
    return result


def test_the_error_is_that_of_alphas_solved_chunk_by_chunk() -> None:
    klds = noisy(60)
    found = sensitivity(TENSOR, {TENSOR.name: ERRORS}, probed(TENSOR, klds), QTYPES, PROBES)[0]
    assert found.alpha.value == pytest.approx(solved(klds).mean())
    assert found.alpha.se == pytest.approx(solved(klds).std(ddof=1) / np.sqrt(60))


def test_chunks_of_unequal_length_count_by_their_tokens() -> None:
    klds, n_tokens = noisy(60), np.random.default_rng(1).integers(20, 300, size=60)
    found = sensitivity(TENSOR, {TENSOR.name: ERRORS}, probed(TENSOR, klds, n_tokens.tolist()), QTYPES, PROBES)[0]
    mean = np.average(solved(klds), weights=n_tokens)
    assert found.alpha.value == pytest.approx(mean)
    assert found.alpha.se == pytest.approx(np.sqrt(60 / 59 * np.square(n_tokens * (solved(klds) - mean)).sum()) / n_tokens.sum())


def test_errors_shrink_with_the_root_of_the_chunks() -> None:
    few, many = (sensitivity(TENSOR, {TENSOR.name: ERRORS}, probed(TENSOR, noisy(n)), QTYPES, PROBES)[0].alpha for n in (100, 1600))
    assert few.se / many.se == pytest.approx(4, rel=0.2)
    assert abs(many.value - ALPHA) < 3 * many.se


def test_only_chunks_that_all_probes_have_count_in_whatever_order() -> None:
    klds, errors = noisy(40), {TENSOR.name: ERRORS}
    expected = sensitivity(TENSOR, errors, probed(TENSOR, klds), QTYPES, PROBES)[0]
    shuffled = probed(TENSOR, klds)
    shuffled[TENSOR.mix("Q2_K").id].reverse()
    shuffled[TENSOR.mix("Q8_0").id].append(ChunkScore(99, 100, 200.0, 50.0, 90, 0.1))
    found = sensitivity(TENSOR, errors, shuffled, QTYPES, PROBES)[0]
    assert (found.alpha.value, found.alpha.se) == pytest.approx((expected.alpha.value, expected.alpha.se))


# Weighing


NAMES = [f"blk.{layer}.attn_v.weight" for layer in range(9)]
KLDS = dict(zip(NAMES, np.random.default_rng(3).lognormal(-7, 1, 9).tolist(), strict=True))


def weighed(mixes: Sequence[Mix], noise: float = 0.0) -> dict[str, Estimate]:
    rng = np.random.default_rng(4)
    return weigh(mixes, NAMES, [Estimate(sum(KLDS[name] for name in mix.types) + noise * rng.standard_normal()) for mix in mixes])


def test_tensors_are_weighed_in_halves_that_complete_each_other() -> None:
    mixes = weighing_mixes(NAMES, "Q2_K", 8, seed=0)
    for half, other in zip(mixes[::2], mixes[1::2], strict=True):
        assert sorted([*half.types, *other.types]) == NAMES
        assert {len(half.types), len(other.types)} == {4, 5}
        assert {*half.types.values(), *other.types.values()} == {"Q2_K"}
    assert len({mix.id for mix in mixes}) == 8
    assert weighing_mixes(NAMES, "Q2_K", 7, seed=0) == mixes[:7]
    assert weighing_mixes(NAMES, "Q2_K", 8, seed=1) != mixes


def test_weighing_finds_every_tensor_again() -> None:
    found = weighed(weighing_mixes(NAMES, "Q2_K", 30, seed=0))
    assert {name: kld.value for name, kld in found.items()} == pytest.approx(KLDS, rel=1e-9)
    assert max(kld.se for kld in found.values()) < 1e-12


def test_errors_of_weighing_are_those_of_what_it_finds() -> None:
    found = weighed(weighing_mixes(NAMES, "Q2_K", 60, seed=0), noise=2e-5)
    deviations = [(kld.value - KLDS[name]) / kld.se for name, kld in found.items()]
    assert 0.5 < np.sqrt(np.mean(np.square(deviations))) < 1.6
    assert max(abs(each) for each in deviations) < 3


def test_what_the_halves_do_not_determine_is_not_stated() -> None:
    found = weighed(weighing_mixes(NAMES, "Q2_K", 10, seed=0))  # five halves and the sum
    assert all(kld.se == np.inf for name, kld in found.items() if kld.value != pytest.approx(KLDS[name], rel=1e-3))
    assert np.inf in [kld.se for kld in found.values()]


def test_too_few_halves_are_refused() -> None:
    with pytest.raises(InferenceError, match=r"9 halves cannot weigh 9 tensors.*at least 10"):
        weighed(weighing_mixes(NAMES, "Q2_K", 9, seed=0))
