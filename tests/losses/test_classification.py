"""Cross-entropy with soft targets."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from elastivid.losses.classification import cross_entropy


def test_hard_soft_and_smoothed_targets_agree_with_torch():
    logits, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0, 1])
    hard = F.one_hot(labels, 4).float()
    assert cross_entropy(logits, labels).item() == pytest.approx(cross_entropy(logits, hard).item(), rel=1e-6)
    smoothed = 0.9 * hard + 0.1 / 4
    wanted = F.cross_entropy(logits, labels, label_smoothing=0.1).item()
    assert cross_entropy(logits, smoothed).item() == pytest.approx(wanted, rel=1e-6)


def test_it_is_least_where_the_model_says_the_targets():
    targets = torch.tensor([[0.7, 0.2, 0.1]])
    entropy = -(targets * targets.log()).sum().item()
    assert cross_entropy(targets.log() + 3, targets).item() == pytest.approx(entropy, rel=1e-6)
    assert cross_entropy(torch.zeros(1, 3), targets).item() > entropy
    assert cross_entropy(targets.log().bfloat16(), targets).dtype == torch.float32


def test_errors():
    with pytest.raises(ValueError, match=r"targets \(B,\) or \(B, K\)"):
        cross_entropy(torch.zeros(2, 3), torch.zeros(2, 4))
