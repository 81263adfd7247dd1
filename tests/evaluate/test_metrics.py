"""Metrics against closed forms and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from elastivid.evaluate.metrics import average_precision, expected_average_precision, format_share, wilson_interval


def test_average_precision_by_hand():
    assert average_precision([0.9, 0.8, 0.7, 0.6], [True, False, True, False]) == pytest.approx((1 + 2 / 3) / 2)


def test_ties_do_not_flatter():
    assert average_precision([0.5, 0.5, 0.5], [True, False, False]) == pytest.approx(1 / 3)


def test_random_ranking_equals_the_mean_over_all_orders():
    relevant = np.array([True, True, False, False, False])
    values = [average_precision(-np.array(order, float), relevant) for order in itertools.permutations(range(5))]
    assert expected_average_precision(2, 5) == pytest.approx(np.mean(values))


def test_wilson_interval_known_value():
    low, high = wilson_interval(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson_interval(0, 5)[0] == 0.0
    assert wilson_interval(5, 5)[1] == 1.0
    assert format_share(8, 10) == "80.0 % [49.0, 94.3]"


def test_errors():
    with pytest.raises(ValueError, match="at least one relevant"):
        average_precision([1.0], [False])
    with pytest.raises(ValueError, match=r"both be \(N,\)"):
        average_precision([1.0, 2.0], [True])
    with pytest.raises(ValueError, match="got 3 of 2"):
        wilson_interval(3, 2)
    with pytest.raises(ValueError, match="must be 1 to 4, got 5"):
        expected_average_precision(5, 4)
