"""Intervals and tests against closed forms, enumeration and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from elastivid.evaluate.statistics import bootstrap, holm, mcnemar, paired_bootstrap


def test_bootstrap_of_independent_hits_has_the_width_of_the_binomial():
    hits = np.arange(400) % 4 == 0
    found = bootstrap(hits)
    spread = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert found.value == 0.25
    assert (found.low, found.high) == (
        pytest.approx(0.25 - spread, abs=0.005),
        pytest.approx(0.25 + spread, abs=0.005),
    )
    assert found == bootstrap(hits)
    assert found != bootstrap(hits, seed=1)


def test_bootstrap_of_two_sources_is_what_enumeration_gives():
    """Sources of 3 and 1 samples: the four equally likely draws have means 1, 3/4, 3/4 and 0."""
    found = bootstrap([1, 1, 1, 0], ["a", "a", "a", "b"], level=0.4, resamples=4000)
    means = sorted((3 * (draw.count("a"))) / (3 * draw.count("a") + draw.count("b"))
                   for draw in itertools.product("ab", repeat=2))  # fmt: skip
    assert means == [0, 0.75, 0.75, 1]
    assert (found.value, found.low, found.high, found.sources) == (0.75, 0.75, 0.75, 2)
    assert (bootstrap([1, 1, 1, 0], list("aaab"), level=0.8).low, bootstrap([1, 1, 1, 0], list("aaab")).high) == (0, 1)


def test_samples_of_one_source_do_not_count_as_independent():
    rng = np.random.default_rng(3)
    sources = np.repeat(np.arange(40), 10)
    hits = rng.random(40)[sources] < 0.5
    alone, together = bootstrap(hits), bootstrap(hits, sources.tolist())
    assert together.high - together.low > 2.5 * (alone.high - alone.low)  # sqrt(10) wider in the limit


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(200):
        means = rng.normal(0.3, 1.0, 30)
        values = np.repeat(means, 5) + rng.normal(0, 0.2, 150)
        found = bootstrap(values, np.repeat(np.arange(30), 5).tolist(), resamples=400, seed=seed)
        covered += found.low <= 0.3 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_pairing_sees_what_two_intervals_do_not():
    """The second is right wherever the first is, and on 12 of 200 more."""
    first = np.arange(200) % 2 == 0
    second = first.copy()
    second[1:25:2] = True
    found = paired_bootstrap(first, second)
    assert found.difference == pytest.approx(0.06)
    assert found.distinguishable
    assert found.p_value < 0.01
    assert bootstrap(first).high > bootstrap(second).low
    back = paired_bootstrap(second, first)
    assert (back.difference, back.low, back.high) == (-found.difference, -found.high, -found.low)
    assert "not distinguishable" not in str(found)


def test_equal_systems_cannot_be_told_apart():
    same = np.arange(50) % 3 == 0
    found = paired_bootstrap(same, same)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert "not distinguishable" in str(found)


def test_p_values_are_uniform_where_nothing_differs():
    rng = np.random.default_rng(2)
    p = [paired_bootstrap(rng.normal(size=60), rng.normal(size=60), resamples=300).p_value for _ in range(200)]
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.11
    assert 0.4 <= np.mean(np.array(p) < 0.5) <= 0.6


def brute_force_mcnemar(only_first: int, only_second: int) -> float:
    """Share of all assignments of the discordant samples that are at least as one-sided."""
    trials = only_first + only_second
    extreme = abs(only_first - only_second)
    hits = sum(abs(2 * sum(signs) - trials) >= extreme for signs in itertools.product((0, 1), repeat=trials))
    return hits / 2**trials


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (0, 1), (3, 3), (2, 7), (0, 10), (5, 6)])
def test_mcnemar_is_the_exact_share_of_as_extreme_outcomes(only_first, only_second):
    first = [True] * only_first + [False] * only_second + [True, False, False]
    second = [False] * only_first + [True] * only_second + [True, False, False]
    assert mcnemar(first, second) == pytest.approx(brute_force_mcnemar(only_first, only_second), rel=1e-12)
    assert mcnemar(first, second) == mcnemar(second, first)


def test_mcnemar_of_many_samples_stays_exact():
    assert 0 < mcnemar([True] * 5000 + [False] * 6000, [False] * 5000 + [True] * 6000) < 1e-20


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]).shape == (0,)


def test_errors():
    with pytest.raises(ValueError, match="at least one"):
        bootstrap([])
    with pytest.raises(ValueError, match="finite"):
        bootstrap([0.0, math.nan])
    with pytest.raises(ValueError, match="one source a sample, got 1 for 2"):
        bootstrap([0, 1], ["a"])
    with pytest.raises(ValueError, match="0 < level < 1"):
        bootstrap([0, 1], level=95)
    with pytest.raises(ValueError, match="same samples"):
        paired_bootstrap([0, 1], [1])
    with pytest.raises(ValueError, match="true and false"):
        mcnemar([0.5, 1], [1, 0])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        holm([0.5, 1.2])
