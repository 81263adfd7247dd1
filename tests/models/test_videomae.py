"""VideoMAE and V2: equal to transformers' classes and to the released code, and what masking promises."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from golden_cases import WORST, close, parsed, places

from elastivid.core.cost import linear_macs, measured_macs
from elastivid.core.errors import PointError, UnknownNameError, WeightsError
from elastivid.core.point import OperatingPoint
from elastivid.core.tokens import Tokens
from elastivid.layers.embed import patch_coordinates
from elastivid.losses.masked import cubes, masked_regression, standardised
from elastivid.models.videomae import (
    PRESETS,
    PRETRAINING,
    PretrainingConfig,
    VideoMAEConfig,
    as_mask,
    complement,
    convert_pretraining,
    convert_reference,
)
from elastivid.select.masks import BlockCell, RandomTubes, RunningCell
from elastivid.video.transforms import IMAGENET_MEAN, IMAGENET_STD

TINY = PRETRAINING["tiny"]
# Cosine attention multiplies logits by up to 100, and their rounding with them: in double precision, ours and the
# numbers in the file still differ by 3e-5, which is the file's own rounding.
LIMITS = {"videomae_v2_cosine": 1e-4, "videomae_v2_finetune_cosine": 2e-5}
MEAN, STD = (torch.tensor(values).reshape(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))


def empty(grid, batch=1):
    """Tokens without features: what a mask is drawn on."""
    coords = patch_coordinates(grid).expand(batch, -1, -1)
    return Tokens(x=coords[..., :1], coords=coords, grid=grid)


def clip(frames=8, side=70, batch=2, seed=0):
    return torch.randn(batch, frames, 3, side, side, generator=torch.Generator().manual_seed(seed))


def randomised(model, seed=0, std=0.2):
    """Every parameter counts: nothing is left at zero or one."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=std, mean=float("norm" in name and name.endswith("weight")))
    return model.eval()


def pixels(video, sizes, *, normalised):
    """What the decoder is to say of every place, (B, N, 3kPP)."""
    cut = cubes(video * STD + MEAN, sizes.tubelet_size, sizes.patch_size)
    return (standardised(cut) if normalised else cut).flatten(2)


def masked_loss(out, targets):
    wanted = targets.gather(1, out.places[..., None].expand_as(out.prediction))
    return masked_regression(out.prediction, wanted, out.counted)


# --- the same numbers as public implementations


@torch.inference_mode()
@pytest.mark.parametrize("name", ["videomae_v2_dual_masking", "videomae_v2_cosine"])
def test_equals_the_released_pre_training_model(golden, name):
    file = parsed(golden(name))
    config = PretrainingConfig.from_reference(file.config)
    model = config.build().eval()
    model.load_state_dict(convert_pretraining(file.parameters), strict=True)
    limit = LIMITS.get(name, 1e-5)
    for i, case in enumerate(c for c in file.cases if c.about["kind"] == "model"):
        visible = places(case["encoder_hidden"])
        predicted = places(case["decoder_hidden"]) if case.about["decoder"] else None
        out = model(case.video, visible, predicted)
        close(out.tokens, case["encoder_tokens"], f"{name}: encoder of case {i}", limit)
        close(out.prediction, case["prediction"], f"{name}: prediction of case {i}", limit)
        assert torch.equal(out.counted, case["counted"].bool())
        targets = pixels(case.video, config.encoder, normalised=case.about["normalised_target"])
        wanted = out.places[..., None].expand_as(out.prediction)
        close(targets.gather(1, wanted), case["target"], f"{name}: target of case {i}")
        close(masked_loss(out, targets)[None], case["loss"], f"{name}: loss of case {i}")
        if case.about["decoder"]:
            keep = predicted.shape[1]
            drawn = RunningCell(case.about["cell_start"]).select(empty(config.encoder.table_grid, len(visible)), keep)
            assert torch.equal(drawn, predicted)


def test_running_cells_equal_the_released_maps(golden):
    for case in (c for c in parsed(golden("videomae_v2_dual_masking")).cases if c.about["kind"] == "cells"):
        grid = tuple(case.about["grid"])
        for percent in (25, 50, 75):
            maps = case[f"cell_maps_{percent}"].flatten(1)  # (4, N), 1 = hidden
            kept = RunningCell(range(4)).select(empty(grid, 4), int((maps[0] == 0).sum()))
            assert torch.equal(kept, places(maps))


@torch.inference_mode()
@pytest.mark.parametrize("name", ["videomae_v2_finetune", "videomae_v2_finetune_cosine"])
def test_equals_the_released_classifier(golden, name):
    file = parsed(golden(name))
    model = VideoMAEConfig.from_reference(file.config).build().eval()
    model.load_state_dict(convert_reference(file.parameters), strict=True)
    for case in file.cases:
        out, limit = model(case.video), LIMITS.get(name, 1e-5)
        close(out.tokens.x, case["tokens"], f"{name}: tokens", limit)
        close(out.embedding, case["feature"], f"{name}: feature", limit)
        close(out.logits, case["logits"], f"{name}: logits", limit)


def theirs(kind, **changes):
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    config = transformers.VideoMAEConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96, num_frames=4, image_size=32,
        patch_size=8, decoder_hidden_size=32, decoder_num_hidden_layers=2, decoder_num_attention_heads=2,
        decoder_intermediate_size=64, num_labels=7, architectures=[kind], **changes,
    )  # fmt: skip
    return randomised(getattr(transformers, kind)(config), seed=1, std=0.15)


@torch.inference_mode()
@pytest.mark.parametrize("pooling", [True, False])
def test_equals_transformers_model_and_classifier(pooling):
    classifier = theirs("VideoMAEForVideoClassification", use_mean_pooling=pooling)
    ours = VideoMAEConfig.from_reference(classifier.config.to_dict()).build().eval()
    ours.load_state_dict(convert_reference(classifier.state_dict()), strict=True)
    video = clip(4, 32)
    out = ours(video)
    close(out.logits, classifier(video).logits, "transformers VideoMAEForVideoClassification: logits")
    hidden = classifier.videomae(video).last_hidden_state
    close(out.tokens.x if pooling else ours.norm(out.tokens.x), hidden, "transformers VideoMAEModel: tokens")


@torch.inference_mode()
@pytest.mark.parametrize("normalised", [True, False])
def test_equals_transformers_pre_training(normalised):
    peer = theirs("VideoMAEForPreTraining", use_mean_pooling=False, norm_pix_loss=normalised)
    config = PretrainingConfig.from_reference(peer.config.to_dict())
    ours = config.build().eval()
    ours.load_state_dict(convert_pretraining(peer.state_dict()), strict=True)
    visible = RandomTubes([3, 4]).select(empty((2, 4, 4), 2), 8)
    video = clip(4, 32)
    out, wanted = ours(video, visible), peer(video, bool_masked_pos=~as_mask(visible, 32))
    close(out.prediction, wanted.logits, "transformers VideoMAEForPreTraining: prediction")
    loss = masked_loss(out, pixels(video, config.encoder, normalised=normalised))
    close(loss, wanted.loss, "transformers VideoMAEForPreTraining: loss")
    encoder = config.encoder.build().eval()
    encoder.load_state_dict(convert_reference(peer.state_dict()), strict=True)  # the decoder is left out
    assert torch.equal(encoder(video).embedding, ours.encoder(video).embedding)


def test_a_reference_config_is_read_or_refused():
    with pytest.raises(WeightsError, match=r"unknown keys \['colour'\]"):
        VideoMAEConfig.from_reference({"colour": "red"})
    with pytest.raises(WeightsError, match="hidden_act='relu'; only 'gelu'"):
        VideoMAEConfig.from_reference({"hidden_size": 48, "hidden_act": "relu"})
    with pytest.raises(UnknownNameError, match="positions 'flatt'"):
        VideoMAEConfig(positions="flatt")
    with pytest.raises(ValueError, match="15 frames of 224 pixels do not divide"):
        VideoMAEConfig(num_frames=15)


# --- published sizes and costs


@pytest.mark.parametrize(
    ("preset", "gmacs", "million"),
    [("small", 57, 21.9), ("base", 180, 86.2), ("large", 597, 303.9), ("huge", 1192, 631.6), ("giant", 2544, 1011.6)],
)
def test_published_sizes(preset, gmacs, million):
    config = PRESETS[preset]
    cost = config.cost(frames=16, size=224)
    assert cost.gmacs == pytest.approx(gmacs, rel=0.005)
    assert cost.parameter_bytes / 4e6 == pytest.approx(million, rel=0.002)


@pytest.mark.parametrize(
    ("preset", "frames", "size", "gmacs"),
    [("large", 32, 224, 1436), ("large", 32, 320, 3958), ("huge", 32, 320, 7397), ("giant", 64, 266, 160300 / 6)],
)
def test_published_costs_of_longer_and_larger_clips(preset, frames, size, gmacs):
    assert PRESETS[preset].cost(frames=frames, size=size).gmacs == pytest.approx(gmacs, rel=0.005)


@pytest.mark.parametrize(
    ("preset", "visible", "predicted", "gmacs"),
    [
        ("base", 160, 1408, 35.48),
        ("base", 160, 1176, 31.63),
        ("base", 160, 784, 25.87),
        ("base", 160, 392, 21.06),
        ("giant", 208, 1840, 263.93),
        ("giant", 208, 1024, 241.61),
    ],
)
def test_published_costs_of_pre_training(preset, visible, predicted, gmacs):
    """Released code projects hidden cubes as well; ours does not, and the difference is exactly that."""
    config = PRETRAINING[preset]
    t, h, w = config.encoder.table_grid
    saved = linear_macs(t * h * w - visible, config.encoder.cube_values, config.encoder.embed_dim)
    ours = config.cost(visible=visible, predicted=predicted).macs
    assert (ours + saved) / 1e9 == pytest.approx(gmacs, rel=0.005)


def test_predicted_macs_of_pre_training_equal_the_counter():
    model, video = TINY.build().eval(), clip(batch=1)
    visible = RandomTubes().select(empty((4, 5, 5)), 20)
    predicted = RunningCell().select(empty((4, 5, 5)), 52)
    counted = measured_macs(lambda: model(video, visible, predicted))
    assert TINY.cost(visible=20, predicted=52).macs == pytest.approx(counted, rel=0.001)


# --- what masking promises


@torch.inference_mode()
def test_hidden_pixels_change_nothing():
    model = randomised(TINY.build())
    visible = RandomTubes().select(empty((4, 5, 5), 2), 24)
    video = clip()
    other = cubes_replaced(video, complement(visible, 100))
    assert not torch.equal(video, other)
    assert torch.equal(model(video, visible).prediction, model(other, visible).prediction)


def cubes_replaced(video, hidden):
    """`video` with noise in the cubes (B, M) of the tiny grid."""
    other = video.clone()
    for row, cells in enumerate(hidden):
        for cell in cells.tolist():
            t, y, x = cell // 25 * 2, cell // 5 % 5 * 14, cell % 5 * 14
            other[row, t : t + 2, :, y : y + 14, x : x + 14] = torch.randn(2, 3, 14, 14)
    return other


@torch.inference_mode()
def test_seeing_everything_is_the_plain_encoder():
    model = randomised(TINY.build())
    video = clip()
    everything = torch.arange(100).expand(2, -1)
    out = model(video, everything, torch.tensor([[3, 70], [0, 99]]))
    assert torch.allclose(out.tokens, model.encoder.norm(model.encoder(video).tokens.x), atol=1e-5)
    assert not out.counted.any()
    with pytest.raises(ValueError, match="all 100 tokens are visible"):
        model(video, everything)


@torch.inference_mode()
def test_predicting_all_hidden_places_is_plain_videomae():
    model, video = randomised(TINY.build()), clip()
    visible = RandomTubes().select(empty((4, 5, 5), 2), 20)
    whole, same = model(video, visible), model(video, visible, complement(visible, 100))
    assert torch.equal(whole.prediction, same.prediction)
    assert whole.counted.all()
    assert whole.prediction.shape == (2, 80, 3 * 2 * 14 * 14)


def test_only_hidden_places_send_gradients():
    model, video = randomised(TINY.build()), clip()
    visible = RandomTubes().select(empty((4, 5, 5), 2), 24)
    out = model(video, visible, RunningCell().select(empty((4, 5, 5), 2), 50))
    assert 0 < int(out.counted.sum()) < out.counted.numel()
    (gradient,) = torch.autograd.grad(masked_loss(out, torch.zeros(2, 100, 1176)), out.prediction)
    assert not gradient[~out.counted].any()
    assert gradient[out.counted].abs().sum(-1).gt(0).all()


def test_a_decoder_cell_of_v2_meets_constants():
    """Tube mask of 90 %, running cell of half: 80 places are seen and predicted, 704 count, in every draw."""
    for seed in range(4):
        tokens = empty((8, 14, 14))
        visible = RandomTubes(seed).select(tokens, 160)
        predicted = RunningCell(seed).select(tokens, 784)
        assert int(as_mask(visible, 1568).gather(1, predicted).sum()) == 80


def test_block_cells_are_whole_and_even():
    tokens = empty((8, 6, 6), 64)
    kept = BlockCell((2, 3, 6), seed=range(64)).select(tokens)
    assert kept.shape == (64, 36)
    counts = torch.bincount(kept.flatten(), minlength=288)
    assert counts.max() < 64 * 36 / 288 * 3  # wrapping: no place is favoured
    one = BlockCell((2, 3, 6), seed=5).select(empty((8, 6, 6)))[0]
    assert [len(set(axis.tolist())) for axis in (one // 36, one // 6 % 6, one % 6)] == [2, 3, 6]
    with pytest.raises(PointError, match="each >= 1, got"):
        BlockCell((0, 1, 1))


# --- the encoder at other points than its own


@torch.inference_mode()
def test_positions_of_the_native_grid_are_the_formula_and_others_are_resized():
    model = randomised(PRESETS["tiny"].build())
    native = model.table((4, 5, 5), 48)
    place, channel = 37, 10
    assert float(native[place, channel]) == pytest.approx(math.sin(place / 10000 ** (channel / 48)), abs=1e-6)
    assert torch.equal(model.table((4, 5, 5), 12), native[:, :12])
    assert model.table((8, 3, 3), 48).shape == (72, 48)
    assert model(clip(4, 42)).tokens.grid == (2, 3, 3)


@torch.inference_mode()
@pytest.mark.parametrize("changes", [{}, {"class_token": True, "pool": "first"}, {"cosine": True, "layer_scale": 0.5}])
def test_a_cut_copy_computes_what_the_elastic_model_computes(changes):
    model = randomised(replace(PRESETS["tiny"], **changes).build())
    point = OperatingPoint(width=(48, 36, 24), tokens=30)
    small = model.at(point)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert torch.allclose(
        small(clip(), point=OperatingPoint(tokens=30)).logits, model(clip(), point=point).logits, atol=1e-5
    )


@torch.inference_mode()
def test_cosine_attention_ignores_the_size_of_queries():
    model = randomised(replace(PRESETS["tiny"], cosine=True).build())
    attn, x = model.blocks[0].attn, torch.randn(1, 9, 48)
    before = attn(x)
    attn.qkv.weight[:48] *= 3
    attn.q_bias *= 3
    assert torch.allclose(attn(x), before, atol=1e-5)


def test_clips_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="got 7 frames of 70x70; take 6 frames"):
        PRESETS["tiny"].build()(clip(7))


@pytest.fixture(scope="module", autouse=True)
def _report():
    yield
    print("\nlargest differences:", {name: f"{worst:.1e}" for name, worst in sorted(WORST.items())})
