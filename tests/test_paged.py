"""Large arrays in files without names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantailor import paged


def test_values_are_the_same_before_and_after_they_were_let_go(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((300, 1000)).astype(np.float32)
    kept = paged.in_file(values, tmp_path)
    assert np.array_equal(kept, values)
    paged.let_go(kept[100:])
    assert np.array_equal(kept, values)
    assert not list(tmp_path.iterdir()), "the file has no name"
    with pytest.raises(ValueError, match="read-only"):
        kept[0, 0] = 1


def test_an_array_in_memory_stays_as_it_is() -> None:
    values = np.arange(10)
    paged.let_go(values[2:])
    assert values.tolist() == list(range(10))


def test_a_folder_that_is_not_there_is_an_error_that_callers_expect(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="gone"):
        paged.in_file(np.arange(10), tmp_path / "gone")
