"""Reconstruction and alignment against closed forms and the released codes."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F

from elastivid.losses.contrastive import agreement
from elastivid.losses.masked import (
    alignment,
    cubes,
    from_cubes,
    masked_regression,
    standardised,
    standardised_kinds,
)

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1, 1)


def test_cubes_round_trip_and_have_the_order_they_state():
    video = torch.arange(4 * 3 * 4 * 6.0).reshape(1, 4, 3, 4, 6)
    cut = cubes(video, 2, 2)
    assert cut.shape == (1, 2 * 2 * 3, 8, 3)
    assert cut[0, 1, 0].tolist() == video[0, 0, :, 0, 2].tolist()  # second cube: two columns to the right
    assert cut[0, 6, 5].tolist() == video[0, 3, :, 0, 1].tolist()  # second time; place 5 is frame 1, row 0, column 1
    assert torch.equal(from_cubes(cut, (4, 4, 6), 2, 2), video)
    with pytest.raises(ValueError, match="5 frames"):
        cubes(torch.zeros(1, 5, 3, 4, 4), 2, 2)


def test_standardised_cubes():
    cut = torch.rand(2, 5, 8, 3)
    done = standardised(cut)
    assert done.mean(2).abs().max() < 1e-5
    assert (done.var(2) - 1).abs().max() < 1e-3
    assert (standardised(cut, correction=0).var(2, correction=0) - 1).abs().max() < 1e-3
    assert torch.allclose(standardised(cut, correction=0), done * math.sqrt(8 / 7), atol=1e-4)
    assert torch.allclose(standardised(3 * cut + 1), done, atol=1e-4)
    assert standardised(torch.full((1, 1, 8, 3), 0.5)).abs().max() == 0


def test_predicting_zero_costs_the_variance():
    """(n - 1) / n with the sample variance, 1 with the population variance."""
    cut = torch.rand(1, 4, 8, 3)
    for correction, wanted in ((1, 7 / 8), (0, 1.0)):
        target = standardised(cut, correction=correction).flatten(2)
        assert masked_regression(torch.zeros_like(target), target).item() == pytest.approx(wanted, abs=1e-4)


def test_kinds_come_to_one_scale_and_what_is_absent_stays_absent():
    cells = torch.rand(2, 6, 8)
    cells[..., 4:] *= torch.tensor([50.0, 0.0])[
        :, None, None
    ]  # the second kind is strong in one clip, absent in the other
    done = standardised_kinds(cells, 2, eps=1e-6)
    assert done.shape == cells.shape
    assert done[..., :4].mean((1, 2)).abs().max() < 1e-6
    assert (done[..., :4].square().mean((1, 2)) - 1).abs().max() < 1e-4
    assert (done[0, :, 4:].square().mean() - 1).abs() < 1e-4
    assert done[1, :, 4:].abs().max() == 0
    by_hand = standardised_kinds(torch.tensor([[[0.0, 0.0, 1.0, 5.0], [2.0, 2.0, 3.0, 7.0]]]), 2, eps=0.0)
    assert by_hand[0, :, :2].tolist() == [[-1, -1], [1, 1]]
    assert by_hand[0, :, 2:].flatten().tolist() == pytest.approx([v / math.sqrt(5) for v in (-3, 1, -1, 3)])


def test_only_what_counts_enters():
    prediction = torch.tensor([[[0.5], [2.0], [9.0]]], requires_grad=True)
    target = torch.zeros(1, 3, 1, requires_grad=True)
    counted = torch.tensor([[True, True, False]])
    for distance, wanted in ((F.mse_loss, 2.125), (F.l1_loss, 1.25), (F.smooth_l1_loss, (0.125 + 1.5) / 2)):
        assert masked_regression(prediction, target, counted, distance=distance).item() == pytest.approx(wanted)
    masked_regression(prediction, target, counted).backward()
    assert prediction.grad.flatten().tolist() == [0.5, 2.0, 0.0]
    assert target.grad is None
    nothing = masked_regression(prediction, target, torch.zeros(1, 3, dtype=torch.bool))
    nothing.backward()
    assert nothing.item() == 0
    with pytest.raises(ValueError, match=r"got \(1, 3, 1\), \(1, 2, 1\)"):
        masked_regression(prediction, target[:, :2])


@pytest.mark.parametrize("name", ["videomae_v2_dual_masking", "videomae_v2_cosine"])
def test_targets_and_loss_equal_the_released_videomae(golden, name):
    tensors, metadata = golden(name)
    config, compared = json.loads(metadata["config"]), 0
    for i, case in enumerate(json.loads(metadata["cases"])):
        if f"case{i}.video" not in tensors:
            continue
        hidden = tensors[f"case{i}.encoder_hidden"].bool()
        shown = tensors.get(f"case{i}.decoder_hidden")
        predicted = hidden if shown is None else ~shown.bool()
        pixels = (tensors[f"case{i}.video"].float() * STD + MEAN).transpose(1, 2)  # (B, T, 3, H, W) in [0, 1]
        cut = cubes(pixels, config["tubelet_size"], config["patch_size"])
        target = (standardised(cut) if case["normalised_target"] else cut).flatten(2)  # (B, N, P)
        target = target[predicted].unflatten(0, (len(target), -1))  # (B, M, P)
        assert (target - tensors[f"case{i}.target"]).abs().max() < 1e-4, i  # deviations of flat cubes divide roundings
        loss = masked_regression(tensors[f"case{i}.prediction"], target, tensors[f"case{i}.counted"].bool())
        assert (loss - tensors[f"case{i}.loss"]).abs() < 1e-5, i
        compared += 1
    assert compared


@pytest.mark.parametrize("name", ["mvd", "mvd_cls_allframes"])
def test_feature_prediction_equals_the_released_mvd(golden, name):
    tensors, metadata = golden(name)
    distances = {"SmoothL1": F.smooth_l1_loss, "L2": F.mse_loss, "L1": F.l1_loss}
    for i, case in enumerate(json.loads(metadata["cases"])):
        if "loss" not in case:
            continue
        for kind in ("image", "video"):
            student, target = tensors[f"case{i}.student_{kind}"], tensors[f"case{i}.target_{kind}"]
            loss = masked_regression(student, target, distance=distances[case["loss"]])
            assert (loss - tensors[f"case{i}.loss_{kind}"]).abs() < 1e-5, (i, kind)


def test_alignment_by_hand_and_against_the_released_umt(golden):
    one = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]])
    other = torch.tensor([[[3.0, 0.0]], [[5.0, 0.0]]], requires_grad=True)
    assert alignment(one, other).item() == pytest.approx(1.0)  # distances 0 and 2
    assert alignment(one, -one).item() == pytest.approx(4.0)
    alignment(one.requires_grad_(), other).backward()
    assert other.grad is None
    with pytest.raises(ValueError, match="select the teacher's tokens"):
        alignment(one, other[:1])
    tensors, metadata = golden("umt")
    for i in range(len(json.loads(metadata["cases"]))):
        student, target = tensors[f"case{i}.student"], tensors[f"case{i}.target"]
        assert (alignment(student, target) - tensors[f"case{i}.loss_l2"]).abs() < 1e-5
        assert (alignment(student, target) / student.shape[-1] - tensors[f"case{i}.loss_mse"]).abs() < 1e-5
        assert (agreement(student, target) - tensors[f"case{i}.loss_smooth_l1"]).abs() < 1e-5
