"""Pictures and texts in one ranking, by reciprocal rank (Cormack, Clarke and Buettcher, SIGIR 2009).

    score(item) = 1 / (60 + rank by picture) + coverage / (60 + rank by text)

An item is a moment. Ranks start at 1, equal ones share the better rank, and an item without a text has no second
term. The published method has no factor `coverage`; here a text that holds one word of four must not weigh as much as
one that holds them all (see `words` for what coverage is). A subtitle that holds words of the query brings its own
times; one that holds less than half of them lends its reason to a moment found by picture that it overlaps. A name
stands for the whole file and lifts its best moment.

The rank by picture of a moment that the search by picture did not return is one more than the number of files whose
best window looks more like the query.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from elastivid.search.moments import Moment, find_moments, share_of_places
from elastivid.search.snapshot import Snapshot
from elastivid.search.words import TextHit

RANK_CONSTANT = 60
CONSIDERED = 5  # times as many moments and texts as are asked for take part, at least MIN_CONSIDERED
MIN_CONSIDERED = 50
OWN_TIMES_FROM = 0.5  # coverage from which a subtitle's times take the place of those found by picture


@dataclass
class _Item:
    """A moment with its two ranks; `text_rank` 0 means that no text speaks for it."""

    moment: Moment
    picture_rank: int
    text_rank: int = 0
    hit: TextHit | None = None

    @property
    def score(self) -> float:
        """Fused score."""
        text = self.hit.coverage / (RANK_CONSTANT + self.text_rank) if self.hit else 0.0
        return 1 / (RANK_CONSTANT + self.picture_rank) + text


def fuse(
    snapshot: Snapshot,
    query: np.ndarray,
    hits: Sequence[TextHit],
    top: int,
    *,
    explain: Callable[[TextHit], tuple[str, ...]],
    searched: np.ndarray | None = None,
    per_file: int | None = None,
    step_seconds: float = 0.5,
) -> list[Moment]:
    """The `top` best moments by picture and text together, each with its reasons.

    Args:
        snapshot: what is searched.
        query: float32 (D,), L2-normalised.
        hits: texts that hold words of the query, best first.
        top: how many moments to return at most.
        explain: says why a hit is one; asked for those that are returned.
        searched: bool (N,), which windows take part; None takes all that are searchable.
        per_file, step_seconds: as in `find_moments`.
    """
    searched = snapshot.searchable if searched is None else searched
    count = max(MIN_CONSIDERED, CONSIDERED * top)
    if not hits:
        seen = find_moments(snapshot, query, top, searched=searched, per_file=per_file, step_seconds=step_seconds)
        return [_explained(moment, None, explain) for moment in seen]
    per_file = share_of_places(top, per_file)
    seen = find_moments(snapshot, query, count, searched=searched, per_file=per_file, step_seconds=step_seconds)
    items = [_Item(moment, rank) for rank, moment in enumerate(seen, start=1)]
    pictures = _Pictures(snapshot, query, searched)
    ordered = sorted(hits, key=lambda hit: (-round(hit.coverage, 9), -pictures.peak(hit.path)))
    for hit, rank in list(zip(ordered, _text_ranks(ordered), strict=True))[: 4 * count]:
        _place(hit, rank, items, pictures)
    items.sort(key=lambda item: (-item.score, item.picture_rank, item.moment.path, item.moment.start_seconds))
    return [_explained(item.moment, item.hit, explain) for item in _shared(items, top, per_file)]


def _shared(items: Sequence[_Item], top: int, per_file: int) -> list[_Item]:
    """The first `top` items, at most `per_file` of a file while other files have any left."""
    taken: Counter[str] = Counter()
    kept: list[int] = []
    set_aside: list[int] = []
    for place, item in enumerate(items):
        taken[item.moment.path] += 1
        (kept if taken[item.moment.path] <= per_file else set_aside).append(place)
    return [items[place] for place in sorted((kept + set_aside)[:top])]


def _text_ranks(hits: Sequence[TextHit]) -> list[int]:
    """Ranks by coverage; equal coverage shares the better rank, so that the pictures decide between them."""
    ranks: list[int] = []
    for place, hit in enumerate(hits):
        tied = place > 0 and abs(hit.coverage - hits[place - 1].coverage) < 1e-9
        ranks.append(ranks[-1] if tied else place + 1)
    return ranks


class _Pictures:
    """How much stretches of files look like the query."""

    def __init__(self, snapshot: Snapshot, query: np.ndarray, searched: np.ndarray) -> None:
        self._windows = snapshot.windows
        self._scores = np.where(searched, snapshot.vectors @ query, -np.inf)  # (N, D) @ (D,) -> (N,)
        ids = snapshot.windows["file_id"]
        first = np.flatnonzero(np.diff(ids, prepend=ids[0] - 1))  # rows of one file are adjacent
        peaks = np.maximum.reduceat(self._scores, first)
        last = [*first[1:].tolist(), len(ids)]
        self._rows = {
            snapshot.paths[int(ids[begin])]: slice(begin, end)
            for begin, end, peak in zip(first.tolist(), last, peaks.tolist(), strict=True)
            if peak > -np.inf
        }
        self._peaks = {path: float(self._scores[rows].max()) for path, rows in self._rows.items()}
        self._sorted = np.sort(np.array(list(self._peaks.values())))

    def peak(self, path: str) -> float:
        """Score of the best window of a file, minus infinity when none takes part."""
        return self._peaks.get(path, -np.inf)

    def rank(self, score: float) -> int:
        """Place of a score among the best windows of all files."""
        return 1 + int(len(self._sorted) - np.searchsorted(self._sorted, score, side="right"))

    def moment(self, path: str, start: float | None, end: float | None) -> Moment | None:
        """A stretch of a file, scored by the best window that shows any of it; without times, its best window."""
        rows = self._rows.get(path)
        if rows is None:
            return None
        scores, windows = self._scores[rows], self._windows[rows]
        if start is not None and end is not None:
            scores = np.where((windows["start_seconds"] < end) & (windows["end_seconds"] > start), scores, -np.inf)
        best = int(np.argmax(scores))
        if scores[best] == -np.inf:
            return None
        shown = float(windows["start_seconds"][best]), float(windows["end_seconds"][best])
        begin, stop = (start, end) if start is not None and end is not None else shown
        peak = min(max(sum(shown) / 2, begin), stop)
        return Moment(path, begin, stop, float(scores[best]), peak)


def _place(hit: TextHit, rank: int, items: list[_Item], pictures: _Pictures) -> None:
    """Give a hit to the item that it speaks for, or add one for it. Hits come best first: an item keeps its first."""
    start, end = hit.start_seconds, hit.end_seconds
    for item in items:  # in order of picture: the first one of a file is its best
        moment = item.moment
        if moment.path != hit.path:
            continue
        if start is None or end is None:
            if item.hit is None:
                item.hit, item.text_rank = hit, rank
            return
        if moment.start_seconds < end and start < moment.end_seconds:
            if item.hit is None:
                own = pictures.moment(hit.path, start, end) if hit.coverage >= OWN_TIMES_FROM else None
                item.moment, item.hit, item.text_rank = own or moment, hit, rank
            return
    found = pictures.moment(hit.path, start, end)
    if found is not None:
        items.append(_Item(found, pictures.rank(found.score), rank, hit))


def _explained(moment: Moment, hit: TextHit | None, explain: Callable[[TextHit], tuple[str, ...]]) -> Moment:
    picture = f"picture {moment.score:.2f}"
    if hit is None:
        return replace(moment, reasons=(picture,))
    return replace(moment, path=hit.place, reasons=(*explain(hit), picture))
