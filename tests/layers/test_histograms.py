"""Histograms of gradients and flow: closed forms, pictures that move by a known way, and what turning does."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from elastivid.layers.histograms import cell_histograms, directions, optical_flow


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


def test_a_pan_has_flow_of_one_direction_and_no_boundaries():
    found = cell_histograms(panned(2, 0), 14).unflatten(1, (4, 4, 4))[:, :, 1:3, 1:3]  # inner cells of every frame
    flow, boundaries = found[..., 8:16].square(), found[..., 16:].square()
    assert flow[..., 0].mean() == pytest.approx(1.0, abs=0.15)  # half of the pixels, so half as far
    assert flow[..., 0].sum() > 0.9 * flow.sum()
    assert boundaries.mean() < 0.05 * flow[..., 0].mean()
    assert torch.equal(found[:, 2, ..., 8:16], found[:, 3, ..., 8:16])  # the last frame takes the flow before it


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
