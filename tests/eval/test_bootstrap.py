"""Intervals over calls: they hold the figure, shrink with calls, and follow pairs."""

from __future__ import annotations

import numpy as np
import pytest

from moshijax.eval import bootstrap


def shares(hits, total):
    return np.array([[1.0, 1.0]] * hits + [[0.0, 1.0]] * (total - hits))


def test_an_interval_of_a_share_is_that_of_the_binomial():
    low, high = bootstrap.interval(shares(60, 100))
    # 0.6 +- 1.96 sqrt(0.24 / 100)
    assert (low, high) == (pytest.approx(0.504, abs=0.015), pytest.approx(0.696, abs=0.015))
    wide = np.subtract(*bootstrap.interval(shares(6, 10))[::-1])
    assert wide == pytest.approx((high - low) * 10**0.5, rel=0.15)


def test_calls_are_drawn_whole_so_that_long_ones_count_more():
    parts = np.array([[10.0, 10.0], [0.0, 1.0]])  # one call with ten wrong words of ten, one with none of one
    assert bootstrap.quotient(parts) == pytest.approx(10 / 11)
    assert bootstrap.interval(parts) == (0.0, 1.0)


def test_a_difference_is_paired():
    first = shares(50, 100)
    second = np.roll(first, 3, axis=0)  # other calls right, as many
    assert bootstrap.difference(first, first) == (0.0, 0.0)
    better = first + np.array([0.25, 0.0])  # the same everywhere, so certain, although either figure is not
    assert bootstrap.difference(first, better) == (pytest.approx(0.25), pytest.approx(0.25))
    low, high = bootstrap.difference(first, second)
    assert low < 0 < high


def test_nothing_to_draw_is_no_interval():
    assert np.isnan(bootstrap.interval(np.zeros((0, 2)))).all()
    assert np.isnan(bootstrap.quotient(np.zeros((0, 2)))) and np.isnan(bootstrap.interval(np.zeros((3, 2)))).all()
