"""Which frames, which times: pure functions that decode nothing.

Index-based samplers take a number of frames and return indices; time-based samplers take seconds and return seconds.
All intervals are half-open: [start, end).
"""

from __future__ import annotations

import math

import numpy as np

from elastivid.core.errors import PointError
from elastivid.core.point import Sampling


def uniform(num_frames: int, count: int) -> np.ndarray:
    """Centres of `count` equal parts of a stream; repeats frames when the stream is shorter than `count`.

    Returns:
        int64 (count,), ascending, within [0, num_frames).

    Raises:
        PointError: a number is below 1.
    """
    _need_counts(num_frames=num_frames, count=count)
    return ((2 * np.arange(count, dtype=np.int64) + 1) * num_frames) // (2 * count)


def segments(num_frames: int, count: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """One frame out of each of `count` equal segments (temporal segment networks, arXiv:1608.00859).

    Args:
        num_frames: frames of the stream.
        count: segments, and frames returned.
        rng: draws a place within every segment (training); `None` takes the centres, as `uniform` does (testing).

    Returns:
        int64 (count,), ascending, within [0, num_frames).

    Raises:
        PointError: a number is below 1.
    """
    if rng is None:
        return uniform(num_frames, count)
    _need_counts(num_frames=num_frames, count=count)
    places = (np.arange(count) + rng.random(count)) * (num_frames / count)
    return np.minimum(places.astype(np.int64), num_frames - 1)


def dense(num_frames: int, count: int, step_frames: int, start_frame: int | None = None) -> np.ndarray:
    """`count` frames, `step_frames` apart, from `start_frame`, or around the middle of the stream when that is `None`.

    Indices beyond the end repeat the last frame.

    Returns:
        int64 (count,), ascending, within [0, num_frames).

    Raises:
        PointError: a number is below 1, or `start_frame` lies outside [0, num_frames).
    """
    _need_counts(num_frames=num_frames, count=count, step_frames=step_frames)
    if start_frame is None:
        start_frame = max((num_frames - ((count - 1) * step_frames + 1)) // 2, 0)
    if not 0 <= start_frame < num_frames:
        raise PointError(f"start_frame must lie in [0, {num_frames}), got {start_frame}")
    return np.minimum(start_frame + step_frames * np.arange(count, dtype=np.int64), num_frames - 1)


def fps_capped(times_seconds: np.ndarray, fps: float) -> np.ndarray:
    """Thin out a stream to at most `fps` frames per second; streams slower than that keep every frame.

    Args:
        times_seconds: presentation times of all frames, ascending, (T,).
        fps: frames kept per second, at most.

    Returns:
        int64 (K,): indices of the first frame of every 1/fps seconds that holds one.

    Raises:
        PointError: `fps` is not positive.
    """
    if not fps > 0:
        raise PointError(f"fps must be > 0, got {fps}")
    times = np.asarray(times_seconds, dtype=np.float64)
    if len(times) == 0:
        return np.zeros(0, dtype=np.int64)
    slots = np.floor((times - times[0]) * fps + 1e-6).astype(np.int64)
    return np.flatnonzero(np.diff(slots, prepend=slots[0] - 1) > 0)


def window_times(start_seconds: float, end_seconds: float, count: int) -> np.ndarray:
    """Centres of `count` equal parts of [start_seconds, end_seconds): float64 (count,)."""
    return start_seconds + (np.arange(count) + 0.5) * ((end_seconds - start_seconds) / count)


def windows(duration_seconds: float | None, sampling: Sampling) -> list[tuple[float, float, np.ndarray]]:
    """Overlapping windows that cover a whole video, and the times to look at within each.

    Windows start every `stride_seconds`. The last one is moved back so that it ends with the video; a video no longer
    than one window (or of unknown duration, given as `None`) gives one window.

    Returns:
        list of (start_seconds, end_seconds, times_seconds): half-open [start, end), times float64 (sampling.frames,)
        = centres of equal parts.

    Raises:
        PointError: the duration is negative or not finite.
    """
    starts, length = window_starts(duration_seconds, sampling)
    return [(start, start + length, window_times(start, start + length, sampling.frames)) for start in starts.tolist()]


def window_starts(duration_seconds: float | None, sampling: Sampling) -> tuple[np.ndarray, float]:
    """Starts of the windows that `windows` gives, in seconds, float64 (N,), and the length they share.

    Raises:
        PointError: the duration is negative or not finite.
    """
    length, stride = sampling.window_seconds, sampling.stride_seconds
    duration = length if duration_seconds is None else float(duration_seconds)
    if not (math.isfinite(duration) and duration >= 0):
        raise PointError(f"duration_seconds must be finite and >= 0, got {duration_seconds}")
    if duration <= length:
        return np.zeros(1), duration
    count = math.ceil((duration - length) / stride - 1e-9)
    return np.append(np.arange(count) * stride, duration - length), length


def _need_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise PointError(f"{name} must be >= 1, got {value}")
