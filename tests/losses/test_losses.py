"""Losses against closed forms and against the public CLIP loss."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from elastivid.losses.attributes import attributes
from elastivid.losses.contrastive import agreement, contrastive


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_orthogonal_pairs_have_the_closed_form():
    """With B orthonormal pairs both directions are -log(e^s / (e^s + B - 1))."""
    x = torch.eye(4)
    assert contrastive(x, x, 2.0).item() == pytest.approx(math.log(1 + 3 * math.exp(-2.0)), abs=1e-6)


def test_one_pair_alone_costs_nothing():
    assert contrastive(unit(1, 8), unit(1, 8, seed=1), 10.0).item() == 0.0


def test_pairs_marked_same_leave_the_denominator():
    clips = torch.eye(3)
    texts = torch.eye(3)[[0, 0, 2]]
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    assert contrastive(clips[[0, 0, 2]], texts, 5.0, same=same) < contrastive(clips[[0, 0, 2]], texts, 5.0)
    expected = (2 * math.log(1 + math.exp(-5)) + math.log(1 + 2 * math.exp(-5))) / 3
    assert contrastive(clips[[0, 0, 2]], texts, 5.0, same=same).item() == pytest.approx(expected, abs=1e-6)


def test_a_hard_text_equal_to_the_true_one_halves_its_chance():
    x = torch.eye(2)
    hard = x[:, None]  # (B, 1, D)
    rows = math.log(2 + math.exp(-3.0))
    columns = math.log(1 + math.exp(-3.0))
    assert contrastive(x, x, 3.0, hard_texts=hard).item() == pytest.approx((rows + columns) / 2, abs=1e-6)


def test_equals_the_public_clip_loss(golden):
    """Value and gradients of the single-device case."""
    tensors, _ = golden("contrastive_losses")
    image, text, scale = (tensors[f"case0.{n}"].clone().requires_grad_() for n in ("image", "text", "scale"))
    loss = contrastive(image, text, scale)
    loss.backward()
    assert (loss - tensors["case0.loss"]).abs().max() < 1e-5
    assert (image.grad - tensors["case0.grad_image"]).abs().max() < 1e-5
    assert (text.grad - tensors["case0.grad_text"]).abs().max() < 1e-5
    assert (scale.grad - tensors["case0.grad_scale"]).abs().max() < 1e-5


def test_agreement_ignores_length_and_spares_the_teacher():
    student, teacher = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    assert agreement(3 * teacher, teacher).item() == pytest.approx(0.0, abs=1e-12)
    agreement(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_attributes_average_over_what_is_known():
    logits = torch.tensor([[0.0, 0.0, 9.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    wanted = torch.tensor([[0, 0], [-100, -100]])
    expected = (math.log(2) + math.log(1 + 2 * math.exp(-9.0))) / 2
    assert attributes(logits, wanted, (2, 3)).item() == pytest.approx(expected, abs=1e-6)
    assert attributes(logits, torch.full((2, 2), -100), (2, 3)).item() == 0.0
