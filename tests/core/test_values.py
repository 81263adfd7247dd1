"""`Clip`, `Sampling`, `OperatingPoint`, `Runtime`, `State` and the errors."""

from __future__ import annotations

import numpy as np
import pytest

from elastivid.core.clip import Clip
from elastivid.core.errors import ElastividError, MissingExtraError, PointError, UnknownNameError
from elastivid.core.point import OperatingPoint, Runtime, Sampling
from elastivid.core.state import State


def make_clip(length=3):
    frames = np.arange(length * 12, dtype=np.uint8).reshape(length, 2, 2, 3)
    return Clip(frames, list(range(length)), [i / 10 for i in range(length)], "a.mp4")


def test_clip_cuts_frames_indices_and_times_together():
    clip = make_clip()
    part = clip[[2, 0]]
    assert np.array_equal(part.frames, clip.frames[[2, 0]])
    assert part.indices.tolist() == [2, 0]
    assert part.times_seconds.tolist() == [0.2, 0.0]
    assert len(clip[1:]) == 2
    assert len(clip[1]) == 1


def test_clip_says_what_it_is():
    assert repr(make_clip()) == "Clip(3x2x2x3 uint8, 0.000-0.200 s, source='a.mp4')"
    assert "no frames" in repr(make_clip(0))
    clip = Clip(make_clip().frames, [0, 1, 2], [0, 1, 2], "b.mp4", "stopped at frame 3")
    assert clip.is_partial
    assert "partial: stopped at frame 3" in repr(clip)


def test_clip_refuses_wrong_arrays():
    with pytest.raises(TypeError, match="must be uint8 as decoders give them, got float64"):
        Clip(np.zeros((1, 2, 2, 3)), [0], [0])
    with pytest.raises(ValueError, match=r"shape \(T, H, W, C\), got \(2, 2, 3\)"):
        Clip(np.zeros((2, 2, 3), np.uint8), [0], [0])
    with pytest.raises(ValueError, match=r"must have shape \(3,\); got \(2,\) and \(3,\)"):
        Clip(make_clip().frames, [0, 1], [0, 1, 2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sampling(window_seconds=0), "window_seconds must be > 0, got 0"),
        (lambda: Sampling(stride_seconds=-1), "stride_seconds must be > 0, got -1"),
        (lambda: Sampling(frames=0), "frames must be >= 1, got 0"),
        (lambda: Sampling(size=0), "size must be >= 1 pixel, got 0"),
        (lambda: Sampling(decode="fast"), r"decode must be one of \('exact', 'keyframes'\), got 'fast'"),
        (lambda: OperatingPoint(tokens=0), "tokens must be >= 1 or None, got 0"),
        (lambda: OperatingPoint(tokens=1.5), "tokens must be a whole number >= 1 or None, got 1.5"),
        (lambda: OperatingPoint(width="64"), "width must be a whole number >= 1, one per layer or None, got '64'"),
        (lambda: OperatingPoint(width=(64, 0)), "every width must be >= 1"),
        (lambda: OperatingPoint(memory_tokens=0), "memory_tokens must be >= 1 or None"),
        (lambda: Runtime(precision="float8"), "precision must be one of .* got 'float8'"),
        (lambda: Runtime(batch=0), "batch must be >= 1, got 0"),
        (lambda: Runtime(threads=0), "threads must be >= 1 or None, got 0"),
    ],
)
def test_points_refuse_values_out_of_range(make, message):
    with pytest.raises(PointError, match=message):
        make()


def test_points_hold_plain_numbers_whatever_they_were_made_from():
    point = OperatingPoint(tokens=np.int64(8), width=[96, np.int32(48)])
    assert point == OperatingPoint(tokens=8, width=(96, 48))
    assert hash(point) == hash(OperatingPoint(tokens=8, width=(96, 48)))
    assert type(point.tokens) is type(point.width[1]) is int


def test_an_axis_the_model_lacks_is_an_error():
    point = OperatingPoint(tokens=8, width=96)
    point.require_axes(frozenset({"tokens", "width"}), "both")
    with pytest.raises(PointError, match=r"plain has no axis width; it supports tokens\. Leave it at None"):
        point.require_axes(frozenset({"tokens"}), "plain")
    with pytest.raises(PointError, match=r"no axis tokens, width; it supports none\. Leave them at None"):
        point.require_axes(frozenset(), "rigid")


def test_errors_help():
    text = str(UnknownNameError("model", "fluxvit/smal", ["fluxvit/small", "fluxvit/base", "other"]))
    assert "unknown model 'fluxvit/smal'; known: fluxvit/base, fluxvit/small, other" in text
    assert "Did you mean 'fluxvit/small'" in text
    assert "pip install 'elastivid[search]'" in str(MissingExtraError("lancedb", "search"))
    assert issubclass(MissingExtraError, ElastividError)


def test_a_state_must_have_all_its_verbs():
    with pytest.raises(TypeError, match=r"fork.*nbytes.*reset.*select.*state_dict"):
        State()
