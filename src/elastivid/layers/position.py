"""Position tables: three-dimensional sine-cosine codes and resizing of a table to another grid.

Letters: T frames, H W grid rows and columns, D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from elastivid.core.cost import linear_macs


def sincos(positions: Tensor, dim: int) -> Tensor:
    """Sine-cosine code of scalar positions: first half sines, second half cosines.

    Args:
        positions: (N,) places on one axis.
        dim: even number of channels; frequencies are 10000^(-2i/dim).

    Returns:
        (N, dim) float32.
    """
    if dim % 2:
        raise ValueError(f"sincos needs an even number of channels, got {dim}")
    frequencies = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = positions.to(torch.float64)[:, None] * frequencies  # (N, dim/2)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()  # (N, dim)


def sincos_3d(grid: tuple[int, int, int], dim: int) -> Tensor:
    """Code of a (T, H, W) grid: the first quarter of the channels is time, then columns, then rows.

    Returns:
        (T*H*W, dim) float32, in time-major, row-major order.
    """
    frames, rows, columns = grid
    time_dim = dim // 4
    space_dim = dim - time_dim
    if dim % 8 or (space_dim // 2) % 2:
        raise ValueError(f"sincos_3d needs a number of channels divisible by 8, got {dim}")
    t = sincos(torch.arange(frames), time_dim)[:, None, None].expand(-1, rows, columns, -1)
    y = sincos(torch.arange(rows), space_dim // 2)[None, :, None].expand(frames, -1, columns, -1)
    x = sincos(torch.arange(columns), space_dim // 2)[None, None].expand(frames, rows, -1, -1)
    return torch.cat([t, x, y], dim=-1).reshape(-1, dim)  # (T, H, W, D) -> (T*H*W, D)


def sincos_flat(count: int, dim: int) -> Tensor:
    """Code of places 0 to `count` - 1, sines and cosines in turn: VideoMAE's, over the tokens of a grid in a row.

    Returns:
        (count, dim) float32; channels 2i and 2i+1 have frequency 10000^(-2i/dim).
    """
    pairs = (torch.arange(dim) // 2).double()
    angles = torch.arange(count, dtype=torch.float64)[:, None] * 10000.0 ** (-2 * pairs / dim)  # (count, dim)
    even = torch.arange(dim) % 2 == 0
    return torch.where(even, angles.sin(), angles.cos()).float()


def resize_macs(native: tuple[int, int, int], wanted: tuple[int, int, int], dim: int) -> int:
    """MACs of `resize_table`, one axis after the other."""
    (t, h, w), (t2, h2, w2), macs = native, wanted, 0
    if t != t2:
        macs += linear_macs(h * w * dim, t, t2)
    if h != h2:
        macs += linear_macs(t2 * w * dim, h, h2)
    if w != w2:
        macs += linear_macs(t2 * h2 * dim, w, w2)
    return macs


def resize_table(table: Tensor, native: tuple[int, int, int], wanted: tuple[int, int, int]) -> Tensor:
    """Resize a position table to another grid: time linearly, space bicubically (`align_corners=False`).

    Args:
        table: (T*H*W, D) for the `native` grid.
        native: (T, H, W) of the table.
        wanted: (T', H', W') to resize to.

    Returns:
        (T'*H'*W', D); the table itself when the grids are equal.
    """
    if native == wanted:
        return table
    (t, h, w), (t2, h2, w2) = native, wanted
    dim = table.shape[-1]
    with torch.autocast(table.device.type, enabled=False):  # autocast rounds products, and positions with them
        if t != t2:
            table = _weights(t, t2, "linear", table) @ table.reshape(t, h * w * dim)  # (T', H*W*D)
        if h != h2:
            table = _weights(h, h2, "bicubic", table) @ table.reshape(t2, h, w * dim)  # (T', H', W*D)
        if w != w2:
            table = _weights(w, w2, "bicubic", table) @ table.reshape(t2 * h2, w, dim)  # (T'*H', W', D)
    return table.reshape(t2 * h2 * w2, dim)  # (T'*H'*W', D)


def _weights(native: int, wanted: int, mode: str, like: Tensor) -> Tensor:
    """Matrix (wanted, native) that resizes one axis, from torch's own interpolation of the unit vectors.

    Three products of such matrices take a tenth of the time of `F.interpolate` on a table with many channels.
    """
    lines = torch.eye(native, dtype=like.dtype, device=like.device)[None]  # (1, channels, places)
    if mode == "linear":
        return F.interpolate(lines, size=wanted, mode="linear", align_corners=False)[0].T
    return F.interpolate(lines[..., None], size=(wanted, 1), mode="bicubic", align_corners=False)[0, :, :, 0].T
