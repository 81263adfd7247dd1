"""Exact starts and ends on request: single frames around each border of a moment, embedded one by one.

The borders that come from window scores are a good guess (see `boundaries`). Here frames within `REACH_SECONDS` of a
guess are decoded, and every `COARSE`th is scored alone against the query; the border is where a step, one mean before
and another after, fits these scores best (least squares). Then the interval of the step is halved until neighbours are
`STEP_SECONDS` apart: the frame in its middle belongs to the side whose mean is closer. A border at which no step
explains enough of the scores stays as it was, as at the start of a file whose event is already under way.

Cost for each moment: the seconds around both borders are decoded, about 30 frames embedded, as much work as 15 windows.
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

STEP_SECONDS = 0.125
COARSE = 4  # steps
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
        near_start = _grid(start, 0.0, min(end, duration))
        near_end = _grid(end, max(start, 0.0), duration)
        wanted = np.union1d(near_start, near_end)
        clip = reader.frames_played_at(wanted * STEP_SECONDS, decode=decode_mode(reader, sampling))
    frames, times = reading.crop(clip.frames), wanted[: len(clip)]
    scores = _Scores(encoder, frames, query, point)
    new_start = _border(scores, np.flatnonzero(np.isin(times, near_start)), rising=True)
    new_end = _border(scores, np.flatnonzero(np.isin(times, near_end)), rising=False)
    start = start if new_start is None else float(times[new_start] + times[new_start + 1]) / 2 * STEP_SECONDS
    end = end if new_end is None else float(times[new_end] + times[new_end + 1]) / 2 * STEP_SECONDS
    if end - start < SHORTEST_SECONDS:
        return moment
    return replace(moment, start_seconds=start, end_seconds=end)


class _Scores:
    """Cosines of single frames with the query, each computed when first asked for."""

    def __init__(self, encoder: Encoder, frames: np.ndarray, query: np.ndarray, point: OperatingPoint) -> None:
        self._encoder, self._frames, self._query, self._point = encoder, frames, query, point
        self._known: dict[int, float] = {}

    def of(self, rows: list[int]) -> np.ndarray:
        """Scores float64 (n,) of frames by number."""
        from elastivid.search.indexing import embed_windows

        new = [row for row in rows if row not in self._known]
        for first in range(0, len(new), _BATCH):
            some = new[first : first + _BATCH]
            clips = self._frames[some][:, None]  # (n, S, S, 3) -> (n, 1, S, S, 3)
            values = embed_windows(self._encoder, clips, self._point) @ self._query  # (n, D) @ (D,) -> (n,)
            self._known |= dict(zip(some, values.tolist(), strict=True))
        return np.array([self._known[row] for row in rows])


def _border(scores: _Scores, rows: np.ndarray, *, rising: bool) -> int | None:
    """Number of the last frame before the step among adjacent frames `rows`; None where there is no step."""
    coarse = rows[::COARSE].tolist()
    values = scores.of(coarse)
    step = find_step(values, rising=rising)
    if step is None:
        return None
    before, after = values[: step + 1].mean(), values[step + 1 :].mean()
    left, right = coarse[step], coarse[step + 1]
    while right - left > 1:
        middle = (left + right) // 2
        (value,) = scores.of([middle])
        left, right = (middle, right) if abs(value - before) < abs(value - after) else (left, middle)
    return int(left)


def find_step(scores: np.ndarray, *, rising: bool) -> int | None:
    """Number of the last score before the step that explains scores (n,) best; None when none explains enough.

    Args:
        scores: float (n,), in order of time.
        rising: whether they go up at the step.
    """
    n = len(scores)
    if n < 2:
        return None
    s = scores - scores.mean()
    total = float(s @ s)
    before = np.cumsum(s)[:-1]  # (n - 1,), sum of the scores before each step; after it the sum is the negative
    count = np.arange(1, n)
    explained = before**2 * (1 / count + 1 / (n - count))
    explained[(before < 0) != rising] = -1.0
    k = int(explained.argmax())
    return k if total > 1e-12 and explained[k] >= LEAST_EXPLAINED * total else None


def _grid(middle: float, low: float, high: float) -> np.ndarray:
    """Times in steps, int64, within reach of `middle` and within [low, high): all grids share the same times."""
    first = np.ceil(max(middle - REACH_SECONDS, low) / STEP_SECONDS)
    last = np.floor(min(middle + REACH_SECONDS, high - 1e-3) / STEP_SECONDS)
    return np.arange(int(first), int(last) + 1)
