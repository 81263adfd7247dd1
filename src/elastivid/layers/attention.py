"""Multi-head self-attention with normalised queries and keys and a local position term.

Letters: B batch, N tokens, D channels, d active ones (see `layers.elastic`), A heads, K channels of one head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastivid.layers.elastic import first, linear, merge_heads, split_heads, stacked_linear
from elastivid.layers.norm import RMSNorm, inverse_rms

SCORES_AT_ONCE = 2**20  # 2 MB in bfloat16
SCORES_IN_TRAINING = 2**26  # of one layer, kept for the gradient in bfloat16 and float32: 400 MB
_ABLE = torch.cpu.get_capabilities()
BF16_BY_VECTORS = bool(_ABLE.get("avx512_bf16")) and not _ABLE.get("amx_bf16")  # this CPU's way with bfloat16


class ChannelAffine(nn.Module):
    """Scale and shift of every channel, x * weight + bias: a depth-wise convolution with a kernel of one."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d) to (..., d), for the first d channels."""
        d = x.shape[-1]
        return torch.addcmul(first(self.bias, d), x, first(self.weight, d))


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(K)) V + local(V), projected.

    Queries and keys pass an RMSNorm over all channels before they are cut into heads (InternVideo2,
    arXiv 2403.15377). `local` is the local half of FluxViT's position encoding (arXiv 2503.14237).
    Cost: 4 N D^2 + 2 N^2 D multiply-accumulates.

    Args:
        dim: channels D.
        num_heads: heads A; D must be divisible by A.
        local: add the scaled and shifted values to the attention's result before the projection.
        qk_norm: normalise queries and keys.
        qkv_bias: give queries, keys and values a bias.
    """

    def __init__(
        self, dim: int, num_heads: int, *, local: bool = False, qk_norm: bool = True, qkv_bias: bool = False
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be divisible by num_heads, got {dim} and {num_heads}")
        self.head_dim = dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = RMSNorm(dim) if qk_norm else None
        self.k_norm = RMSNorm(dim) if qk_norm else None
        self.local = ChannelAffine(dim) if local else None
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, d) to (B, N, d) with the first d / head_dim heads.

        `sizes` (B, N) says how much each token counts as a key, see `key_bias`.
        """
        d = x.shape[-1]
        q, k, v = stacked_linear(x, self.qkv)
        if self.q_norm is not None and self.k_norm is not None:
            both = first(self.q_norm.weight, d) * first(self.k_norm.weight, d)  # (d,): one pass instead of two
            q = q * inverse_rms(q, self.q_norm.eps) * both
            k = k * inverse_rms(k, self.k_norm.eps)
        query, key, value = (split_heads(y, self.head_dim) for y in (q, k, v))  # each (B, A, N, K)
        out = merge_heads(attend(query, key, value, key_bias(sizes, x.dtype)))  # (B, N, d)
        if self.local is not None:
            out = out + self.local(v)
        return linear(out, self.proj, d)

    def weights(self, x: Tensor, queries: int, sizes: Tensor | None = None) -> Tensor:
        """What `forward` weights values with, for the first `queries` tokens: (B, N, d) to (B, A, `queries`, N).

        Cost: N d^2 for the keys and `queries` times (d^2 + N d); the other queries and all values are left out.
        """
        d = x.shape[-1]
        query, key, _ = self.qkv.weight.unflatten(0, (3, -1))[:, :d, :d]  # (3*D, D) -> 3 (d, d)
        q, k = F.linear(x[:, :queries], query), F.linear(x, key)
        if self.qkv.bias is not None:
            shifts = self.qkv.bias.unflatten(0, (3, -1))[:, :d]  # (3*D,) -> (3, d)
            q, k = q + shifts[0], k + shifts[1]
        if self.q_norm is not None and self.k_norm is not None:
            q = q * inverse_rms(q, self.q_norm.eps) * first(self.q_norm.weight, d)
            k = k * inverse_rms(k, self.k_norm.eps) * first(self.k_norm.weight, d)
        q, k = split_heads(q, self.head_dim), split_heads(k, self.head_dim)  # (B, A, queries, K), (B, A, N, K)
        logits = q @ k.transpose(2, 3) * self.head_dim**-0.5  # (B, A, queries, N)
        bias = key_bias(sizes, x.dtype)
        return (logits if bias is None else logits + bias).softmax(dim=-1)


def key_bias(sizes: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """log(sizes) for the logits of every query, (B, N) -> (B, 1, 1, N); `None` stays `None` and costs nothing.

    Proportional attention (ToMe, arXiv 2210.09461): a token of size n attracts as much as n equal tokens. Size zero
    is padding: it attracts nothing.
    """
    return None if sizes is None else sizes.log().to(dtype)[:, None, None, :]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(K) + bias) V of every head.

    torch's fused kernel, except in bfloat16 on a CPU that multiplies bfloat16 by vectors and not by tiles (AMX): there
    the kernel runs no faster than in float32, and a few heads or rows at a time through two ordinary products take a
    third of its time (docs/benchmarks/elastic.md). In training its gradient takes several times as long as in float32;
    there two ordinary products do it for as long as the scores of all heads, which the gradient needs, are few.

    Args:
        q: (B, A, M, K).
        k, v: (B, A, N, K).
        bias: (B, 1, 1, N), added to every query's logits.

    Returns:
        (B, A, M, K).
    """
    if q.is_cpu and BF16_BY_VECTORS and _computes_in_bf16(q):
        if not torch.is_grad_enabled():
            q, k, v = (y.to(torch.bfloat16) for y in (q, k, v))  # under autocast they come in float32
            return attend_in_steps(q, k, v, None if bias is None else bias.to(torch.bfloat16))
        if q.shape[:3].numel() * k.shape[2] <= SCORES_IN_TRAINING:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)  # (B, A, M, N)
            return (scores if bias is None else scores + bias).softmax(dim=-1) @ v  # (B, A, M, K)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _computes_in_bf16(x: Tensor) -> bool:
    """Whether a product of `x` is one of bfloat16, by its own type or under autocast."""
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return x.dtype == torch.bfloat16


@torch.library.custom_op("elastivid::attend_in_steps", mutates_args=())
def attend_in_steps(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """`attend` by matrix products over so many heads or rows at a time that their scores stay in the cache."""
    batch, heads, queries, dim = q.shape
    keys = k.shape[2]
    q = q.flatten(0, 1)  # (B*A, M, K)
    k, v = (y.flatten(0, 1).contiguous() for y in (k, v))  # (B*A, N, K); the products would copy them at every step
    if bias is not None:
        bias = bias.expand(batch, heads, 1, keys).flatten(0, 1)  # (B*A, 1, N)
    out = q.new_empty(q.shape)
    rows = min(queries, max(1, SCORES_AT_ONCE // keys))
    group = max(1, SCORES_AT_ONCE // (rows * keys))
    for head in range(0, batch * heads, group):
        some = slice(head, head + group)
        for row in range(0, queries, rows):
            scores = torch.bmm(q[some, row : row + rows] * dim**-0.5, k[some].transpose(1, 2))  # (G, R, N)
            if bias is not None:
                scores += bias[some]
            torch.bmm(scores.softmax(dim=-1), v[some], out=out[some, row : row + rows])  # (G, R, K)
    return out.unflatten(0, (batch, heads))  # (B, A, M, K)


@attend_in_steps.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    return q.new_empty(q.shape)
