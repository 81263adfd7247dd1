"""Losses against closed forms and against the public CLIP loss."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F

from elastivid.losses.attributes import attributes
from elastivid.losses.contrastive import (
    agreement,
    agreement_chain,
    agreement_star,
    contrastive,
    dual_softmax,
    egonce,
    prefix,
    shared_action,
)


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


def test_a_scale_for_every_pair_equals_the_public_loss_of_mixed_narrations(golden):
    """LaViLa: pairs of people's texts have one scale, of machines' another, mixed ones the geometric mean."""
    tensors, metadata = golden("lavila_dual")
    settings = json.loads(metadata["cases"])[3]["settings"]
    human = tensors["case3.is_human"].bool()
    one = torch.where(human, tensors["case3.logit_scale"], torch.tensor(1 / settings["pseudo_temperature"]))
    scale = (one[:, None] * one).sqrt()
    loss = contrastive(tensors["case3.image_embed"], tensors["case3.text_embed"], scale)
    assert (loss - tensors["case3.loss"]).abs() < 1e-5


def test_a_learned_scale_gets_its_gradient():
    """d/ds log(1 + 3 exp(-s)) = -3 exp(-s) / (1 + 3 exp(-s))."""
    scale = torch.tensor(2.0, requires_grad=True)
    contrastive(torch.eye(4), torch.eye(4), scale).backward()
    assert scale.grad.item() == pytest.approx(-3 * math.exp(-2) / (1 + 3 * math.exp(-2)), abs=1e-6)


def test_prefixes_are_spaces_of_their_own():
    clips, texts = 3 * unit(4, 8), 5 * unit(4, 8, seed=1)
    whole = contrastive(F.normalize(clips, dim=-1), F.normalize(texts, dim=-1), 10.0).item()
    half = contrastive(F.normalize(clips[:, :4], dim=-1), F.normalize(texts[:, :4], dim=-1), 10.0).item()

    def loss(c, t):
        return contrastive(c, t, 10.0)

    assert prefix(loss, clips, texts, (8,)).item() == pytest.approx(whole)
    assert prefix(loss, clips, texts, (4, 8)).item() == pytest.approx((whole + half) / 2)
    assert prefix(loss, clips, texts, (4, 8), (3, 1)).item() == pytest.approx((whole + 3 * half) / 4)
    leaf = clips.clone().requires_grad_()
    prefix(loss, leaf, texts, (2, 4)).backward()
    assert leaf.grad[:, 4:].abs().max() == 0
    with pytest.raises(ValueError, match=r"in 1..8, got \(16,\)"):
        prefix(loss, clips, texts, (16,))
    with pytest.raises(ValueError, match="one for each of 2"):
        prefix(loss, clips, texts, (4, 8), (1,))


def test_dual_softmax_by_hand():
    """An item that every query likes as much is weighed by 1/Q; one that only one query likes keeps its cosine."""
    cosines = torch.tensor([[0.5, 1.0], [0.5, 0.0]])
    weighed = dual_softmax(cosines, 100.0)
    assert weighed[:, 0].tolist() == pytest.approx([0.25, 0.25])
    assert weighed[:, 1].tolist() == pytest.approx([1.0, 0.0])
    scale = 4.0
    loss = F.cross_entropy(scale * dual_softmax(torch.eye(2), scale), torch.arange(2)).item()
    weight = 1 / (1 + math.exp(-scale))
    assert loss == pytest.approx(math.log(1 + math.exp(-scale * weight)), abs=1e-6)


def test_egonce_has_the_closed_form_on_four_samples():
    """Samples 0 and 1 cut an onion, 2 cuts bread, 3 washes an onion: only the first two share verb and noun."""
    verbs = torch.tensor([[1, 0], [1, 0], [1, 0], [0, 1]])
    nouns = torch.tensor([[1, 0], [1, 0], [0, 1], [1, 0]])
    positives = shared_action(verbs, nouns)
    assert positives.tolist() == [
        [True, True, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, False, True],
    ]
    x = torch.eye(4)
    both = math.exp(2.0)
    first_two = -math.log((both + 1) / (both + 3))  # its own text and one that says the same
    others = -math.log(both / (both + 3))
    assert egonce(x, x, 2.0, positives).item() == pytest.approx(2 * (2 * first_two + 2 * others) / 4, abs=1e-6)


def test_egonce_without_and_with_all_positives():
    clips, texts = unit(5, 8), unit(5, 8, seed=1)
    none, every = torch.zeros(5, 5, dtype=torch.bool), torch.ones(5, 5, dtype=torch.bool)
    assert egonce(clips, texts, 20.0, none).item() == pytest.approx(
        2 * contrastive(clips, texts, 20.0).item(), rel=1e-6
    )
    assert egonce(clips, texts, 20.0, every).item() == pytest.approx(0.0, abs=1e-6)


def test_a_text_without_verb_shares_no_action():
    positives = shared_action(torch.tensor([[1, 0], [0, 0], [1, 1]]), torch.ones(3, 4))
    assert positives.tolist() == [[True, False, True], [False, False, False], [True, False, True]]


def test_egonce_equals_the_released_code(golden):
    """On given cosines: with verb and noun, with either alone, and at another temperature."""
    tensors, metadata = golden("egovlp")
    for i in range(len(json.loads(metadata["cases"]))):
        cosines, verbs, nouns = (tensors[f"case{i}.{name}"] for name in ("similarity", "verbs", "nouns"))
        eye, any_of = torch.eye(len(cosines)), torch.ones(len(cosines), 1)  # cosines @ eye.T are the cosines
        action, noun, verb = shared_action(verbs, nouns), shared_action(any_of, nouns), shared_action(verbs, any_of)
        wanted = action | torch.eye(len(cosines), dtype=torch.bool)
        assert torch.equal(wanted, tensors[f"case{i}.positives"].bool())
        for name, scale, positives in [
            ("egonce", 20, action),
            ("egonce_noun", 20, noun),
            ("egonce_verb", 20, verb),
            ("egonce_temperature_02", 5, action),
        ]:
            assert (egonce(cosines, eye, scale, positives) - tensors[f"case{i}.{name}"]).abs() < 1e-5, (i, name)
        assert (2 * contrastive(cosines, eye, 20) - tensors[f"case{i}.infonce"]).abs() < 1e-5, i


def test_agreement_ignores_length_and_spares_the_teacher():
    student, teacher = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    assert agreement(3 * teacher, teacher).item() == pytest.approx(0.0, abs=1e-12)
    agreement(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_self_distillation_teaches_downwards_only():
    """Unit vectors at right angles disagree by 1/D: two components differ by 1 and smooth-L1 halves each square."""
    large, middle, small = (torch.eye(3)[[i]].requires_grad_() for i in range(3))
    assert agreement_chain([large, large, middle]).item() == pytest.approx(1 / 3, abs=1e-6)
    agreement_chain([large, middle, small]).backward()
    assert (large.grad, middle.grad is not None, small.grad is not None) == (None, True, True)
    one, two = unit(4, 8), unit(4, 8, seed=1)
    assert agreement_chain([one, two, one]).item() == pytest.approx(2 * agreement(one, two).item())
    assert agreement_star([one, two, one]).item() == pytest.approx(agreement(two, one).item())


def test_attributes_average_over_what_is_known():
    logits = torch.tensor([[0.0, 0.0, 9.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    wanted = torch.tensor([[0, 0], [-100, -100]])
    expected = (math.log(2) + math.log(1 + 2 * math.exp(-9.0))) / 2
    assert attributes(logits, wanted, (2, 3)).item() == pytest.approx(expected, abs=1e-6)
    assert attributes(logits, torch.full((2, 2), -100), (2, 3)).item() == 0.0
