"""Scores of overlapping windows to distinct moments of files. numpy only.

Windows overlap, so an event lights up several neighbours. A moment starts at the best window that is still free and
grows over neighbours of the same file while their score stays near the peak:

    score >= peak - MERGE_DROP * (peak - mean score of the searched windows)

Windows that overlap a moment are spent with it (non-maximum suppression), so two moments never share a second.
Equal scores are ordered by path, then time: the same index and query give the same answer everywhere.
Cost: one pass over the scores to find the best few hundred, then work proportional to the moments returned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from elastivid.search.snapshot import Snapshot

MERGE_DROP = 0.2
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
        windows: how many windows were merged.
    """

    path: str
    start_seconds: float
    end_seconds: float
    score: float
    peak_seconds: float
    windows: int = 1


def find_moments(snapshot: Snapshot, query: np.ndarray, top: int) -> list[Moment]:
    """The `top` best distinct moments for a query vector.

    Args:
        snapshot: what is searched.
        query: float32 (D,), L2-normalised.
        top: how many moments to return at most.
    """
    scores = snapshot.vectors @ query  # (N, D) @ (D,) -> (N,)
    searchable = int(np.count_nonzero(snapshot.searchable))
    if searchable == 0:
        return []
    if searchable < len(scores):
        scores[~snapshot.searchable] = -np.inf
        mean = float(scores[snapshot.searchable].mean())
    else:
        mean = float(scores.mean())
    candidates = max(FIRST_CANDIDATES, 16 * top)
    while True:
        moments = _greedy(snapshot, scores, _best_rows(snapshot, scores, min(candidates, searchable)), mean, top)
        if len(moments) >= top or candidates >= searchable:
            return moments
        candidates *= 8


def _best_rows(snapshot: Snapshot, scores: np.ndarray, count: int) -> np.ndarray:
    """Rows with the `count` highest scores and all that tie with the last of them, best first."""
    threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
    rows = np.flatnonzero(scores >= threshold)
    if threshold == -np.inf:
        rows = rows[snapshot.searchable[rows]]
    names = np.array([snapshot.paths[int(file_id)] for file_id in snapshot.windows["file_id"][rows]])
    # the same vector in another row may differ in the last bit of its score: rounded, such rows tie
    return rows[np.lexsort((snapshot.windows["start_seconds"][rows], names, -np.round(scores[rows], 6)))]


def _greedy(snapshot: Snapshot, scores: np.ndarray, ordered_rows: np.ndarray, mean: float, top: int) -> list[Moment]:
    windows = snapshot.windows
    spent: set[int] = set()
    moments: list[Moment] = []
    for row in ordered_rows.tolist():
        if row in spent:
            continue
        floor = scores[row] - MERGE_DROP * max(float(scores[row]) - mean, 0.0)
        first, last = _grow(windows, scores, row, floor, spent)
        start, end = float(windows["start_seconds"][first]), float(windows["end_seconds"][first : last + 1].max())
        moments.append(
            Moment(
                path=snapshot.paths[int(windows["file_id"][row])],
                start_seconds=start,
                end_seconds=end,
                score=float(scores[row]),
                peak_seconds=float(windows["start_seconds"][row] + windows["end_seconds"][row]) / 2,
                windows=last - first + 1,
            )
        )
        if len(moments) == top:
            break
        spent.update(_overlapping(windows, first, last, start, end))
    return moments


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
