"""Frames to patch tokens.

Letters: B batch, T frames, H W pixels, h w grid, P patch side, N tokens, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from elastivid.layers.norm import RMSNorm, norm_linear


class PatchEmbed(nn.Module):
    """Cut every frame into patches and project each to `embed_dim` channels, with a norm on either side.

    Dual patch norm (arXiv 2302.01327): RMSNorm over the values of a patch, linear projection, RMSNorm over the
    channels. The projection is a matrix product over the flattened patch, which equals a convolution whose
    stride is its kernel.

    Args:
        patch_size: side P of a square patch in pixels.
        embed_dim: channels D of a token.
        channels: colour channels of the input.
    """

    def __init__(self, patch_size: int, embed_dim: int, channels: int = 3) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.channels = channels
        values = channels * patch_size * patch_size
        self.norm_before = RMSNorm(values)
        self.proj = nn.Linear(values, embed_dim)
        self.norm = RMSNorm(embed_dim)

    def forward(self, video: Tensor, width: int | None = None) -> Tensor:
        """Map `video` (B, T, C, H, W) to tokens (B, T*h*w, width), frame by frame, row by row; `None` is all of D."""
        patches = patchify(video, self.patch_size, self.channels)
        width = width or self.proj.out_features
        tokens: Tensor = self.norm(norm_linear(patches, self.norm_before, self.proj, width))
        return tokens


def patchify(video: Tensor, patch_size: int, channels: int | None = None) -> Tensor:
    """Cut (B, T, C, H, W) into flattened patches (B, T*h*w, C*P*P), values in (channel, row, column) order.

    Raises:
        ValueError: the sides are not multiples of `patch_size`, or there are other than `channels` channels.
    """
    if video.ndim != 5 or video.shape[2] != (channels or video.shape[2]):
        raise ValueError(f"video must have shape (B, T, {channels or 'C'}, H, W), got {tuple(video.shape)}")
    b, t, c, height, width = video.shape
    p = patch_size
    if height % p or width % p:
        raise ValueError(
            f"frame sides must be multiples of the patch size {p}, got {height}x{width}; "
            f"resize to {max(p, round(height / p) * p)}x{max(p, round(width / p) * p)}"
        )
    h, w = height // p, width // p
    patches = video.reshape(b, t, c, h, p, w, p).permute(0, 1, 3, 5, 2, 4, 6)  # (B, T, h, w, C, P, P)
    return patches.reshape(b, t * h * w, c * p * p)  # (B, T*h*w, C*P*P)


def patch_coordinates(grid: tuple[int, int, int]) -> Tensor:
    """Places (t, y, x) of the tokens of a (T, h, w) grid, in token order: (T*h*w, 3) float32."""
    axes = [torch.arange(n, dtype=torch.float32) for n in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)  # (T, h, w, 3) -> (T*h*w, 3)
