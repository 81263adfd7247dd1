"""Adaptive width: the plain layer at full width, the first channels below it, nothing touched outside."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from elastivid.core.errors import PointError
from elastivid.layers import elastic


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomised(module):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return module


@pytest.mark.parametrize("bias", [True, False])
def test_full_width_is_the_plain_layer_bit_for_bit(bias):
    x, layer, norm = randn(2, 5, 8), randomised(nn.Linear(8, 12, bias=bias)), randomised(nn.LayerNorm(8, bias=bias))
    assert torch.equal(elastic.linear(x, layer), layer(x))
    assert torch.equal(elastic.linear(x, layer, 12), layer(x))
    assert torch.equal(torch.cat(elastic.stacked_linear(x, layer), -1), layer(x))
    assert torch.equal(elastic.layer_norm(x, norm), norm(x))
    assert elastic.fit_width(x, 8) is x
    assert elastic.first(norm.weight, 8) is norm.weight


@pytest.mark.parametrize("bias", [True, False])
def test_below_it_is_a_small_layer_of_the_first_weights(bias):
    x, layer, norm = randn(2, 5, 3), randomised(nn.Linear(8, 12, bias=bias)), randomised(nn.LayerNorm(8, bias=bias))
    small_linear, small_norm = nn.Linear(3, 5, bias=bias), nn.LayerNorm(3, bias=bias)
    elastic.copy_first(layer, small_linear)
    elastic.copy_first(norm, small_norm)
    assert torch.allclose(elastic.linear(x, layer, 5), small_linear(x), atol=1e-6)
    assert torch.allclose(elastic.layer_norm(x, norm), small_norm(x), atol=1e-6)
    assert small_linear.weight.is_contiguous()
    assert small_linear.weight.data_ptr() != layer.weight.data_ptr()


@pytest.mark.parametrize("bias", [True, False])
def test_stacked_matrices_are_cut_one_by_one(bias):
    class Holder(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.qkv = nn.Linear(dim, 3 * dim, bias=bias)

    x, large, small = randn(2, 5, 4), randomised(Holder(8)), Holder(4)
    elastic.copy_first(large, small)
    for part, (cut, dense) in enumerate(
        zip(elastic.stacked_linear(x, large.qkv), small.qkv(x).chunk(3, -1), strict=True)
    ):
        rows = slice(8 * part, 8 * part + 4)
        expected = x @ large.qkv.weight[rows, :4].T + (large.qkv.bias[rows] if bias else 0)
        assert torch.allclose(cut, expected, atol=1e-5)
        assert torch.allclose(dense, expected, atol=1e-5)


def test_gradients_outside_are_exactly_zero():
    layer, stacked, norm = randomised(nn.Linear(8, 8)), randomised(nn.Linear(8, 24)), randomised(nn.LayerNorm(8))
    x = randn(2, 5, 4)
    y = elastic.layer_norm(elastic.linear(x, layer, 4), norm)
    sum(elastic.stacked_linear(y, stacked)).square().sum().backward()
    inside = torch.zeros(8, dtype=torch.bool)
    inside[:4] = True
    square = inside[:, None] & inside
    for parameter, mask in [
        (layer.weight, square),
        (layer.bias, inside),
        (norm.weight, inside),
        (norm.bias, inside),
        (stacked.weight, square.repeat(3, 1)),
        (stacked.bias, inside.repeat(3)),
    ]:
        assert (parameter.grad[~mask] == 0).all()
        assert (parameter.grad[mask] != 0).any()


def test_the_stream_is_cut_or_padded_with_zeros():
    x = randn(2, 3, 8)
    assert torch.equal(elastic.fit_width(x, 5), x[..., :5])
    wide = elastic.fit_width(x, 10)
    assert torch.equal(wide[..., :8], x)
    assert (wide[..., 8:] == 0).all()


def test_heads_are_whole():
    x = randn(2, 5, 12)
    assert elastic.split_heads(x, 4).shape == (2, 3, 5, 4)
    assert torch.equal(elastic.merge_heads(elastic.split_heads(x, 4)), x)
    assert torch.equal(elastic.split_heads(x, 4)[:, 1], x[..., 4:8])


def test_widths_of_a_point():
    assert elastic.widths_of(None, (8, 8), 4, "m") == (8, 8)
    assert elastic.widths_of(4, (8, 8), 4, "m") == (4, 4)
    assert elastic.widths_of([8, 4], (8, 8), 4, "m") == (8, 4)
    with pytest.raises(
        PointError, match=r"m has 2 layers, so width must be one number or 2 of them, got 3: \(8, 8, 8\)"
    ):
        elastic.widths_of((8, 8, 8), (8, 8), 4, "m")
    with pytest.raises(PointError, match=r"width 6 of layer 1 of m .* heads of 4 channels .*; allowed: 4, 8, or None"):
        elastic.widths_of((8, 6), (8, 8), 4, "m")
    with pytest.raises(PointError, match=r"width 8 of layer 1 of m .* allowed: 4, or None"):
        elastic.widths_of(8, (8, 4), 4, "m")


def test_layers_refuse_more_channels_than_they_have():
    with pytest.raises(ValueError, match="maps 8 to 4 channels, it cannot map 9 to 4"):
        elastic.linear(randn(2, 9), nn.Linear(8, 4))
    with pytest.raises(ValueError, match="maps 8 to 4 channels, it cannot map 8 to 5"):
        elastic.linear(randn(2, 8), nn.Linear(8, 4), 5)
    with pytest.raises(ValueError, match="each of 3 parts maps 8 to 8 channels, it cannot map 9 to 9"):
        elastic.stacked_linear(randn(2, 9), nn.Linear(8, 24))
    with pytest.raises(ValueError, match="the input has 9 channels, the layer only 8"):
        elastic.layer_norm(randn(2, 9), nn.LayerNorm(8))
    with pytest.raises(ValueError, match=r"weight needs a tensor of at least \(9, 8\), the source has \(8, 8\)"):
        elastic.copy_first(nn.Linear(8, 8), nn.Linear(8, 9))
    with pytest.raises(ValueError, match=r"bias needs .* the source has nothing"):
        elastic.copy_first(nn.Linear(8, 8, bias=False), nn.Linear(8, 8))


def test_each_layer_draws_its_width_evenly():
    generator = torch.Generator().manual_seed(0)
    draws = [elastic.sample_widths(generator, 3, (4, 8)) for _ in range(4000)]
    counts = Counter(draws)
    assert len(counts) == 8
    assert all(abs(n / 4000 - 1 / 8) < 0.03 for n in counts.values())


def test_decreasing_schedules_never_grow_and_are_equally_likely():
    generator = torch.Generator().manual_seed(0)
    draws = [elastic.sample_widths(generator, 3, (4, 8, 12), decreasing=True) for _ in range(5000)]
    counts = Counter(draws)
    assert len(counts) == 10  # ways to place 2 bars among 3 layers
    assert all(list(d) == sorted(d, reverse=True) for d in counts)
    assert all(abs(n / 5000 - 1 / 10) < 0.03 for n in counts.values())
