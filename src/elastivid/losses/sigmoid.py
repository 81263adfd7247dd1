"""The sigmoid loss of SigLIP: every pair of a clip and a text is a yes-or-no question of its own (arXiv 2303.15343).

    loss = 1/B sum over i, j of -log sigmoid(z_ij (scale <clip_i, text_j> + bias)),   z_ij = 1 on the diagonal, else -1

Pairs do not depend on each other, so cosines are made a tile at a time, in the backward pass again, and neither the
whole batch of one process nor that of many is ever a matrix. Over processes the texts travel round a ring: each step
every process scores its clips against the texts at hand and sends those on, and on the way back the gradients of the
texts travel with them and arrive at home.

Letters: B clips and their texts, b those of one process, W processes, c side of a tile, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from elastivid.losses.gather import processes


def sigmoid(
    clips: Tensor, texts: Tensor, scale: Tensor | float, bias: Tensor | float, *, chunk: int | None = None
) -> Tensor:
    """Sigmoid loss of a batch.

    Args:
        clips: (B, D) unit vectors.
        texts: (B, D) unit vectors; row i describes clip i.
        scale: factor on the cosines, a scalar; SigLIP starts at 10 and learns its logarithm.
        bias: added to them, a scalar; SigLIP starts at -10. With cosines of zero the best is -log(B - 1).
        chunk: side c of a tile: at most c x c cosines are held. `None` holds all B x B.

    Returns:
        Scalar: sum over pairs, divided by B.

    Raises:
        ValueError: shapes do not fit, or `chunk` is below 1.
    """
    return _loss(clips, texts, scale, bias, chunk, None, 1)


def sigmoid_over_processes(
    clips: Tensor,
    texts: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    *,
    chunk: int | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Sigmoid loss over the batches of all processes; its mean over processes is `sigmoid` of the whole batch.

    So is the mean of the gradients, which is what data parallelism takes. Each process must hold equally many rows
    and call it in the same order. In a single process it is `sigmoid`.

    Args:
        clips, texts: (b, D) of this process.
        scale, bias: as in `sigmoid`; every process has its own copy.
        chunk: side of a tile; `None` holds b x b cosines.
        group: processes that take part; `None` means all.

    Returns:
        Scalar: pairs of this process's clips with all texts, divided by b.
    """
    return _loss(clips, texts, scale, bias, chunk, group, processes(group))


def _loss(
    clips: Tensor,
    texts: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    chunk: int | None,
    group: dist.ProcessGroup | None,
    world: int,
) -> Tensor:
    if clips.ndim != 2 or clips.shape != texts.shape or not len(clips):
        raise ValueError(f"clips and texts must both be (B, D), got {tuple(clips.shape)} and {tuple(texts.shape)}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be >= 1 or None, got {chunk}")
    scale, bias = (torch.as_tensor(value, dtype=torch.float32, device=clips.device) for value in (scale, bias))
    ring = _Ring(group, world)
    loss: Tensor = _Tiles.apply(clips, texts, scale.reshape(()), bias.reshape(()), chunk or len(clips), ring)
    return loss


class _Ring:
    """Sends tensors to the next process and takes those of the one before."""

    def __init__(self, group: dist.ProcessGroup | None, world: int) -> None:
        self.group, self.world = group, world
        self.rank = dist.get_rank(group) if world > 1 else 0

    def passed_on(self, *tensors: Tensor) -> list[Tensor]:
        ahead, behind = (self.rank + 1) % self.world, (self.rank - 1) % self.world
        arriving = [torch.empty_like(tensor) for tensor in tensors]
        work = []
        for tensor, place in zip(tensors, arriving, strict=True):
            work.append(dist.P2POp(dist.isend, tensor, group=self.group, group_peer=ahead))
            work.append(dist.P2POp(dist.irecv, place, group=self.group, group_peer=behind))
        for request in dist.batch_isend_irecv(work):
            request.wait()
        return arriving


def _tiles(count: int, chunk: int) -> Iterator[tuple[slice, slice]]:
    for row in range(0, count, chunk):
        for column in range(0, count, chunk):
            yield slice(row, row + chunk), slice(column, column + chunk)


def _signed(logits: Tensor, *, diagonal: bool) -> Tensor:
    """z * logits, in place: minus everywhere but on the diagonal of tiles that hold positive pairs."""
    signed = logits.neg_()
    if diagonal:
        signed.diagonal().neg_()
    return signed


class _Tiles(torch.autograd.Function):
    """The loss a tile at a time; the gradient is closed: d loss / d logits = -z sigmoid(-z logits) / b."""

    @staticmethod
    def forward(ctx: Any, clips: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, chunk: int, ring: _Ring) -> Tensor:
        ctx.save_for_backward(clips, texts, scale, bias)
        ctx.chunk, ctx.ring = chunk, ring
        total = torch.zeros((), device=clips.device, dtype=torch.float64)
        block = texts.contiguous()
        for step in range(ring.world):
            for rows, columns in _tiles(len(clips), chunk):
                logits = (clips[rows] @ block[columns].T).float().mul_(scale).add_(bias)  # (c, c)
                positive = step == 0 and rows == columns
                total -= F.logsigmoid(_signed(logits, diagonal=positive)).sum()
            if step < ring.world - 1:
                (block,) = ring.passed_on(block)
        return (total / len(clips)).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        clips, texts, scale, bias = ctx.saved_tensors
        ring, factor = ctx.ring, -gradient / len(clips)
        of_clips, of_block = (torch.zeros_like(x, dtype=torch.float32) for x in (clips, texts))
        of_scale, of_bias = (torch.zeros((), device=clips.device, dtype=torch.float64) for _ in range(2))
        block = texts.contiguous()
        for step in range(ring.world):
            for rows, columns in _tiles(len(clips), ctx.chunk):
                cosines = (clips[rows] @ block[columns].T).float()  # (c, c)
                positive = step == 0 and rows == columns
                signed = _signed(cosines * scale + bias, diagonal=positive)
                slope = _signed(signed.neg_().sigmoid_(), diagonal=positive).mul_(factor)  # d loss / d logits
                of_bias += slope.sum()
                of_scale += (slope * cosines).sum()
                slope = slope.mul_(scale)
                of_clips[rows] += slope @ block[columns].float()
                of_block[columns] += slope.T @ clips[rows].float()
            if ring.world > 1:
                block, of_block = ring.passed_on(block, of_block)  # after W steps both are at home
        as_given = (of_clips.to(clips), of_block.to(texts), of_scale.to(scale), of_bias.to(bias))
        return (*as_given, None, None)
