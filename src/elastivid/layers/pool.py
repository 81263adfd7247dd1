"""Attention pooling: many tokens to one vector.

Letters: B batch, N tokens, D channels, d active ones (see `layers.elastic`), O output channels, A heads, K channels of
one head.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from elastivid.core.cost import attention_macs, linear_macs
from elastivid.layers.attention import key_bias
from elastivid.layers.elastic import layer_norm, linear, merge_heads, split_heads


class AttentionPool(nn.Module):
    """One cross-attention whose query is the mean of the tokens.

    The query, the keys and the values pass a LayerNorm of their own (eps 1e-5). No positions enter, so the
    order of the tokens does not matter. Used by InternVideo2 (arXiv 2403.15377) and FluxViT (arXiv 2503.14237).
    Cost: 2 N D^2 + 2 N D + D^2 + D O multiply-accumulates.

    The heads need not be those of the blocks, so a width that holds whole block heads may cut one of the pool's
    (FluxViT-S: 64 of 384 channels, pool heads of 24). The pool then runs the heads that fit whole, at least one:
    max(1, d // K), each of its full size, on all d channels.

    Args:
        dim: channels D of the tokens.
        num_heads: heads A.
        output_dim: channels O of the result.
        head_dim: channels K of one head; `None` is D / A, and D must be divisible by A.
    """

    def __init__(self, dim: int, num_heads: int, output_dim: int, *, head_dim: int | None = None) -> None:
        super().__init__()
        if head_dim is None and dim % num_heads:
            raise ValueError(f"dim must be divisible by num_heads, got {dim} and {num_heads}")
        self.num_heads = num_heads
        self.head_dim = head_dim or dim // num_heads
        inner = num_heads * self.head_dim
        self.norm_q = nn.LayerNorm(dim)
        self.norm_k = nn.LayerNorm(dim)
        self.norm_v = nn.LayerNorm(dim)
        self.q = nn.Linear(dim, inner)
        self.k = nn.Linear(dim, inner)
        self.v = nn.Linear(dim, inner)
        self.proj = nn.Linear(inner, output_dim)

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, d) to (B, O); `sizes` (B, N) says how much each counts (`None`: the same, 0: padding)."""
        inner = min(self.num_heads, pool_heads_at(x.shape[-1], self.head_dim)) * self.head_dim
        q = linear(layer_norm(mean_token(x, sizes), self.norm_q), self.q, inner)  # (B, 1, A*K)
        k = linear(layer_norm(x, self.norm_k), self.k, inner)  # (B, N, A*K)
        v = linear(layer_norm(x, self.norm_v), self.v, inner)
        q, k, v = (split_heads(y, self.head_dim) for y in (q, k, v))  # (B, A, ., K)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=key_bias(sizes, x.dtype))  # (B, A, 1, K)
        return linear(merge_heads(out)[:, 0], self.proj)  # (B, A*K) -> (B, O)


def pool_macs(tokens: int, dim: int, head_dim: int, output_dim: int) -> int:
    """MACs of an `AttentionPool` over `tokens` tokens of `dim` active channels."""
    inner = pool_heads_at(dim, head_dim) * head_dim
    macs = linear_macs(2 * tokens + 1, dim, inner) + linear_macs(1, inner, output_dim)
    return macs + attention_macs(1, tokens, inner)


def pool_heads_at(width: int, head_dim: int) -> int:
    """Heads of `head_dim` channels that a pool runs on `width` channels: those that fit whole, at least one."""
    return max(1, width // head_dim)


def mean_token(x: Tensor, sizes: Tensor | None) -> Tensor:
    """Mean token (B, 1, D) of (B, N, D), each weighted by its size (B, N)."""
    if sizes is None:
        return x.mean(dim=1, keepdim=True)
    weights = (sizes / sizes.sum(dim=1, keepdim=True)).to(x.dtype)  # (B, N)
    return weights.unsqueeze(1) @ x  # (B, 1, N) @ (B, N, D) -> (B, 1, D)
