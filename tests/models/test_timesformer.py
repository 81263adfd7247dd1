"""TimeSformer: equal to transformers' model, and what divided attention promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peak import peak_bytes

from elastivid.core.cost import measured_macs
from elastivid.core.errors import PointError, UnknownNameError, WeightsError
from elastivid.core.point import OperatingPoint
from elastivid.models.timesformer import PRESETS, TimeSformerConfig, convert_reference

TINY = PRESETS["tiny"]
KINDS = ("divided", "joint", "space", "frozen")


def built(kind="divided", **changes):
    """A tiny model in which every parameter counts: nothing is left at zero or one."""
    torch.manual_seed(0)
    model = replace(TINY, attention=kind, **changes).build().eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.1)
        if "norm" in name and name.endswith("weight"):
            parameter.data += 1
    return model


def clip(frames=4, height=70, width=70, batch=2, seed=0):
    return torch.randn(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(seed))


def peer(kind, **changes):
    """transformers' classifier with random weights, and ours with the same ones."""
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    torch.manual_seed(1)
    config = transformers.TimesformerConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96, num_frames=4,
        image_size=64, patch_size=16, attention_type=kind, num_labels=7, attn_implementation="eager", **changes,
    )  # fmt: skip
    theirs = transformers.TimesformerForVideoClassification(config).eval()
    for name, parameter in theirs.named_parameters():
        torch.nn.init.normal_(parameter, std=0.15, mean=float("norm" in name and name.endswith("weight")))
    ours = TimeSformerConfig.from_reference(config.to_dict()).build().eval()
    ours.load_state_dict(convert_reference(theirs.state_dict()), strict=True)
    return theirs, ours


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["divided_space_time", "joint_space_time"])
@pytest.mark.parametrize("size", [64, 32])
def test_equals_transformers(kind, size):
    theirs, ours = peer(kind)
    video = clip(4, size, size, batch=3)
    out = ours(video)
    assert (out.logits - theirs(video).logits).abs().max() < 1e-5
    hidden = theirs.timesformer(video).last_hidden_state
    sites = hidden[:, 1:].unflatten(1, (-1, 4)).transpose(1, 2).flatten(1, 2)  # (B, n, T, D) -> (B, T*n, D)
    assert (ours.norm(out.tokens.x) - torch.cat([hidden[:, :1], sites], 1)).abs().max() < 1e-5


@torch.inference_mode()
def test_equals_transformers_frame_by_frame():
    """Space-only: transformers returns every frame, we average the class tokens before the norm."""
    theirs, ours = peer("space_only")
    video = clip(4, 64, 64, batch=3)
    out = ours(video)
    hidden = theirs.timesformer(video).last_hidden_state.unflatten(0, (3, 4))  # (B, T, 1+n, D)
    tokens = ours.norm(out.tokens.x)
    assert (tokens[:, :4] - hidden[:, :, 0]).abs().max() < 1e-5
    assert (tokens[:, 4:] - hidden[:, :, 1:].flatten(1, 2)).abs().max() < 1e-5
    one = video[:, :1]
    assert (ours(one).logits - theirs(one).logits).abs().max() < 1e-5


def test_a_reference_config_is_read_or_refused():
    assert TimeSformerConfig.from_reference({"hidden_size": 96, "intermediate_size": 192}).mlp_ratio == 2
    with pytest.raises(WeightsError, match=r"unknown keys \['colour'\]"):
        TimeSformerConfig.from_reference({"colour": "red"})
    with pytest.raises(WeightsError, match="qkv_bias=False; only True"):
        TimeSformerConfig.from_reference({"qkv_bias": False})
    with pytest.raises(WeightsError, match="attention_type='axial'; offered"):
        TimeSformerConfig.from_reference({"attention_type": "axial"})


def test_hidden_channels_survive_the_ratio():
    """976 / 448 * 448 is a little less than 976."""
    sizes = {"hidden_size": 448, "intermediate_size": 976, "num_hidden_layers": 1, "num_attention_heads": 7}
    assert TimeSformerConfig.from_reference(sizes).build().blocks[0].mlp.fc1.out_features == 976


def test_the_base_model_has_the_published_size():
    with torch.device("meta"):
        model = replace(PRESETS["base"], num_classes=400).build()
    assert sum(p.numel() for p in model.parameters()) == 121_566_352


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("frames", "height", "width"), [(4, 70, 70), (1, 56, 56), (7, 42, 84)])
def test_takes_any_frames_and_size(kind, frames, height, width):
    out = built(kind, num_classes=5)(clip(frames, height, width))
    assert out.embedding.shape == (2, 48)
    assert out.logits.shape == (2, 5)
    assert out.tokens.grid == (frames, height // 14, width // 14)
    assert out.tokens.num_placed == frames * (height // 14) * (width // 14)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["divided", "frozen"])
def test_an_untrained_block_is_an_image_block(kind):
    """With the time half's last layer at zero, patches do not see other frames until the class token tells them."""
    model = built(kind, depth=1)
    for parameter in model.blocks[0].last_time_layer.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.zeros_(model.times)
    video = clip()
    whole = model(video)
    alone = [model(video[:, t : t + 1]).tokens.x[:, 1:] for t in range(4)]
    assert torch.allclose(whole.tokens.x[:, 1:], torch.cat(alone, 1), atol=1e-5)
    assert torch.allclose(whole.embedding, model(video.flip(1)).embedding, atol=1e-5)


def test_fresh_models_start_as_image_models():
    for kind in ("divided", "frozen"):
        model = replace(TINY, attention=kind).build().eval()
        video = clip()
        assert torch.allclose(model(video).embedding, model(video.flip(1)).embedding, atol=1e-6)
        model(video).embedding.square().sum().backward()
        assert model.blocks[0].last_time_layer.weight.grad.abs().sum() > 0


def masked_attention(attn, x, allowed):
    """softmax of all pairs, those outside `allowed` (N, N) left out: what grouping must equal."""
    q, k, v = (y.transpose(1, 2) for y in attn.heads(x))  # (B, A, N, K)
    scores = q @ k.mT / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
    return attn.project((weights @ v).transpose(1, 2))


@torch.inference_mode()
def test_divided_equals_two_masked_joint_attentions():
    model = built(depth=1)
    block, frames, n = model.blocks[0], 3, 4
    x = torch.randn(2, 1 + frames * n, 48)
    time, site = torch.arange(frames * n) // n, torch.arange(frames * n) % n
    patches = x[:, 1:]
    seen = masked_attention(block.time_attn, block.time_norm(patches), site[:, None] == site)
    patches = patches + block.time_dense(seen)
    # space: the class token stands in every frame, that is T copies of it, averaged afterwards
    framed = torch.cat([x[:, :1].expand(-1, frames, -1), patches], 1)
    frame = torch.cat([torch.arange(frames), time])
    seen = masked_attention(block.attn, block.norm1(framed), frame[:, None] == frame)
    y = torch.cat([x[:, :1] + seen[:, :frames].mean(1, keepdim=True), patches + seen[:, frames:]], 1)
    y = y + block.mlp(block.norm2(y))
    assert torch.allclose(block(x, frames), y, atol=1e-5)


@torch.inference_mode()
def test_frozen_equals_two_masked_joint_attentions():
    model = built("frozen", depth=1)
    block, frames, n = model.blocks[0], 3, 4
    x = torch.randn(2, 1 + frames * n, 48)
    time, site = torch.arange(frames * n) // n, torch.arange(frames * n) % n

    def allowed(same):
        mask = torch.ones(1 + frames * n, 1 + frames * n, dtype=torch.bool)
        mask[1:, 1:] = same
        return mask

    t = x + masked_attention(block.time_attn, block.time_norm(x), allowed(site[:, None] == site))
    s = x + masked_attention(block.attn, block.norm1(t), allowed(time[:, None] == time))
    assert torch.allclose(block(x, frames), s + block.mlp(block.norm2(s)), atol=1e-5)


@torch.inference_mode()
def test_both_orders_exist_and_differ():
    first = built(order=("time", "space"))
    second = replace(TINY, order=("space", "time")).build().eval()
    second.load_state_dict(first.state_dict())
    assert not torch.allclose(first(clip()).embedding, second(clip()).embedding, atol=1e-3)


def test_one_divided_block_links_every_pair_in_two_steps():
    model = built(depth=1)
    x = torch.randn(1, 1 + 12, 48, requires_grad=True)
    model.blocks[0](x, 3)[0, 1].sum().backward()
    assert (x.grad[0, 1:].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_trained(kind):
    model = built(kind, num_classes=3)
    out = model(clip())
    (out.logits.square().sum() + out.tokens.x.square().sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


@pytest.mark.parametrize("kind", KINDS)
def test_predicted_macs_equal_the_counter(kind):
    config = replace(TINY, attention=kind, num_classes=5)
    model = config.build().eval()
    for frames in (1, 6):
        counted = measured_macs(lambda model=model, frames=frames: model(clip(frames, 56, 56, batch=1)))
        assert config.cost(frames=frames, size=56).macs == counted


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_of_widths_equals_a_model_of_those_widths(kind):
    """Narrower blocks cut the residual stream, wider ones get zeros; the small model has no other weights."""
    model = built(kind, num_classes=5)
    for width in (24, (48, 32, 16), (8, 48, 24)):
        widths = (width,) * 3 if isinstance(width, int) else width
        small = model.at(OperatingPoint(width=width))
        assert small.config.widths == widths
        out = model(clip(), point=OperatingPoint(width=width))
        assert out.embedding.shape == (2, widths[-1])
        assert torch.allclose(out.logits, small(clip()).logits, atol=1e-5)
        counted = measured_macs(lambda width=width: model(clip(batch=1), point=OperatingPoint(width=width)))
        assert model.config.cost(frames=4, size=70, width=width).macs == counted
        assert small.config.cost(frames=4, size=70).macs == counted
    assert torch.equal(model(clip(), point=OperatingPoint(width=48)).logits, model(clip()).logits)


def test_channels_beyond_the_width_get_no_gradient():
    model = built("frozen")
    model(clip(), point=OperatingPoint(width=16)).embedding.square().sum().backward()
    block = model.blocks[1]
    assert model.patch_proj.weight.grad[:16].abs().sum() > 0
    assert not model.patch_proj.weight.grad[16:].any()
    assert not model.positions.grad[:, 16:].any()
    for layer in (block.attn.proj, block.time_attn.proj, block.mlp.fc2):
        assert layer.weight.grad[:16, :16].abs().sum() > 0
        assert not layer.weight.grad[16:].any()
        assert not layer.bias.grad[16:].any()
    assert not block.mlp.fc1.weight.grad[64:].any()
    assert not block.attn.qkv.weight.grad.unflatten(0, (3, 48))[:, 16:].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("frames", "mlp_ratio", "width"), [(4, 4.0, None), (8, 2.0, (192, 128))])
def test_predicted_activations_are_those_that_live(kind, frames, mlp_ratio, width):
    sizes = {"embed_dim": 192, "depth": 2, "num_heads": 3, "image_size": 112}
    model = replace(TINY, attention=kind, mlp_ratio=mlp_ratio, **sizes).build().eval()
    video, point = clip(frames, 112, 112, batch=1), OperatingPoint(width=width)
    predicted = model.config.cost(frames=frames, size=112, width=width).activation_bytes
    assert predicted == pytest.approx(peak_bytes(lambda: model(video, point=point)), rel=0.15)


def test_refuses_what_it_cannot_do():
    with pytest.raises(UnknownNameError, match="Did you mean 'divided'"):
        TimeSformerConfig(attention="dividd")
    with pytest.raises(ValueError, match="num_heads must divide embed_dim 50, got 6"):
        TimeSformerConfig(embed_dim=50, num_heads=6)
    with pytest.raises(ValueError, match="image_size 70 must be a multiple of patch_size 16"):
        TimeSformerConfig(image_size=70)
    with pytest.raises(ValueError, match="order must be"):
        TimeSformerConfig(attention="joint", order=("space", "time"))
    with pytest.raises(PointError, match="no axis tokens"):
        built()(clip(), point=OperatingPoint(tokens=5))
    with pytest.raises(ValueError, match="multiples of the patch size 14, got 71x70"):
        built()(clip(height=71))
    with pytest.raises(ValueError, match=r"shape \(B, T, 3, H, W\), got"):  # not: the first channels of its weights
        built()(clip()[:, :, :1])
    with pytest.raises(PointError, match=r"width 20 of layer 1 of TimeSformer .* whole heads of 8 channels"):
        built()(clip(), point=OperatingPoint(width=(48, 20, 16)))
    with pytest.raises(PointError, match="no axis tokens"):
        TINY.cost(frames=4, size=70, tokens=5)
