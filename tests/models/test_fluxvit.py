"""FluxViT: parity with the released code, and the invariances that make it elastic."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from elastivid.core.cost import measured_macs
from elastivid.core.errors import PointError, WeightsError
from elastivid.core.point import OperatingPoint
from elastivid.core.tokens import Tokens
from elastivid.models.fluxvit import PRESETS, FluxViTConfig, convert_reference
from elastivid.select.base import Selector
from elastivid.select.masks import AttentionScore
from elastivid.select.motion import DiffFP

TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return replace(TINY, layer_scale=1.0, num_classes=5).build().eval()


def clip(frames=8, height=70, width=70, batch=2, seed=0):
    return torch.randn(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(seed))


class Given(Selector):
    """Keeps the tokens of a mask (B, M)."""

    def __init__(self, mask):
        self.mask = mask

    def scores(self, tokens):
        return self.mask.float()


def test_equals_the_released_code_on_every_golden_case(golden):
    """The same tokens but for exact ties, which the released code leaves to torch's sort; then the same numbers."""
    tensors, metadata = golden("fluxvit_tiny")
    parameters = {k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")}
    reference = FluxViTConfig.from_reference(json.loads(metadata["config"])).build().eval()
    reference.load_state_dict(convert_reference(parameters), strict=True)
    for i, case in enumerate(json.loads(metadata["cases"])):
        video = tensors[f"case{i}.video"].float().transpose(1, 2)  # (B, 3, T, H, W) -> (B, T, 3, H, W)
        keep = tensors[f"case{i}.keep"].bool()
        with torch.no_grad():
            tokens = reference.embed(video)
            ours = torch.zeros_like(keep).scatter(1, reference.selector.select(tokens, case["kept"]), True)
            out = reference(video, point=OperatingPoint(tokens=case["kept"], selector=Given(keep)), head=case["head"])
        for row, score in enumerate(reference.selector.scores(tokens)):
            swapped_out, swapped_in = (keep & ~ours)[row], (ours & ~keep)[row]
            assert torch.equal(score[swapped_out], score[swapped_in]), f"case {i}: other tokens kept"
            assert swapped_out.sum() <= reference.selector.num_groups(case["frames"]), f"case {i}: more than ties"
        assert (out.taps["pooled"] - tensors[f"case{i}.feature"]).abs().max() < 1e-5, f"case {i}: feature"
        assert (out.logits - tensors[f"case{i}.logits"]).abs().max() < 1e-5, f"case {i}: logits"


def test_converter_refuses_what_it_does_not_know(golden):
    tensors, metadata = golden("fluxvit_tiny")
    parameters = {k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")}
    parameters["surprise"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match="surprise"):
        FluxViTConfig.from_reference(json.loads(metadata["config"])).build().load_state_dict(
            convert_reference(parameters)
        )
    with pytest.raises(WeightsError, match="unknown keys"):
        FluxViTConfig.from_reference({"embed_dim": 48, "colour": "red"})


@pytest.mark.parametrize(("frames", "height", "width"), [(8, 70, 70), (1, 56, 56), (5, 42, 84), (16, 28, 28)])
def test_takes_any_frames_and_size(model, frames, height, width):
    out = model(clip(frames, height, width))
    assert out.embedding.shape == (2, 32)
    assert out.logits.shape == (2, 5)
    assert out.tokens.grid == (frames, height // 14, width // 14)


def test_keeping_all_tokens_equals_no_selection(model):
    video = clip()
    with torch.no_grad():
        assert torch.equal(model(video, point=OperatingPoint(tokens=200)).embedding, model(video).embedding)


def test_keeping_all_but_one_differs_from_keeping_all(model):
    with torch.no_grad():
        assert not torch.allclose(model(clip(), point=OperatingPoint(tokens=50)).embedding, model(clip()).embedding)


@pytest.mark.parametrize("tokens", [1, 3, 77, 199])
def test_keeps_exactly_what_is_asked(model, tokens):
    out = model(clip(), point=OperatingPoint(tokens=tokens))
    assert out.taps["kept"].shape == (2, tokens)
    assert out.tokens.x.shape == (2, tokens + 1, 48)
    assert all(len(set(row.tolist())) == tokens for row in out.taps["kept"])


def test_token_order_does_not_change_the_embedding(model):
    """Positions travel with tokens: permuting tokens together with their places permutes nothing that is pooled."""

    video = clip()
    tokens = model.embed(video)
    straight = model.encode(tokens, OperatingPoint())
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1)).expand(2, -1)
    placed = replace(tokens, x=tokens.x + model._table(tokens.grid, 48)).gather(order)
    x = torch.cat([(model.cls_token + model.positions[:, :1]).expand(2, -1, -1), placed.x], 1)
    for block in model.blocks:
        x = block(x)
    shuffled = model.pool_norm(model.pools[0](x))
    assert torch.allclose(straight.embedding, shuffled, atol=1e-5)


@torch.no_grad()
def test_positions_follow_places_where_all_tokens_are_there_in_another_order(model):
    tokens = model.embed(torch.randn(2, 8, 3, 70, 70, generator=torch.Generator().manual_seed(0)))
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    shuffled = tokens.gather(order.expand(2, -1))
    whole = model.encode(tokens, OperatingPoint()).embedding
    assert torch.allclose(model.encode(shuffled, OperatingPoint()).embedding, whole, atol=1e-5)
    places = torch.full((2, 200), -1)
    places[0], places[1, :50] = torch.arange(200), order[:50]
    ragged = tokens.gather(places)
    alone = model.encode(ragged.row(1), OperatingPoint()).embedding
    assert torch.allclose(model.encode(ragged, OperatingPoint()).embedding[1:], alone, atol=1e-5)


@torch.no_grad()
def test_compiled_clips_may_keep_different_numbers(model):
    video = torch.randn(2, 8, 3, 70, 70, generator=torch.Generator().manual_seed(0))
    video[0] = video[0, :1]  # one clip stands still
    point = OperatingPoint(selector=DiffFP(1e-3))
    compiled = torch.compile(model, backend="eager")
    assert torch.allclose(compiled(video, point=point).embedding, model(video, point=point).embedding, atol=1e-5)


def test_each_clip_is_independent_of_its_batch(model):
    video = clip(batch=3)
    point = OperatingPoint(tokens=40)
    with torch.no_grad():
        whole = model(video, point=point).embedding
        alone = torch.cat([model(one[None], point=point).embedding for one in video])
    assert torch.allclose(whole, alone, atol=1e-5)


def test_frame_order_matters(model):
    video = clip()
    with torch.no_grad():
        assert not torch.allclose(model(video).embedding, model(video.flip(1)).embedding, atol=1e-3)


def test_every_parameter_is_trained(model):
    model.zero_grad()
    out = model(clip(), point=OperatingPoint(tokens=60))
    out.logits.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_a_fixed_table_stays_fixed():
    assert not replace(TINY, learned_positions=False).build().positions.requires_grad


@pytest.mark.parametrize(
    ("point", "match"),
    [
        (OperatingPoint(memory_tokens=24), "no axis memory_tokens"),
        (OperatingPoint(tokens=201), "cannot keep 201 tokens of 200"),
        (OperatingPoint(width=8), r"width 8 of layer 0 of FluxViT .* allowed: 12, 24, 36, 48, or None"),
        (OperatingPoint(width=60), r"width 60 of layer 0 .* allowed: 12, 24, 36, 48, or None"),
        (OperatingPoint(width=(48, 24)), "FluxViT has 3 layers, so width must be one number or 3 of them, got 2"),
    ],
)
def test_refuses_points_it_cannot_serve(model, point, match):
    with pytest.raises(PointError, match=match):
        model(clip(), point=point)


def test_refuses_wrong_input(model):
    with pytest.raises(PointError, match="head must be 0 to 0, got 1"):
        model(clip(), head=1)
    with pytest.raises(ValueError, match="multiples of the patch size 14, got 71x70; resize to 70x70"):
        model(clip(height=71))
    with pytest.raises(ValueError, match=r"shape \(B, T, 3, H, W\)"):
        model(clip()[0])
    with pytest.raises(ValueError, match=r"shape \(B, T, 3, H, W\), got \(\d+, \d+, 1, 70, 70\)"):
        model(clip()[:, :, :1])
    with pytest.raises(ValueError, match="image_size 100 must be a multiple of patch_size 14"):
        FluxViTConfig(image_size=100)


@pytest.mark.parametrize("tokens", [None, 60])
def test_predicted_macs_equal_the_counter(model, tokens):
    video = clip(batch=1)
    with torch.no_grad():
        counted = measured_macs(lambda: model(video, point=OperatingPoint(tokens=tokens)))
    predicted = replace(TINY, num_classes=5).cost(frames=8, size=70, tokens=tokens).macs
    assert abs(predicted / counted - 1) < 0.02


@pytest.mark.parametrize(
    ("preset", "tokens", "giga"),
    [
        *[("small", 512, 13.3), ("small", 1024, 31.4), ("small", 2048, 82.1), ("small", 3072, 152)],
        *[("base", 512, 48), ("base", 1024, 106), ("base", 2048, 251), ("base", 3072, 435)],
    ],
)
def test_block_macs_equal_the_published_figures(preset, tokens, giga):
    """The paper's GFLOPs per view (multiply-accumulates), blocks only: arXiv 2503.14237, table of budgets."""
    config = PRESETS[preset]
    blocks = config.cost(frames=24, size=252, tokens=tokens).macs - config.cost(frames=24, size=252, tokens=1).macs
    one = replace(config, depth=0)
    rest = one.cost(frames=24, size=252, tokens=tokens).macs - one.cost(frames=24, size=252, tokens=1).macs
    assert abs((blocks - rest) / 1e9 / giga - 1) < 0.02


@pytest.mark.parametrize("layer", [0, 2])
def test_cls_attention_is_what_the_block_weights_values_with(model, layer):
    """Attention of the class token times the values is the class token's row of what the block computes."""
    tokens = model.embed(clip())
    attention = model.cls_attention(tokens, layer)
    assert attention.shape == (2, 200)
    assert (attention > 0).all()
    x = model._with_cls(model._placed(tokens, 48)).x
    with torch.no_grad():
        for block in model.blocks[:layer]:
            x = block(x)
        block = model.blocks[layer]
        attn, y = block.attn, block.norm1(x)
        weights = attn.weights(y, 3)  # (B, A, 3, N)
        values = attn.qkv(y).chunk(3, dim=-1)[2]
        out = (weights @ values.unflatten(-1, (4, 12)).transpose(1, 2)).transpose(1, 2).flatten(2)  # (B, 3, D)
        assert torch.allclose(attn.proj(out + attn.local(values[:, :3])), attn(y)[:, :3], atol=1e-5)
    assert torch.allclose(weights.sum(dim=-1), torch.ones(()))
    assert torch.allclose(weights[:, :, 0, 1:].mean(dim=1), attention)


def test_cls_attention_selects_and_refuses_layers_that_are_not_there(model):
    video = clip()
    kept = model(video, point=OperatingPoint(tokens=40, selector=AttentionScore(model.cls_attention))).taps["kept"]
    scores = model.cls_attention(model.embed(video)).reshape(2, 8, 25)
    assert torch.equal(kept, scores.topk(5, dim=2).indices.add(25 * torch.arange(8)[:, None]).flatten(1).sort().values)
    narrow = OperatingPoint(tokens=40, selector=AttentionScore(model.cls_attention), width=24)
    assert model(video, point=narrow).tokens.num_placed == 40
    with pytest.raises(PointError, match="layer must be 0 to 2, got 3"):
        model.cls_attention(model.embed(video), 3)


def test_content_may_decide_how_many_tokens_stay(model):
    """Frames that stand still are pruned; each clip keeps its own number and is encoded as if it were alone."""
    video = clip()
    video[0, 3:] = video[0, 2:3]
    point = OperatingPoint(selector=DiffFP(1e-3))
    with torch.no_grad():
        out = model(video, point=point)
        alone = [model(video[i : i + 1], point=point) for i in range(2)]
    assert out.tokens.counts == (3 * 25 + 5, 200)
    assert [one.tokens.num_placed for one in alone] == [80, 200]
    assert torch.allclose(out.embedding, torch.cat([one.embedding for one in alone]), atol=1e-5)


def test_clips_of_different_length_share_a_batch(model):
    video = clip()
    with torch.no_grad():
        short = model.embed(video[:1, :5])
        padded = replace(short, grid=(8, 5, 5)).pad(200)
        # positions are those of the grid, so the short clip is encoded in a grid of 8 frames in both cases
        both = model.encode(Tokens.stack([padded, model.embed(video[1:])]), OperatingPoint())
        alone = model.encode(replace(short, grid=(8, 5, 5)), OperatingPoint())
        whole = model(video[1:])
    assert torch.allclose(both.embedding, torch.cat([alone.embedding, whole.embedding]), atol=1e-5)


@torch.inference_mode()
def test_tapped_streams_belong_to_the_same_forward_pass(model):
    tokens = model.embed(clip())
    out, streams = model.tapped(tokens, [0, 2])
    whole = model.encode(tokens, OperatingPoint())
    assert torch.allclose(out.embedding, whole.embedding, atol=1e-6)
    assert torch.equal(streams[1], whole.tokens.x)
    assert streams[0].shape == streams[1].shape
