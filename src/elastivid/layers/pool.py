"""Attention pooling: many tokens to one vector.

Letters: B batch, N tokens, D channels, O output channels, A heads, K channels of one head.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from elastivid.layers.attention import key_bias


class AttentionPool(nn.Module):
    """One cross-attention whose query is the mean of the tokens.

    The query, the keys and the values pass a LayerNorm of their own (eps 1e-5). No positions enter, so the
    order of the tokens does not matter. Used by InternVideo2 (arXiv 2403.15377) and FluxViT (arXiv 2503.14237).
    Cost: 2 N D^2 + 2 N D + D^2 + D O multiply-accumulates.

    Args:
        dim: channels D of the tokens.
        num_heads: heads A; D must be divisible by A.
        output_dim: channels O of the result.
    """

    def __init__(self, dim: int, num_heads: int, output_dim: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be divisible by num_heads, got {dim} and {num_heads}")
        self.num_heads = num_heads
        self.norm_q = nn.LayerNorm(dim)
        self.norm_k = nn.LayerNorm(dim)
        self.norm_v = nn.LayerNorm(dim)
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, output_dim)

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, D) to (B, O); `sizes` (B, N) says how much each counts (`None`: the same, 0: padding)."""
        b, _, d = x.shape
        q = self.q(self.norm_q(_mean(x, sizes)))  # (B, 1, D)
        k, v = self.k(self.norm_k(x)), self.v(self.norm_v(x))
        q, k, v = (
            y.reshape(b, -1, self.num_heads, d // self.num_heads).transpose(1, 2) for y in (q, k, v)
        )  # (B,A,.,K)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=key_bias(sizes, x.dtype))
        pooled: Tensor = self.proj(out.transpose(1, 2).reshape(b, d))  # (B, A, 1, K) -> (B, D) -> (B, O)
        return pooled


def _mean(x: Tensor, sizes: Tensor | None) -> Tensor:
    """Mean token (B, 1, D) of (B, N, D), each weighted by its size (B, N)."""
    if sizes is None:
        return x.mean(dim=1, keepdim=True)
    weights = (sizes / sizes.sum(dim=1, keepdim=True)).to(x.dtype)  # (B, N)
    return weights.unsqueeze(1) @ x  # (B, 1, N) @ (B, N, D) -> (B, 1, D)
