"""Augmentation: rectangles and values in closed form, one draw for all frames of a clip."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from elastivid.data.augment import (
    Augmentation,
    ColourJitter,
    Flip,
    MultiScaleCrop,
    RandomErasing,
    RandomResizedCrop,
    directional,
    resized,
    square_views,
)
from elastivid.data.mixing import Mixing, soft_targets


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(frames: int = 3, height: int = 40, width: int = 60) -> np.ndarray:
    return rng(9).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def test_multi_scale_crops_take_all_allowed_places():
    generator = rng()
    boxes = [MultiScaleCrop().draw(240, 320, generator) for _ in range(4000)]
    sides = [240, 210, 180, 158]
    pairs = {(a, b) for i, a in enumerate(sides) for j, b in enumerate(sides) if abs(i - j) <= 1}
    assert {(h, w) for _, _, h, w in boxes} == pairs
    full = Counter((top, left) for top, left, h, w in boxes if (h, w) == (240, 240))
    assert set(full) == {(0, left) for left in (0, 20, 40, 60, 80)}  # no room above or below
    small = {(top, left) for top, left, h, w in boxes if (h, w) == (158, 158)}
    assert len(small) == 13
    assert {(0, 0), (80, 160), (40, 80), (20, 120)} <= small
    assert all(0 <= top <= 240 - h and 0 <= left <= 320 - w for top, left, h, w in boxes)


def test_random_resized_crops_keep_area_and_aspect():
    generator = rng()
    crop = RandomResizedCrop(area=(0.25, 0.5), aspect=(0.5, 2.0))
    for _ in range(300):
        top, left, h, w = crop.draw(100, 200, generator)
        assert 0.24 < h * w / 20000 < 0.51
        assert 0.48 < w / h < 2.1
        assert 0 <= top <= 100 - h
        assert 0 <= left <= 200 - w
    assert RandomResizedCrop((1.0, 1.0), (1.0, 1.0)).draw(50, 100, generator) == (0, 25, 50, 50)


def test_frames_of_a_clip_get_the_same_treatment():
    still = np.repeat(noise(1), 5, axis=0)
    augmentation = Augmentation(operations=(RandomErasing(0.0),))
    for seed in range(5):
        out = augmentation(still, 28, rng(seed))
        assert out.shape == (5, 28, 28, 3)
        assert (out == out[:1]).all()
        assert np.array_equal(out, augmentation(still, 28, rng(seed)))


def test_what_names_a_side_is_not_mirrored():
    labels = ["swipe_left", "Pulling [something] from right to left", "left-handed serve", "clockwise turn"]
    others = ["cleft", "bright light", "run", "leftover cooking"]
    assert directional(labels + others) == frozenset(labels)
    clip = noise()
    for label, mirrored in (("run", True), ("swipe_left", False)):
        augmentation = Augmentation(MultiScaleCrop((1.0,)), Flip(1.0, directional(labels)))
        plain = Augmentation(MultiScaleCrop((1.0,)), Flip(0.0))(clip, 40, rng(3), label)
        out = augmentation(clip, 40, rng(3), label)
        assert np.array_equal(out, plain[:, :, ::-1] if mirrored else plain)


def test_erasing_fills_one_rectangle_in_all_frames():
    grey = np.full((4, 40, 60, 3), 7, dtype=np.uint8)
    shares = []
    for seed in range(40):
        out = RandomErasing(1.0, area=(0.1, 0.3))(grey, rng(seed))
        changed = (out != grey).any(axis=(0, 3))
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() > 0.99
        shares.append(changed.mean())
    assert min(shares) > 0.09
    assert max(shares) < 0.31
    assert RandomErasing(0.0)(grey, rng()) is grey


def test_colours_change_alike_in_all_frames():
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1) * np.ones((3, 1, 1, 3), dtype=np.uint8)
    for seed in range(10):
        out = ColourJitter(0.3, 0.1, grey=0.0)(ramp, rng(seed)).astype(float)
        inside = (out > 0) & (out < 255)
        factor, shift = np.polyfit(ramp[inside] - 128.0, out[inside] - 128.0, 1)
        assert 0.69 < factor < 1.31
        assert abs(shift) < 27
        assert (out == out[:1]).all()
    grey = ColourJitter(0, 0, grey=1.0)(noise(), rng())
    assert (grey == grey[..., :1]).all()
    assert np.array_equal(ColourJitter(0, 0, 0)(noise(), rng()), noise())


def test_squares_cover_both_ends():
    clip = np.zeros((2, 30, 90, 3), dtype=np.uint8)
    clip[:, :, :30], clip[:, :, 60:] = 50, 200
    assert square_views(clip, 30, 3).mean(axis=(1, 2, 3, 4)).tolist() == [50, 0, 200]
    assert square_views(clip, 30, 1).mean() == 0
    assert square_views(clip.transpose(0, 2, 1, 3), 15, 3).mean(axis=(1, 2, 3, 4)).tolist() == [50, 0, 200]
    with pytest.raises(ValueError, match="crops must be 1"):
        square_views(clip, 30, 2)
    assert resized(clip, 30, 90) is clip


def test_targets_are_smoothed_and_refused():
    targets = soft_targets(torch.tensor([2, 0]), 4, 0.1)
    assert torch.allclose(targets[0], torch.tensor([0.025, 0.025, 0.925, 0.025]))
    assert torch.allclose(targets.sum(1), torch.ones(2))
    with pytest.raises(ValueError, match=r"labels must be 0 to 3, got 0 to 4"):
        soft_targets(torch.tensor([4, 0]), 4)
    with pytest.raises(ValueError, match=r"smoothing must be in \[0, 1\), got 1"):
        soft_targets(torch.tensor([0]), 4, 1)


def test_mixup_is_a_weighted_mean():
    video = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 2, 3, 6, 6)
    targets = soft_targets(torch.arange(4), 4)
    mixed, soft = Mixing(mixup=0.8, cutmix=0)(video, targets, rng(1))
    assert torch.allclose(mixed[:, 0, 0, 0, 0], soft @ torch.arange(4.0), atol=1e-5)
    assert torch.allclose(soft.sum(1), torch.ones(4))
    assert ((soft > 0).sum(1) == 2).all()  # nobody is mixed with themselves
    assert torch.allclose(soft.sum(0), torch.ones(4))  # and everyone is a partner once


def test_cutmix_targets_are_the_share_of_pixels():
    video = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 2, 3, 20, 30)
    targets = soft_targets(torch.arange(4), 4)
    for seed in range(20):
        mixed, soft = Mixing(mixup=0, cutmix=1.0)(video, targets, rng(seed))
        assert torch.allclose(mixed.mean((1, 2, 3, 4)), soft @ torch.arange(4.0), atol=1e-4)
        assert (mixed == mixed[:, :1, :1]).all()
    same, hard = Mixing(probability=0.0)(video, targets, rng())
    assert same is video
    assert hard is targets
    assert Mixing()(video[:1], targets[:1], rng())[0].shape == (1, 2, 3, 20, 30)
    with pytest.raises(ValueError, match="alphas must be >= 0"):
        Mixing(mixup=-1)
