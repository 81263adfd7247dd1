"""One search from query to moments: vector, choice of files, moments, confidence, exact borders on request.

Several parts of a query, words and examples in any number, become one vector: the mean of their unit vectors, scaled to
length one again. All parts weigh the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from elastivid.core.point import OperatingPoint
from elastivid.search.confidence import FOUND_AT, NullScores, confidence_of
from elastivid.search.examples import embed_example, parse_example, unit_mean
from elastivid.search.filters import Filters
from elastivid.search.fusion import OWN_TIMES_FROM, fuse
from elastivid.search.moments import Moment
from elastivid.search.printing import printable
from elastivid.search.records import FileRecord, QueryError
from elastivid.search.snapshot import Snapshot
from elastivid.search.words import Found, Words

if TYPE_CHECKING:
    from elastivid.search.index import Encoder
    from elastivid.search.store import Settings


@dataclass(frozen=True)
class Request:
    """What a search is asked for.

    Args:
        words: what to look for, or None.
        likes: examples as users write them (see `examples`).
        top: how many moments at most.
        filters: which files are searched.
        per_file: most moments of one file while other files have any left; None means half of `top`.
        refine: find starts and ends among single frames, which decodes them; best guesses, when nothing is found, keep
            theirs.
        min_confidence: from where on the best moment counts as found, 0 to 1.

    Raises:
        QueryError: there is nothing to look for, or a number is out of range.
    """

    words: str | None = None
    likes: tuple[str, ...] = ()
    top: int = 10
    filters: Filters = field(default_factory=Filters)
    per_file: int | None = None
    refine: bool = False
    min_confidence: float = FOUND_AT

    def __post_init__(self) -> None:
        if self.words is None and not self.likes:
            raise QueryError('say what to look for: words, such as "a dog runs", or like="clip.mp4@12.5s"')
        if self.words is not None and not self.words.strip():
            raise QueryError('the query is empty; say what to look for, such as "a person juggling a ball"')
        if self.top < 1:
            raise QueryError(f"top must be at least 1, got {self.top}")
        if self.per_file is not None and self.per_file < 1:
            raise QueryError(f"per_file must be at least 1, got {self.per_file}; leave it out for the usual share")
        if not 0 <= self.min_confidence <= 1:
            raise QueryError(f"min_confidence must be between 0 and 1, got {self.min_confidence}")

    @property
    def name(self) -> str:
        """The query as shown to people."""
        return " + ".join(([self.words.strip()] if self.words is not None else []) + list(self.likes))


@dataclass(frozen=True)
class SearchResult:
    """Moments together with what finding them took.

    Args:
        query: the words, or the examples' addresses, or both.
        moments: best first, whether or not they count as found.
        found: whether the best confidence is enough, or a name or subtitle holds at least half of the query; always
            true for queries with examples.
        confidence: the best of the moments (see `confidence`); None for queries with examples.
        min_confidence: what was asked for.
        files: files that were searched.
        windows: windows that were scored.
        embed_seconds: time to turn the query into a vector.
        scan_seconds: time to score all windows and find the moments.
        refine_seconds: time to find exact borders.
        notes: what a person should know about the result.
        unknown: words of the query that no text holds and that the model only spells from pieces.
    """

    query: str
    moments: list[Moment]
    windows: int
    embed_seconds: float
    scan_seconds: float
    found: bool = True
    confidence: float | None = None
    min_confidence: float = FOUND_AT
    files: int = 0
    refine_seconds: float = 0.0
    notes: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Searcher:
    """Answers requests over one state of an index.

    Args:
        snapshot: the windows.
        settings: what the index was made with.
        point: what the model spends on examples.
        null_scores: gives the best scores of null texts; called for queries in words.
        embed_texts: texts to unit vectors (n, D); loads no torch where the model allows it.
        encoder: gives the whole model; called for examples and exact borders only.
        words: names and subtitles.
        model_knows: whether the model has an entry for a word.
    """

    snapshot: Snapshot
    settings: Settings
    point: OperatingPoint
    null_scores: Callable[[], NullScores]
    embed_texts: Callable[[Sequence[str]], np.ndarray]
    encoder: Callable[[], Encoder]
    words: Words
    model_knows: Callable[[str], bool]

    def answer(self, request: Request) -> SearchResult:
        """Run the search.

        Raises:
            QueryError: an example cannot be understood.
            VideoError: an example cannot be read.
        """
        started = time.perf_counter()
        vector = self._vector(request)
        embedded = time.perf_counter()
        notes: list[str] = []
        searched, records, copies = self._searched(request.filters, notes)
        texts = self.words.find(request.words, records) if request.words is not None else Found()
        sampling = self.settings.sampling
        moments = fuse(
            self.snapshot,
            vector,
            texts.hits,
            request.top,
            explain=self.words.explain,
            searched=searched,
            per_file=request.per_file,
            step_seconds=sampling.window_seconds / sampling.frames,
        )
        moments = [replace(moment, path=copies.get(moment.path, moment.path)) for moment in moments]
        if not request.likes:
            moments = self._with_confidence(moments, searched)
        best = max((m.confidence for m in moments if m.confidence is not None), default=None)
        in_texts = bool(texts.hits) and max(hit.coverage for hit in texts.hits) >= OWN_TIMES_FROM
        found = bool(moments) and (best is None or best >= request.min_confidence or in_texts)
        scanned = time.perf_counter()
        if request.refine and found:
            moments = self._refined(moments, vector, notes)
        refined = time.perf_counter()
        return SearchResult(
            query=request.name,
            moments=moments,
            found=found,
            confidence=best,
            min_confidence=request.min_confidence,
            files=len(self.snapshot.files_of(searched)),
            windows=int(np.count_nonzero(searched)),
            embed_seconds=embedded - started,
            scan_seconds=scanned - embedded,
            refine_seconds=refined - scanned if request.refine and found else 0.0,
            notes=tuple(notes),
            unknown=tuple(word for word in texts.unknown if not self.model_knows(word)),
        )

    def _vector(self, request: Request) -> np.ndarray:
        """Unit vector (D,) of the whole query."""
        examples = [parse_example(like) for like in request.likes]  # before anything is loaded
        parts = list(self.embed_texts([request.words.strip()])) if request.words is not None else []
        for example in examples:
            parts.append(embed_example(self.encoder(), example, self.settings.sampling, self.point))
        return np.asarray(parts[0], dtype=np.float32) if len(parts) == 1 else unit_mean(parts)

    def _searched(
        self, filters: Filters, notes: list[str]
    ) -> tuple[np.ndarray, Collection[FileRecord], dict[str, str]]:
        """Which windows take part, bool (N,); the files they are of; and the path to name instead of each copy."""
        searchable, records = self.snapshot.searchable, self.snapshot.records.values()
        if not filters:
            return searchable, records, {}
        accepted: list[FileRecord] = []
        copies: dict[str, str] = {}
        for record in records:
            fitting = filters.fitting_path(record)
            if fitting is not None:
                accepted.append(record)
                copies |= {path: filters.fitting_path(record.only_at(path)) or fitting for path in record.paths}
        searched = searchable & np.isin(self.snapshot.windows["file_id"], [record.id for record in accepted])
        if searchable.any() and not searched.any():
            notes.append(f"no file of the index fulfils: {filters}")
        return searched, accepted, copies

    def _with_confidence(self, moments: list[Moment], searched: np.ndarray) -> list[Moment]:
        """The moments of a query in words, each with its confidence."""
        if not moments:
            return []
        best = self.null_scores().best(self.snapshot.files_of(searched))
        confidences = confidence_of(np.array([moment.score for moment in moments]), best)
        return [replace(m, confidence=float(c)) for m, c in zip(moments, confidences, strict=True)]

    def _refined(self, moments: list[Moment], vector: np.ndarray, notes: list[str]) -> list[Moment]:
        from elastivid.search.refine import refine_moment
        from elastivid.video.errors import VideoError

        refined = []
        for moment in moments:
            try:
                refined.append(refine_moment(self.encoder(), moment, vector, self.settings.sampling, self.point))
            except (VideoError, OSError) as error:
                name = printable(os.path.basename(moment.path))
                notes.append(f"not refined: {name}: {printable(str(error))}")
                refined.append(moment)
        return refined
