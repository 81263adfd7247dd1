"""Fisher vectors: slopes of a likelihood, what fitting finds, and what they do not depend on."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.nn.functional import normalize

from elastivid.core.errors import MissingExtraError
from elastivid.layers.fisher import PLACE_WEIGHT, FisherVectors


def fitted(kinds: int = 2, size: int = 6, words: int = 3, dims: int = 4, count: int = 400) -> FisherVectors:
    """Fitted to random descriptors of unequal spread."""
    draws = torch.Generator().manual_seed(0)
    descriptors = torch.randn(count, kinds, size, generator=draws) * torch.linspace(0.2, 2, size) + 0.3
    vectors = FisherVectors(kinds, size, words, dims)
    vectors.fit(descriptors, torch.rand(count, 3, generator=draws) - 0.5)
    return vectors


def some(batch: int = 2, count: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    return torch.randn(batch, count, 2, 6, generator=draws), torch.rand(batch, count, 3, generator=draws) - 0.5


def test_a_vector_is_the_slope_of_the_mean_log_likelihood():
    vectors, (descriptors, places) = fitted(), some()
    found = vectors(descriptors, places)
    assert found.shape == (2, vectors.length) == (2, 2 * 2 * 3 * 7)
    for clip in range(2):
        wanted = []
        for kind in range(2):
            z = (descriptors[clip, :, kind] - vectors.centre[kind]) @ vectors.basis[kind]
            z = torch.cat([z, PLACE_WEIGHT * places[clip]], dim=-1)
            mean, std = vectors.mean[kind].clone().requires_grad_(), vectors.std[kind].clone().requires_grad_()
            parts = Independent(Normal(mean, std), 1)
            MixtureSameFamily(Categorical(vectors.weight[kind]), parts).log_prob(z).mean().backward()
            share = vectors.weight[kind].sqrt()[:, None]
            slopes = torch.cat([mean.grad * std / share, std.grad * std / (2**0.5 * share)], dim=-1).flatten()
            wanted.append(normalize((slopes.sign() * slopes.abs().sqrt())[None], dim=-1)[0])
        assert torch.allclose(found[clip], torch.cat(wanted), atol=1e-4)


def test_neither_order_nor_repetition_counts():
    vectors, (descriptors, places) = fitted(), some()
    order = torch.randperm(50, generator=torch.Generator().manual_seed(2))
    found = vectors(descriptors, places)
    assert torch.allclose(vectors(descriptors[:, order], places[:, order]), found, atol=1e-5)
    assert torch.allclose(vectors(descriptors.repeat(1, 3, 1, 1), places.repeat(1, 3, 1)), found, atol=1e-5)
    assert not torch.allclose(vectors(descriptors, places + 0.2), found, atol=1e-2)
    assert torch.allclose(found.unflatten(1, (2, -1)).norm(dim=-1), torch.ones(2, 2), atol=1e-5)


def test_fitting_finds_the_groups():
    draws = torch.Generator().manual_seed(3)
    which = torch.arange(900) % 3  # a third in each of three groups, far apart
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    descriptors = (centres[which] + torch.randn(900, 2, generator=draws))[:, None]  # (N, 1, 2)
    vectors = FisherVectors(1, 2, words=3, dims=2)
    vectors.fit(descriptors, torch.zeros(900, 3))
    z = vectors._reduced(descriptors[None], torch.zeros(1, 900, 3))[0, 0, :, :2]
    assert torch.allclose(z.T @ z / 900, torch.eye(2), atol=1e-3)  # whitened
    assert torch.allclose(vectors.weight, torch.full((1, 3), 1 / 3), atol=1e-3)
    groups = torch.stack([z[which == k].mean(dim=0) for k in range(3)])
    assert torch.cdist(groups, vectors.mean[0, :, :2]).min(dim=1).values.max() < 0.02
    again = FisherVectors(1, 2, words=3, dims=2)
    again.fit(descriptors, torch.zeros(900, 3))
    assert torch.equal(again.mean, vectors.mean)


def test_descriptors_that_are_all_alike_leave_no_infinity():
    vectors = FisherVectors(1, 6, words=2, dims=3)
    vectors.fit(torch.ones(20, 1, 6), torch.zeros(20, 3))
    assert torch.isfinite(vectors(torch.ones(1, 5, 1, 6), torch.zeros(1, 5, 3))).all()


def test_scikit_learn_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.mixture", None)
    with pytest.raises(MissingExtraError, match="scikit-learn"):
        FisherVectors(1, 6, words=2, dims=3).fit(torch.ones(20, 1, 6), torch.zeros(20, 3))


def test_impossible_sizes_are_refused():
    for words, dims in ((0, 4), (4, 7), (4, 0)):
        with pytest.raises(ValueError, match=f"dims 1 to size 6, got {words} and {dims}"):
            FisherVectors(1, 6, words, dims)


def test_too_few_descriptors_are_refused():
    with pytest.raises(ValueError, match="8 words of 4 dims need at least 8 descriptors, got 7; use fewer words"):
        FisherVectors(1, 6, words=8, dims=4).fit(torch.zeros(7, 1, 6), torch.zeros(7, 3))
