from __future__ import annotations

import numpy as np
import pytest

from elastivid.core.errors import PointError
from elastivid.core.point import Sampling
from elastivid.video.samplers import dense, fps_capped, segments, uniform, window_times, windows


def test_uniform_takes_the_centres_of_equal_parts():
    assert uniform(10, 2).tolist() == [2, 7]
    assert uniform(8, 8).tolist() == list(range(8))
    assert uniform(3, 6).tolist() == [0, 0, 1, 1, 2, 2]
    assert uniform(1, 4).tolist() == [0] * 4


def test_segments_draw_one_frame_each():
    rng = np.random.default_rng(0)
    drawn = np.stack([segments(100, 10, rng) for _ in range(500)])
    assert np.array_equal(np.unique(drawn // 10, axis=0), [np.arange(10)])
    assert len(np.unique(drawn[:, 3])) == 10
    assert np.array_equal(segments(100, 10), uniform(100, 10))
    assert segments(2, 5, rng).max() < 2


def test_dense_is_centred_and_holds_the_last_frame():
    assert dense(100, 4, 10).tolist() == [34, 44, 54, 64]
    assert dense(100, 4, 10, start_frame=90).tolist() == [90, 99, 99, 99]
    with pytest.raises(PointError, match="start_frame"):
        dense(10, 2, 1, start_frame=10)


def test_fps_cap_thins_out_but_never_invents():
    assert fps_capped(np.arange(100) / 25, 5).tolist() == list(range(0, 100, 5))
    slow = np.array([0.0, 1.0, 3.0])
    assert fps_capped(slow, 5).tolist() == [0, 1, 2]
    assert fps_capped(np.zeros(0), 5).tolist() == []
    for fps in (0, -1, float("nan")):
        with pytest.raises(PointError, match="fps"):
            fps_capped(slow, fps)


def test_windows_cover_everything_and_end_with_the_video():
    sampling = Sampling(window_seconds=4, stride_seconds=2, frames=8)
    spans = windows(9.0, sampling)
    assert [(a, b) for a, b, _ in spans] == [(0, 4), (2, 6), (4, 8), (5, 9)]
    for start, end, times in spans:
        np.testing.assert_allclose(times, window_times(start, end, 8))
        assert start < times[0]
        assert times[-1] < end
        assert len(times) == 8
    assert [(a, b) for a, b, _ in windows(8.0, sampling)] == [(0, 4), (2, 6), (4, 8)]


def test_a_short_clip_is_one_window():
    sampling = Sampling(window_seconds=4, stride_seconds=2, frames=4)
    assert [(a, b) for a, b, _ in windows(1.0, sampling)] == [(0, 1)]
    assert windows(1.0, sampling)[0][2].tolist() == [0.125, 0.375, 0.625, 0.875]
    assert [(a, b) for a, b, _ in windows(None, sampling)] == [(0, 4)]


@pytest.mark.parametrize("call", [lambda: uniform(0, 1), lambda: uniform(1, 0), lambda: windows(-1.0, Sampling())])
def test_out_of_range_is_refused(call):
    with pytest.raises(PointError):
        call()
