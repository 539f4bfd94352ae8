"""The sum over tensors finds again what timings were made from, whole or cut, and says how far it is off."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from made_up_timings import takes, timings
from quantailor.analysis.speed import disturbed, groups, quiet_limits, quieter, speed_model, timing_of
from quantailor.evidence import speeds
from quantailor.evidence.speeds import mix_types
from quantailor.models.opening import open_model
from quantailor.models.source import ModelSource
from quantailor.records import Estimate, Timing

TYPES = ("Q4_K", "Q6_K", "IQ3_XXS")


@pytest.fixture
def source(books_llama_base: Path) -> Iterator[ModelSource]:
    opened = open_model(books_llama_base)
    yield opened
    opened.close()


@pytest.mark.parametrize("most_elements", [10**9, 3_000_000], ids=["whole", "cut"])
def test_every_mix_takes_what_it_takes_on_the_machine(source: ModelSource, most_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "MOST_ELEMENTS", most_elements)
    cut = speeds.cut_of(source)
    assert (cut is None) == (most_elements > 10**8)
    found = timings(source, TYPES, n_mixes=3)
    model = speed_model(source, found, [(name, mix_types(source, name)) for name in found if name.startswith("mix")], cut=cut)
    assert model is not None
    assert model.errors["generation"] == pytest.approx(0, abs=1e-9)
    for number in range(20):
        types = mix_types(source, f"mix {number} of {','.join(TYPES)},Q8_0")
        assert model.seconds(types, "generation") == pytest.approx(takes(source, types), rel=1e-9)
        assert model.seconds(types, "prompt") == pytest.approx(takes(source, types) / 10, rel=1e-9)


def test_the_error_is_how_far_mixes_are_off(source: ModelSource) -> None:
    found = timings(source, TYPES, n_mixes=4, mixes_off=1.05)
    model = speed_model(source, found, [(name, mix_types(source, name)) for name in found if name.startswith("mix")], cut=None)
    assert model is not None
    assert model.errors["generation"] == pytest.approx(math.log(1.05))
    alone = speed_model(source, timings(source, TYPES, n_mixes=0), [], cut=None)
    assert alone is not None
    assert alone.errors["generation"] is None


def test_a_type_that_was_not_timed_is_named(source: ModelSource) -> None:
    model = speed_model(source, timings(source, TYPES, n_mixes=0), [], cut=None)
    assert model is not None
    types = dict.fromkeys(groups(source), "Q4_K")
    assert model.untimed(types) == ()
    assert model.untimed({**types, "output.weight": "Q5_1"}) == ("Q5_1",)


def test_embeddings_that_are_only_looked_up_cost_nothing(source: ModelSource) -> None:
    found = groups(source)
    assert "token_embd.weight" not in found
    assert set(found.values()) == {"dense", "output"}


def test_the_ratio_is_that_of_quiet_turns() -> None:
    rng = np.random.default_rng(1)
    seconds = np.full((60, 2), 1e-3) * [1.0, 1.25] * rng.lognormal(0, 0.01, (60, 2))
    seconds[::2] *= rng.uniform(1, 8, (30, 2))  # half of the turns were interrupted
    timing = timing_of(seconds, 2 * seconds)
    assert timing.prompt.value == pytest.approx(1.25, rel=0.03)
    assert timing.generation.value == timing.prompt.value
    assert 0 < timing.prompt.se < 0.02
    assert timing.reference_generation_s == pytest.approx(2e-3, rel=0.03)


def test_turns_count_in_which_the_reference_is_known_to_be_quiet() -> None:
    seconds = np.full((20, 2), 1.0) * [2e-3, 5e-3]  # a machine that slows one file more than the other
    seconds[:6] = [1e-3, 1.25e-3]
    timing = timing_of(seconds, seconds, (1.1e-3, 1e-4))
    assert timing.prompt.value == pytest.approx(1.25)
    quiet = quiet_limits({"a": timing, "b": Timing(Estimate(1.0), Estimate(1.0), 2e-3, 5e-4)})
    assert quiet == pytest.approx((1.1e-3, 5.5e-4))
    assert quiet_limits({}) is None


def test_what_a_busy_machine_timed_is_found_and_the_quieter_half_of_each_kept() -> None:
    quiet = Timing(Estimate(0.8), Estimate(0.9), 1e-4, 1e-3)
    busy = Timing(Estimate(1.1), Estimate(0.7), 2e-4, 0.9e-3)
    assert disturbed({"a": quiet, "b": busy}) == ["a", "b"]
    assert disturbed({"a": quiet, "b": quiet}) == []
    assert quieter(quiet, busy) == Timing(Estimate(0.8), Estimate(0.7), 1e-4, 0.9e-3)
