"""Which videos show the same: re-encodes, crops, trims and copies with something before or after.

A video becomes a fingerprint: up to `MAX_FRAMES` frames, evenly spread, as grey pictures of `SIDE` x `SIDE` pixels with
their times. Two videos are compared frame by frame at one shift in time:

    frame(a, b)  = correlation of the two small pictures, the best over centred crops of either one
    match(A, B)  = the shift at which enough of the shorter video meets frames of the longer one, and the mean of
                   frame(a, b) over these meetings
    motion(A, B) = the same correlation after each video's mean picture was taken off: whether the same things move
                   at the same time, which tells two takes from one unmoved camera apart

Frames without any contrast (black, white) say nothing and are left out. No model takes part, so that duplicates are
found whatever an index was made with. What this cannot see: mirrored or rotated pictures, overlays that cover much,
and changes of speed; takes from one camera in which the same is done alike may still pass for one.
Cost: N^2 V `len(CROPS)` multiply-accumulates for N frames of all videos, then work proportional to the pairs of
videos that share frames.

Letters: N M frames, S side of a small picture, G cells of a side, V = G^2 values of a descriptor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SIDE = 24
GRID = 12
VALUES = GRID * GRID
CROPS = (0.0, 0.04, 0.08, 0.12)  # share of each side that a centred crop takes off
MIN_CONTRAST = 6.0  # standard deviation in grey levels below which a frame says nothing
MAX_FRAMES = 256
BLOCK_FRAMES = 4096
SEEN_ALIKE = 0.86  # correlation from which two frames make their videos candidates
MATCHED = 0.90  # mean correlation of a match
MOVED_ALIKE = 0.80  # correlation of what moves in a match
STILL = 2e-4  # mean square of what moves, in descriptors, below which it is noise and says nothing
MIN_MEETINGS = 4
MIN_SHARE = 0.5  # of the shorter video that must meet the longer one


@dataclass(frozen=True)
class Fingerprint:
    """A video as small grey pictures.

    Args:
        times_seconds: when each frame is on display, ascending, float64 (N,).
        pictures: uint8 (N, S, S).
    """

    times_seconds: np.ndarray
    pictures: np.ndarray

    def informative(self) -> Fingerprint:
        """Without the frames that have no contrast."""
        kept = self.pictures.reshape(len(self.pictures), -1).std(axis=1) >= MIN_CONTRAST  # (N, S, S) -> (N, S*S)
        return Fingerprint(self.times_seconds[kept], self.pictures[kept])

    @property
    def spacing_seconds(self) -> float:
        """Typical distance of neighbouring frames."""
        return float(np.median(np.diff(self.times_seconds))) if len(self.times_seconds) > 1 else 0.0


@dataclass(frozen=True)
class Match:
    """Two videos that show the same.

    Args:
        first, second: their names.
        score: mean correlation of frames that meet, at most 1.
        shift_seconds: what is at t in the first is at t + shift in the second.
        share: part of the shorter video that meets the longer one.
        motion: correlation of what moves, 1 where nothing does.
    """

    first: str
    second: str
    score: float
    shift_seconds: float
    share: float
    motion: float


def frame_times(duration_seconds: float) -> np.ndarray:
    """Times that a fingerprint looks at: two a second, at least 32 and at most `MAX_FRAMES`, evenly spread."""
    count = int(np.clip(round(2 * duration_seconds), 32, MAX_FRAMES))
    return (np.arange(count) + 0.5) * duration_seconds / count


def describe(pictures: np.ndarray, crop: float) -> np.ndarray:
    """Descriptors float32 (N, V) of pictures uint8 (N, S, S): a centred crop as a grid of mean 0 and length 1."""
    weights = _crop_weights(crop)  # (G, S)
    grids = weights @ pictures.astype(np.float32) @ weights.T  # (G, S) @ (N, S, S) @ (S, G) -> (N, G, G)
    flat = grids.reshape(len(pictures), -1)  # (N, G, G) -> (N, V)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


@lru_cache(maxsize=16)
def _crop_weights(crop: float) -> np.ndarray:
    """How much of each of S pixels lies in each of G cells that divide a line without `crop` at either end, (G, S)."""
    edges = np.linspace(crop * SIDE, (1 - crop) * SIDE, GRID + 1)
    left, right = edges[:-1, None], edges[1:, None]
    pixels = np.arange(SIDE)
    overlap = np.clip(np.minimum(right, pixels + 1) - np.maximum(left, pixels), 0, None)
    weights: np.ndarray = (overlap / overlap.sum(axis=1, keepdims=True)).astype(np.float32)
    return weights


def find_matches(prints: Mapping[str, Fingerprint]) -> list[Match]:
    """All pairs of videos that show the same, the best first.

    Args:
        prints: fingerprint of each video by name.
    """
    told = {name: kept for name, p in prints.items() if len((kept := p.informative()).times_seconds) >= MIN_MEETINGS}
    names = sorted(told)
    described = {name: [describe(told[name].pictures, crop) for crop in CROPS] for name in names}
    matches = []
    for first, second in sorted(_candidates(names, described)):
        match = _align(first, second, told, described)
        if match is not None:
            matches.append(match)
    return sorted(matches, key=lambda m: (-m.score, m.first, m.second))


def _candidates(names: Sequence[str], described: Mapping[str, list[np.ndarray]]) -> set[tuple[str, str]]:
    """Pairs of names that share at least `MIN_MEETINGS` frames that look alike, whatever their times."""
    owner = np.repeat(np.arange(len(names)), [len(described[name][0]) for name in names])
    if not len(owner):
        return set()
    whole = np.concatenate([described[name][0] for name in names])  # (N, V)
    counts: dict[tuple[int, int], int] = defaultdict(int)
    for crop in range(len(CROPS)):
        other = np.concatenate([described[name][crop] for name in names])  # (N, V)
        for start in range(0, len(whole), BLOCK_FRAMES):
            rows = slice(start, start + BLOCK_FRAMES)
            found, columns = np.nonzero(whole[rows] @ other.T >= SEEN_ALIKE)
            pairs = np.unique(np.stack([found + start, owner[columns]]), axis=1)  # a frame counts once per video
            for one, two in zip(owner[pairs[0]].tolist(), pairs[1].tolist(), strict=True):
                if one != two:
                    counts[one, two] += 1
    alike = {(min(pair), max(pair)) for pair, count in counts.items() if count >= MIN_MEETINGS}
    return {(names[one], names[two]) for one, two in alike}


def _align(
    first: str, second: str, told: Mapping[str, Fingerprint], described: Mapping[str, list[np.ndarray]]
) -> Match | None:
    """The best shift between two videos, None when they do not match."""
    a, b = told[first], told[second]
    best: tuple[float, float, float, float] | None = None
    for crop in range(len(CROPS)):
        for left, right in ((0, crop), (crop, 0)) if crop else ((0, 0),):
            x, y = described[first][left], described[second][right]
            alike = x @ y.T  # (N, M)
            for shift in _shifts(alike, a.times_seconds, b.times_seconds):
                rows, columns, share = _meetings(a, b, shift)
                if share < MIN_SHARE:
                    continue
                score = float(alike[rows, columns].mean())
                if best is None or score > best[0]:
                    best = score, shift, share, _motion(x[rows], y[columns])
    if best is None or best[0] < MATCHED or best[3] < MOVED_ALIKE:
        return None
    return Match(first, second, *best)


def _shifts(alike: np.ndarray, times_a: np.ndarray, times_b: np.ndarray, count: int = 8) -> Iterator[float]:
    """Shifts in time worth trying: those between each frame and its best counterpart, the most frequent first."""
    best = alike.argmax(axis=1)
    offsets = (times_b[best] - times_a)[alike.max(axis=1) >= SEEN_ALIKE]
    if not len(offsets):
        return
    step = max(float(np.median(np.diff(times_b))), float(np.median(np.diff(times_a))), 1e-3) / 2
    bins, sizes = np.unique(np.round(offsets / step), return_counts=True)
    for chosen in bins[np.argsort(-sizes, kind="stable")][:count]:
        yield float(np.median(offsets[np.round(offsets / step) == chosen]))


def _meetings(a: Fingerprint, b: Fingerprint, shift: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Frames of the two videos that meet at a shift, and the part of the shorter video that they span."""
    reach = 0.75 * max(a.spacing_seconds, b.spacing_seconds)
    apart = np.abs(b.times_seconds[None, :] - (a.times_seconds[:, None] + shift))  # (N, M)
    nearest = apart.argmin(axis=1)
    rows = np.flatnonzero(apart[np.arange(len(nearest)), nearest] <= reach)
    if len(rows) < MIN_MEETINGS:
        return rows, nearest[rows], 0.0
    span = min(_span(a), _span(b))
    overlap = min(float(a.times_seconds[rows[-1]] - a.times_seconds[rows[0]]), span)
    return rows, nearest[rows], overlap / span if span else 1.0


def _motion(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation of what changes in two sequences of descriptors (K, V); 1 where too little changes to tell."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    energy = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return 1.0 if energy < STILL * len(x) else float((x * y).sum()) / energy


def _span(print_: Fingerprint) -> float:
    return float(print_.times_seconds[-1] - print_.times_seconds[0])


def group(names: Sequence[str], matches: Sequence[Match]) -> list[list[str]]:
    """Names joined by matches, in groups of at least two; order of groups and names follows `names`."""
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for match in matches:
        parent[root(match.second)] = root(match.first)
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[root(name)].append(name)
    return [members for members in groups.values() if len(members) > 1]
