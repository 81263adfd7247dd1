"""Frames and shapes: within the clip, spread as promised, and drawn from seed and step alone."""

from __future__ import annotations

import numpy as np
import pytest

from elastivid.core.errors import PointError
from elastivid.data.sampling import Dense, Segments, Shapes, Uniform
from elastivid.video.samplers import uniform


def test_views_look_between_each_others_frames():
    for sampling in (Uniform(), Segments()):
        assert np.array_equal(sampling.views(80, 4, 1)[0], uniform(80, 4))
        views = sampling.views(80, 4, 2)
        assert views.tolist() == [[5, 25, 45, 65], [15, 35, 55, 75]]
        assert sampling.views(3, 8, 4).shape == (4, 8)


def test_segments_jitter_within_their_parts():
    rng = np.random.default_rng(0)
    draws = np.stack([Segments().draw(40, 4, rng) for _ in range(400)])
    assert ((draws // 10) == np.arange(4)).all()
    assert all(len(set(column)) == 10 for column in draws.T)
    assert np.array_equal(Uniform().draw(40, 4, rng), uniform(40, 4))


def test_dense_clips_start_everywhere_and_views_reach_both_ends():
    rng = np.random.default_rng(0)
    starts = {int(Dense(3).draw(20, 4, rng)[0]) for _ in range(400)}
    assert starts == set(range(11))
    assert Dense(3).views(20, 4, 3).tolist() == [[0, 3, 6, 9], [5, 8, 11, 14], [10, 13, 16, 19]]
    assert Dense(3).views(20, 4, 1).tolist() == [[5, 8, 11, 14]]
    assert Dense(3).draw(5, 4, rng).tolist() == [0, 3, 4, 4]


def test_flexi_keeps_what_fits_the_threshold():
    shapes = Shapes.flexi((4, 24, 2), (168, 252, 28), (2048, 4096))
    expected = {(t, s) for t in range(4, 25, 2) for s in (168, 196, 224, 252) if 2048 <= t * (s // 14) ** 2 <= 4096}
    assert set(shapes.choices) == expected
    assert (16, 224) in expected
    drawn = [shapes.at(3, step) for step in range(2000)]
    assert set(drawn) == expected
    assert drawn == [shapes.at(3, step) for step in range(2000)]
    assert drawn != [shapes.at(4, step) for step in range(2000)]
    counts = [drawn.count(pair) for pair in expected]
    assert max(counts) < 2 * min(counts)


def test_impossible_shapes_are_refused():
    with pytest.raises(PointError, match=r"no pair of frames \(4, 8, 2\) and sizes .* has 9000 to 9999 tokens"):
        Shapes.flexi((4, 8, 2), (168, 252, 28), (9000, 9999))
    with pytest.raises(PointError, match=r"sides must be multiples of the patch size 14, got \[100\]"):
        Shapes.flexi((4, 8, 2), (100, 100, 28), (1, 9999))
    with pytest.raises(PointError, match="at least one"):
        Shapes(())
