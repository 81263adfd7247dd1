"""Retrieval both ways between clips and captions: R@1, R@5, R@10, median and mean rank. Pure numpy.

A clip may have several captions. A caption looks for its one clip; a clip counts as found when the best placed of its
captions is. **Ties are counted pessimistically**: the rank of an item is one more than the number of wrong items that
score as high or higher, so a model that gives everything the same score is last, not first. Many published scripts
sort and take whatever order the sort left ties in.

Letters: Q queries, N items, C captions, V clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Retrieval:
    """What a list of ranks comes to; R@k are shares in [0, 1].

    Args:
        r1, r5, r10: share of queries whose item is among the first 1, 5, 10.
        median_rank: the lower median where there are two.
        mean_rank: as it says.
        queries: how many there were.
        items: among how many each looked.
    """

    r1: float
    r5: float
    r10: float
    median_rank: float
    mean_rank: float
    queries: int
    items: int

    @classmethod
    def of(cls, found: np.ndarray, items: int) -> Retrieval:
        """From ranks (Q,), counted from 1, among `items` items."""
        if not len(found):
            raise ValueError("there are no queries")
        r1, r5, r10 = (float((found <= level).mean()) for level in (1, 5, 10))
        median = float(np.sort(found)[(len(found) - 1) // 2])
        return cls(r1, r5, r10, median, float(found.mean()), len(found), items)

    def to_values(self, prefix: str = "") -> dict[str, float]:
        """As columns of a row, with `prefix` before each name."""
        return {prefix + name: value for name, value in asdict(self).items()}


def ranks(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Rank of the best right item of each query, from 1; wrong items that score the same come first.

    Args:
        scores: (Q, N) floats, more is better.
        right: (Q, N) bool with at least one true in each row; or (Q,) numbers of the one right item.

    Returns:
        (Q,) int64.

    Raises:
        ValueError: shapes do not fit, a query has no right item, or a score is not a number.
    """
    scores, right = np.asarray(scores), np.asarray(right)
    if scores.ndim != 2 or right.shape not in (scores.shape[:1], scores.shape):
        raise ValueError(f"need scores (Q, N) and right (Q, N) or (Q,), got {scores.shape} and {right.shape}")
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).any(axis=1).sum())} queries have scores that are not numbers")
    if right.ndim == 1:
        best = scores[np.arange(len(scores)), right][:, None]  # (Q, 1)
        higher: np.ndarray = (scores >= best).sum(axis=1)  # the right one itself makes it count from 1
        return higher.astype(np.int64)
    right = right.astype(bool)
    if not right.any(axis=1).all():
        raise ValueError(f"{int((~right.any(axis=1)).sum())} queries have no right item")
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)  # (Q, 1)
    wrong: np.ndarray = ((scores >= best) & ~right).sum(axis=1)
    return wrong.astype(np.int64) + 1


def both_ways(scores: np.ndarray, clip_of: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of captions looking for clips, and of clips looking for captions.

    Args:
        scores: (C, V) of every caption with every clip.
        clip_of: (C,) number of the clip that each caption describes; every clip has at least one.

    Returns:
        (C,) and (V,) ranks; `Retrieval.of` sums them up.

    Raises:
        ValueError: shapes do not fit, or a clip has no caption.
    """
    scores, owner = np.asarray(scores), np.asarray(clip_of)
    if scores.ndim != 2 or owner.shape != scores.shape[:1]:
        raise ValueError(f"need scores (C, V) and clip_of (C,), got {scores.shape} and {owner.shape}")
    own = owner[None, :] == np.arange(scores.shape[1])[:, None]  # (V, C)
    return ranks(scores, owner), ranks(scores.T, own)
