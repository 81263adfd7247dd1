"""Rows of all processes, with gradients: what a contrastive loss needs when a batch is spread over several.

Every process holds the next B rows of a batch of P B. `gathered` gives each process all of them; the gradient of a row
is the sum of what all processes derive for it. With the whole loss computed on every process, as CLIP's training does
(arXiv 2103.00020), that sum is P times the gradient, and the mean over processes that DDP takes brings it back: P
processes with B rows each step exactly like one process with P B rows.

Letters: P processes, B rows of one of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


class _Gather(torch.autograd.Function):
    """All processes' rows; backward sums the gradients of the own rows over the processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """(B, ...) to (P*B, ...), process after process."""
        parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """(P*B, ...) to (B, ...)."""
        summed = gradient.contiguous().clone()
        distributed.all_reduce(summed)
        rows = len(summed) // distributed.get_world_size()
        start = distributed.get_rank() * rows
        return summed[start : start + rows]


def gathered(x: Tensor) -> Tensor:
    """Rows (P*B, ...) of all processes in their order; `x` (B, ...) itself where there is one process.

    Every process must call it in the same places with tensors of the same shape and type.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return x
    rows: Tensor = _Gather.apply(x)
    return rows
