"""Mixup and CutMix on batches, with soft targets.

    video'  = lam * video + (1 - lam) * video[partner]          mixup, arXiv 1710.09412
    video'  = video with a rectangle of video[partner]          cutmix, arXiv 1905.04899; lam = share that is left
    target' = lam * target + (1 - lam) * target[partner]        lam ~ Beta(alpha, alpha)

Letters: B clips, T frames, H W pixels, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def soft_targets(labels: Tensor, num_classes: int, smoothing: float = 0.0) -> Tensor:
    """Class numbers (B,) as probabilities (B, K): `smoothing` is spread over all classes, the true one included.

    Raises:
        ValueError: `smoothing` lies outside [0, 1), or a label outside [0, K).
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must be in [0, 1), got {smoothing}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(f"labels must be 0 to {num_classes - 1}, got {int(labels.min())} to {int(labels.max())}")
    hard = torch.nn.functional.one_hot(labels.long(), num_classes).float()
    return hard * (1 - smoothing) + smoothing / num_classes


@dataclass(frozen=True)
class Mixing:
    """Mixes every clip of a batch with a partner; all clips of a batch are mixed in the same way.

    Args:
        mixup: alpha of mixup's Beta distribution; 0 for none.
        cutmix: alpha of cutmix's; 0 for none.
        probability: that a batch is mixed at all.
        cutmix_share: probability of cutmix where both are wanted.

    Raises:
        ValueError: a value is out of range.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    probability: float = 1.0
    cutmix_share: float = 0.5

    def __post_init__(self) -> None:
        shares = (self.probability, self.cutmix_share)
        if min(self.mixup, self.cutmix) < 0 or not all(0 <= share <= 1 for share in shares):
            raise ValueError(f"alphas must be >= 0 and probabilities in [0, 1], got {self}")

    def __call__(self, video: Tensor, targets: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Mixed clips and targets; the inputs are not changed.

        Args:
            video: (B, T, 3, H, W) floats.
            targets: (B, K) probabilities.
            rng: the only source of randomness.
        """
        if len(video) < 2 or not (self.mixup or self.cutmix) or rng.random() >= self.probability:
            return video, targets
        cut = self.cutmix > 0 and (self.mixup == 0 or rng.random() < self.cutmix_share)
        alpha = self.cutmix if cut else self.mixup
        lam = float(rng.beta(alpha, alpha))
        partner = torch.from_numpy(_derangement(len(video), rng)).to(video.device)
        if cut:
            video, lam = _pasted(video, video[partner], lam, rng)
        else:
            video = lam * video + (1 - lam) * video[partner]
        return video, lam * targets + (1 - lam) * targets[partner]


def _derangement(count: int, rng: np.random.Generator) -> np.ndarray:
    """A partner for everyone who is not themselves: the next one in a drawn circle."""
    circle = rng.permutation(count)
    partner = np.empty(count, dtype=np.int64)
    partner[circle] = np.roll(circle, -1)
    return partner


def _pasted(video: Tensor, other: Tensor, lam: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    """A rectangle of 1 - lam of the area of `other`, cut off at the edges, and the share of `video` that is left."""
    height, width = video.shape[-2:]
    side = math.sqrt(1 - lam)
    h, w = int(height * side), int(width * side)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = max(y - h // 2, 0), min(y + h // 2, height)
    left, right = max(x - w // 2, 0), min(x + w // 2, width)
    out = video.clone()
    out[..., top:bottom, left:right] = other[..., top:bottom, left:right]
    return out, 1 - (bottom - top) * (right - left) / (height * width)
