"""Rate and time left: a range that holds the truth and narrows when work is even."""

import random

import pytest

from quantailor.jobs.rate import RateMeter


def test_nothing_is_said_before_enough_is_known() -> None:
    meter = RateMeter()
    for second in range(3):
        meter.add(second, 10.0 * second)
    assert meter.estimate() is None


def test_even_work_gives_a_narrow_range_around_the_truth() -> None:
    meter = RateMeter()
    for second in range(30):
        meter.add(second, 10.0 * second)
    estimate = meter.estimate()
    assert estimate is not None
    assert estimate.mean == pytest.approx(10)
    assert estimate.seconds_for(100) == pytest.approx((100 / 11, 100 / 9))


def test_uneven_work_gives_a_wider_range_that_holds_the_mean_rate() -> None:
    numbers, held, n_trials = random.Random(7), 0, 200
    for _ in range(n_trials):
        meter, done = RateMeter(), 0.0
        for second in range(40):
            meter.add(second, done)
            done += numbers.choice((1.0, 19.0))
        estimate = meter.estimate()
        assert estimate is not None
        held += estimate.low <= 10 <= estimate.high
        assert estimate.high - estimate.low > 2.5
    assert held >= 0.9 * n_trials


def test_only_recent_work_counts() -> None:
    meter = RateMeter()
    for second in range(100):
        meter.add(second, 1000.0 * second)
    for second in range(100, 200):
        meter.add(second, 99_000 + (second - 99.0))
    estimate = meter.estimate()
    assert estimate is not None
    assert estimate.mean == pytest.approx(1)


def test_a_resumed_start_is_not_taken_for_speed() -> None:
    meter = RateMeter()
    for second in range(10):
        meter.add(second, 5000.0 + second)
    estimate = meter.estimate()
    assert estimate is not None
    assert estimate.mean == pytest.approx(1)


def test_going_back_starts_afresh() -> None:
    meter = RateMeter()
    for second in range(10):
        meter.add(second, float(second))
    meter.add(10, 0)
    assert meter.estimate() is None


def test_a_standstill_has_no_rate() -> None:
    meter = RateMeter()
    for second in range(10):
        meter.add(second, 5)
    assert meter.estimate() is None
