"""Layers against closed forms and against torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from elastivid.layers import attention as attention_module
from elastivid.layers.attention import Attention, ChannelAffine, attend, attend_in_steps
from elastivid.layers.block import Block, initialise_block
from elastivid.layers.embed import PatchEmbed, patch_coordinates, patchify
from elastivid.layers.norm import RMSNorm, norm_linear
from elastivid.layers.pool import AttentionPool
from elastivid.layers.position import resize_table, sincos, sincos_3d
from elastivid.layers.vit import through_blocks


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomised(module):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3 + (p.ndim == 1))
    return module


def test_rms_norm_equals_torch():
    ours, theirs = RMSNorm(12), nn.RMSNorm(12, eps=1e-6)
    weight = randn(12)
    ours.weight.data, theirs.weight.data = weight.clone(), weight.clone()
    x = randn(3, 5, 12)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)


def test_a_zero_token_has_a_finite_gradient():
    norm, x = RMSNorm(4), torch.zeros(2, 4, requires_grad=True)
    norm(x).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_the_folded_form_equals_the_plain_one():
    norm, linear, x = randomised(RMSNorm(6)), randomised(nn.Linear(6, 4)), randn(2, 3, 6)
    assert torch.allclose(norm_linear(x, norm, linear, 4), linear(norm(x)), atol=1e-5)
    assert torch.allclose(norm_linear(x, norm, linear, 3), linear(norm(x))[..., :3], atol=1e-5)


def test_patch_embed_equals_a_convolution():
    embed = PatchEmbed(4, 8)
    video = randn(2, 3, 3, 8, 12)
    with torch.no_grad():
        embed.norm_before.weight.fill_(1.0)
        raw = patchify(video, 4) @ embed.proj.weight.T + embed.proj.bias
        kernel = embed.proj.weight.reshape(8, 3, 4, 4)
        conv = nn.functional.conv2d(video.flatten(0, 1), kernel, embed.proj.bias, stride=4)  # (B*T, D, h, w)
    assert torch.allclose(raw, conv.flatten(2).transpose(1, 2).reshape(2, 18, 8), atol=1e-5)


def test_patch_order_is_frame_row_column():
    video = torch.zeros(1, 2, 3, 4, 4)
    video[0, 1, :, 2:, :2] = 1.0
    lit = patchify(video, 2).sum(-1)[0].nonzero().item()
    assert patch_coordinates((2, 2, 2))[lit].tolist() == [1.0, 1.0, 0.0]


def test_attention_equals_the_formula():
    attention, x = randomised(Attention(8, 2, local=True)), randn(2, 5, 8)
    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    q, k = (nn.functional.rms_norm(y, (8,), n.weight, 1e-6) for y, n in ((q, attention.q_norm), (k, attention.k_norm)))
    parts = []
    for head in range(2):
        c = slice(4 * head, 4 * head + 4)
        weights = (q[..., c] @ k[..., c].transpose(1, 2) / math.sqrt(4)).softmax(-1)
        parts.append(weights @ v[..., c])
    expected = attention.proj(torch.cat(parts, -1) + attention.local(v))
    assert torch.allclose(attention(x), expected, atol=1e-4)


@pytest.mark.parametrize("at_once", [1, 40, 10_000])
@pytest.mark.parametrize("biased", [False, True])
def test_attention_in_steps_equals_the_fused_kernel(monkeypatch, at_once, biased):
    monkeypatch.setattr(attention_module, "SCORES_AT_ONCE", at_once)
    q, k, v = (randn(2, 3, n, 8, seed=n) for n in (7, 11, 12))
    v = v[:, :, :11]  # not dense
    bias = randn(2, 1, 1, 11) if biased else None
    expected = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    assert torch.allclose(attend_in_steps(q, k, v, bias), expected, atol=1e-6)


@torch.no_grad()
def test_bfloat16_attention_is_as_good_as_bfloat16(monkeypatch):
    """Either way of computing it stays within a few roundings of float32."""
    q, k, v = (randn(1, 2, 300, 64, seed=n) for n in range(3))
    exact = nn.functional.scaled_dot_product_attention(q, k, v)
    for by_vectors in (True, False):
        monkeypatch.setattr(attention_module, "BF16_BY_VECTORS", by_vectors)
        error = attend(q.bfloat16(), k.bfloat16(), v.bfloat16()).float() - exact
        assert error.norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("few", [True, False])
def test_attention_trained_in_bfloat16_has_the_gradients_of_float32(monkeypatch, few):
    """By plain products or by the kernel, under autocast, up to the roundings of bfloat16."""
    monkeypatch.setattr(attention_module, "BF16_BY_VECTORS", True)
    monkeypatch.setattr(attention_module, "SCORES_IN_TRAINING", 10**9 if few else 0)
    q, k, v = (randn(2, 2, 40, 16, seed=n).requires_grad_() for n in range(3))
    exact = torch.autograd.grad(attend(q, k, v).square().sum(), (q, k, v))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = torch.autograd.grad(attend(q, k, v).float().square().sum(), (q, k, v))
    for ours, expected in zip(rounded, exact, strict=True):
        assert (ours - expected).norm() < 0.03 * expected.norm()


def test_norm_statistics_of_bfloat16_are_those_of_float32():
    x = randn(50, 384).bfloat16()
    exact = x.float() / (x.float().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert (RMSNorm(384).bfloat16()(x).float() / exact - 1).abs().max() < 3 * 2**-8


def test_affine_at_initialisation_changes_nothing():
    x = randn(2, 4, 6)
    assert torch.equal(ChannelAffine(6)(x), x)


def test_block_without_scale_is_the_identity():
    x = randn(2, 4, 8)
    assert torch.equal(Block(8, 2, layer_scale=0.0)(x), x)


def test_drop_path_skips_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    block = Block(8, 2, layer_scale=1.0, drop_path=0.5).train()
    branch = block._dropped(torch.ones(4000, 1, 8))
    assert set(branch.unique().tolist()) == {0.0, 2.0}
    assert branch.mean().item() == pytest.approx(1.0, abs=0.06)
    assert torch.equal(block.eval()._dropped(torch.ones(2, 1, 8)), torch.ones(2, 1, 8))


def test_initialisation_divides_output_projections():
    torch.manual_seed(0)
    block = Block(64, 2)
    initialise_block(block, 8)
    assert block.attn.proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.1)
    assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_pool_of_equal_tokens_does_not_depend_on_their_number():
    pool = randomised(AttentionPool(8, 2, 5))
    token = randn(2, 1, 8)
    assert torch.allclose(pool(token), pool(token.expand(-1, 7, -1)), atol=1e-5)


def test_sincos_known_values():
    code = sincos(torch.tensor([0.0, 1.0]), 4)
    expected = [[0, 0, 1, 1], [math.sin(1), math.sin(0.01), math.cos(1), math.cos(0.01)]]
    assert torch.allclose(code, torch.tensor(expected, dtype=torch.float32), atol=1e-6)
    with pytest.raises(ValueError, match="even number of channels, got 3"):
        sincos(torch.arange(2), 3)
    with pytest.raises(ValueError, match="divisible by 8, got 12"):
        sincos_3d((2, 2, 2), 12)


def test_every_place_has_its_own_code():
    table = sincos_3d((4, 5, 6), 48)
    assert table.shape == (120, 48)
    assert (torch.cdist(table, table) + 9 * torch.eye(120)).min() > 0.1


def test_a_resized_table_keeps_constants_and_its_own_grid():
    table = sincos_3d((4, 5, 5), 48)
    assert resize_table(table, (4, 5, 5), (4, 5, 5)) is table
    constant = torch.full((100, 8), 0.7)
    assert torch.allclose(resize_table(constant, (4, 5, 5), (7, 3, 9)), torch.full((189, 8), 0.7), atol=1e-5)
    line = torch.arange(4.0)[:, None].expand(4, 2)  # a ramp in time
    assert resize_table(line, (4, 1, 1), (8, 1, 1))[:, 0].tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]


@pytest.mark.parametrize("wanted", [(4, 5, 5), (4, 3, 7), (6, 5, 5), (1, 9, 5), (9, 1, 1)])
def test_resizing_a_table_equals_torchs_interpolation(wanted):
    table = randn(4 * 5 * 6, 8)
    planes = table.reshape(4, 30, 8).permute(1, 2, 0)
    planes = nn.functional.interpolate(planes, size=wanted[0], mode="linear").permute(2, 1, 0)  # (T', D, H*W)
    planes = nn.functional.interpolate(planes.unflatten(2, (5, 6)), size=wanted[1:], mode="bicubic")
    expected = planes.permute(0, 2, 3, 1).reshape(-1, 8)  # (T', D, H', W') -> (T'*H'*W', D)
    with torch.autocast("cpu"):
        assert torch.allclose(resize_table(table, (4, 5, 6), wanted), expected, atol=1e-6)


@pytest.mark.parametrize("module", [Attention, AttentionPool])
def test_heads_must_divide_channels(module):
    arguments = (10, 3) if module is Attention else (10, 3, 4)
    with pytest.raises(ValueError, match="divisible by num_heads, got 10 and 3"):
        module(*arguments)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_block_that_is_not_there_cannot_be_tapped(monkeypatch, rows):
    monkeypatch.setattr("elastivid.layers.vit.ROWS_AT_ONCE", 4)
    blocks = torch.nn.ModuleList([EchoBlock(), EchoBlock()])
    with torch.no_grad():
        _, kept = through_blocks(blocks, torch.ones(rows, 4, 2), taps=(1,))
        assert torch.equal(kept[1], torch.full((rows, 4, 2), 4.0))
        with pytest.raises(ValueError, match=r"from 0 to 1, got \[2\]"):
            through_blocks(blocks, torch.ones(rows, 4, 2), taps=(0, 2))


class EchoBlock(torch.nn.Module):
    def forward(self, x, sizes=None):
        return 2 * x
