"""Frames -> fewer frames, for encoders that look at each frame alone.

Letters: B batch, T frames, C channels, H W pixels, S patches of a frame.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from elastivid.core.errors import PointError
from elastivid.select.base import shares
from elastivid.select.motion import change_scores

PATCH_SIZE = 16


class FrameSelector(ABC):
    """Chooses which frames of a clip are worth encoding."""

    @abstractmethod
    def select(self, video: Tensor, keep: int) -> Tensor:
        """Indices (B, `keep`) of the kept frames of `video` (B, T, C, H, W), ascending.

        Raises:
            PointError: `keep` is not between 1 and T.
        """


class UniformFrames(FrameSelector):
    """The clip is cut into `keep` stretches that differ by at most one frame; the middle frame of each stays."""

    def select(self, video: Tensor, keep: int) -> Tensor:
        """Indices (B, `keep`); the same for every clip."""
        starts, sizes = _stretches(video, keep)
        middles = [start + size // 2 for start, size in zip(starts, sizes, strict=True)]
        return torch.tensor(middles, device=video.device).expand(len(video), -1)  # (B, keep)


class ChangingFrames(FrameSelector):
    """The clip is cut into `keep` stretches; the frame of each that differs most from its predecessor stays.

    FluxViT's group-dynamic selection (arXiv 2503.14237) with whole frames in the place of tokens: a frame scores the
    mean over its patches of ||mean colour of the patch - that one frame earlier||_2, the first frame of the clip takes
    the score of the second. Of equal scores the earliest stays. Cost: one pass over the pixels.
    """

    @torch.no_grad()
    def select(self, video: Tensor, keep: int) -> Tensor:
        """Indices (B, `keep`)."""
        starts, sizes = _stretches(video, keep)
        b, t = video.shape[:2]
        side = min(PATCH_SIZE, *video.shape[-2:])
        patches = F.avg_pool2d(video.flatten(0, 1), side)  # (B*T, C, h, w)
        colours = patches.flatten(2).transpose(1, 2).reshape(b, t, -1, video.shape[2])  # (B, T, S, C)
        scores = change_scores(colours, groups=1).mean(-1)  # (B, T)
        kept = [scores[:, start : start + size].argmax(1) + start for start, size in zip(starts, sizes, strict=True)]
        return torch.stack(kept, dim=1)  # (B, keep)


def _stretches(video: Tensor, keep: int) -> tuple[list[int], list[int]]:
    """First frame and length of each of `keep` stretches."""
    frames = video.shape[1]
    if not 1 <= keep <= frames:
        raise PointError(f"cannot keep {keep} frames of {frames}; allowed: 1 to {frames}")
    sizes = shares(frames, keep)
    return [sum(sizes[:i]) for i in range(keep)], sizes
