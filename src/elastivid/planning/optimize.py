"""Token Optimization: for a number of tokens, the frames and size (and width) to take them from (arXiv 2503.14237).

    surface(frames, size, width) = accuracy of a model that keeps K tokens of that grid
    optimum                      = the best point of it; compared with the best grid that has just K tokens ("unmasked")

Search is exhaustive, or climbs: from the unmasked grid along frames, then along size, then along width, as long as
something gets better. Every measured point is kept on disk with the hit or miss of every sample, so a search that was
interrupted goes on, and a second search of the same model on the same data measures nothing twice.

Choosing the best of many points on the samples it is then reported on flatters it. Samples are therefore halved by
source: one half chooses, the other reports, with an interval of the paired difference.

Letters: N samples, K tokens kept.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from elastivid.core.errors import PlanError
from elastivid.evaluate.statistics import Comparison, Interval, bootstrap, paired_bootstrap
from elastivid.planning.profile import cache_folder

SEARCHES = ("exhaustive", "climb")
Progress = Callable[[int, str], None]


@dataclass(frozen=True, order=True)
class GridPoint:
    """Where tokens are taken from: `frames` squares of `size` pixels, `tokens` kept, at a width (0: the full one)."""

    frames: int
    size: int
    tokens: int
    width: int = 0

    def __str__(self) -> str:
        width = f", width {self.width}" if self.width else ""
        return f"{self.frames} x {self.size} px, {self.tokens} tokens{width}"


class Scorer(Protocol):
    """What a search asks: a model on a validation set."""

    key: str
    """Text that differs whenever the answers may: weights, data and how it is asked."""
    sources: Sequence[Hashable]
    """(N,) what each sample was cut from."""

    def available(self, frames: int, size: int) -> int:
        """Tokens of a grid."""
        ...

    def gmacs(self, point: GridPoint) -> float:
        """Cost of one clip."""
        ...

    def hits(self, point: GridPoint) -> np.ndarray:
        """(N,) bool, which samples come out right."""
        ...


@dataclass(frozen=True)
class Space:
    """What may be chosen.

    Args:
        frames, sizes: numbers of frames and sides in pixels, ascending.
        widths: widths of the model; 0 for the full one.
    """

    frames: tuple[int, ...]
    sizes: tuple[int, ...]
    widths: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        for name in ("frames", "sizes", "widths"):
            values = tuple(sorted(set(getattr(self, name))))
            object.__setattr__(self, name, values)
            if not values or values[0] < (0 if name == "widths" else 1):
                raise PlanError(f"{name} must be numbers of at least 1, got {getattr(self, name)}")

    def points(self, tokens: int, scorer: Scorer) -> list[GridPoint]:
        """All points whose grid has at least `tokens` tokens.

        Raises:
            PlanError: there is none.
        """
        found = [
            GridPoint(frames, size, tokens, width)
            for width in self.widths
            for frames in self.frames
            for size in self.sizes
            if scorer.available(frames, size) >= tokens
        ]
        if not found:
            most = max(scorer.available(frames, size) for frames in self.frames for size in self.sizes)
            raise PlanError(
                f"no grid of frames {self.frames} and sizes {self.sizes} has {tokens} tokens, the largest has {most}; "
                "allow more frames or larger ones, or fewer tokens"
            )
        return found

    def unmasked(self, tokens: int, scorer: Scorer) -> list[GridPoint]:
        """Points at the widest width whose grid has just `tokens` tokens, or where none has, the fewest more."""
        wide = [p for p in self.points(tokens, scorer) if p.width == (0 if 0 in self.widths else max(self.widths))]
        fewest = min(scorer.available(p.frames, p.size) for p in wide)
        return [p for p in wide if scorer.available(p.frames, p.size) == fewest]


class Kept:
    """Hits of measured points, on disk: a line of JSON each, so a kill loses the point under way and no other.

    Args:
        scorer: what is asked.
        folder: where; by default in the user's cache folder.
        progress: called with the number of points measured and the one under way.
    """

    def __init__(self, scorer: Scorer, folder: Path | None = None, progress: Progress | None = None) -> None:
        self.scorer, self.progress = scorer, progress or (lambda done, what: None)
        name = hashlib.sha256(scorer.key.encode()).hexdigest()[:16]
        self.file = (folder or cache_folder() / "optimize") / f"{name}.jsonl"
        self.measured = 0
        self._hits: dict[GridPoint, np.ndarray] = {}
        if self.file.is_file():
            for line in self.file.read_text(encoding="utf-8").splitlines():
                self._take(line)

    def _take(self, line: str) -> None:
        try:
            values = json.loads(line)
            hits = np.array([mark == "1" for mark in values.pop("hits")])
            point = GridPoint(**values)
        except (ValueError, TypeError, KeyError, AttributeError):
            return  # the end of a line that a kill cut off; the point is measured again
        if len(hits) == len(self.scorer.sources):
            self._hits[point] = hits

    def hits(self, point: GridPoint) -> np.ndarray:
        """(N,) bool of a point: kept, or measured now."""
        if point not in self._hits:
            self.progress(self.measured, str(point))
            found = np.asarray(self.scorer.hits(point), dtype=bool)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps({**asdict(point), "hits": "".join("01"[int(hit)] for hit in found)})
            whole = not self.file.is_file() or self.file.read_bytes()[-1:] in (b"\n", b"")
            with self.file.open("a", encoding="utf-8") as file:
                file.write(("" if whole else "\n") + line + "\n")
            self._hits[point] = found
            self.measured += 1
        return self._hits[point]


@dataclass(frozen=True)
class Row:
    """A measured point.

    Args:
        point: which.
        accuracy: share of hits over all samples.
        gmacs: of one clip.
    """

    point: GridPoint
    accuracy: float
    gmacs: float


@dataclass(frozen=True)
class Optimum:
    """What a search found.

    Args:
        best: the point chosen on one half of the samples.
        base: the best unmasked grid on that half.
        accuracy, base_accuracy: of both on the other half.
        gain: best minus base on the other half.
        rows: everything measured, the best first.
        chosen_on, reported_on: samples of the halves.
    """

    best: GridPoint
    base: GridPoint
    accuracy: Interval
    base_accuracy: Interval
    gain: Comparison
    rows: tuple[Row, ...]
    chosen_on: int
    reported_on: int


def optimize(kept: Kept, space: Space, tokens: int, *, search: str = "exhaustive") -> Optimum:
    """The frames, size and width to take `tokens` tokens from.

    Raises:
        PlanError: no grid has so many tokens, there is no such search, or there are fewer than two sources.
    """
    if search not in SEARCHES:
        raise PlanError(f"search must be one of {', '.join(SEARCHES)}, got {search!r}")
    scorer = kept.scorer
    chooses = first_half(scorer.sources)

    def worth(point: GridPoint) -> float:
        return float(kept.hits(point)[chooses].mean())

    unmasked = space.unmasked(tokens, scorer)
    base = max(unmasked, key=worth)
    allowed = space.points(tokens, scorer)
    tried = climbed(base, space, set(allowed), worth) if search == "climb" else allowed
    tried = sorted({*tried, *unmasked})
    best = max(tried, key=worth)
    sources = [source for source, first in zip(scorer.sources, chooses, strict=True) if not first]
    own, others = kept.hits(best)[~chooses], kept.hits(base)[~chooses]
    rows = [Row(point, float(kept.hits(point).mean()), scorer.gmacs(point)) for point in tried]
    return Optimum(
        best,
        base,
        bootstrap(own, sources),
        bootstrap(others, sources),
        paired_bootstrap(others, own, sources),
        tuple(sorted(rows, key=lambda row: -row.accuracy)),
        int(chooses.sum()),
        int((~chooses).sum()),
    )


def climbed(
    start: GridPoint, space: Space, allowed: set[GridPoint], worth: Callable[[GridPoint], float]
) -> list[GridPoint]:
    """Points looked at on the way up: along frames, then size, then width, again until nothing gets better."""
    here, seen = start, [start]
    while True:
        before = here
        for axis, values in (("frames", space.frames), ("size", space.sizes), ("width", space.widths)):
            for step in (1, -1):
                while True:
                    there = _neighbour(here, axis, values, step)
                    if there is None or there not in allowed:
                        break
                    seen.append(there)
                    if worth(there) <= worth(here):
                        break
                    here = there
        if here == before:
            return seen


def _neighbour(point: GridPoint, axis: str, values: Sequence[int], step: int) -> GridPoint | None:
    """The point one value further along an axis; `None` past the end."""
    place = values.index(getattr(point, axis)) + step
    if not 0 <= place < len(values):
        return None
    return GridPoint(**{**asdict(point), axis: values[place]})


def first_half(sources: Iterable[Hashable]) -> np.ndarray:
    """(N,) bool: samples of every second source, in an order that depends on their names alone.

    Raises:
        PlanError: there are fewer than two sources.
    """
    listed = list(sources)
    names = sorted({str(source) for source in listed}, key=lambda name: (zlib.crc32(name.encode()), name))
    if len(names) < 2:
        raise PlanError(f"choosing and reporting need clips of at least two sources, got {len(names)}")
    first = set(names[::2])
    return np.array([str(source) in first for source in listed])
