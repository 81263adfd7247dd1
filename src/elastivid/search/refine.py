"""Exact starts and ends on request: single frames around each border of a moment, embedded one by one.

The borders that come from window scores are a good guess (see `boundaries`). Here frames every `STEP_SECONDS` within
`REACH_SECONDS` of a guess are decoded and scored alone against the query; the border is where a step, one mean before
and another after, fits these scores best (least squares). A border at which no step explains enough of the scores stays
as it was, as at the start of a file whose event is already under way.

Cost for each moment: up to 2 * 2 * REACH / STEP = 50 frames decoded and embedded, as much work as a dozen windows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from elastivid.core.point import OperatingPoint, Sampling
from elastivid.search.examples import transform_of
from elastivid.search.moments import Moment

if TYPE_CHECKING:
    from elastivid.search.index import Encoder

STEP_SECONDS = 0.25
REACH_SECONDS = 3.125
LEAST_EXPLAINED = 0.3  # share of the variance of scores that a step must explain
SHORTEST_SECONDS = 0.5
_BATCH = 16


def refine_moment(
    encoder: Encoder, moment: Moment, query: np.ndarray, sampling: Sampling, point: OperatingPoint
) -> Moment:
    """The moment with start and end found among single frames.

    Args:
        encoder: model of the index.
        moment: as `find_moments` gives it.
        query: float32 (D,), unit vector.
        sampling, point: what the index was made with.

    Raises:
        VideoError: the file cannot be read.
    """
    from elastivid.search.reading import Reading, decode_mode

    start, end = moment.start_seconds, moment.end_seconds
    reading = Reading(sampling, transform=transform_of(encoder))
    with reading.open(moment.path) as reader:
        duration = reader.metadata.duration_seconds or end
        mode = decode_mode(reader, sampling)
        near_start = _grid(start, 0.0, min(end, duration))
        near_end = _grid(end, max(start, 0.0), duration)
        wanted = np.union1d(near_start, near_end)
        clip = reader.frames_played_at(wanted, decode=mode)
    times = wanted[: len(clip)]
    if not len(times):
        return moment
    frames = reading.crop(clip.frames)
    vectors = [_embed(encoder, frames[k : k + _BATCH], point) for k in range(0, len(times), _BATCH)]
    scores = np.concatenate(vectors) @ query  # (n, D) @ (D,) -> (n,)
    new_start = find_step(times, scores, near_start, rising=True)
    new_end = find_step(times, scores, near_end, rising=False)
    start, end = (start if new_start is None else new_start), (end if new_end is None else new_end)
    if end - start < SHORTEST_SECONDS:
        return moment
    return replace(moment, start_seconds=start, end_seconds=end)


def find_step(times: np.ndarray, scores: np.ndarray, near: np.ndarray, *, rising: bool) -> float | None:
    """Time of the step that explains the scores at the times `near` best; None when none explains enough.

    Args:
        times: float64 (n,) seconds, ascending.
        scores: float (n,).
        near: the times to look at.
        rising: whether the scores go up at the step.
    """
    chosen = np.isin(times, near)
    t, s = times[chosen], scores[chosen].astype(np.float64)
    n = len(t)
    if n < 2:
        return None
    s = s - s.mean()
    total = float(s @ s)
    before = np.cumsum(s)[:-1]  # (n - 1,), sum of the scores before each step; after it the sum is the negative
    count = np.arange(1, n)
    explained = before**2 * (1 / count + 1 / (n - count))
    explained[(before < 0) != rising] = -1.0
    k = int(explained.argmax())
    if total <= 1e-12 or explained[k] < LEAST_EXPLAINED * total:
        return None
    return float(t[k] + t[k + 1]) / 2


def _grid(middle: float, low: float, high: float) -> np.ndarray:
    """Times within reach of `middle` and within [low, high), rounded so that grids of both borders share times."""
    first = np.ceil(max(middle - REACH_SECONDS, low) / STEP_SECONDS)
    last = np.floor(min(middle + REACH_SECONDS, high - 1e-3) / STEP_SECONDS)
    out: np.ndarray = (np.arange(first, last + 1)) * STEP_SECONDS
    return out


def _embed(encoder: Encoder, frames: np.ndarray, point: OperatingPoint) -> np.ndarray:
    from elastivid.search.indexing import embed_windows

    return embed_windows(encoder, frames[:, None], point)  # (n, H, W, 3) -> (n, 1, H, W, 3)
