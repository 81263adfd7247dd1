"""Metrics of retrieval and classification, with intervals. Pure numpy.

Letters: Q queries, N items.
"""

from __future__ import annotations

import math

import numpy as np


def average_precision(scores: np.ndarray, relevant: np.ndarray) -> float:
    """Mean of the precision at each relevant item when items are ranked by falling score.

    Among equal scores the relevant items are counted last, so ties never flatter.

    Args:
        scores: (N,) floats.
        relevant: (N,) bool with at least one true.

    Raises:
        ValueError: nothing is relevant or the shapes differ.
    """
    scores, relevant = np.asarray(scores, dtype=np.float64), np.asarray(relevant, dtype=bool)
    if scores.shape != relevant.shape or scores.ndim != 1:
        raise ValueError(f"scores and relevant must both be (N,), got {scores.shape} and {relevant.shape}")
    if not relevant.any():
        raise ValueError("average precision needs at least one relevant item")
    order = np.lexsort((relevant, -scores))  # by score, irrelevant before relevant within a tie
    found = relevant[order]
    precision = np.cumsum(found) / np.arange(1, len(found) + 1)
    return float(precision[found].mean())


def expected_average_precision(num_relevant: int, num_items: int) -> float:
    """Mean average precision of a random ranking, in closed form.

    With R relevant of N items: (1/N) * sum over ranks k of (1 + (k-1) (R-1)/(N-1)) / k.
    """
    if not 1 <= num_relevant <= num_items:
        raise ValueError(f"num_relevant must be 1 to {num_items}, got {num_relevant}")
    if num_items == 1:
        return 1.0
    rest = (num_relevant - 1) / (num_items - 1)
    return sum((1 + (k - 1) * rest) / k for k in range(1, num_items + 1)) / num_items


def wilson_interval(hits: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a proportion; z = 1.96 gives 95 %.

    Raises:
        ValueError: there are no trials, or more hits than trials.
    """
    if not 0 <= hits <= trials or trials == 0:
        raise ValueError(f"need 0 <= hits <= trials and trials > 0, got {hits} of {trials}")
    share = hits / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def format_share(hits: int, trials: int) -> str:
    """A proportion with its 95 % interval for tables: "61.5 % [50.2, 71.6]"."""
    low, high = wilson_interval(hits, trials)
    return f"{100 * hits / trials:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def top_k_hits(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> np.ndarray:
    """Whether the class of each sample is among its k highest scores.

    Equal scores count against the right class, so a model that gives all classes the same score is never right.

    Args:
        scores: (N, K) floats, more is better.
        labels: (N,) class numbers.
        k: at least 1; from K on every finite row is a hit.

    Returns:
        (N,) bool.

    Raises:
        ValueError: shapes do not fit, a label is no class, or `k` is below 1.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or k < 1:
        raise ValueError(f"need scores (N, K), labels (N,) and k >= 1, got {scores.shape}, {labels.shape} and {k}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < scores.shape[1]:
        raise ValueError(f"labels must be 0 to {scores.shape[1] - 1}, got {int(labels.min())} to {int(labels.max())}")
    own = scores[np.arange(len(labels)), labels][:, None]  # (N, 1)
    above = (~(scores < own)).sum(axis=1) - 1  # as high or higher, itself left out; not-a-number counts as higher
    return above < k


def mean_class_accuracy(hits: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes that occur of the share of hits within each: rare classes count as much as common ones.

    Args:
        hits: (N,) bool.
        labels: (N,) class numbers or names.

    Raises:
        ValueError: there are no samples or the lengths differ.
    """
    hits, labels = np.asarray(hits, dtype=np.float64), np.asarray(labels)
    if hits.shape != labels.shape or not len(hits):
        raise ValueError(f"hits and labels must both be (N,) with N >= 1, got {hits.shape} and {labels.shape}")
    _, which = np.unique(labels, return_inverse=True)
    return float((np.bincount(which, weights=hits) / np.bincount(which)).mean())
