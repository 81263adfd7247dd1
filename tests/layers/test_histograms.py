"""Histograms of gradients and flow: closed forms, pictures that move by a known way, and what turning does."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from elastivid.layers.histograms import cell_histograms, cubes, directions, num_cubes, optical_flow


def texture(seed: int = 0, side: int = 160) -> torch.Tensor:
    """A smooth random picture (side, side) in [0, 1]."""
    noise = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(seed))
    smooth = F.avg_pool2d(F.avg_pool2d(noise, 5, 1, 2), 5, 1, 2)[0, 0]
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


def panned(right: int, down: int, frames: int = 4, side: int = 56) -> torch.Tensor:
    """A clip (1, T, 3, side, side) of a texture that moves by whole pixels a frame."""
    picture, clip = texture(), []
    for t in range(frames):
        top, left = 50 - down * t, 50 - right * t
        clip.append(picture[top : top + side, left : left + side])
    return torch.stack(clip)[None, :, None].expand(-1, -1, 3, -1, -1)


def test_directions_share_a_vector_between_its_two_neighbours():
    for angle in (0.0, 0.3, 1.0, 2.5, -0.1, -3.0, math.pi):
        x, y = torch.full((1, 4, 6), math.cos(angle)), torch.full((1, 4, 6), math.sin(angle))
        found = directions(2 * x, 2 * y, 2)  # (1, 2*3, 8)
        turn = (angle / (2 * math.pi) * 8) % 8
        low, share = int(turn) % 8, turn - int(turn)
        wanted = torch.zeros(8)
        wanted[low] += 2 * (1 - share)
        wanted[(low + 1) % 8] += 2 * share
        assert found.shape == (1, 6, 8)
        assert torch.allclose(found, wanted.expand(1, 6, 8), atol=1e-5)


def test_cells_have_the_order_of_tokens():
    x = torch.zeros(2, 4, 6)
    x[1, 2:, 4:] = 3.0  # the last cell of the second picture
    found = directions(x, torch.zeros_like(x), 2)
    assert found[1, 5, 0] == 3.0
    assert found.sum() == 3.0


@pytest.mark.parametrize("move", [(0, 0), (1, 0), (0, -2), (3, -1), (-4, 3)])
def test_flow_finds_how_a_picture_moved(move):
    clip = panned(*move, frames=2)[0, :, 0]
    flow = optical_flow(clip[:1], clip[1:])[0, :, 8:-8, 8:-8]
    assert flow.shape == (2, 40, 40)
    assert torch.allclose(flow.flatten(1).median(dim=1).values, torch.tensor(move, dtype=torch.float), atol=0.15)


def test_a_flat_picture_does_not_move():
    assert optical_flow(torch.full((1, 40, 40), 0.3), torch.full((1, 40, 40), 0.6)).abs().max() == 0


def with_mover(clip: torch.Tensor, right: int, frames: int = 4) -> torch.Tensor:
    """`clip` with a square of 28 pixels of another texture in its lower right part, which moves rightwards."""
    clip, picture = clip.clone(), texture(1)[:28, :28]
    for t in range(frames):
        left = 20 + right * t
        clip[:, t, :, 21:49, left : left + 28] = picture[:, : 56 - left]
    return clip


def test_a_pan_is_the_cameras_and_leaves_no_flow():
    inner = (slice(None), slice(None), slice(1, 3), slice(1, 3))
    found = cell_histograms(panned(2, 0), 14).unflatten(1, (4, 4, 4))[inner].square()
    assert found[..., 8:].mean() < 0.02  # neither flow, which is a pixel a frame of half the size, nor boundaries


@pytest.mark.parametrize("pan", [(0, 0), (-2, 0)])
def test_what_moves_against_the_picture_has_flow(pan):
    clip = with_mover(panned(*pan), right=2)
    found = cell_histograms(clip, 14).unflatten(1, (4, 4, 4)).square()
    flow = found[:, :, 2, 2, 8:16].mean(dim=(0, 1))  # a cell that the square covers
    assert flow[0] == pytest.approx((2 - pan[0]) / 2, abs=0.4)  # half of the pixels, so half as far
    assert flow[0] > 0.8 * flow.sum()
    assert found[:, :, 0, 1:3, 8:16].mean() < 0.3 * flow.mean()
    assert torch.equal(found[:, 2, ..., 8:16], found[:, 3, ..., 8:16])  # the last frame takes the flow before it


@pytest.mark.parametrize(("frames", "rows", "columns"), [(2, 2, 3), (4, 4, 4), (8, 2, 5), (16, 3, 4), (17, 2, 2)])
def test_cubes_are_cut_out_of_cells(frames, rows, columns):
    video = torch.rand(2, frames, 3, rows * 14, columns * 14, generator=torch.Generator().manual_seed(frames))
    found, places = cubes(video, 14)
    cells = cell_histograms(video, 14).square().view(2, frames, rows, columns, 4, 8)
    flows = max(frames - 1, 3)
    cells = torch.stack([cells[:, min(t, frames - 2)] for t in range(flows)], dim=1)
    step = -(-flows // 5)
    wanted = {}
    starts = [s for s in range(0, flows, -(-step // 2)) if s + 3 * step <= flows]
    for n, s in enumerate(starts):
        for i in range(rows - 1):
            for j in range(columns - 1):
                steps = [cells[:, s + k * step : s + (k + 1) * step].mean(dim=1) for k in range(3)]
                corners = [part[:, i + a, j + b] for part in steps for a in (0, 1) for b in (0, 1)]  # (2, 4, 8) each
                place = (n / len(starts) - 0.5, i / (rows - 1) - 0.5, j / (columns - 1) - 0.5)
                wanted[place] = torch.stack(corners, dim=2).flatten(2)  # (2, 4, 96)
    assert found.shape == (2, num_cubes(frames, rows, columns), 4, 96)
    assert found.shape[1] == -(-len(wanted) // 2)
    for clip in range(2):
        kept = [tuple(place) for place in places[clip].tolist()]
        close = {min(wanted, key=lambda p, q=q: sum(abs(a - b) for a, b in zip(p, q, strict=True))) for q in kept}
        assert len(close) == len(kept)
        moving = sorted(wanted, key=lambda p: -wanted[p][clip, 1].sum())[: len(kept)]
        assert close == set(moving)
        for q, descriptor in zip(kept, found[clip], strict=True):
            p = min(wanted, key=lambda p: sum(abs(a - b) for a, b in zip(p, q, strict=True)))
            full = wanted[p][clip]
            assert torch.allclose(descriptor.square(), full / (full.sum(-1, keepdim=True) + 1e-3), atol=1e-5)


def test_clips_of_less_than_a_cube_are_refused():
    with pytest.raises(ValueError, match="cubes need 2 cells of 14 pixels a side or more, got 1 x 4"):
        cubes(torch.zeros(1, 4, 3, 14, 56), 14)


def test_mirrored_clips_have_mirrored_histograms():
    clip = panned(2, 1)
    plain, turned = cell_histograms(clip, 14), cell_histograms(clip.flip(-1), 14)
    back = turned.unflatten(1, (4, 4, 4)).flip(3).unflatten(-1, (4, 8))  # (B, T, h, w, kinds, K), columns put back
    swap = torch.tensor([4, 3, 2, 1, 0, 7, 6, 5])  # rightwards becomes leftwards
    back = back[..., swap]
    assert torch.allclose(back[..., :2, :].flatten(-2), plain.unflatten(1, (4, 4, 4))[..., :16], atol=2e-2)


def test_what_cannot_be_cut_into_cells():
    with pytest.raises(ValueError, match="1 frames of 56x56"):
        cell_histograms(torch.zeros(1, 1, 3, 56, 56), 14)
    with pytest.raises(ValueError, match="shrink"):
        cell_histograms(torch.zeros(1, 2, 3, 56, 50), 14)
    with pytest.raises(ValueError, match="shrink"):
        cell_histograms(torch.zeros(1, 2, 3, 56, 56), 14, shrink=4)
