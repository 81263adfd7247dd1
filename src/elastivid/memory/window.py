"""Rules that do not look at the text: keep all, first in first out, uniform thinning, random.

They are what a guided memory is compared with, and they serve where one pass over a video has to answer questions that
are asked afterwards.

Letters as in `elastivid.memory.base`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from elastivid.memory.cache import Candidates, Retention


@dataclass(frozen=True)
class KeepAll(Retention):
    """Everything stays: ordinary cross-attention over all frames. The reference; it grows with the video."""

    @property
    def bounded(self) -> bool:
        """Whether it stops growing: never."""
        return False

    def keep_count(self, layer: int, count: int) -> int:
        """All."""
        return count

    def priorities(self, candidates: Candidates) -> Tensor:
        """All alike."""
        return torch.zeros_like(candidates.scores)


@dataclass(frozen=True)
class Limited(Retention):
    """At most `tokens` stay; which, a subclass says.

    Raises:
        ValueError: there is no room for a token.
    """

    tokens: int

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"tokens must be >= 1, got {self.tokens}")

    def keep_count(self, layer: int, count: int) -> int:
        """All while they fit."""
        return min(count, self.tokens)


@dataclass(frozen=True)
class FirstInFirstOut(Limited):
    """The last `tokens` stay.

    Raises:
        ValueError: there is no room for a token.
    """

    def priorities(self, candidates: Candidates) -> Tensor:
        """Later is higher."""
        return candidates.order.float()


@dataclass(frozen=True)
class UniformThinning(Limited):
    """`tokens` of frames that lie as evenly as possible over everything seen: the frame whose absence leaves the
    smallest gap goes first. The first and the last frame stay.

    Raises:
        ValueError: there is no room for a token.
    """

    def priorities(self, candidates: Candidates) -> Tensor:
        """For each token the distance between the frames before and after its own."""
        rows = []
        for frame, order in zip(candidates.frame, candidates.order, strict=True):
            there, place = frame[order >= 0].unique(return_inverse=True)  # (F,), (n,)
            gap = torch.full(there.shape, torch.inf, device=frame.device)
            gap[1:-1] = (there[2:] - there[:-2]).float()
            rows.append(torch.cat([gap.new_zeros(int((order < 0).sum())), gap[place]]))  # (N,)
        return torch.stack(rows)  # (B, N)


@dataclass(frozen=True)
class RandomKeeping(Limited):
    """`tokens` of randomly drawn frames: every frame seen so far has the same chance.

    A frame's lot is a hash of its number and the seed, so the choice does not depend on how the video came in pieces.

    Raises:
        ValueError: there is no room for a token.
    """

    seed: int = 0

    def priorities(self, candidates: Candidates) -> Tensor:
        """A lot for each frame, in 0 to 1."""
        return _lots(candidates.frame, self.seed)


def _lots(numbers: Tensor, seed: int) -> Tensor:
    """Uniform numbers in 0 to 1 that depend on `numbers` and `seed` only (the mixing steps of SplitMix64)."""
    x = (numbers.long() + 1) * -7046029254386353131 + (seed + 1) * 0x5851F42D4C957F2D % 2**62
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ ((x >> shift) & (2 ** (64 - shift) - 1))) * factor
    x = x ^ ((x >> 31) & (2**33 - 1))
    return (x & (2**52 - 1)).double() / 2**52
