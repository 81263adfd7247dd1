"""The group-dynamic selector against a loop over tokens, and what it must prefer."""

from __future__ import annotations

import pytest
import torch

from elastivid.core.errors import PointError
from elastivid.core.tokens import Tokens
from elastivid.layers.embed import patch_coordinates
from elastivid.select.base import shares
from elastivid.select.motion import GroupDynamic


def tokens_of(x, grid):
    return Tokens(x=x, coords=patch_coordinates(grid).expand(len(x), -1, -1), grid=grid)


def scores_by_loop(x, grid, groups):
    """The score of every token, one at a time, as [batch][group] lists of {place: score}."""
    frames, per_frame = grid[0], grid[1] * grid[2]
    length = frames // groups
    scores = []
    for row in x.reshape(len(x), frames, per_frame, -1):
        scores.append([{} for _ in range(groups)])
        for t in range(frames):
            source = t + 1 if t % length == 0 and length > 1 else t
            for s in range(per_frame):
                change = (row[source, s] - row[max(source - 1, 0), s]).square().sum().sqrt().item()
                scores[-1][t // length][t * per_frame + s] = change
    return scores


@pytest.mark.parametrize(("frames", "groups", "keep"), [(8, 4, 12), (8, 4, 13), (6, 2, 9), (2, 1, 5), (12, 4, 108)])
def test_keeps_the_best_of_each_group_as_a_loop_finds_them(frames, groups, keep):
    grid = (frames, 3, 3)
    x = torch.randn(2, frames * 9, 6, generator=torch.Generator().manual_seed(frames))
    assert GroupDynamic().num_groups(frames) == groups
    kept = GroupDynamic().select(tokens_of(x, grid), keep)
    assert torch.equal(kept, kept.sort(dim=1).values)
    for row, by_group in zip(kept.tolist(), scores_by_loop(x, grid, groups), strict=True):
        for quota, scores in zip(shares(keep, groups), by_group, strict=True):
            best = sorted(scores.values(), reverse=True)[:quota]
            got = sorted((scores[place] for place in row if place in scores), reverse=True)
            assert got == pytest.approx(best, abs=1e-5)


def test_prefers_what_moves():
    x = torch.zeros(1, 8, 9, 4)
    x[:, :, 5] = torch.arange(8.0)[None, :, None]  # place 5 changes in every frame, the rest never
    kept = GroupDynamic().select(tokens_of(x.reshape(1, 72, 4), (8, 3, 3)), 8)
    assert (kept % 9 == 5).all()


def test_covers_every_group_when_only_one_moves():
    x = torch.zeros(1, 8, 9, 4)
    x[:, 6:] = torch.randn(1, 2, 9, 4)
    kept = GroupDynamic().select(tokens_of(x.reshape(1, 72, 4), (8, 3, 3)), 12)
    assert torch.bincount(kept[0] // 18, minlength=4).tolist() == [3, 3, 3, 3]


def test_one_frame_and_odd_counts_work():
    for frames in (1, 5, 7):
        x = torch.randn(2, frames * 4, 3)
        assert GroupDynamic().select(tokens_of(x, (frames, 2, 2)), 3).shape == (2, 3)


def test_errors_name_the_numbers():
    tokens = tokens_of(torch.randn(1, 12, 3), (3, 2, 2))
    with pytest.raises(PointError, match="cannot keep 13 tokens of 12"):
        GroupDynamic().select(tokens, 13)
    with pytest.raises(PointError, match="3 frames do not divide into 2 groups"):
        GroupDynamic(2).select(tokens, 4)
    with pytest.raises(PointError, match="groups must be >= 1"):
        GroupDynamic(0)


def test_scores_carry_no_gradient():
    x = torch.randn(1, 16, 3, requires_grad=True)
    assert not GroupDynamic().select(tokens_of(x, (4, 2, 2)), 4).requires_grad
