"""Several classifications read from one vector. Functions of tensors, never of models.

Letters: B samples, A attributes, K classes of all attributes together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def attributes(logits: Tensor, wanted: Tensor, sizes: Sequence[int], *, ignored: int = -100) -> Tensor:
    """Mean cross-entropy over attributes.

    Args:
        logits: (B, K), the classes of the attributes one after the other.
        wanted: (B, A) class numbers within each attribute; `ignored` where nothing is known.
        sizes: number of classes of each of the A attributes; they add up to K.
        ignored: class number that does not count.

    Returns:
        Scalar; 0 when nothing at all is known.
    """
    total = logits.new_zeros(())
    for part, target in zip(logits.split(list(sizes), dim=-1), wanted.T, strict=True):
        known = (target != ignored).sum().clamp(min=1)
        total = total + F.cross_entropy(part, target, ignore_index=ignored, reduction="sum") / known
    return total / len(sizes)
