"""How sure a search is: scores compared with what unrelated queries reach in the same windows. numpy only.

A cosine says little by itself: what counts as high depends on the model, on the query's kind, on the videos, and on how
many windows had a chance. So every search asks: how often does a query that has nothing to do with the library reach
this score in the windows that were searched? With null queries m = 1 .. M and best scores z_m among those windows,

    p = (1 + |{m : z_m >= score}|) / (M + 1),        confidence = 1 - p

For a query that is itself a draw from the null queries p is uniform (a rank test: nothing is fitted, nothing assumed
about the shape of scores). The null queries are the fixed list `null_texts.txt`: short descriptions of all sorts of
scenes. Queries with an example have no confidence: their cosine compares pictures with pictures, and the only examples
at hand to compare with are the library's own, which resemble each other.

The best score of each null text in each file is kept beside the index, so a search over any choice of files needs
only a maximum over these rows. A file's row is computed once, by the first search after the file was indexed.

Limits. Where the library does show what some null texts describe, confidence is too low, never too high. It says that
the query fits better than unrelated ones do, not that the moment is right: a near miss, such as the right thing doing
something else, is as confident as the model is blind to the difference.

Letters: N windows, D channels, F files, M null queries.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from elastivid.search.snapshot import Snapshot

FOUND_AT = 0.95  # one in twenty unrelated texts counts as found
_CHUNK_ROWS = 16_384


@cache
def null_texts() -> tuple[str, ...]:
    """The fixed list that words are compared with."""
    text = resources.files("elastivid.search").joinpath("null_texts.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line)


def confidence_of(scores: np.ndarray, null_scores: np.ndarray) -> np.ndarray:
    """1 - p for each of the scores (K,), by rank among the best scores (M,) of null queries."""
    ordered = np.sort(null_scores)
    as_high = len(ordered) - np.searchsorted(ordered, scores, side="left")  # (K,) null queries that score no less
    out: np.ndarray = 1.0 - (1 + as_high) / (len(ordered) + 1)
    return out


@dataclass(frozen=True)
class NullScores:
    """Best scores of null texts by file.

    Args:
        vectors: float32 (M, D), unit vectors of the null texts.
        file_ids: int64 (F,), ascending.
        maxima: float32 (F, M).
    """

    vectors: np.ndarray
    file_ids: np.ndarray
    maxima: np.ndarray

    def best(self, file_ids: np.ndarray) -> np.ndarray:
        """Best score (M,) of each null text among the files given, each once."""
        everything = len(file_ids) == len(self.file_ids)
        maxima = self.maxima if everything else self.maxima[np.searchsorted(self.file_ids, file_ids)]
        out: np.ndarray = maxima.max(axis=0)
        return out


def null_scores(path: Path, snapshot: Snapshot, embed_texts: Callable[[Sequence[str]], np.ndarray]) -> NullScores:
    """Best scores of null texts in every file of the snapshot; what is kept in `path` is not computed again.

    Args:
        path: where they are kept. A folder that cannot be written to costs time at every search, nothing else.
        snapshot: the windows of all files.
        embed_texts: texts to unit vectors (M, D); called when nothing is kept yet.
    """
    kept = _read(path, snapshot)
    vectors = kept.vectors if kept else np.asarray(embed_texts(null_texts()), dtype=np.float32)
    present = snapshot.windows["file_id"][snapshot.first_rows]
    known = kept.file_ids if kept else np.zeros(0, dtype=np.int64)
    new = np.setdiff1d(present, known)
    if kept and not len(new):
        return kept
    rows = np.flatnonzero(np.isin(snapshot.windows["file_id"], new))
    maxima = best_by_file(snapshot, rows, vectors)  # (new files, M)
    still = np.isin(known, present)
    file_ids = np.concatenate([known[still], new])
    if kept:
        maxima = np.concatenate([kept.maxima[still], maxima])
    order = np.argsort(file_ids)
    found = NullScores(vectors, file_ids[order], maxima[order])
    with suppress(OSError):  # a read-only or full disk: the next search computes them again
        _write(path, snapshot.space_id, found)
    return found


def best_by_file(snapshot: Snapshot, rows: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Best score of each query (M, D) in each file that has any of the rows: float32 (F, M), by file id."""
    ids, place = np.unique(snapshot.windows["file_id"][rows], return_inverse=True)
    best = np.full((len(ids), len(queries)), -np.inf, dtype=np.float32)
    for first in range(0, len(rows), _CHUNK_ROWS):
        chunk = slice(first, first + _CHUNK_ROWS)
        scores = snapshot.vectors[rows[chunk]] @ queries.T  # (n, M)
        starts = np.flatnonzero(np.diff(place[chunk], prepend=-1))  # rows of one file are adjacent
        np.maximum.at(best, place[chunk][starts], np.maximum.reduceat(scores, starts))
    return best


def _read(path: Path, snapshot: Snapshot) -> NullScores | None:
    """What is kept, when it was made of the same texts in the same space."""
    try:
        with safe_open(str(path), framework="numpy") as kept:
            if (kept.metadata() or {}).get("key") != _key(snapshot.space_id):
                return None
            return NullScores(*(kept.get_tensor(name) for name in ("vectors", "file_ids", "maxima")))
    except (OSError, SafetensorError):
        return None  # not there, or damaged: made anew


def _write(path: Path, space_id: str, scores: NullScores) -> None:
    tensors = {"vectors": scores.vectors, "file_ids": scores.file_ids, "maxima": scores.maxima}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        temporary.write_bytes(save(tensors, metadata={"key": _key(space_id)}))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _key(space_id: str) -> str:
    return f"{space_id} {hashlib.sha256(chr(10).join(null_texts()).encode()).hexdigest()[:16]}"
