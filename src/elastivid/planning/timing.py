"""Time of a clip as a function of the work it is: a sum of non-negative costs, corrected near what was measured.

    ms = (a + b * MACs + c * pixels + d * tokens * width + e * tokens^2 * width) * exp(g)        a ... e >= 0

The sum is fitted by non-negative least squares on relative errors, so it stays positive and grows with the work also
far from every measured point. g is a Gaussian process over the logarithms of tokens, width and pixels, fitted to what
the sum leaves over: near a measured point it takes up what no sum can say (caches, kernels that change), far away it
vanishes.

Other ways of running the same model (more clips at a time, other threads) are told by the times of a well-measured one:

    ms = (a + b * reference(work) + c * MACs + d * pixels) * exp(g)

where the constant of the reference is left out, and b is held near the ratio of the dearest measured point to it: a few
points do, and what lies beyond them grows as the reference does, whatever their constants and pixels happen to explain.
What batches save on cheap points they do not save on dear ones: above the dearest measured point, times grow a little
faster than the formulas say (`BEYOND`).

How far to trust it is measured: every point is left out once and predicted from the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

LENGTH_OCTAVES = 1.0  # how far a correction reaches: its weight falls to 0.61 at this distance
CORRECTION = 0.15  # expected size of a correction, in units of the logarithm
NOISE = 0.03  # expected error of one measured time, in the same units
MOST_CORRECTION = math.log(1.5)
HELD = 2.0  # how firmly b is held: a share of 1 away from that ratio weighs as much as an error of this share
BEYOND = 0.07  # power of MACs over those of the dearest measured point: 1.05 for every octave


@dataclass(frozen=True)
class Work:
    """What one clip makes a model do.

    Args:
        macs: multiply-accumulates.
        pixels: pixels read, frames times size squared.
        tokens: tokens that pass through the blocks.
        width: active channels.
    """

    macs: float
    pixels: float
    tokens: float
    width: float

    @property
    def terms(self) -> tuple[float, ...]:
        """What the sum adds up, scaled to similar magnitudes: (5,)."""
        channels = self.tokens * self.width
        return 1.0, self.macs / 1e9, self.pixels / 1e5, channels / 1e5, channels * self.tokens / 1e8

    @property
    def place(self) -> tuple[float, ...]:
        """Where a correction lives, in octaves: (3,)."""
        return math.log2(self.tokens), math.log2(self.width), math.log2(self.pixels)


class TimeModel:
    """Predicts milliseconds from `Work`, fitted to measured pairs.

    Args:
        works: what was measured.
        milliseconds: how long each took; positive, of the same length.
        reference: a model of the same machine and network run another way, fitted to more points; `None` for none.

    Raises:
        ValueError: there is nothing to fit, or a time is not positive.
    """

    def __init__(
        self, works: Sequence[Work], milliseconds: Sequence[float], reference: TimeModel | None = None
    ) -> None:
        if not works or len(works) != len(milliseconds):
            raise ValueError(f"need as many works as times and at least one, got {len(works)} and {len(milliseconds)}")
        self._works = list(works)
        self._times = np.asarray(milliseconds, dtype=np.float64)  # (N,)
        if not np.all(np.isfinite(self._times) & (self._times > 0)):
            raise ValueError(f"times must be finite and > 0, got {list(milliseconds)}")
        self._reference = reference
        terms = np.array([self._terms(work) for work in works])  # (N, M)
        relative = terms / self._times[:, None]  # (N, M): what each term adds to a share of 1
        target = np.ones(len(works))
        if reference is not None:
            dearest = max(range(len(works)), key=lambda place: works[place].macs)
            ratio = float(self._times[dearest]) / reference.predict(works[dearest])
            held = np.eye(terms.shape[1])[1] * HELD / ratio  # the reference's term alone, (M,)
            relative, target = np.vstack([relative, held]), np.append(target, HELD)  # (N + 1, M), (N + 1,)
        self._weights = non_negative_least_squares(relative, target)  # (M,)
        left = np.log(self._times / (terms @ self._weights))  # (N,)
        self._places = np.array([work.place for work in works])  # (N, 3)
        kernel = _nearness(self._places, self._places) + NOISE**2 * np.eye(len(works))
        self._corrections = np.linalg.solve(kernel, left)  # (N,)

    def predict(self, work: Work) -> float:
        """Milliseconds of `work`."""
        total = float(np.dot(self._terms(work), self._weights)) * max(1.0, work.macs / self.most_macs) ** BEYOND
        near = _nearness(np.array([work.place]), self._places)[0]  # (N,)
        correction = float(near @ self._corrections)
        return total * math.exp(min(max(correction, -MOST_CORRECTION), MOST_CORRECTION))

    def _terms(self, work: Work) -> tuple[float, ...]:
        """What the sum adds up: (M,)."""
        if self._reference is None:
            return work.terms
        return 1.0, self._reference.marginal(work), work.macs / 1e9, work.pixels / 1e5

    def marginal(self, work: Work) -> float:
        """Milliseconds of the sum that grow with the work: the constant and the correction left out."""
        return float(np.dot(self._terms(work)[1:], self._weights[1:]))

    @cached_property
    def left_out(self) -> np.ndarray:
        """measured / predicted - 1 of every point, predicted from all others: (N,). Empty for fewer than three."""
        if len(self._works) < 3:
            return np.zeros(0)
        errors = []
        for place, work in enumerate(self._works):
            others = [other for number, other in enumerate(self._works) if number != place]
            model = TimeModel(others, np.delete(self._times, place).tolist(), self._reference)
            errors.append(self._times[place] / model.predict(work) - 1.0)
        return np.array(errors)

    @cached_property
    def most_macs(self) -> float:
        """MACs of the dearest measured point: predictions beyond are extrapolated."""
        return max(work.macs for work in self._works)


def non_negative_least_squares(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The x >= 0 that minimises |matrix x - target|: (N, M), (N,) -> (M,). Exact, for few columns.

    The solution is the unconstrained one on some subset of the columns, so all subsets are tried (2^M).
    """
    columns = matrix.shape[1]
    best, least = np.zeros(columns), math.inf
    for size in range(1, min(columns, len(matrix)) + 1):
        for chosen in map(list, combinations(range(columns), size)):
            solution = np.linalg.lstsq(matrix[:, chosen], target, rcond=None)[0]
            if np.all(solution >= 0):
                error = float(np.sum((matrix[:, chosen] @ solution - target) ** 2))
                if error < least:
                    least, best = error, np.zeros(columns)
                    best[chosen] = solution
    return best


def _nearness(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Covariance of corrections at (N, 3) and (M, 3): (N, M)."""
    squares = ((first[:, None] - second[None]) ** 2).sum(axis=-1)  # (N, M)
    return CORRECTION**2 * np.exp(-0.5 * squares / LENGTH_OCTAVES**2)
