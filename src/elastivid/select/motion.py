"""Selection by change over time: FluxViT's group-dynamic selector (arXiv 2503.14237).

The frames are cut into G contiguous groups. Inside a group, token i of frame t scores
||x[t, i] - x[t-1, i]||_2; the first frame of a group takes the scores of the second. Every group keeps its
share of the budget, so each part of the clip stays covered. Scores carry no gradient. The first two frames of a
group always tie; which of two tied tokens stays is left to torch's sort, as in the released code.
Cost: N D subtractions and squares, no matrix product.

Letters: B batch, T frames, S tokens of one frame, N tokens, G groups, F frames of one group, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from elastivid.core.errors import PointError
from elastivid.core.tokens import Tokens
from elastivid.select.base import Selector


class GroupDynamic(Selector):
    """Keep the tokens that differ most from their predecessor, an equal share in each group of frames.

    Where the released code needs an even number of frames and a count divisible by the groups, this keeps
    exactly what is asked: the remainder goes to the first groups, and one group serves an odd frame count.

    Args:
        groups: number of groups; `None` follows the released code: 4 when the frames divide by 4, else 2 when
            they divide by 2 and there are more than two, else 1.
    """

    def __init__(self, groups: int | None = None) -> None:
        if groups is not None and groups < 1:
            raise PointError(f"groups must be >= 1 or None, got {groups}")
        self.groups = groups

    def num_groups(self, frames: int) -> int:
        """Groups used for a clip of `frames` frames."""
        if self.groups is not None:
            if frames % self.groups:
                raise PointError(f"{frames} frames do not divide into {self.groups} groups; use groups=None")
            return self.groups
        if frames % 4 == 0:
            return 4
        return 2 if frames % 2 == 0 and frames > 2 else 1

    @torch.no_grad()
    def select(self, tokens: Tokens, keep: int) -> Tensor:
        """Places (B, keep) of the kept patch tokens, ascending."""
        x = tokens.x[:, tokens.num_prefix :]
        frames, rows, columns = tokens.grid
        b, n, _ = x.shape
        if keep > n:
            raise PointError(f"cannot keep {keep} tokens of {n}; allowed: 1 to {n}")
        groups = self.num_groups(frames)
        scores = change_scores(x.unflatten(1, (frames, rows * columns)), groups)  # (B, T, S)
        scores = scores.reshape(b, groups, n // groups)  # (B, T, S) -> (B, G, F*S)
        kept = []
        for group, quota in enumerate(shares(keep, groups)):
            best = scores[:, group].argsort(dim=1, descending=True)[:, :quota]  # (B, quota)
            kept.append(best.sort(dim=1).values + group * (n // groups))
        return torch.cat(kept, dim=1)  # (B, keep)


def change_scores(x: Tensor, groups: int) -> Tensor:
    """L2 distance of every token to the same place one frame earlier, (B, T, S, D) -> (B, T, S).

    The first frame of each group takes the scores of the second; a group of one frame is compared with the
    frame before it (the very first with the one after it; a single frame scores zero).
    """
    b, t, s, _ = x.shape
    if t == 1:
        return x.new_zeros(b, t, s)
    steps = (x[:, 1:] - x[:, :-1]).norm(dim=-1)  # (B, T-1, S): change into frames 1..T-1
    scores = torch.cat([steps[:, :1], steps], dim=1)  # (B, T, S)
    length = t // groups
    if length > 1:
        starts = torch.arange(0, t, length, device=x.device)
        scores[:, starts] = scores[:, starts + 1]
    return scores


def shares(total: int, parts: int) -> list[int]:
    """Split `total` into `parts` whole numbers that differ by at most one, the larger first."""
    return [total // parts + (part < total % parts) for part in range(parts)]
