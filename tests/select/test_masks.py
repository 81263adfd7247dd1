"""Selection by place: closed forms, the published running cell, UMT's attention mask, and draws."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from elastivid.core.errors import PointError
from elastivid.core.tokens import Tokens
from elastivid.layers.embed import patch_coordinates
from elastivid.select.masks import (
    AttentionScore,
    BlockCell,
    RandomFrames,
    RandomTokens,
    RandomTubes,
    RunningCell,
    drawn,
)
from elastivid.select.motion import GroupDynamic


def tokens_of(grid, batch=1):
    t, h, w = grid
    return Tokens(x=torch.zeros(batch, t * h * w, 1), coords=patch_coordinates(grid).expand(batch, -1, -1), grid=grid)


def kept_map(selector, grid, keep, batch=1):
    """0/1 map (B, T, S) of what stays."""
    t, h, w = grid
    places = selector.select(tokens_of(grid, batch), keep)
    return torch.zeros(batch, t * h * w).scatter(1, places, 1.0).reshape(batch, t, h * w).long()


def test_running_cell_equals_the_released_code(golden):
    tensors, metadata = golden("videomae_v2_dual_masking")
    compared = 0
    for i, case in enumerate(json.loads(metadata["cases"])):
        if case["kind"] != "cells":
            continue
        grid = tuple(case["grid"])
        for percent in (25, 50, 75):
            hidden = tensors[f"case{i}.cell_maps_{percent}"].long()  # (4, T, S)
            keep = int((1 - hidden[0]).sum())
            ours = kept_map(RunningCell([0, 1, 2, 3]), grid, keep, batch=4)
            assert torch.equal(ours, 1 - hidden), (grid, percent)
            compared += 1
    assert compared == 6


def test_attention_mask_equals_umt_for_a_given_ranking(golden):
    tensors, metadata = golden("umt")
    for i, case in enumerate(json.loads(metadata["cases"])):
        order, hidden = tensors[f"case{i}.order"], tensors[f"case{i}.hidden"].long()  # (B*T, S), (B, N)
        rank = order.argsort(dim=1).reshape(case["batch"], -1)  # (B*T, S) -> (B, N)
        side = int(order.shape[1] ** 0.5)
        grid = (order.shape[0] // case["batch"], side, side)
        keep = int((1 - hidden[0]).sum())
        kept = AttentionScore(lambda tokens, rank=rank: -rank).select(tokens_of(grid, case["batch"]), keep)
        assert torch.equal(1 - torch.zeros_like(hidden).scatter(1, kept, 1), hidden)


@pytest.mark.parametrize("keep", [16, 20, 64, 100])
def test_tubes_are_the_same_in_all_frames_and_the_rest_comes_early(keep):
    whole, rest = divmod(keep, 8)
    kept = kept_map(RandomTubes(1), (8, 4, 4), keep)[0]  # (T, S)
    lengths = kept.sum(dim=0).sort(descending=True).values
    assert lengths.tolist() == [8] * whole + [rest] * (rest > 0) + [0] * (16 - whole - (rest > 0))
    assert (kept.diff(dim=0) <= 0).all()  # a tube may end early, never begin late


@pytest.mark.parametrize("keep", [16, 40, 100])
def test_frames_are_whole_but_one(keep):
    kept = kept_map(RandomFrames(1), (8, 4, 4), keep)[0].sum(dim=1)
    assert sorted(kept.tolist(), reverse=True)[: keep // 16] == [16] * (keep // 16)
    assert kept.sum() == keep
    assert (kept > 0).sum() == -(-keep // 16)


@pytest.mark.parametrize("grid", [(4, 4, 4), (4, 6, 2), (8, 18, 18)])
def test_the_running_cell_visits_every_place_equally_in_four_frames(grid):
    size = grid[0] * grid[1] * grid[2]
    for part in (1, 2, 3):
        kept = kept_map(RunningCell(), grid, size * part // 4)[0]
        assert (kept.sum(dim=0) == part * grid[0] // 4).all()
        assert (kept.sum(dim=1) == grid[1] * grid[2] * part // 4).all()


def test_between_the_quarters_the_running_cell_spreads_what_is_left():
    kept = kept_map(RunningCell(), (1, 16, 16), 96)[0, 0].reshape(4, 4, 4, 4).sum(dim=(1, 3))  # 4x4 tiles of 4x4
    assert kept.sum() == 96
    assert kept.min() >= 5
    assert kept.max() <= 7


@pytest.mark.parametrize("kind", [RandomTokens, RandomTubes, RandomFrames])
def test_seeds_decide_and_one_per_clip_is_possible(kind):
    grid, keep = (8, 6, 6), 72
    one, other = (kept_map(kind(seed), grid, keep) for seed in (0, 1))
    assert not torch.equal(one, other)
    both = kept_map(kind([0, 1]), grid, keep, batch=2)
    assert torch.equal(both, torch.cat([one, other]))
    assert torch.equal(kept_map(kind(0), grid, keep, batch=2), torch.cat([one, one]))
    assert torch.equal(kept_map(kind(np.int64(1)), grid, keep), other)


def test_random_tokens_are_uniform():
    counts = sum(kept_map(RandomTokens(seed), (4, 4, 4), 16) for seed in range(400)).float()
    assert (counts - 100).abs().max() < 5 * (400 * 0.25 * 0.75) ** 0.5


def test_draws_follow_the_probabilities():
    probabilities = torch.tensor([[0.6, 0.3, 0.1, 0.0]]).expand(4000, -1)
    first = drawn(probabilities, range(4000)).argmax(dim=1)
    share = torch.bincount(first, minlength=4) / 4000
    assert torch.allclose(share, probabilities[0], atol=0.03)


def test_every_frame_keeps_its_share_of_attention_unless_told_otherwise():
    attention = torch.cat([torch.full((1, 8), 5.0), torch.arange(24.0)[None] / 100], dim=1)
    tokens = tokens_of((4, 2, 4))
    by_frame = AttentionScore(lambda t: attention).select(tokens, 8)
    overall = AttentionScore(lambda t: attention, groups=1).select(tokens, 8)
    assert torch.bincount(by_frame[0] // 8, minlength=4).tolist() == [2, 2, 2, 2]
    assert torch.equal(overall[0], torch.arange(8))


def test_groups_of_time_need_whole_frames():
    """18 tokens of four frames are as many as two frames hold, and are not two frames."""
    few = RandomTokens(0).reduce(tokens_of((4, 3, 3)), 18)
    with pytest.raises(PointError, match="2 groups need whole frames and all tokens of them"):
        AttentionScore(lambda t: torch.ones(1, 18)).select(few, 6)
    with pytest.raises(PointError, match="2 groups need whole frames"):
        RunningCell().select(few, 6)
    assert AttentionScore(lambda t: torch.ones(1, 18), groups=1).reduce(few, 6).num_placed == 6


def test_a_block_of_a_short_clip_is_cut_to_its_own_frames():
    short = tokens_of((3, 6, 6))
    padded = Tokens(x=short.x, coords=short.coords, grid=(8, 6, 6)).pad(288)
    block = BlockCell((4, 3, 3), seed=3)
    assert block.counts(short) == block.counts(padded) == (27,)
    assert torch.equal(block.select(padded), block.select(short))


def test_a_student_may_see_part_of_what_its_teacher_sees():
    """FluxViT's double mask: group-dynamic tokens, of these the most attended."""
    x = torch.randn(2, 64, 4, generator=torch.Generator().manual_seed(0))
    tokens = Tokens(x=x, coords=patch_coordinates((4, 4, 4)).expand(2, -1, -1), grid=(4, 4, 4))
    teacher = GroupDynamic().reduce(tokens, 32)
    attention = torch.rand(2, 32, generator=torch.Generator().manual_seed(1))
    student = AttentionScore(lambda t: attention, groups=1).reduce(teacher, 10)
    assert student.num_placed == 10
    for row in range(2):
        assert set(student.cells[row].tolist()) <= set(teacher.cells[row].tolist())


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda t: RandomTokens(-1), "seed must be >= 0"),
        (lambda t: RandomTubes([]), "seed must be >= 0, one number or one per clip"),
        (lambda t: RunningCell(-2), "phase must be >= 0"),
        (lambda t: RandomFrames([1, 2, 3]).select(t, 3), r"seed must be one number or one per clip \(2\), got 3"),
        (lambda t: RunningCell([1, 2, 3]).select(t, 3), r"phase must be one number or one per clip \(2\), got 3"),
        (lambda t: AttentionScore(lambda t: t.x, groups=0), "groups must be >= 1"),
        (lambda t: AttentionScore(lambda t: t.x).select(t, 3), r"shape \(2, 12\), got \(2, 12, 1\)"),
        (lambda t: AttentionScore(lambda t: t.x[..., 0] / 0).select(t, 3), "24 scores that are not a number"),
        (lambda t: AttentionScore(lambda t: t.x[..., 0], groups=5).select(t, 3), "12 tokens do not divide into 5"),
        (lambda t: drawn(torch.tensor([[-0.1, 1.0]])), "probabilities must be >= 0, got -0.1"),
        (lambda t: drawn(torch.ones(2, 3), [1, 2, 3]), r"one per clip \(2\), got 3"),
    ],
)
def test_errors_name_the_numbers(call, match):
    with pytest.raises(PointError, match=match):
        call(tokens_of((3, 2, 2), batch=2))
