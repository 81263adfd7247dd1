"""Selection by change over time.

    GroupDynamic   ||x[t,i] - x[t-1,i]||_p, each of G contiguous groups of frames keeps an equal share
                   (FluxViT, arXiv 2503.14237); one group is the plain dynamic selector, p = 1 or 2
    DiffFP         mean |x[t,i] - x[t-1,i]|, the first frame stays whole (Video-LLaMA 3, arXiv 2501.13106)

Scores carry no gradient. Cost: N D subtractions and as many powers, no matrix product.

Letters: B batch, T frames, S tokens of one frame, M = T S placed tokens, G groups, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from elastivid.core.errors import PointError
from elastivid.core.tokens import Tokens
from elastivid.select.base import Selector, checked_groups, default_groups


class GroupDynamic(Selector):
    """Keep the tokens that differ most from their predecessor, an equal share in each group of frames.

    The first frame of a group takes the scores of the second, so these two always tie; the earlier frame stays. (The
    released code leaves ties to torch's sort, which differs between machines; it also needs an even number of frames
    and a count divisible by the groups, where this keeps exactly what is asked.)

    Args:
        groups: number of groups; the paper's rule is 4. `None` follows the released code: 4 when the frames divide
            by 4, else 2 when they divide by 2 and there are more than two, else 1.
        p: which norm measures the change: 2 as published, 1 for the ablation.

    Raises:
        PointError: `groups` is below 1 or `p` is neither 1 nor 2; on use: the frames do not divide into the groups.
    """

    def __init__(self, groups: int | None = None, *, p: int = 2) -> None:
        if p not in (1, 2):
            raise PointError(f"p must be 1 or 2, got {p}")
        self.groups = checked_groups(groups)
        self.p = p

    def num_groups(self, frames: int) -> int:
        """Groups used for a clip of `frames` frames."""
        if self.groups is not None:
            if frames % self.groups:
                raise PointError(f"{frames} frames do not divide into {self.groups} groups; use groups=None")
            return self.groups
        return default_groups(frames)

    def scores(self, tokens: Tokens) -> Tensor:
        """Change of every token since the frame before, (B, M)."""
        scores = []
        for frames in frame_runs(tokens):
            change = change_scores(frames, self.num_groups(frames.shape[1]), self.p)
            scores.append(change.flatten(1))  # (b, T, S) -> (b, M)
        return _padded_rows(scores, tokens.num_placed)


class DiffFP(Selector):
    """Drop what did not change since the previous frame: Video-LLaMA 3's frame pruning as a selector.

    Without a number it keeps what the released rule keeps, a different number for each clip: the whole first frame,
    every later token whose mean absolute change is above `threshold`, and the first `min_tokens` tokens of a frame
    that would keep fewer. With a number K it keeps the K best in that order: first frame, then `min_tokens`
    of each frame, then by change.

    The released code compares normalised pixels of patches to the previous frame, not to what was kept last, and
    multiplies by 255 before it compares with 0.1: about 0.05 grey levels of 255 in pixels scaled to [-1, 1], so only
    near-exact repeats go. Give pixels as features for that rule
    (`replace(tokens, x=patchify(video, patch_size))`); inside an encoder it judges patch embeddings.

    Args:
        threshold: mean absolute change per channel, in the units of the features, above which a token stays.
        min_tokens: tokens that each later frame keeps at least.

    Raises:
        PointError: `threshold` is negative or not a number, or `min_tokens` is negative.
    """

    def __init__(self, threshold: float = 0.1 / 255, *, min_tokens: int = 1) -> None:
        if not threshold >= 0:
            raise PointError(f"threshold must be >= 0, got {threshold}")
        if min_tokens < 0:
            raise PointError(f"min_tokens must be >= 0, got {min_tokens}")
        self.threshold = threshold
        self.min_tokens = min_tokens

    def scores(self, tokens: Tokens) -> Tensor:
        """Mean absolute change of every token, (B, M); 3e38 in the first frame, 2e38 where `min_tokens` asks."""
        scores = []
        for frames in frame_runs(tokens):
            b, t, s, _ = frames.shape
            change = frames.new_full((b, t, s), 3e38, dtype=torch.float32)
            if t > 1:
                change[:, 1:] = (frames[:, 1:] - frames[:, :-1]).abs().mean(dim=-1)
                few = (change[:, 1:] > self.threshold).sum(dim=2) < self.min_tokens  # (b, T-1)
                change[:, 1:, : self.min_tokens].masked_fill_(few.unsqueeze(-1), 2e38)
            scores.append(change.flatten(1))  # (b, T, S) -> (b, M)
        return _padded_rows(scores, tokens.num_placed)

    def counts(self, tokens: Tokens) -> tuple[int, ...]:
        """Tokens of each clip that the threshold keeps."""
        kept = self.scores(tokens) > min(self.threshold, 1e38)  # (B, M)
        if tokens.valid is not None:
            kept &= tokens.valid
        return tuple(int(n) for n in kept.sum(dim=1))


def change_scores(x: Tensor, groups: int, p: int = 2) -> Tensor:
    """Distance of every token to the same place one frame earlier, (B, T, S, D) -> (B, T, S).

    The first frame of each group takes the scores of the second; a group of one frame is compared with the
    frame before it (the very first with the one after it; a single frame scores zero).
    """
    b, t, s, _ = x.shape
    if t == 1:
        return x.new_zeros(b, t, s)
    steps = torch.linalg.vector_norm(x[:, 1:] - x[:, :-1], ord=p, dim=-1)  # (B, T-1, S): change into frames 1..T-1
    scores = torch.cat([steps[:, :1], steps], dim=1)  # (B, T, S)
    length = t // groups
    if length > 1:
        starts = torch.arange(0, t, length, device=x.device)
        scores[:, starts] = scores[:, starts + 1]
    return scores


def frame_runs(tokens: Tokens) -> list[Tensor]:
    """Features by frame: one (B, T, S, D) for a batch without padding, else one (1, T_b, S, D) per clip.

    Raises:
        PointError: a clip does not consist of whole leading frames; change over time needs all tokens of a frame.
    """
    x = tokens.x[:, tokens.num_prefix :]
    frames, rows, columns = tokens.grid
    per_frame = rows * columns
    counts = tokens.counts
    if not (all(0 < n <= frames * per_frame for n in counts) and tokens.fills_frames):
        raise PointError(
            f"change over time needs all tokens of every frame in order, {per_frame} each, got {counts} in the clips; "
            "select before other selections and merges"
        )
    if tokens.valid is None:
        return [x.unflatten(1, (-1, per_frame))]  # (B, T*S, D) -> (B, T, S, D)
    return [row[None, :n].unflatten(1, (-1, per_frame)) for row, n in zip(x, counts, strict=True)]


def _padded_rows(scores: Sequence[Tensor], width: int) -> Tensor:
    """One (B, `width`) of several (b, M_b), padded with -inf."""
    rows = [F.pad(part, (0, width - part.shape[1]), value=-math.inf) for part in scores]
    return rows[0] if len(rows) == 1 else torch.cat(rows)
