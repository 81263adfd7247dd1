"""Losses between images and texts as BLIP-2 uses them: contrast over queries, matching with hard negatives, writing.

Papers: BLIP, arXiv 2201.12086; BLIP-2, arXiv 2301.12597. Functions of tensors, never of models.

Letters: B images and texts, K queries, D channels, L words, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LABEL_SMOOTHING = 0.1
IGNORED = -100


def query_similarity(queries: Tensor, texts: Tensor) -> Tensor:
    """Cosine of every image with every text, (B, B): of the K queries (B, K, D) the one most like the text (B, D)
    counts. Both are unit vectors."""
    return torch.einsum("ikd,jd->ijk", queries, texts).amax(dim=-1)


def shared_targets(image_ids: Tensor | None, count: int, smoothing: float = LABEL_SMOOTHING) -> Tensor:
    """What each image should be like, (B, B): the texts of equal image ids share 1 - smoothing, all share the rest.

    Without ids every image has one text, that of its own place.
    """
    same = torch.eye(count, dtype=torch.bool) if image_ids is None else image_ids[:, None] == image_ids[None, :]
    shares = same.float() / same.float().sum(dim=1, keepdim=True)
    return (1 - smoothing) * shares + smoothing / count


def contrast(similarity: Tensor, temperature: Tensor | float, targets: Tensor) -> Tensor:
    """Mean of the cross-entropies of images over texts and of texts over images.

    Args:
        similarity: images in rows, texts in columns (B, B).
        temperature: divides it.
        targets: see `shared_targets`; symmetric.
    """
    logits = similarity / temperature
    to_text = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    to_image = -(targets * logits.T.log_softmax(dim=1)).sum(dim=1).mean()
    return (to_text + to_image) / 2


def negative_weights(similarity: Tensor, temperature: Tensor | float, image_ids: Tensor | None = None) -> Tensor:
    """Chance of each column to be drawn as a hard negative of each row, (B, B): the more alike, the likelier; what
    belongs together has none.

    Raises:
        ValueError: a row has no negative.
    """
    count = len(similarity)
    same = torch.eye(count, dtype=torch.bool) if image_ids is None else image_ids[:, None] == image_ids[None, :]
    if bool(same.all(dim=1).any()):
        raise ValueError(f"hard negatives need another image in the batch of {count}; take a larger batch")
    return (similarity / temperature).masked_fill(same.to(similarity.device), -torch.inf).softmax(dim=1)


def writing(logits: Tensor, ids: Tensor, *, smoothing: float = LABEL_SMOOTHING, reduction: str = "mean") -> Tensor:
    """Cross-entropy of each next word.

    Args:
        logits: (B, L, V).
        ids: words (B, L), `IGNORED` where none is to be learned; shifted by one here.
        smoothing: label smoothing.
        reduction: "mean" over words, or "none": the sum of each text, (B,).
    """
    losses = F.cross_entropy(
        logits[:, :-1].flatten(0, 1),  # (B*(L-1), V)
        ids[:, 1:].flatten(),
        label_smoothing=smoothing,
        ignore_index=IGNORED,
        reduction="mean" if reduction == "mean" else "none",
    )
    return losses if reduction == "mean" else losses.unflatten(0, (len(ids), -1)).sum(dim=1)
