"""What turns the tokens of a clip into fewer: `Selector` keeps some of them, `Merger` joins alike ones.

Both stand in `OperatingPoint(tokens=K, selector=...)`; both leave exactly K tokens, whatever K is.

Letters: B batch, M placed tokens, K kept, G groups, D channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from elastivid.core.errors import PointError
from elastivid.core.tokens import Tokens

Keep = int | Sequence[int] | None
"""How many placed tokens stay: one number for all clips, one per clip, or `None` for what the rule itself gives."""


class Reducer(ABC):
    """Leaves fewer placed tokens. Prefix tokens always stay and do not count."""

    def counts(self, tokens: Tokens) -> tuple[int, ...]:
        """Tokens of each clip that stay when no number is asked: all, unless the rule has a threshold."""
        return tokens.counts

    @abstractmethod
    def reduce(self, tokens: Tokens, keep: Keep = None, *, metric: Tensor | None = None) -> Tokens:
        """Exactly `keep` placed tokens per clip, padded where clips keep different numbers.

        Args:
            tokens: what is reduced; padding never stays.
            keep: how many stay, see `Keep`.
            metric: features (B, M, D') of the placed tokens by which they are judged; `None` takes those in `tokens`.
                An encoder judges patch embeddings and reduces them with their positions added.

        Raises:
            PointError: `keep` is below 1 or above what a clip has, or `metric` has the wrong shape.
        """


class Selector(Reducer):
    """Keeps the tokens with the highest scores; of equal scores the earlier place stays."""

    @abstractmethod
    def scores(self, tokens: Tokens) -> Tensor:
        """How much each placed token is worth, (B, M). What padding scores does not matter."""

    def num_groups(self, frames: int) -> int:
        """Stretches of equal length that keep equal shares of the budget, so that each stays covered."""
        return 1

    @torch.no_grad()
    def select(self, tokens: Tokens, keep: Keep = None) -> Tensor:
        """Places (B, K) of the kept tokens, ascending; -1 behind them where a clip keeps fewer than another.

        Raises:
            PointError: `keep` is below 1 or above what a clip has, or the tokens do not divide into the groups.
        """
        counts = self.counts(tokens) if keep is None else checked_counts(keep, tokens)
        scores = self.scores(tokens)
        if tokens.valid is None and len(set(counts)) == 1:
            return best_places(scores, counts[0], self._checked_groups(tokens, tokens.num_placed))
        rows = []
        for row, count in enumerate(counts):
            own = torch.arange(tokens.num_placed, device=scores.device)  # (M,)
            if tokens.valid is not None:
                own = own[tokens.valid[row]]  # (M',)
            groups = self._checked_groups(tokens, len(own))
            rows.append(own[best_places(scores[row, own][None], count, groups)[0]])
        return pad_sequence(rows, batch_first=True, padding_value=-1)  # (B, K)

    def reduce(self, tokens: Tokens, keep: Keep = None, *, metric: Tensor | None = None) -> Tokens:
        """The kept tokens with places, sizes and validity; see `Reducer.reduce`."""
        judged = judged_by(tokens, metric)
        counts = self.counts(judged) if keep is None else checked_counts(keep, tokens)
        if counts == tokens.counts:
            return tokens
        return tokens.gather(self.select(judged, counts), ragged=len(set(counts)) > 1)

    def _checked_groups(self, tokens: Tokens, placed: int) -> int:
        """`num_groups` of a clip of `placed` tokens; stretches of tokens are stretches of time only in whole frames."""
        groups = self.num_groups(num_frames(tokens.grid, placed))
        if groups > 1 and placed % groups == 0 and not tokens.fills_frames:
            raise PointError(
                f"{groups} groups need whole frames and all tokens of them, in order, but some of the {placed} tokens "
                "were selected, merged or moved; group first, or use one group"
            )
        return groups


class Merger(Reducer):
    """Joins tokens that are alike; each remaining one knows through `sizes` how many patches it stands for."""


def judged_by(tokens: Tokens, metric: Tensor | None) -> Tokens:
    """The placed tokens alone with `metric` (B, M, D') for features; their own when it is `None`."""
    x = tokens.x[:, tokens.num_prefix :] if metric is None else metric
    if x.shape[:2] != tokens.coords.shape[:2]:
        raise PointError(
            f"metric must have shape (B, M, D) = {tuple(tokens.coords.shape[:2])} and any D, got {tuple(x.shape)}"
        )
    return replace(tokens, x=x, num_prefix=0)


def checked_counts(keep: int | Sequence[int], tokens: Tokens) -> tuple[int, ...]:
    """`keep` as one number per clip.

    Raises:
        PointError: a number is below 1 or above the tokens of its clip, or there is not one per clip.
    """
    available = tokens.counts
    counts = (int(keep),) * len(available) if isinstance(keep, int | Integral) else tuple(int(k) for k in keep)
    if len(counts) != len(available):
        raise PointError(
            f"keep must be one number or one per clip ({len(available)}), got {len(counts)} numbers: {counts}"
        )
    for row, (count, most) in enumerate(zip(counts, available, strict=True)):
        if not 1 <= count <= most:
            where = "" if len(set(available)) == 1 and len(set(counts)) == 1 else f" in clip {row}"
            raise PointError(
                f"cannot keep {count} tokens of {most}{where}; allowed: 1 to {most}, or None for all of them; more "
                "frames or a larger size have more"
            )
    return counts


def num_frames(grid: tuple[int, int, int], placed: int) -> int:
    """Frames of a `grid` that `placed` tokens fill; all of them when tokens of some frames are gone."""
    frames, rows, columns = grid
    whole, rest = divmod(placed, rows * columns)
    return frames if rest or not whole else min(whole, frames)


def default_groups(frames: int) -> int:
    """FluxViT's number of groups: 4 when the frames divide by 4, else 2 when they do by 2 and are more, else 1."""
    if frames % 4 == 0:
        return 4
    return 2 if frames % 2 == 0 and frames > 2 else 1


def checked_groups(groups: int | None) -> int | None:
    """`groups` as it is.

    Raises:
        PointError: it is below 1.
    """
    if groups is not None and groups < 1:
        raise PointError(f"groups must be >= 1 or None, got {groups}")
    return groups


def best_places(scores: Tensor, keep: int, groups: int = 1) -> Tensor:
    """Places (B, `keep`) of the best scores, ascending; each of `groups` equal stretches keeps its share.

    Shares differ by at most one, the larger ones come first. Equal scores: the lower place stays.

    Args:
        scores: (B, M).
        keep: places per row.
        groups: stretches of equal length.

    Raises:
        PointError: the places do not divide into the groups.
    """
    batch, placed = scores.shape
    if placed % groups:
        raise PointError(
            f"{placed} tokens do not divide into {groups} groups; groups need whole frames and all tokens of them"
        )
    order = scores.reshape(batch, groups, placed // groups)  # (B, M) -> (B, G, M/G)
    order = order.argsort(dim=2, descending=True, stable=True)
    order = order + torch.arange(0, placed, placed // groups, device=scores.device)[:, None]  # (B, G, M/G) places
    quota, larger = divmod(keep, groups)  # the first `larger` groups keep one more
    kept = [order[:, :larger, : quota + 1].flatten(1), order[:, larger:, :quota].flatten(1)]
    return torch.cat(kept, dim=1).sort(dim=1).values  # (B, K)


def shares(total: int, parts: int) -> list[int]:
    """Split `total` into `parts` whole numbers that differ by at most one, the larger first."""
    return [total // parts + (part < total % parts) for part in range(parts)]
