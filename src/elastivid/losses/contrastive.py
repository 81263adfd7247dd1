"""Contrastive losses between clips and texts. Functions of tensors, never of models.

Letters: B clips and their texts, M further texts, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive(
    clips: Tensor,
    texts: Tensor,
    scale: Tensor | float,
    *,
    same: Tensor | None = None,
    hard_texts: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE: every clip should find its text among all texts, every text its clip among all clips.

    Also known as the CLIP loss (arXiv 2103.00020); `hard_texts` adds negatives as NegCLIP does (arXiv 2210.01936).

    Args:
        clips: (B, D) unit vectors.
        texts: (B, D) unit vectors; row i describes clip i.
        scale: factor on the cosines (the inverse temperature): a number, a learned scalar, or (B, B) with one for each
            pair, as where texts of several kinds meet. With `hard_texts` a scalar or (B, 1).
        same: (B, B) bool, true where text j describes clip i just as well; such pairs off the diagonal count
            neither as positive nor as negative.
        hard_texts: (B, M, D) unit vectors of wrong texts for each clip; they stand in that clip's row only.

    Returns:
        Scalar: mean of the two directions.

    Relations: without `same` and `hard_texts` and with B = 1 the loss is zero.
    """
    b = clips.shape[0]
    logits = scale * (clips @ texts.T)  # (B, B)
    if same is not None:
        off_diagonal = same & ~torch.eye(b, dtype=torch.bool, device=same.device)
        logits = logits.masked_fill(off_diagonal, float("-inf"))
    target = torch.arange(b, device=clips.device)
    rows = logits
    if hard_texts is not None:
        hard = scale * torch.einsum("bd,bmd->bm", clips, hard_texts)  # (B, M)
        rows = torch.cat([logits, hard], dim=1)  # (B, B+M)
    return 0.5 * (F.cross_entropy(rows, target) + F.cross_entropy(logits.T, target))


def egonce(clips: Tensor, texts: Tensor, scale: Tensor | float, positives: Tensor) -> Tensor:
    """EgoNCE: every clip should find all texts that name its action, every text all such clips (arXiv 2206.01670).

        rows = -mean_i log(sum over positives j of softmax_j(scale <clip_i, text_j>)),  the same over columns, added

    A batch in which every sample brings a clip of the same video from nearby (EgoVLP, AdaVid) has those as negatives
    like any other, unless they share the action.

    Args:
        clips: (B, D) unit vectors.
        texts: (B, D) unit vectors; row i describes clip i.
        scale: factor on the cosines; 20 in EgoVLP.
        positives: (B, B) bool, see `shared_action`; the diagonal counts in any case.

    Returns:
        Scalar: the sum of the two directions, as in the released code; `contrastive` has their mean.

    Relations: without positives off the diagonal it is twice `contrastive`; with all pairs positive it is zero.
    """
    positives = positives.bool() | torch.eye(len(positives), dtype=torch.bool, device=positives.device)
    logits = scale * clips @ texts.T  # (B, B)
    wrong = ~positives
    total = logits.new_zeros(())
    for rows, mask in ((logits, wrong), (logits.T, wrong.T)):
        hits = rows.masked_fill(mask, float("-inf")).logsumexp(dim=1)  # (B,)
        total = total - (hits - rows.logsumexp(dim=1)).mean()
    return total


def shared_action(verbs: Tensor, nouns: Tensor) -> Tensor:
    """Which pairs of samples share a verb and a noun: positives of EgoNCE.

    Args:
        verbs: (B, V) above zero where a text has the verb.
        nouns: (B, N) above zero where a text has the noun.

    Returns:
        (B, B) bool, symmetric; false all along where a text has no verb or no noun.
    """
    same_verb, same_noun = ((x > 0).float() @ (x > 0).float().T > 0 for x in (verbs, nouns))  # (B, B)
    return same_verb & same_noun


def prefix(
    loss: Callable[[Tensor, Tensor], Tensor],
    clips: Tensor,
    texts: Tensor,
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Mean of a loss over leading channels, so that these alone form usable smaller spaces (arXiv 2205.13147).

        sum_d w_d loss(clips[:, :d] / |clips[:, :d]|, texts[:, :d] / |texts[:, :d]|) / sum_d w_d

    Args:
        loss: takes unit vectors (B, d) of clips and texts: `partial(contrastive, scale=...)`.
        clips, texts: (B, D), of any length.
        dims: leading channels d, each at most D.
        weights: of each; `None` means equal.

    Raises:
        ValueError: `dims` is empty or a value is not in 1..D, or weights do not fit.
    """
    total = clips.shape[-1]
    if not dims or not all(1 <= dim <= total for dim in dims):
        raise ValueError(f"dims must be numbers of leading channels in 1..{total}, got {tuple(dims)}")
    shares = [1.0] * len(dims) if weights is None else list(weights)
    if len(shares) != len(dims) or sum(shares) <= 0:
        raise ValueError(f"weights must be one for each of {len(dims)} dims and not all 0, got {weights}")
    parts = [loss(F.normalize(clips[:, :d], dim=-1), F.normalize(texts[:, :d], dim=-1)) for d in dims]
    return torch.stack([share * part for share, part in zip(shares, parts, strict=True)]).sum() / sum(shares)


def dual_softmax(cosines: Tensor, scale: Tensor | float) -> Tensor:
    """Cosines weighed by how much each item prefers the query over the other queries (arXiv 2109.04290).

        cosines * softmax over queries of (scale * cosines)

    For training put it into a cross-entropy: `F.cross_entropy(scale * dual_softmax(cosines, scale), targets)`, and of
    the transpose. At test time it looks at all queries together, which one query asked alone cannot: a result that
    used it must say so. For the other direction transpose before and after.

    Args:
        cosines: (Q, N) of Q queries and N items.
        scale: factor inside the softmax.
    """
    return cosines * (scale * cosines).softmax(dim=0)


def agreement(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth-L1 distance between unit vectors (B, D), without gradient to `teacher`.

    FluxViT's self-distillation between token counts (arXiv 2503.14237): the larger count teaches the smaller.
    """
    return F.smooth_l1_loss(F.normalize(student, dim=-1), F.normalize(teacher.detach(), dim=-1), reduction="mean")


def agreement_chain(features: Sequence[Tensor]) -> Tensor:
    """Self-distillation from count to count: sum of `agreement` of each with the one before it.

    As the text of FluxViT has it (arXiv 2503.14237): the largest teaches the middle, the middle the smallest. Teachers
    get no gradient.

    Args:
        features: (B, D) each, of the same samples, by falling number of tokens; at least two.
    """
    return torch.stack([agreement(student, teacher) for teacher, student in pairwise(features)]).sum()


def agreement_star(features: Sequence[Tensor]) -> Tensor:
    """Self-distillation from the largest count to all others: sum of `agreement` with the first.

    As FluxViT's released code has it, its projections aside; see `agreement_chain` for arguments.
    """
    return torch.stack([agreement(student, features[0]) for student in features[1:]]).sum()
