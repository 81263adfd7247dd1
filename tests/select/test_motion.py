"""The group-dynamic selector against a loop over tokens, and what it must prefer."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from elastivid.core.errors import PointError
from elastivid.core.tokens import Tokens
from elastivid.layers.embed import patch_coordinates
from elastivid.select.base import shares
from elastivid.select.motion import DiffFP, GroupDynamic


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


def test_the_norm_is_as_asked():
    x = torch.zeros(1, 2, 2, 2)
    x[0, 1] = torch.tensor([[3.0, 3.0], [5.0, 0.0]])  # L1: 6 and 5, L2: 4.2 and 5
    tokens = tokens_of(x.flatten(1, 2), (2, 1, 2))
    assert GroupDynamic(1, p=1).select(tokens, 2).tolist() == [[0, 2]]
    assert GroupDynamic(1, p=2).select(tokens, 2).tolist() == [[1, 3]]


def test_of_the_two_frames_that_tie_the_earlier_stays():
    x = torch.randn(3, 72, 5, generator=torch.Generator().manual_seed(0))
    kept = torch.zeros(3, 72).scatter(1, GroupDynamic().select(tokens_of(x, (8, 3, 3)), 36), 1.0)
    first, second = kept.reshape(3, 4, 2, 9).unbind(2)  # (B, G, S) each: an odd share splits one pair per group
    assert (first >= second).all()
    assert (first - second).sum(dim=2).eq(1).all()


def test_clips_of_different_length_keep_what_they_keep_alone():
    x = torch.randn(3, 8 * 9, 5, generator=torch.Generator().manual_seed(0))
    clips = [tokens_of(x[i : i + 1, : t * 9], (t, 3, 3)) for i, t in enumerate((8, 6, 3))]
    batch = Tokens.stack([Tokens(x=c.x, coords=c.coords, grid=(8, 3, 3)).pad(72) for c in clips])
    kept = GroupDynamic().select(batch, [20, 13, 7])
    assert kept.shape == (3, 20)
    for row, clip, keep in zip(kept, clips, (20, 13, 7), strict=True):
        assert torch.equal(row[:keep], GroupDynamic().select(clip, keep)[0])
        assert (row[keep:] == -1).all()


def test_change_needs_whole_frames():
    tokens = tokens_of(torch.randn(1, 36, 3), (4, 3, 3))
    with pytest.raises(PointError, match="change over time needs all tokens of every frame in order, 9 each"):
        GroupDynamic().select(GroupDynamic().reduce(tokens, 20), 10)
    with pytest.raises(PointError, match="all tokens of every frame in order"):
        GroupDynamic().select(GroupDynamic().reduce(tokens, 18), 9)  # as many as two frames hold, from four


def test_frame_pruning_equals_the_released_code(golden):
    """Masks of images and videos of a pack, by pixels of merged patches."""
    tensors, metadata = golden("videollama3_vision")
    compared = 0
    for entry in json.loads(metadata["cases"]):
        if entry["settings"]["kind"] != "encode":
            continue
        case = {k.split(".", 1)[1]: v for k, v in tensors.items() if k.startswith(f"case{entry['case']}.")}
        pixels, done = case["pixel_values"], 0
        for (t, h, w), merge in zip(case["grid_sizes"].tolist(), case["merge_sizes"].tolist(), strict=True):
            count, grid = t * h * w, (t, h // merge, w // merge)
            x = pixels[:count].reshape(1, count // merge**2, -1)  # patches of a cell lie together
            pixels = pixels[count:]
            for name, threshold, least in (
                ("keep_default", 0.1, 1),
                ("keep_custom", entry["settings"]["threshold"], entry["settings"]["min_tokens"]),
            ):
                kept = DiffFP(threshold / 255, min_tokens=least).select(tokens_of(x, grid))
                expected = case[name][done : done + x.shape[1]].nonzero().flatten()
                assert kept[0].tolist() == expected.tolist(), (entry["name"], name)
                compared += 1
            done += x.shape[1]
    assert compared == 10


def test_pruning_keeps_the_first_frame_and_what_changes():
    x = torch.zeros(1, 4, 9, 3)
    x[0, 2, 4] = 1.0  # appears in frame 2, is gone in frame 3: both are changes
    tokens = tokens_of(x.flatten(1, 2), (4, 3, 3))
    assert DiffFP(0.1, min_tokens=0).select(tokens).tolist() == [[*range(9), 18 + 4, 27 + 4]]
    assert DiffFP(0.1).select(tokens).tolist() == [[*range(9), 9, 18 + 4, 27 + 4]]
    assert DiffFP(0.1).select(tokens, 10).tolist() == [[*range(9), 9]]
    assert DiffFP(torch.inf, min_tokens=0).select(tokens).tolist() == [[*range(9)]]


def test_a_larger_threshold_never_keeps_more():
    tokens = tokens_of(torch.randn(2, 36, 3), (4, 3, 3))
    counts = [DiffFP(threshold, min_tokens=0).counts(tokens) for threshold in (0.0, 0.3, 0.8, 1.5, 9.0)]
    for more, fewer in itertools.pairwise(counts):
        assert all(a >= b for a, b in zip(more, fewer, strict=True))


def test_an_image_is_not_pruned():
    tokens = tokens_of(torch.zeros(2, 9, 3), (1, 3, 3))
    assert DiffFP().reduce(tokens) is tokens


def test_clips_are_pruned_to_different_lengths():
    x = torch.zeros(2, 4, 9, 3)
    x[1] = torch.randn(4, 9, 3)
    pruned = DiffFP(1e-3).reduce(tokens_of(x.flatten(1, 2), (4, 3, 3)))
    assert pruned.counts == (9 + 3, 36)
    assert pruned.num_placed == 36
    assert pruned.valid is not None


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: DiffFP(-1), "threshold must be >= 0, got -1"),
        (lambda: DiffFP(float("nan")), "threshold must be >= 0, got nan"),
        (lambda: DiffFP(min_tokens=-1), "min_tokens must be >= 0, got -1"),
        (lambda: GroupDynamic(p=3), "p must be 1 or 2, got 3"),
    ],
)
def test_impossible_rules_are_refused(call, match):
    with pytest.raises(PointError, match=match):
        call()
