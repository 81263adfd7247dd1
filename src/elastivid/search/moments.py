"""Scores of overlapping windows to distinct moments of files. numpy only.

Windows overlap, so an event lights up several neighbours. A moment starts at the best window that is still free and
grows over neighbours of the same file while they score at least half way from the mean to the peak:

    score >= mean + (peak - mean) / 2,     mean over the searched windows

Its start and end then come from fitting what an event would do to these windows (see `boundaries`). Windows that belong
to a moment or overlap it are spent (non-maximum suppression), so two moments never share a second.

One long file must not take most places: at most `per_file` moments of a file are taken, by default half of `top`, as
long as other files have any left. Places that stay free are filled with what was set aside, best first.

Equal scores are ordered by path, then time: the same index and query give the same answer everywhere.
Cost: two passes over the scores, then work proportional to the moments returned.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from elastivid.search.boundaries import MARGIN, fit_boundaries
from elastivid.search.snapshot import Snapshot

GROW_DOWN_TO = 0.5
FIRST_CANDIDATES = 512


@dataclass(frozen=True)
class Moment:
    """A stretch of one file that matches a query.

    Args:
        path: the file.
        start_seconds: where it starts.
        end_seconds: where it ends (exclusive).
        score: cosine similarity of the best window with the query, -1 to 1.
        peak_seconds: middle of the best window.
        windows: how many windows belong to it.
        reasons: why it was found, for people; empty when only pictures were compared.
        confidence: how sure it is that this is no chance hit, 0 to 1 (see `confidence`); None where that is unknown.
    """

    path: str
    start_seconds: float
    end_seconds: float
    score: float
    peak_seconds: float
    windows: int = 1
    reasons: tuple[str, ...] = ()
    confidence: float | None = None

    @property
    def text_reasons(self) -> tuple[str, ...]:
        """The reasons that come from names and subtitles; the last reason is always the picture."""
        return self.reasons[:-1]


def find_moments(
    snapshot: Snapshot,
    query: np.ndarray,
    top: int,
    *,
    searched: np.ndarray | None = None,
    per_file: int | None = None,
    step_seconds: float = 0.5,
) -> list[Moment]:
    """The `top` best distinct moments for a query vector, best first.

    Args:
        snapshot: what is searched.
        query: float32 (D,), L2-normalised.
        top: how many moments to return at most.
        searched: bool (N,), which windows take part; None takes all that are searchable.
        per_file: most moments of one file while others have any left; None means half of `top`, rounded up.
        step_seconds: resolution of starts and ends, the distance of a window's frames.
    """
    searched = snapshot.searchable if searched is None else searched
    count = int(np.count_nonzero(searched))
    if count == 0:
        return []
    scores = snapshot.vectors @ query  # (N, D) @ (D,) -> (N,)
    if count < len(scores):
        mean = float(scores[searched].mean())
        scores[~searched] = -np.inf
    else:
        mean = float(scores.mean())
    finder = _Finder(snapshot, scores, mean, step_seconds)
    per_file = share_of_places(top, per_file)
    candidates = min(max(FIRST_CANDIDATES, 16 * top), count)
    while True:
        rows = _best_rows(snapshot, scores, candidates, top)
        complete = len(rows) >= count
        moments = finder.find(rows, top, per_file, fill=complete)
        if len(moments) >= top or complete:
            return moments
        candidates = min(8 * candidates, count)


def share_of_places(top: int, per_file: int | None) -> int:
    """Most moments of one file while others have any left: `per_file`, or half of `top`, rounded up."""
    return max(1, (top + 1) // 2 if per_file is None else per_file)


def _best_rows(snapshot: Snapshot, scores: np.ndarray, count: int, files: int) -> np.ndarray:
    """Rows, best first: those with the `count` highest scores and all that tie with the last of them, and all that
    score no less than the best row of the file that comes at place `files`."""
    file_ids = snapshot.windows["file_id"]
    threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
    peaks = np.maximum.reduceat(scores, snapshot.first_rows)
    if len(peaks) >= files:
        threshold = min(threshold, np.partition(peaks, len(peaks) - files)[len(peaks) - files])
    rows = np.flatnonzero((scores >= threshold) & (scores > -np.inf))
    ids, place = np.unique(file_ids[rows], return_inverse=True)
    names = np.array([snapshot.paths[int(file_id)] for file_id in ids])[place]
    # the same vector in another row may differ in the last bit of its score: rounded, such rows tie
    return rows[np.lexsort((snapshot.windows["start_seconds"][rows], names, -np.round(scores[rows], 6)))]


class _Finder:
    """Picks moments greedily from rows in order."""

    def __init__(self, snapshot: Snapshot, scores: np.ndarray, mean: float, step_seconds: float) -> None:
        self._snapshot, self._scores, self._mean, self._step = snapshot, scores, mean, step_seconds

    def find(self, ordered_rows: np.ndarray, top: int, per_file: int, fill: bool) -> list[Moment]:
        """Up to `top` moments, at most `per_file` of a file; `fill` adds further ones of these files at the end."""
        file_ids = self._snapshot.windows["file_id"]
        spent: set[int] = set()
        taken: Counter[int] = Counter()
        set_aside: list[int] = []
        moments: list[Moment] = []
        for row, file_id in zip(ordered_rows.tolist(), file_ids[ordered_rows].tolist(), strict=True):
            if len(moments) == top:
                break
            if taken[file_id] >= per_file:
                set_aside.append(row)
            elif row not in spent:
                taken[file_id] += 1
                moments.append(self._moment(row, spent))
        if fill:
            for row in set_aside:
                if len(moments) == top:
                    break
                if row not in spent:
                    moments.append(self._moment(row, spent))
        return sorted(moments, key=lambda m: (-round(m.score, 6), m.path, m.peak_seconds))

    def _moment(self, row: int, spent: set[int]) -> Moment:
        """The moment around `row`; its windows and those that overlap it are added to `spent`."""
        windows, scores = self._snapshot.windows, self._scores
        floor = self._mean + GROW_DOWN_TO * max(float(scores[row]) - self._mean, 0.0)
        first, last = _grow(windows, scores, row, min(floor, float(scores[row])), spent)
        near = _with_neighbours(windows["file_id"], first, last)
        start, end = fit_boundaries(
            windows["start_seconds"][near],
            windows["end_seconds"][near],
            scores[near],
            first - near.start,
            last - near.start,
            self._step,
        )
        spent.update(_overlapping(windows, first, last, start, end))
        return Moment(
            path=self._snapshot.paths[int(windows["file_id"][row])],
            start_seconds=start,
            end_seconds=end,
            score=float(scores[row]),
            peak_seconds=float(windows["start_seconds"][row] + windows["end_seconds"][row]) / 2,
            windows=last - first + 1,
        )


def _with_neighbours(file_ids: np.ndarray, first: int, last: int) -> slice:
    """Rows `first` to `last` and up to `MARGIN` neighbours of the same file at either side."""
    begin, end = max(first - MARGIN, 0), min(last + 1 + MARGIN, len(file_ids))
    same = np.flatnonzero(file_ids[begin:end] == file_ids[first])  # adjacent: rows of a file are
    return slice(begin + int(same[0]), begin + int(same[-1]) + 1)


def _grow(windows: np.ndarray, scores: np.ndarray, row: int, floor: float, spent: set[int]) -> tuple[int, int]:
    """First and last row of the run around `row`: same file, touching windows, scores of at least `floor`."""
    file_ids, starts, ends = windows["file_id"], windows["start_seconds"], windows["end_seconds"]

    def joins(left: int, right: int, new: int) -> bool:
        touching = file_ids[left] == file_ids[right] and starts[right] <= ends[left] + 1e-6
        return bool(touching and new not in spent and scores[new] >= floor)

    first = last = row
    while first > 0 and joins(first - 1, first, first - 1):
        first -= 1
    while last + 1 < len(windows) and joins(last, last + 1, last + 1):
        last += 1
    return first, last


def _overlapping(windows: np.ndarray, first: int, last: int, start: float, end: float) -> set[int]:
    """Rows of the file that share time with [start, end), the run itself included."""
    file_ids, starts, ends = windows["file_id"], windows["start_seconds"], windows["end_seconds"]
    file_id = file_ids[first]
    rows = set(range(first, last + 1))
    row = first - 1
    while row >= 0 and file_ids[row] == file_id and ends[row] > start + 1e-6:
        rows.add(row)
        row -= 1
    row = last + 1
    while row < len(windows) and file_ids[row] == file_id and starts[row] < end - 1e-6:
        rows.add(row)
        row += 1
    return rows
