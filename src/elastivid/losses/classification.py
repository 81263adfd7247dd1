"""Cross-entropy against softened and mixed labels. Functions of tensors, never of models.

Letters: B samples, K classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over samples of -sum_k targets_k log softmax(logits)_k, computed in single precision.

    Args:
        logits: (B, K).
        targets: (B,) class numbers, or (B, K) probabilities: smoothed labels (arXiv 1512.00567), or those of
            blended samples (arXiv 1710.09412, 1905.04899).

    Raises:
        ValueError: the shapes do not fit.
    """
    if targets.shape not in (logits.shape[:1], logits.shape) or logits.ndim != 2:
        raise ValueError(
            f"logits must be (B, K) and targets (B,) or (B, K), got {tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    return F.cross_entropy(logits.float(), targets if targets.ndim == 1 else targets.float())
