"""What moves where, without training: histograms of gradients and of optical flow for every cell of a clip.

    cells         = cell_histograms(pictures, patch_size=14)     # (B, T*h*w, 32)
    parts, places = cubes(pictures, patch_size=14)               # (B, M, 4, 96), (B, M, 3): where most moves

Four histograms a cell, as in MaskFeat (arXiv 2112.09133, gradients) and in dense trajectories (Wang et al., IJCV 2013,
flow and motion boundaries): of the gradient of the grey picture, of the flow to the next frame less the camera's (its
median over the picture), and of the gradients of the flow's two components, which are zero where all moves alike. Each
holds the square root of the mean length of the vectors that point in each of 8 directions; a vector between two
directions counts to both in parts.

Where we depart: MaskFeat normalises cells to unit length, which forgets how much moves; we keep it. Flow is
Lucas and Kanade's, from coarse to fine, because it is a few means over windows and so runs on whole batches anywhere.

Costs no matrix product; 3 ms for 8 frames of 112 pixels on one core of a server.

Letters: B clips, T frames, H W pixels, h w cells, M pictures, K directions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
DIRECTIONS = 8
KINDS = 4
WINDOW = 5  # pixels a side over which flow is taken to be the same
LEVELS = 3
STEPS = 2  # of Lucas and Kanade's iteration at each level
FLOATS_PER_PIXEL = 10  # of all frames, under way at the same time: measured from 8 x 112 to 16 x 224 pixels
CUBE = 2  # cells a side of a cube
CUBE_STEPS = 3
CUBE_SIZE = CUBE_STEPS * CUBE**2 * DIRECTIONS  # numbers of a descriptor
FAINT = 1e-3  # sum of mean lengths over a cube below which a kind counts as absent
NOISE = 2e-4  # added to the mean squared gradients: flow is 0 where there is nothing to see


@torch.no_grad()
def cell_histograms(video: Tensor, patch_size: int, *, shrink: int = 2) -> Tensor:
    """Histograms of every cell of `patch_size` pixels a side, ordered by frame, row and column as tokens are.

    Args:
        video: (B, T, 3, H, W) colours in [0, 1], sides multiples of the patch size; T >= 2.
        patch_size: side of a cell in pixels of `video`.
        shrink: pixels a side that are averaged before anything is computed; divides the patch size.

    Returns:
        (B, T*h*w, 4*8) float32: gradient, flow, gradient of its horizontal and of its vertical component; direction 0
        points right, direction 2 down. The last frame has the flow of the one before.

    Raises:
        ValueError: the clip has one frame, or sides do not divide.
    """
    batch, frames, _, height, width = video.shape
    if frames < 2 or patch_size % shrink or height % patch_size or width % patch_size:
        raise ValueError(
            f"histograms need 2 frames or more, sides that are multiples of patch_size {patch_size}, and a shrink that "
            f"divides it; got {frames} frames of {height}x{width} pixels and shrink {shrink}"
        )
    luma = torch.tensor(LUMA, device=video.device).view(3, 1, 1)
    grey = F.avg_pool2d((video.float() * luma).sum(dim=2), shrink)  # (B, T, H/s, W/s)
    before, after = grey[:, :-1].flatten(0, 1), grey[:, 1:].flatten(0, 1)  # (B*(T-1), H/s, W/s)
    flow = optical_flow(before, after).unflatten(0, (batch, frames - 1))  # (B, T-1, 2, H/s, W/s)
    flow = torch.cat([flow, flow[:, -1:]], dim=1).flatten(0, 1)  # (B*T, 2, H/s, W/s)
    own = flow - flow.flatten(2).median(dim=2).values[..., None, None]  # what moves against the picture
    pairs = [gradient(grey.flatten(0, 1)), (own[:, 0], own[:, 1]), gradient(flow[:, 0]), gradient(flow[:, 1])]
    cell = patch_size // shrink
    parts = [directions(x, y, cell) for x, y in pairs]  # (B*T, h*w, K) each
    return torch.cat(parts, dim=-1).sqrt().unflatten(0, (batch, frames)).flatten(1, 2)  # (B, T*h*w, 4K)


@torch.no_grad()
def cubes(video: Tensor, patch_size: int) -> tuple[Tensor, Tensor]:
    """Descriptors of small parts of a clip where most moves: what happens there, in three steps.

        descriptor = sqrt(h / (0.001 + sum h)),  h = mean squared cell histograms of 2 x 2 cells x 3 steps

    Cubes overlap: three steps take three fifths of the clip, one starts at every half step and at every cell. Of all
    of them the half with most flow is kept: what stands still is most of a clip, much alike, and would outnumber it.

    Args:
        video: as for `cell_histograms`, two cells a side or more.
        patch_size: side of a cell in pixels.

    Returns:
        (B, M, 4, 96) descriptors of M cubes by kind, each of unit length, shorter where next to nothing is there;
        (B, M, 3) where they start in time, height and width, from -0.5 to 0.5.

    Raises:
        ValueError: see `cell_histograms`; or the clip is narrower than two cells.
    """
    rows, columns = video.shape[3] // patch_size, video.shape[4] // patch_size
    if min(rows, columns) < CUBE:
        raise ValueError(
            f"cubes need {CUBE} cells of {patch_size} pixels a side or more, got {rows} x {columns}; use larger frames"
        )
    cells = cell_histograms(video, patch_size).square().unflatten(1, (-1, rows, columns))  # (B, T, h, w, 4K)
    cells = cells[:, :-1]  # the last frame has no flow of its own
    if (missing := CUBE_STEPS - cells.shape[1]) > 0:  # so short a clip goes on like its end
        cells = torch.cat([cells, cells[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
    starts, step = _starts(cells.shape[1])
    steps = [[cells[:, s + k * step :][:, :step].mean(dim=1) for k in range(CUBE_STEPS)] for s in starts]
    parts = torch.stack([torch.stack(three, dim=1) for three in steps], dim=1)  # (B, S, 3, h, w, 4K)
    high, wide = rows - CUBE + 1, columns - CUBE + 1
    corners = [parts[:, :, :, i : i + high, j : j + wide] for i in range(CUBE) for j in range(CUBE)]
    joined = torch.stack(corners, dim=3).unflatten(-1, (KINDS, -1))  # (B, S, 3, 4, h-1, w-1, 4, K)
    joined = joined.permute(0, 1, 4, 5, 6, 2, 3, 7).flatten(5).flatten(1, 3)  # (B, S*(h-1)*(w-1), 4, 3*4*K)
    sides = (torch.arange(n, device=video.device) / n - 0.5 for n in (len(starts), high, wide))
    places = torch.cartesian_prod(*sides)  # (S*(h-1)*(w-1), 3)
    kept = joined[:, :, 1].sum(dim=-1).topk(num_cubes(video.shape[1], rows, columns), dim=1).indices  # (B, M)
    chosen = joined.gather(1, kept[..., None, None].expand(-1, -1, *joined.shape[2:]))  # (B, M, 4, 96)
    return (chosen / (chosen.sum(dim=-1, keepdim=True) + FAINT)).sqrt(), places[kept]


def num_cubes(frames: int, rows: int, columns: int) -> int:
    """M, how many cubes are kept of a clip of so many frames, rows and columns of cells."""
    starts, _ = _starts(max(frames - 1, CUBE_STEPS))
    return math.ceil(len(starts) * (rows - CUBE + 1) * (columns - CUBE + 1) / 2)


def _starts(flows: int) -> tuple[range, int]:
    """First flows of the cubes of a clip of so many, and the flows of a step."""
    step = math.ceil(flows / 5)
    return range(0, flows - CUBE_STEPS * step + 1, math.ceil(step / 2)), step


def directions(x: Tensor, y: Tensor, cell: int, count: int = DIRECTIONS) -> Tensor:
    """Histograms of vectors over cells.

    Args:
        x, y: (M, H, W) components, rightwards and downwards.
        cell: side of a cell; divides H and W.
        count: directions K; direction k has the angle 2 pi k / K.

    Returns:
        (M, h*w, K): the sum over a cell of lengths, shared out between the two nearest directions, over its pixels.
    """
    m, height, width = x.shape
    turn = torch.atan2(y, x) * (count / (2 * math.pi))  # (M, H, W)
    low = turn.floor()
    share, length = turn - low, torch.hypot(x, y)
    rows = torch.arange(height, device=x.device) // cell * (width // cell)
    cells = rows[:, None] + torch.arange(width, device=x.device) // cell  # (H, W)
    total = height // cell * (width // cell)
    first = (torch.arange(m, device=x.device).view(-1, 1, 1) * total + cells) * count  # (M, H, W)
    out = x.new_zeros(m * total * count)
    low = low.long()
    for turned, weight in ((low, length * (1 - share)), (low + 1, length * share)):
        turned = turned + count * (turned < 0)
        out.scatter_add_(0, (first + turned).flatten(), weight.flatten())
    return out.view(m, total, count) / cell**2


def gradient(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences of (M, H, W), rightwards and downwards; edges are repeated."""
    wide = F.pad(picture[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]  # (M, H+2, W+2)
    return (wide[:, 1:-1, 2:] - wide[:, 1:-1, :-2]) / 2, (wide[:, 2:, 1:-1] - wide[:, :-2, 1:-1]) / 2


def optical_flow(before: Tensor, after: Tensor) -> Tensor:
    """Displacements (M, 2, H, W) in pixels, rightwards and downwards, of grey pictures (M, H, W) in [0, 1].

    Lucas and Kanade's least squares in windows of 5 x 5 pixels (1981), from pictures of a quarter of the side to whole
    ones, with the gradients of the first picture at every step (Baker and Matthews, 2004). A step moves by at most a
    pixel and a half, so up to about 20 pixels can be followed.
    """
    pyramid = [(before, after)]
    while len(pyramid) < LEVELS and min(pyramid[-1][0].shape[-2:]) >= 4 * WINDOW:
        pyramid.append((F.avg_pool2d(pyramid[-1][0], 2), F.avg_pool2d(pyramid[-1][1], 2)))
    flow = before.new_zeros(len(before), 2, *pyramid[-1][0].shape[-2:])
    for old, new in reversed(pyramid):
        height, width = old.shape[-2:]
        if flow.shape[-2:] != (height, width):
            flow = 2 * F.interpolate(flow, (height, width), mode="bilinear", align_corners=False)
        gx, gy = gradient(old)
        xx, xy, yy = _windows(torch.stack([gx * gx, gx * gy, gy * gy], dim=1)).unbind(dim=1)  # (M, H, W) each
        xx, yy = xx + NOISE, yy + NOISE
        inverse = 1 / (xx * yy - xy * xy)
        for _ in range(STEPS):
            change = old - _moved(new, flow)
            bx, by = _windows(torch.stack([gx * change, gy * change], dim=1)).unbind(dim=1)
            step = torch.stack([(yy * bx - xy * by) * inverse, (xx * by - xy * bx) * inverse], dim=1)
            flow = flow + step.clamp(-1.5, 1.5)  # (M, 2, H, W)
    return flow


def _windows(x: Tensor) -> Tensor:
    """Means of (M, C, H, W) over windows; there is nothing outside the picture."""
    half, (height, width) = WINDOW // 2, x.shape[-2:]
    x = F.pad(x, (half, half, half, half))  # slices and sums: many times as fast as a pooling layer of torch
    rows, total = x[..., :height, :].clone(), x.new_zeros(*x.shape[:-2], height, width)
    for i in range(1, WINDOW):
        rows += x[..., i : i + height, :]  # (M, C, H, W+4)
    for i in range(WINDOW):
        total += rows[..., i : i + width]  # (M, C, H, W)
    return total / WINDOW**2


def _moved(picture: Tensor, flow: Tensor) -> Tensor:
    """`picture` (M, H, W) read at every place plus its displacement; edges are repeated."""
    height, width = picture.shape[-2:]
    x = torch.arange(width, device=flow.device) + flow[:, 0]  # (M, H, W)
    y = torch.arange(height, device=flow.device)[:, None] + flow[:, 1]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)  # (M, H, W, 2)
    return F.grid_sample(picture[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
