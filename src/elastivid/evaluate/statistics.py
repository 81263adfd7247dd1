"""How sure a number is, and whether two numbers differ: bootstrap by source, paired tests, correction for many tests.

Clips cut from one film succeed and fail together, so intervals resample whole sources; treating the clips of one film
as independent makes intervals too narrow. Pure numpy.

Letters: N samples, G sources, R resamples.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
_CELLS = 4_000_000  # of one block of drawn weights: R x G of them are never held at once


@dataclass(frozen=True)
class Interval:
    """A mean with the interval that bootstrapping gives it.

    Args:
        value: the mean over all samples.
        low, high: ends of the percentile interval.
        level: probability the interval is made for.
        sources: independent units that were resampled.
    """

    value: float
    low: float
    high: float
    level: float
    sources: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same samples.

    Args:
        difference: mean of the second minus mean of the first.
        low, high: ends of the percentile interval of the difference.
        level: probability the interval is made for.
        p_value: two-sided, of no difference.
        sources: independent units that were resampled.
    """

    difference: float
    low: float
    high: float
    level: float
    p_value: float
    sources: int

    @property
    def distinguishable(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        text = f"{100 * self.difference:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        return f"{text}, p = {self.p_value:.2g}" + ("" if self.distinguishable else ", not distinguishable")


def bootstrap(
    values: Sequence[float] | np.ndarray,
    sources: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean of `values` with a percentile interval; whole sources are drawn with replacement.

    Args:
        values: (N,) one number a sample, such as hits of 0 and 1.
        sources: (N,) what each sample was cut from; `None` makes every sample its own source.
        level: probability the interval is made for.
        resamples: R.
        seed: equal seeds give equal intervals.

    Raises:
        ValueError: no samples, a value that is not finite, lengths that differ, or a level outside (0, 1).
    """
    sums, counts = _by_source(values, sources, level, resamples)
    means = _resampled(sums, counts, resamples, seed)
    low, high = _ends(means, level)
    return Interval(float(sums.sum() / counts.sum()), low, high, level, len(counts))


def paired_bootstrap(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    sources: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Difference of two means on the same samples, with an interval and a p-value.

    The p-value is twice the smaller share of resampled differences on either side of zero, zero itself counting on
    both, with one added to both counts; it is never below 2 / (R + 1).

    Args:
        first, second: (N,) each, row i of both being the same sample.
        sources, level, resamples, seed: as in `bootstrap`.

    Raises:
        ValueError: the lengths differ, or as `bootstrap`.
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != two.shape:
        raise ValueError(f"paired values must be of the same samples, got shapes {one.shape} and {two.shape}")
    sums, counts = _by_source(two - one, sources, level, resamples)
    differences = _resampled(sums, counts, resamples, seed)
    low, high = _ends(differences, level)
    below, above = int((differences <= 0).sum()), int((differences >= 0).sum())
    p_value = min(1.0, 2 * (min(below, above) + 1) / (resamples + 1))
    return Comparison(float(sums.sum() / counts.sum()), low, high, level, p_value, len(counts))


def mcnemar(first: Sequence[bool] | np.ndarray, second: Sequence[bool] | np.ndarray) -> float:
    """Exact two-sided p-value of McNemar's test: of the samples that one system alone got right, are both equal shares?

        p = min(1, 2 * sum over i <= min(b, c) of C(b + c, i) / 2^(b + c))

    with b and c the samples that only the first and only the second got right. It treats samples as independent;
    where several come from one source, use `paired_bootstrap`.

    Args:
        first, second: (N,) bool, row i of both being the same sample.

    Raises:
        ValueError: the lengths differ, or values are neither true nor false.
    """
    one, two = (_booleans(values) for values in (first, second))
    if one.shape != two.shape:
        raise ValueError(f"paired values must be of the same samples, got shapes {one.shape} and {two.shape}")
    only_first, only_second = int((one & ~two).sum()), int((two & ~one).sum())
    trials, fewer = only_first + only_second, min(only_first, only_second)
    term = total = 1  # C(trials, 0)
    for i in range(1, fewer + 1):
        term = term * (trials - i + 1) // i  # whole numbers, so exact
        total += term
    half = 2 ** max(trials - 1, 0)
    return 1.0 if trials == 0 or total >= half else total / half


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values, in the order given: below alpha where a family-wise error of alpha rejects.

    With m p-values in rising order, the i-th (from 0) becomes the largest of (m - j) p_j over j <= i, at most 1.

    Raises:
        ValueError: a value lies outside [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must be a list of numbers in [0, 1], got {p_values}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]))
    return adjusted


def _booleans(values: Sequence[bool] | np.ndarray) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or not np.isin(array, (0, 1)).all():
        raise ValueError("McNemar's test compares hits: a list of true and false (or 1 and 0) for each system")
    return array.astype(bool)


def _by_source(
    values: Sequence[float] | np.ndarray, sources: Sequence[Hashable] | None, level: float, resamples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the values and number of samples of each source: (G,), (G,)."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"values must be a list of finite numbers with at least one in it, got shape {array.shape}")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"need 0 < level < 1 and resamples >= 1, got {level} and {resamples}")
    if sources is None:
        return array, np.ones(len(array))
    if len(sources) != len(array):
        raise ValueError(f"sources must name one source a sample, got {len(sources)} for {len(array)} samples")
    numbers: dict[Hashable, int] = {}
    which = np.array([numbers.setdefault(source, len(numbers)) for source in sources])
    return np.bincount(which, weights=array), np.bincount(which).astype(np.float64)


def _resampled(sums: np.ndarray, counts: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(R,) means over as many sources as there are, drawn with replacement."""
    rng, g = np.random.default_rng(seed), len(sums)
    means = np.empty(resamples)
    rows = max(1, _CELLS // g)
    for start in range(0, resamples, rows):
        part = slice(start, min(start + rows, resamples))
        drawn = rng.multinomial(g, np.full(g, 1 / g), size=part.stop - part.start)  # (rows, G) times each was drawn
        means[part] = (drawn @ sums) / (drawn @ counts)
    return means


def _ends(means: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
