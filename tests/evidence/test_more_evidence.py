"""More evidence never makes a plan worse beyond its noise, whatever is added to whatever there was."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from made_up_evidence import ERRORS, MadeUpModel, Probes

from quantailor.analysis.sensitivity import NULL_MIX
from quantailor.control import QUIET, Passes, TimeUp
from quantailor.evidence.knowledge import Knowledge
from quantailor.ggml import library
from quantailor.records import ChunkScore, Mix
from quantailor.steps.scoring import Scoring

SEEDS = range(8)
BITS = 3.5


@cache
def made_up(seed: int, foreign: tuple[int, ...] = ()) -> MadeUpModel:
    return MadeUpModel(seed, foreign=foreign)


@cache
def least(model: MadeUpModel) -> float:
    """The damage of the best mix of that size."""
    return model.truth(model.plan(None, BITS))


def _regret(model: MadeUpModel, known: Knowledge) -> float:
    return math.log(model.truth(model.plan(known, BITS)) / least(model))


@cache
def regrets(*probes: Probes, foreign: tuple[int, ...] = ()) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """ln(true damage of the plan / least there is), for every made-up model."""
    return np.array([_regret(model := made_up(seed, foreign), model.known(*probes)) for seed in SEEDS])


CASES: dict[str, tuple[tuple[Probes, ...], tuple[Probes, ...]]] = {
    "a type on few chunks": (
        (("tensor", ("Q2_K", "Q6_K", "Q8_0"), range(16)),),
        (("tensor", ("IQ3_XXS", "Q4_K"), range(1)),),
    ),
    "single tensors on one chunk beside groups": (
        (("role-depth", ("Q2_K", "Q6_K", "Q8_0"), range(8)),),
        (("tensor", ("Q2_K",), range(1)),),
    ),
    "a type that tells neither alpha alone nor noise": (
        (("tensor", ("Q2_K",), range(2)),),
        (("tensor", ("Q4_K",), range(2)),),
    ),
    "groups beside single tensors": (
        (("tensor", ("Q2_K",), range(4)),),
        (("role", ("Q2_K", "Q4_K"), range(2)), ("role-depth", ("Q4_K",), range(1))),
    ),
    "groups that tell noise alone": (
        (("tensor", ("Q2_K",), range(1)),),
        (("role", ("Q6_K", "Q8_0"), range(1)),),
    ),
    "tensors on another chunk than their roles": (
        (("role", ("Q2_K", "Q6_K", "Q8_0"), range(1)),),
        (("tensor", ("Q2_K",), range(1, 2)),),
    ),
    "a type on a chunk that no other has": (
        (("tensor", ("Q2_K",), range(1)),),
        (("tensor", ("Q6_K",), range(1, 2)),),
    ),
    "another chunk": ((("tensor", ("Q2_K",), range(1)),), (("tensor", ("Q2_K",), range(2)),)),
}
MANY_PROBES = (
    "a type on few chunks",
    "single tensors on one chunk beside groups",
    "a type that tells neither alpha alone nor noise",
    "groups beside single tensors",
)
"""Whose scores take up to a second to make up."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name in MANY_PROBES else []) for name in CASES])
def test_what_is_added_does_not_hurt(name: str) -> None:
    before, added = CASES[name]
    worse = regrets(*before, *added) - regrets(*before)
    error = worse.std(ddof=1) / math.sqrt(len(worse))
    assert worse.mean() < max(0.01, 2 * error)
    assert np.quantile(worse, 0.9) < 0.08


def test_few_probes_of_roles_are_worth_a_plan() -> None:
    few = regrets(("role", ("Q2_K",), range(1)))
    more = regrets(("role", ("Q2_K", "Q6_K", "Q8_0"), range(1)), ("tensor", ("Q2_K",), range(1, 2)))
    assert more.mean() < 0.6 * few.mean()
    assert few.mean() < 0.3


def test_every_tensor_has_an_alpha_and_says_how_uncertain_it_is() -> None:
    model = made_up(0)
    known = model.known(("tensor", ("Q2_K",), range(2)), only=["blk.0.attn_q.weight", "blk.3.ffn_up.weight"])
    found = known.sensitivities
    assert found.keys() == {tensor.name for tensor in model.tensors}
    assert {item.status for item in found.values()} == {"measured", "not probed"}
    probed, alike, other = (found[name].alpha for name in ("blk.0.attn_q.weight", "blk.1.attn_q.weight", "token_embd.weight"))
    assert 0 < probed.relative_se < alike.relative_se < other.relative_se


def test_chunks_that_the_base_cannot_read_do_not_count() -> None:
    few, more = ("role-depth", ("Q2_K", "Q4_K"), range(1)), ("role-depth", ("Q2_K", "Q4_K"), range(2))
    assert regrets(more, foreign=(1,)).mean() < regrets(few, foreign=(1,)).mean() + 0.005


def test_probes_that_have_nothing_but_such_chunks_still_count() -> None:
    """A first probe finds no chunk that the base can read, later ones do; what the first says is all there is of its types."""
    model = made_up(0, foreign=(0,))
    first, later = ("tensor", ("Q2_K",), range(1)), ("tensor", ("Q6_K",), range(1, 3))
    known = model.known(first, later)
    assert {name for _, name in known.cells} == {"Q2_K", "Q6_K"}
    assert {cell.n_chunks for cell in known.cells.values()} == {1, 2}


def test_routers_that_flip_are_not_taken_for_what_kernels_cost() -> None:
    departed = []
    for seed in range(3):
        model = MadeUpModel(seed, flips=0.25)
        known = model.known(("tensor", ("Q2_K", "Q4_K", "Q6_K", "Q8_0"), range(4)))
        for tensor, type_name in itertools.product(model.tensors, ("Q6_K", "Q8_0")):
            predicted = known.damage(tensor, library.type_named(type_name), model.errors[tensor.name][type_name]).value
            departed.append(abs(math.log(predicted / model.truth({tensor.name: type_name}))))
    assert np.quantile(departed, 0.9) < 2


def test_what_is_looked_up_has_no_inputs_that_a_kernel_rounds() -> None:
    model = MadeUpModel(0, tied=False)
    known = model.known(("tensor", ("Q2_K", "Q6_K", "Q8_0"), range(4))).sensitivities
    assert set(known["token_embd.weight"].noise.values()) == {0.0}
    assert min(known["output.weight"].noise.values()) > 0


@pytest.mark.slow
def test_random_subsets_of_evidence() -> None:
    rng = np.random.default_rng(5)
    groupings, types = ("role", "role-depth", "tensor"), ("IQ2_XXS", "Q2_K", "IQ3_XXS", "Q4_K", "Q6_K", "Q8_0")
    worse = []
    for seed in range(8):
        model = made_up(seed, (1, 5))
        probes: list[Probes] = []
        last: float | None = None
        for _ in range(4):
            chosen = tuple(rng.choice(types, size=rng.integers(1, 4), replace=False))
            probes.append((str(rng.choice(groupings)), ("Q2_K", *chosen), range(int(rng.integers(1, 9)))))
            regret = _regret(model, model.known(*probes))
            if last is not None:
                worse.append(regret - last)
            last = regret
    assert np.mean(worse) < 0
    assert np.quantile(worse, 0.95) < 0.08


@pytest.mark.slow
def test_uniform_mixes_random_ones_and_optima_are_predicted_with_the_same_honesty() -> None:
    errors: dict[str, list[float]] = {"uniform": [], "random": [], "optima": []}
    for seed in range(16):
        model, rng = MadeUpModel(seed, foreign=(1, 2, 3, 5, 6)), np.random.default_rng(seed)
        known = model.known(("tensor", ("IQ2_XXS", "Q2_K", "Q4_K", "Q6_K", "Q8_0"), range(8)))
        tensors = [tensor.name for tensor in model.tensors]
        mixes = {
            "uniform": dict.fromkeys(tensors, str(rng.choice(["Q2_K", "Q3_K", "Q4_K", "Q5_K"]))),
            "random": {name: str(rng.choice(list(ERRORS))) for name in tensors},
            "optima": model.plan(known, rng.uniform(2.8, 5.0)),
        }
        # What a whole text weighs more or less is common to all mixes, and the curve's business.
        common = math.log(model.mean_chunk(range(8)))
        for kind, types in mixes.items():
            damage = known.mix(types).nats
            errors[kind].append(math.log(model.truth(types) / damage) + common)
    means = {kind: np.mean(found) for kind, found in errors.items()}
    assert all(abs(mean) < 0.1 for mean in means.values()), means
    assert max(means.values()) - min(means.values()) < 0.08, means


def test_a_mix_that_loses_most_in_one_tensor_is_less_sure_than_one_that_loses_a_little_in_all() -> None:
    model = made_up(0)
    known = model.known(("tensor", ("Q2_K", "Q6_K", "Q8_0"), range(4)))
    names = [tensor.name for tensor in model.tensors]
    even = known.mix(dict.fromkeys(names, "Q4_K"))
    uneven = known.mix({**dict.fromkeys(names, "Q8_0"), "blk.0.ffn_up.weight": "IQ2_XXS"})
    alone = known.mix({"blk.0.ffn_up.weight": "IQ2_XXS"})
    assert 0 < 2 * even.spread < uneven.spread < alone.spread
    assert math.fsum(even.parts.values()) == pytest.approx(even.nats)


class _Base:
    """A base that needs so many nats a token on each chunk, in place of a model in memory."""

    def __init__(self, nats: Mapping[int, float]) -> None:
        self._nats, self.scores, self.store = nats, dict[str, list[ChunkScore]](), self

    def score(self, mixes: Sequence[Mix], indexes: Sequence[int], *, done: Mapping[str, set[int]], control: object) -> Iterator[Any]:
        for mix in mixes:
            for index in sorted(set(indexes) - done.get(mix.id, set())):
                yield mix, ChunkScore(index, 100, 100 * self._nats[index], 0.0, 100, 0.0)

    def mix_scores(self, key: object) -> dict[str, list[ChunkScore]]:
        return self.scores

    def record_mix_scores(self, key: object, rows: Sequence[tuple[str, ChunkScore]]) -> None:
        for mix, score in rows:
            self.scores.setdefault(mix, []).append(score)


@pytest.mark.parametrize(
    ("foreign", "n_chunks", "expected"),
    [
        ((), 3, [0, 2, 4]),
        ((4, 1), 3, [0, 2, 6]),
        ((0, 1, 2, 4, 5, 6, 7), 2, [3]),
        (tuple(range(8)), 2, [0, 4]),
    ],
)
def test_probes_pass_over_chunks_that_the_base_cannot_read(foreign: tuple[int, ...], n_chunks: int, expected: list[int]) -> None:
    base: Any = _Base({index: 13.0 if index in foreign else 4.0 for index in range(8)})
    at = Scoring(base, base, base, base, base, order=(0, 4, 2, 6, 1, 5, 3, 7), n_vocab=4096)
    assert at.first(n_chunks) == expected


def test_no_more_passes_are_made_than_were_given() -> None:
    base: Any = _Base(dict.fromkeys(range(8), 4.0))
    at = Scoring(base, base, base, base, base, order=tuple(range(8)), n_vocab=4096, passes=Passes(5))
    mixes = [Mix.of({name: "Q2_K"}) for name in ("one", "two", "three")]
    at.run([NULL_MIX], range(8), QUIET)
    at.run(mixes[:1], range(3), QUIET)
    with pytest.raises(TimeUp, match="the passes are used up"):
        at.run(mixes, range(3), QUIET)
    assert {mix: len(rows) for mix, rows in base.scores.items()} == {NULL_MIX.id: 8, mixes[0].id: 3, mixes[1].id: 2}
    at.run(mixes[:1], range(3), QUIET)  # all of it is known
