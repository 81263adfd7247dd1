"""`TimeModel`: exact where its form is exact, sane far away, honest about its error."""

from __future__ import annotations

import numpy as np
import pytest

from elastivid.planning.timing import TimeModel, Work, non_negative_least_squares


def works(rng: np.random.Generator, count: int) -> list[Work]:
    tokens, width = rng.integers(32, 2048, count), rng.choice([64, 128, 192], count)
    return [Work(12.0 * t * w * w, 2e5, float(t), float(w)) for t, w in zip(tokens, width, strict=True)]


def milliseconds(work: Work) -> float:
    return float(np.dot(work.terms, (2.0, 15.0, 0.0, 3.0, 20.0)))


def test_finds_times_that_have_its_form():
    rng = np.random.default_rng(0)
    model = TimeModel(train := works(rng, 14), [milliseconds(w) for w in train])
    for work in [work for work in works(rng, 50) if work.macs <= model.most_macs]:
        assert model.predict(work) == pytest.approx(milliseconds(work), rel=1e-6)
    assert np.sort(np.abs(model.left_out))[-2] < 1e-6  # all but the dearest, which lies above the others


def test_stays_positive_and_grows_beyond_what_was_measured():
    rng = np.random.default_rng(1)
    train = works(rng, 10)
    model = TimeModel(train, [milliseconds(w) * rng.uniform(0.8, 1.25) for w in train])
    far = [model.predict(Work(12.0 * t * 192**2, 2e5, t, 192)) for t in (1, 4096, 8192, 65536)]
    assert all(value > 0 for value in far)
    assert far == sorted(far)
    assert far[-1] == pytest.approx(milliseconds(Work(12.0 * 65536 * 192**2, 2e5, 65536, 192)), rel=0.5)


def test_beyond_what_was_measured_every_octave_costs_a_twentieth_more_than_the_sum():
    rng = np.random.default_rng(0)
    model = TimeModel(train := works(rng, 14), [milliseconds(w) for w in train])
    for octaves in (1, 4):
        work = Work(model.most_macs * 2**octaves, 2e5, 2048.0 * 2**octaves, 192.0)
        assert model.predict(work) == pytest.approx(milliseconds(work) * 1.05**octaves, rel=0.01)


def test_corrects_what_no_sum_can_say_near_measured_points():
    """A kernel that is 1.3 times slower above 500 tokens."""
    counts = [32, 64, 128, 256, 512, 1024, 2048]
    train = [Work(12.0 * t * 192**2, 2e5, t, 192) for t in counts]
    model = TimeModel(train, [milliseconds(w) * (1.3 if w.tokens > 500 else 1.0) for w in train])
    for work in train:
        assert model.predict(work) == pytest.approx(milliseconds(work) * (1.3 if work.tokens > 500 else 1.0), rel=0.05)


def test_few_points_of_another_way_do_not_forget_what_work_costs():
    """Three points whose times happen to follow their pixels: far above them it is still the work that counts."""
    dear = Work(700e9, 15e5, 7776, 384)
    train = [*works(np.random.default_rng(3), 20), dear]
    one = TimeModel(train, [milliseconds(w) / 6 for w in train])
    few = [Work(6e9, 1.7e5, 144, 384), Work(17e9, 15e5, 972, 128), Work(14e9, 15e5, 243, 384)]
    other = TimeModel(few, [16.2, 47.8, 44.7], one)
    assert 0.8 < other.predict(dear) / one.predict(dear) < 1.6


def test_left_out_errors_tell_noise():
    rng = np.random.default_rng(2)
    train = works(rng, 30)
    model = TimeModel(train, [milliseconds(w) * float(np.exp(rng.normal(0, 0.1))) for w in train])
    assert 0.05 < float(np.abs(model.left_out).mean()) < 0.2
    assert len(TimeModel(train[:2], [1.0, 2.0]).left_out) == 0


@pytest.mark.parametrize(
    ("count", "times", "message"), [(0, [], "at least one"), (1, [1.0, 2.0], "as many"), (1, [0.0], "finite and > 0")]
)
def test_refuses_what_it_cannot_fit(count, times, message):
    with pytest.raises(ValueError, match=message):
        TimeModel([Work(1.0, 1.0, 1.0, 1.0)] * count, times)


def test_least_squares_without_negatives():
    """Equal to the unconstrained solution where that is positive, else the gradient points out of bounds."""
    rng = np.random.default_rng(3)
    matrix = rng.normal(size=(20, 4))
    wanted = np.array([1.0, 0.5, 2.0, 3.0])
    assert np.allclose(non_negative_least_squares(matrix, matrix @ wanted), wanted)
    target = matrix @ np.array([1.0, -2.0, 0.5, -0.1]) + rng.normal(0, 0.1, 20)
    found = non_negative_least_squares(matrix, target)
    gradient = matrix.T @ (matrix @ found - target)
    assert np.all(found >= 0)
    assert np.allclose(gradient[found > 0], 0, atol=1e-9)
    assert np.all(gradient[found == 0] >= -1e-9)
