"""The plain vision transformer block, as masked pre-training uses it, and cubes of video for tokens.

    x += s1 * attend(LayerNorm(x));  x += s2 * mlp(LayerNorm(x))        s1 = s2 = 1 where there are no scales

Queries and values have biases, keys have none: one number added to every logit of a query cancels in the softmax.
Every layer runs on its first channels when its input has fewer (see `layers.elastic`).

Letters: B batch, T frames, C colour channels, H W pixels, h w grid, k frames of a cube, P patch side, N tokens,
D channels, d active ones, A heads, K channels of one head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastivid.layers.attention import attend, key_bias
from elastivid.layers.block import Mlp
from elastivid.layers.elastic import first, fit_width, layer_norm, linear, merge_heads, split_heads

MOST_SHARPNESS = 4.6052  # logarithm of 100, cut to these digits as in the released code
ROWS_AT_ONCE = 1024  # tokens that pass the blocks together on a CPU


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), CLIP's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


@dataclass(frozen=True)
class BlockStyle:
    """What differs between families that share `ViTBlock`.

    Args:
        mlp_ratio: hidden channels of the MLP over D.
        eps: of both norms.
        layer_scale: initial value of learned channel scales on both branches; 0 for none.
        cosine: unit queries and keys with a learned sharpness per head (VideoMAE V2's option).
        activation: of the MLP.
    """

    mlp_ratio: float = 4.0
    eps: float = 1e-6
    layer_scale: float = 0.0
    cosine: bool = False
    activation: Callable[[Tensor], Tensor] = F.gelu


class ViTAttention(nn.Module):
    """softmax(Q K^T / sqrt(K)) V, projected. Cost: 4 N D^2 + 2 N^2 D multiply-accumulates.

    Args:
        dim: channels D.
        head_dim: channels K of one head.
        cosine: see `BlockStyle`.
    """

    def __init__(self, dim: int, head_dim: int, *, cosine: bool = False) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)
        self.sharpness = nn.Parameter(torch.full((dim // head_dim,), math.log(10.0))) if cosine else None

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, d) to (B, N, d); `sizes` (B, N) says how much each counts as a key, see `key_bias`."""
        q, k, v = self._heads(x)
        out = attend(q, k, v, key_bias(sizes, x.dtype))  # (B, A, N, K)
        return linear(merge_heads(out), self.proj, x.shape[-1])

    def weights(self, x: Tensor, queries: int) -> Tensor:
        """What `forward` weights values with, for the first `queries` tokens: (B, N, d) to (B, A, `queries`, N)."""
        q, k, _ = self._heads(x)
        return (q[:, :, :queries] @ k.mT * self.head_dim**-0.5).softmax(dim=-1)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, A, N, K), so scaled that `attend` gives what is wanted."""
        d, rows = x.shape[-1], self.qkv.weight.shape[1]
        if d == rows:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])  # (3*D,)
            q, k, v = F.linear(x, self.qkv.weight, bias).chunk(3, dim=-1)
        else:
            parts = self.qkv.weight.unflatten(0, (3, rows))[:, :d, :d]  # (3*D, D) -> (3, d, d)
            q, k, v = F.linear(x, parts[0], first(self.q_bias, d)), F.linear(x, parts[1]), F.linear(x, parts[2])
            v = v + first(self.v_bias, d)
        q, k, v = (split_heads(y, self.head_dim) for y in (q, k, v))
        if self.sharpness is not None:
            sharpness = first(self.sharpness, q.shape[1]).clamp(max=MOST_SHARPNESS).exp()  # (A,)
            q = F.normalize(q, dim=-1) * (sharpness * self.head_dim**0.5)[:, None, None]
            k = F.normalize(k, dim=-1)
        return q, k, v


class ViTBlock(nn.Module):
    """Attention and MLP, each behind a LayerNorm and beside a residual.

    Args:
        dim: channels D.
        head_dim: channels of one head; D must be a multiple.
        style: what differs between families.
        drop_path: probability that a sample skips a residual branch in training.
    """

    def __init__(self, dim: int, head_dim: int, style: BlockStyle, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=style.eps)
        self.attn = ViTAttention(dim, head_dim, cosine=style.cosine)
        self.norm2 = nn.LayerNorm(dim, eps=style.eps)
        self.mlp = Mlp(dim, style.mlp_ratio, style.activation)
        scaled = style.layer_scale > 0
        self.scale1 = nn.Parameter(torch.full((dim,), style.layer_scale)) if scaled else None
        self.scale2 = nn.Parameter(torch.full((dim,), style.layer_scale)) if scaled else None
        self.drop_path = drop_path

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, d) to (B, N, d) with the first d channels of everything; `sizes` as in attention."""
        x = self._joined(x, self.attn(layer_norm(x, self.norm1), sizes), self.scale1)
        return self._joined(x, self.mlp(layer_norm(x, self.norm2)), self.scale2)

    def _joined(self, x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
        if self.training and self.drop_path > 0:
            keep = 1.0 - self.drop_path
            branch = branch * (torch.rand(len(x), 1, 1, device=x.device) < keep) / keep  # (B, 1, 1)
        return x + branch if scale is None else torch.addcmul(x, branch, first(scale, x.shape[-1]))


def vit_blocks(widths: Sequence[int], head_dim: int, style: BlockStyle, drop_path: float = 0.0) -> nn.ModuleList:
    """A block per width; the probability of skipping grows linearly to `drop_path` at the last."""
    last = max(1, len(widths) - 1)
    return nn.ModuleList(
        ViTBlock(width, head_dim, style, drop_path * layer / last) for layer, width in enumerate(widths)
    )


def through_blocks(
    blocks: nn.ModuleList,
    x: Tensor,
    sizes: Tensor | None = None,
    *,
    widths: Sequence[int] | None = None,
    taps: Collection[int] = (),
) -> tuple[Tensor, dict[int, Tensor]]:
    """Tokens after all blocks, and after those whose numbers are in `taps`.

    On a CPU and without gradients a few clips at a time: more rows make no product faster, but hidden layers leave the
    cache, and memory grows with the batch.

    Args:
        blocks: called as block(x, sizes).
        x: (B, N, d).
        sizes: (B, N), how much each token counts as a key.
        widths: channels of the stream in every block; `None` leaves it as it is.
        taps: numbers of blocks, from 0.

    Returns:
        (B, N, d of the last block), and a dict of the same by block number.

    Raises:
        ValueError: there is no such block to tap.
    """
    unknown = [number for number in taps if not 0 <= number < len(blocks)]
    if unknown:
        raise ValueError(f"taps are numbers of blocks, from 0 to {len(blocks) - 1}, got {unknown}")
    at_once = max(1, ROWS_AT_ONCE // x.shape[1])
    if x.is_cpu and not torch.is_grad_enabled() and at_once < len(x):
        parts = zip(x.split(at_once), [None] * len(x) if sizes is None else sizes.split(at_once), strict=False)
        done = [through_blocks(blocks, part, size, widths=widths, taps=taps) for part, size in parts]
        return torch.cat([y for y, _ in done]), {i: torch.cat([kept[i] for _, kept in done]) for i in taps}
    kept = {}
    for index, block in enumerate(blocks):
        x = block(x if widths is None else fit_width(x, widths[index]), sizes)
        if index in taps:
            kept[index] = x
    return x, kept


def cubes(video: Tensor, tubelet_size: int, patch_size: int) -> Tensor:
    """Cut (B, T, C, H, W) into flattened cubes (B, N, C*k*P*P), in the order of a Conv3d kernel.

    N runs over time, rows, columns; the values of a cube over (channel, frame, row, column). A linear layer on them
    equals a Conv3d whose stride is its kernel.

    Raises:
        ValueError: frames or sides are no multiples of the cube.
    """
    b, _, c, _, _ = require_whole_cubes(video, tubelet_size, patch_size)
    t, h, w = cube_grid(video, tubelet_size, patch_size)
    k, p = tubelet_size, patch_size
    cut = video.reshape(b, t, k, c, h, p, w, p).permute(0, 1, 4, 6, 3, 2, 5, 7)  # (B, t, h, w, C, k, P, P)
    return cut.reshape(b, t * h * w, c * k * p * p)  # (B, N, C*k*P*P)


def cube_grid(video: Tensor, tubelet_size: int, patch_size: int) -> tuple[int, int, int]:
    """Grid (t, h, w) of the cubes of (B, T, C, H, W)."""
    return video.shape[1] // tubelet_size, video.shape[3] // patch_size, video.shape[4] // patch_size


def require_whole_cubes(video: Tensor, tubelet_size: int, patch_size: int) -> torch.Size:
    """Shape of `video` (B, T, C, H, W) when cubes of this size fill it; `ValueError` otherwise."""
    if video.ndim != 5:
        raise ValueError(f"video must have shape (B, T, C, H, W), got {tuple(video.shape)}")
    frames, height, width = video.shape[1], video.shape[3], video.shape[4]
    if frames % tubelet_size or height % patch_size or width % patch_size:
        near = [max(n, round(s / n) * n) for s, n in ((height, patch_size), (width, patch_size))]
        raise ValueError(
            f"frames must be a multiple of {tubelet_size} and sides of {patch_size}, got {frames} frames of "
            f"{height}x{width}; take {max(1, frames // tubelet_size) * tubelet_size} frames and resize to "
            f"{near[0]}x{near[1]}"
        )
    return video.shape
