"""Metrics against closed forms and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from elastivid.evaluate.metrics import (
    average_precision,
    expected_average_precision,
    format_share,
    mean_class_accuracy,
    top_k_hits,
    wilson_interval,
)


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


def test_top_k_against_sorting_and_with_ties():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(50, 7)), rng.integers(0, 7, 50)
    for k in (1, 3, 7):
        first = np.argsort(-scores, axis=1)[:, :k]
        assert top_k_hits(scores, labels, k).tolist() == [
            label in row for label, row in zip(labels, first, strict=True)
        ]
    assert top_k_hits(np.zeros((2, 3)), np.array([0, 2]), 2).tolist() == [False, False]
    assert top_k_hits(np.zeros((1, 3)), np.array([0]), 3).tolist() == [True]
    assert top_k_hits(np.array([[np.nan, 1.0]]), np.array([0])).tolist() == [False]


def test_mean_class_counts_rare_classes_as_much():
    hits, labels = np.array([1, 1, 1, 0, 0]), np.array(["a", "a", "a", "a", "b"])
    assert mean_class_accuracy(hits, labels) == pytest.approx((0.75 + 0) / 2)
    with pytest.raises(ValueError, match="labels must be 0 to 1"):
        top_k_hits(np.zeros((1, 2)), np.array([2]))
    with pytest.raises(ValueError, match="N >= 1"):
        mean_class_accuracy(np.zeros(0), np.zeros(0))
