"""How sizes, counts, times and figures are written."""

from __future__ import annotations

import math

import pytest

from quantailor.present import words
from quantailor.records import Estimate


@pytest.mark.parametrize(
    ("value", "se", "expected"),
    [
        *((0.012341, 0.00056, "0.01234 ± 0.00056"), (12.3456, 0.31, "12.35 ± 0.31"), (1.5e-5, 2e-6, "(1.50 ± 0.20)e-5")),
        *((0.5, 0.0, "0.500"), (0.0, 0.01, "0.000 ± 0.010"), (123456.0, 999.0, "123,456 ± 999"), (math.nan, 1.0, "n/a")),
        *((1e-6, 0.02, "0.000 ± 0.020"), (0.0996, 0.00996, "0.100 ± 0.010")),
    ],
)
def test_figures_have_the_digits_that_their_errors_allow(value: float, se: float, expected: str) -> None:
    assert words.with_error(Estimate(value, se)) == expected


def test_figures_are_short() -> None:
    assert [words.figure(value) for value in (0.01234, 1.234e-5, 12345.6, 0, 9.999e-4, math.inf)] == [
        "0.0123",
        "1.23e-5",
        "12,346",
        "0",
        "0.00100",
        "∞",
    ]
    assert [words.size(value) for value in (512, 2**20, 5.46 * 2**30)] == ["512 B", "1.00 MiB", "5.46 GiB"]
    assert words.exact_size(1_536_000) == "1.46 MiB (1,536,000 bytes)"


@pytest.mark.parametrize(
    ("n", "noun", "expected"),
    [
        *((1, "strategy", "1 strategy"), (2, "strategy", "2 strategies"), (0, "tensor", "0 tensors"), (1200, "chunk", "1,200 chunks")),
        *((3, "mix", "3 mixes"), (2, "key", "2 keys")),
    ],
)
def test_plurals(n: int, noun: str, expected: str) -> None:
    assert words.plural(n, noun) == expected


def test_counts_and_lists_in_words() -> None:
    assert [words.counted(n, "tensor") for n in (0, 1, 2, 12)] == ["no tensors", "one tensor", "two tensors", "12 tensors"]
    assert [words.count(n) for n in (12_345, 1_240_000, 8.03e9)] == ["12,345", "1.24 M", "8.03 B"]
    assert [words.listed(items) for items in ([], ["a"], ["a", "b", "c"])] == ["", "a", "a, b and c"]


def test_times_name_their_unit_once() -> None:
    assert [words.duration(seconds) for seconds in (-1, 40, 720, 11_520, 181_440)] == ["0 s", "40 s", "12 min", "3.2 h", "2.1 days"]
    assert words.time_left((180, 300)) == "3 to 5 min left"
    assert words.span(80, 300) == "80 s to 5 min"
    assert words.time_left(None) == ""


def test_rates_are_sizes_for_bytes_and_counts_for_the_rest() -> None:
    assert words.rate(3 * 2**20, "bytes") == "3.00 MiB per second"
    assert words.rate(12e6, "weights") == "12.0 M weights per second"
    assert words.rate(0.25, "chunks") == "0.25 chunks per second"


def test_shares_intervals_and_ratios() -> None:
    assert (words.percent(0.1234, 1), words.percent(0.0049), words.percent(1.0, 0)) == ("12.3 %", "0.490 %", "100 %")
    assert words.percent_with_error(Estimate(0.123, 0.004)) == "12.30 ± 0.40 %"
    assert words.around(0.6505, (0.5886, 0.7334)) == "0.650 (0.589 to 0.733)"
    assert (words.kld(0.0121, (0.0104, 0.0146)), words.kld(0.0121, None)) == ("0.0121 (0.0104 to 0.0146)", "0.0121")
    assert words.kld(None, None) == words.kld(None, None, "Books has not been probed") == "ranking only"
    assert words.kld(None, None, "too early to predict: one mix") == "too early to predict"
    assert words.kld(None, None, "nothing is measured with plain rounding") == "not predicted"
    assert (words.size_change(3 * 2**20), words.size_change(-512)) == ("+3.00 MiB", "−512 B")
