"""Where a moment starts and ends inside overlapping windows, from their scores alone. numpy only.

A window that shows a share o of an event scores between background and peak. Modelled as

    score_k = background + amplitude * o_k ** g,     o_k = |window_k and [start, end)| / |window_k|

with g = 1 for a score that is the mean over what the window covers, and g < 1 for one that rises early: most encoders
give away what a window shows as soon as a part of it does. Start and end run over a grid inside the outermost windows
of the moment, g over `RESPONSES`, background and amplitude follow in closed form; the least squares fit wins. Windows
that lie `MARGIN` beyond the moment take part, because what they do not show says most about where it ends.

An event so short that no window is full of it leaves its length open where its shares in all windows grow alike; of
fits that are equally good the longest is taken. The grid is one frame of a window (0.5 s for 8 frames in 4 s): nothing
finer was seen. A moment that touches the start or end of its file keeps that border, because there is no window beyond
it to compare with.

Cost: (window / step + 1)^2 candidates times at most 2 * (INNER + MARGIN) windows, however long the moment is.
Letters: C candidates, K windows.
"""

from __future__ import annotations

import numpy as np

RESPONSES = (1.0, 0.5, 0.3)
MARGIN = 3  # windows beyond the moment at either side
INNER = 8  # windows inside the moment at either side; those between say nothing about its borders
SHORTEST_STEPS = 2  # of the grid: shorter moments cannot be told from noise


def fit_boundaries(
    starts: np.ndarray, ends: np.ndarray, scores: np.ndarray, first: int, last: int, step_seconds: float
) -> tuple[float, float]:
    """Start and end in seconds of the event that lights up windows `first` to `last` of one file.

    Args:
        starts, ends: float64 (N,) seconds, windows of one file in order of time.
        scores: float (N,), of these windows.
        first, last: the windows of the moment, both included.
        step_seconds: distance of the candidates.
    """
    outer_start, outer_end = float(starts[first]), float(ends[last])
    if first == 0 and last == len(starts) - 1:
        return outer_start, outer_end
    begins = np.arange(outer_start, ends[first] + 1e-6, step_seconds) if first > 0 else np.array([outer_start])
    stops = (
        np.arange(outer_end, starts[last] - 1e-6, -step_seconds) if last < len(starts) - 1 else np.array([outer_end])
    )
    rows = _rows(first, last, len(starts))
    begin, stop = (grid.ravel() for grid in np.meshgrid(begins, stops, indexing="ij"))  # both (C,)
    possible = stop - begin >= SHORTEST_STEPS * step_seconds - 1e-6
    if not possible.any():
        return outer_start, outer_end
    begin, stop = begin[possible], stop[possible]
    longest_first = np.argsort(begin - stop, kind="stable")
    begin, stop = begin[longest_first], stop[longest_first]
    left, right = starts[rows], ends[rows]  # (K,)
    shared = np.minimum(right, stop[:, None]) - np.maximum(left, begin[:, None])  # (C, K)
    share = np.clip(shared / np.maximum(right - left, 1e-9), 0.0, 1.0)  # (C, K)
    observed = scores[rows].astype(np.float64)
    observed -= observed.mean()
    best = (np.inf, outer_start, outer_end)
    for response in RESPONSES:
        shape = share**response
        shape -= shape.mean(axis=1, keepdims=True)
        amplitude = np.maximum(shape @ observed, 0.0) / np.maximum((shape * shape).sum(axis=1), 1e-12)  # (C,)
        misfit = ((observed - amplitude[:, None] * shape) ** 2).sum(axis=1)  # (C,)
        k = int(np.round(misfit, 9).argmin())  # of equal ones the longest
        if misfit[k] < best[0] - 1e-9:
            best = (float(misfit[k]), float(begin[k]), float(stop[k]))
    return best[1], best[2]


def _rows(first: int, last: int, count: int) -> np.ndarray:
    """Windows that take part in the fit: those around both borders."""
    inside = range(max(first - MARGIN, 0), min(last + MARGIN, count - 1) + 1)
    if last - first <= 2 * INNER:
        return np.array(inside)
    return np.array([row for row in inside if row < first + INNER or row > last - INNER])
