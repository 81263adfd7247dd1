"""Starts and ends from window scores: exact where the scores follow the model, bounded where they do not."""

import numpy as np
import pytest
from worlds import a_record

from elastivid.search.boundaries import INNER, fit_boundaries
from elastivid.search.moments import find_moments
from elastivid.search.snapshot import WINDOW, Snapshot


def windows(count: int, length: float = 4.0, stride: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    starts = stride * np.arange(count)
    return starts, starts + length


def shares(starts: np.ndarray, ends: np.ndarray, begin: float, stop: float) -> np.ndarray:
    return np.clip(np.minimum(ends, stop) - np.maximum(starts, begin), 0, None) / (ends - starts)


def fit(starts: np.ndarray, ends: np.ndarray, scores: np.ndarray, step: float = 0.5) -> tuple[float, float]:
    run = np.flatnonzero(scores >= 0.5 * scores.max())
    return fit_boundaries(starts, ends, scores, int(run[0]), int(run[-1]), step)


@pytest.mark.parametrize("response", [1.0, 0.5, 0.3])
def test_planted_events_are_recovered_exactly(response):
    starts, ends = windows(40)
    rng = np.random.default_rng(0)
    for _ in range(200):
        begin = 0.5 * int(rng.integers(20, 60))
        stop = begin + 0.5 * int(rng.integers(12, 60))  # from 6 s on: always one window is full
        scores = 0.1 + 0.6 * shares(starts, ends, begin, stop) ** response
        assert fit(starts, ends, scores - 0.1) == (begin, stop)


def test_short_events_are_found_within_a_stride():
    starts, ends = windows(40)
    for begin in np.arange(20, 22, 0.5):
        for lasts in np.arange(1.0, 6.0, 0.5):
            got = fit(starts, ends, shares(starts, ends, begin, begin + lasts))
            assert abs(got[0] - begin) <= 2.0
            assert abs(got[1] - begin - lasts) <= 2.0


def test_the_scale_and_the_background_of_scores_do_not_matter():
    starts, ends = windows(30)
    scores = shares(starts, ends, 21.5, 28.0) ** 0.5
    run = np.flatnonzero(scores > 0.5)
    for scale, background in ((1, 0), (0.01, 0.3), (5, -2)):
        got = fit_boundaries(starts, ends, background + scale * scores, int(run[0]), int(run[-1]), 0.5)
        assert got == (21.5, 28.0)


def test_windows_of_other_lengths_and_strides():
    for length, stride, step in ((2.0, 1.0, 0.25), (8.0, 2.0, 1.0), (6.0, 3.0, 0.75)):
        starts, ends = windows(40, length, stride)
        begin, stop = 10 * step + 4 * length, 10 * step + 6 * length + step
        assert fit(starts, ends, shares(starts, ends, begin, stop), step) == (begin, stop)


def test_noise_moves_borders_by_less_than_a_stride():
    starts, ends = windows(40)
    rng = np.random.default_rng(1)
    errors = []
    for _ in range(100):
        begin = rng.uniform(20, 30)
        stop = begin + rng.uniform(4, 20)
        scores = shares(starts, ends, begin, stop) ** 0.4 + rng.normal(0, 0.03, 40)
        got = fit(starts, ends, scores)
        errors += [abs(got[0] - begin), abs(got[1] - stop)]
    assert np.mean(errors) < 0.6
    assert np.max(errors) < 2.5


def test_borders_of_the_file_are_kept():
    starts, ends = windows(10)
    assert fit(starts, ends, shares(starts, ends, 0.0, 7.5))[0] == 0.0
    assert fit(starts, ends, shares(starts, ends, 12.5, 22.0))[1] == 22.0
    assert fit(starts, ends, np.ones(10)) == (0.0, 22.0)
    assert fit_boundaries(np.array([0.0]), np.array([1.5]), np.array([0.7]), 0, 0, 0.5) == (0.0, 1.5)


def test_constant_scores_and_steps_as_long_as_a_window_stay_within_the_windows():
    starts, ends = windows(10)
    for step in (0.5, 4.0):
        start, end = fit_boundaries(starts, ends, np.full(10, 0.3), 3, 5, step)
        assert 6.0 <= start < end <= 14.0


def test_long_moments_take_no_more_windows_than_short_ones():
    starts, ends = windows(5000)
    scores = shares(starts, ends, 101.5, 9000.5)
    assert fit(starts, ends, scores) == (101.5, 9000.5)
    scores[200:4000] = np.random.default_rng(0).uniform(0.6, 1.0, 3800)  # deep inside: must not matter
    assert INNER < 150
    assert fit(starts, ends, scores) == (101.5, 9000.5)


def test_find_moments_gives_the_planted_times():
    """Unit vectors whose scores for the query are linear in what a window shares with the event."""
    starts, ends = windows(60)
    scores = 0.05 + 0.9 * shares(starts, ends, 40.5, 47.0)
    vectors = np.stack([scores, np.sqrt(1 - scores**2)], axis=1).astype(np.float32)
    rows = np.array([(0, a, b) for a, b in zip(starts, ends, strict=True)], dtype=WINDOW)
    files = {0: a_record(0, "a", windows=60)}
    found = Snapshot("s", vectors, rows, files, np.ones(60, bool))
    (moment,) = find_moments(found, np.array([1.0, 0.0], np.float32), 1)
    assert (moment.start_seconds, moment.end_seconds) == (40.5, 47.0)
