"""Losses of masked pre-training: reconstruct what was hidden, or agree with a teacher on what was seen.

Letters: B clips, T frames, H W pixels, k frames and P pixels a side of a cube, N cubes, n = k P P places in one,
M tokens, K layers, D channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def cubes(video: Tensor, tubelet_frames: int, patch_size: int) -> Tensor:
    """Cut (B, T, 3, H, W) into cubes (B, N, n, 3), by time, row and column, places within a cube in the same order.

    `flatten(2)` gives the vectors a decoder predicts, colour changing fastest. The inverse is `from_cubes`.

    Raises:
        ValueError: frames or sides are not multiples of the cube's.
    """
    b, t, c, height, width = video.shape
    k, p = tubelet_frames, patch_size
    if t % k or height % p or width % p:
        raise ValueError(f"{t} frames of {height}x{width} pixels cannot be cut into cubes of {k} frames of {p}x{p}")
    split = video.reshape(b, t // k, k, c, height // p, p, width // p, p)  # (B, T/k, k, 3, H/P, P, W/P, P)
    ordered = split.permute(0, 1, 4, 6, 2, 5, 7, 3)  # (B, T/k, H/P, W/P, k, P, P, 3)
    return ordered.reshape(b, -1, k * p * p, c)  # (B, N, n, 3)


def from_cubes(cut: Tensor, shape: tuple[int, int, int], tubelet_frames: int, patch_size: int) -> Tensor:
    """Video (B, T, 3, H, W) from its cubes (B, N, n, 3); `shape` is (T, H, W)."""
    (t, height, width), k, p = shape, tubelet_frames, patch_size
    split = cut.reshape(len(cut), t // k, height // p, width // p, k, p, p, -1)  # (B, T/k, H/P, W/P, k, P, P, 3)
    return split.permute(0, 1, 4, 7, 2, 5, 3, 6).reshape(len(cut), t, -1, height, width)  # (B, T, 3, H, W)


def standardised(cut: Tensor, *, correction: int = 1, eps: float = 1e-6) -> Tensor:
    """Cubes (B, N, n, 3) with mean 0 and deviation 1 in each cube and colour; flat cubes become zero.

        (x - mean) / (sqrt(sum (x - mean)^2 / (n - correction)) + eps)

    Args:
        cut: pixels, not normalised by a model's transform.
        correction: 1 divides by n - 1, as the released VideoMAE code does (arXiv 2203.12602); 0 divides by n, the
            plain reading of "variance". Targets differ by sqrt(n / (n - 1)): 0.1 % for 2 x 16 x 16.
        eps: added to the deviation.
    """
    centred = cut - cut.mean(dim=2, keepdim=True)
    deviation = (centred.square().sum(dim=2, keepdim=True) / max(cut.shape[2] - correction, 1)).sqrt()
    return centred / (deviation + eps)


def standardised_kinds(cells: Tensor, kinds: int, *, eps: float = 1e-2) -> Tensor:
    """Features of cells (B, N, kinds * K), so that each kind has mean 0 and deviation 1 over all of a clip.

    What MaskFeat predicts are histograms of hidden cells (arXiv 2112.09133); with several kinds of them, gradients in
    contrast and flow in pixels, none may outweigh the others, nor one clip another. How cells differ within a clip
    stays; how strong a kind is in the whole clip is forgotten.

    Args:
        cells: the K numbers of the first kind first, as `elastivid.layers.histograms.cell_histograms` returns them.
        kinds: how many kinds there are.
        eps: added to the deviation: a kind of which a clip has next to nothing becomes next to nothing.

    Returns:
        The same shape.
    """
    count = cells.shape[1]
    by_kind = cells.unflatten(-1, (kinds, -1)).movedim(2, -1).flatten(1, 2)  # (B, N*K, kinds)
    made = standardised(by_kind[:, None], correction=0, eps=eps)[:, 0]
    return made.unflatten(1, (count, -1)).movedim(-1, 2).flatten(2)  # (B, N, kinds*K)


def masked_regression(
    prediction: Tensor,
    target: Tensor,
    counted: Tensor | None = None,
    *,
    distance: Callable[..., Tensor] = F.mse_loss,
) -> Tensor:
    """Mean distance between predictions and targets over the tokens that count, of the whole batch together.

    VideoMAE's reconstruction with standardised pixels as target and the squared error (arXiv 2203.12602; the released
    code averages over the values of a cube where its equation sums); MVD's feature prediction with `F.smooth_l1_loss`
    (arXiv 2212.04500).

    Args:
        prediction: (B, M, D).
        target: (B, M, D); gets no gradient.
        counted: (B, M) bool, tokens that enter; `None` means all. VideoMAE V2 predicts tokens that its encoder saw
            as well and leaves them out here (arXiv 2303.16727).
        distance: a loss of torch that takes `reduction="none"`: `F.mse_loss`, `F.l1_loss` or `F.smooth_l1_loss`.

    Returns:
        Scalar; 0, with a gradient of 0, where nothing counts.

    Raises:
        ValueError: shapes differ.
    """
    if prediction.shape != target.shape or (counted is not None and counted.shape != prediction.shape[:2]):
        raise ValueError(
            f"prediction, target and counted must be (B, M, D), (B, M, D) and (B, M), got {tuple(prediction.shape)}, "
            f"{tuple(target.shape)} and {None if counted is None else tuple(counted.shape)}"
        )
    errors = distance(prediction.float(), target.detach().float(), reduction="none").mean(dim=-1)  # (B, M)
    if counted is None:
        return errors.mean()
    kept = counted.to(errors.dtype)
    return (errors * kept).sum() / kept.sum().clamp(min=1)


def alignment(student: Tensor, teacher: Tensor) -> Tensor:
    """UMT's alignment: mean over tokens and layers of the squared distance 2 - 2 cos (arXiv 2303.16058).

    Both are brought to unit length here. It is D times the element-wise mean squared error of unit vectors, which
    the released code offers as well, so that one is `alignment(...) / D`.

    Args:
        student: (K, B, M, D), or any (..., D): layers of the student, decoded to the teacher's channels.
        teacher: the same shape: layers of the teacher at the tokens that the student saw; gets no gradient.

    Returns:
        Scalar in [0, 4].

    Raises:
        ValueError: shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher must have the same shape, got {tuple(student.shape)} and {tuple(teacher.shape)}; "
            "select the teacher's tokens that the student saw first"
        )
    return 2 - 2 * F.cosine_similarity(student.float(), teacher.detach().float(), dim=-1).mean()
