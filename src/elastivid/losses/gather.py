"""Batches of all processes as one batch, with gradients: what a contrastive loss needs for its negatives.

Letters: W processes, b samples of each, D channels.

On average over processes, which is what data parallelism makes of gradients, a loss on gathered vectors trains as one
process with the whole batch of W b samples does: each process gets W times its share, and averaging divides by W.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def gathered(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The rows of all processes, in order of rank: (b, ...) to (W*b, ...).

    The gradient of every row comes back to the process it is from, summed over all processes that used it. Outside of
    a process group, and alone in one, it returns `x`.

    Args:
        x: rows of this process, equally many in all.
        group: processes that take part; `None` means all.

    Raises:
        ValueError: processes hold different numbers of rows.
    """
    if processes(group) == 1:
        return x
    rows: Tensor = _Gather.apply(x, group)
    return rows


def contrastive_over_processes(
    clips: Tensor, texts: Tensor, scale: Tensor | float, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Symmetric InfoNCE over the batches of all processes, each scoring its own rows only.

    The mean over processes is `contrastive` of the whole batch, and so is the mean of the gradients. Where every
    process scores all pairs (`contrastive` on gathered vectors), each holds W b x W b cosines; here it is b x W b.

    Args:
        clips: (b, D) unit vectors.
        texts: (b, D) unit vectors; row i describes clip i.
        scale: factor on the cosines.
        group: processes that take part; `None` means all.

    Returns:
        Scalar: mean over the rows of this process and the two directions.

    Raises:
        ValueError: processes hold different numbers of rows.
    """
    first = len(clips) * (dist.get_rank(group) if processes(group) > 1 else 0)
    return contrastive_rows(clips, texts, gathered(clips, group), gathered(texts, group), scale, first)


def contrastive_rows(
    clips: Tensor, texts: Tensor, all_clips: Tensor, all_texts: Tensor, scale: Tensor | float, first: int
) -> Tensor:
    """InfoNCE of some rows of a larger batch, both directions averaged.

    Args:
        clips, texts: (b, D) the rows.
        all_clips, all_texts: (N, D) the batch they are from.
        scale: factor on the cosines.
        first: number of the first of the rows in the batch.
    """
    target = first + torch.arange(len(clips), device=clips.device)
    rows, columns = scale * (clips @ all_texts.T), scale * (texts @ all_clips.T)  # (b, N), (b, N)
    return 0.5 * (F.cross_entropy(rows, target) + F.cross_entropy(columns, target))


def processes(group: dist.ProcessGroup | None = None) -> int:
    """How many processes take part: 1 where torch's distributed package is not in use."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        rows = torch.tensor([len(x)], device=x.device)
        counts = [torch.empty_like(rows) for _ in range(processes(group))]
        dist.all_gather(counts, rows, group)
        if len({int(count) for count in counts}) > 1:
            raise ValueError(f"every process must hold equally many rows, got {[int(count) for count in counts]}")
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in counts]
        dist.all_gather(parts, x.contiguous(), group)
        return torch.cat(parts)  # (W*b, ...)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient.chunk(processes(ctx.group))[dist.get_rank(ctx.group)], None  # (W*b, ...) -> (b, ...)
