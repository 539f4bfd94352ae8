"""A calibration whose turns others take ends in the bytes of one on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from elsewhere import Elsewhere
from quantailor.analysis.corpus import chunks, load_corpus
from quantailor.analysis.covariances.calibrating import compute_calibration
from quantailor.analysis.covariances.capture import Calibration
from quantailor.control import NullControl
from quantailor.errors import Paused
from quantailor.numerics import Tokens

BUDGET_BYTES = 60_000


@pytest.fixture(scope="module")
def tokens(small_base: Path, calibration_text: Path) -> Tokens:
    return chunks(load_corpus(small_base, calibration_text), 32, limit=3)


def run(base: Path, place: Path) -> Calibration:
    return Calibration(base, "m" * 64, place, n_threads=1, dataset="text", budget_bytes=BUDGET_BYTES)


class StopAfter(NullControl):
    def __init__(self, n_units: int) -> None:
        self.left = n_units

    def check(self) -> None:
        if self.left <= 0:
            raise Paused("enough")

    def advance(self, done: float, total: float, message: str = "") -> None:
        assert 0 < done <= total
        self.left -= 1


def test_turns_that_others_take_give_the_same_bytes_and_are_not_taken_twice(small_base: Path, tokens: Tokens, tmp_path: Path) -> None:
    here = run(small_base, tmp_path / "here.gguf")
    imatrix = compute_calibration(here, tokens)
    there, elsewhere = run(small_base, tmp_path / "there.gguf"), Elsewhere()
    with pytest.raises(Paused):
        compute_calibration(there, tokens, control=StopAfter(5), executor=elsewhere)
    assert not there.place.exists()
    n_before = len(elsewhere.done)
    found = compute_calibration(there, tokens, executor=elsewhere)
    assert found.fingerprint == imatrix.fingerprint
    assert there.place.read_bytes() == here.place.read_bytes()
    n_turns = len(elsewhere.done) - len(tokens)
    assert n_turns > 3
    assert n_before > len(tokens), "it was stopped among its turns, and goes on with those that are missing"
