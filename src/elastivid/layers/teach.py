"""What brings a student's tokens to a teacher's features: which blocks are taught, and the layers on top of them.

Letters: D channels of the student, O of the teacher.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Projection(nn.Module):
    """Linear, or two with a GELU between them; LayerNorm; unit length.

    Args:
        dim: channels D.
        output_dim: channels O.
        eps: of the norm.
        deep: two linear layers; the first keeps D.
    """

    def __init__(self, dim: int, output_dim: int, *, eps: float = 1e-6, deep: bool = False) -> None:
        super().__init__()
        last = nn.Linear(dim, output_dim)
        self.head = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), last) if deep else last
        self.norm = nn.LayerNorm(output_dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to unit vectors (..., O)."""
        return F.normalize(self.norm(self.head(x)), dim=-1)


def taught(depth: int, count: int, interval: int = 1) -> list[int]:
    """Numbers of the last `count` blocks at an interval, ascending.

    Raises:
        ValueError: there are not so many.
    """
    blocks = [depth - 1 - i * interval for i in reversed(range(count))]
    if blocks and blocks[0] < 0:
        raise ValueError(f"{count} blocks at an interval of {interval} do not fit into {depth}; teach fewer")
    return blocks
