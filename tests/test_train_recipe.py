"""The training recipe runs, learns from what it is given and keeps films apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from elastivid.core.point import OperatingPoint
from elastivid.data.listing import read_entries
from elastivid.data.mixture import (
    ATTRIBUTE_SIZES,
    IGNORED,
    Mixture,
    MixtureConfig,
    collate,
    content_numbers,
    same_content,
)
from elastivid.data.splits import folds_by_size
from elastivid.data.world import Phrase
from elastivid.layers.histograms import cell_histograms
from elastivid.losses.masked import standardised_kinds
from elastivid.models.fluxvit import FluxViTConfig
from elastivid.models.videomae import DecoderConfig
from elastivid.recipes._labelled import smoke_data
from elastivid.recipes.nano import Nano, NanoConfig
from elastivid.train.dual import draw_points
from elastivid.train.ema import Ema
from elastivid.train.histograms import HistogramLoss
from elastivid.train.loop import train
from elastivid.train.stages import TrainingError, trained_names
from elastivid.video.transforms import Transform
from elastivid.weights.load import load


@pytest.mark.slow
def test_the_recipe_trains_and_the_next_run_starts_from_its_weights(tmp_path):
    config = replace(Nano.smoke(NanoConfig()), scenes=1)
    first = train(Nano(config), tmp_path / "first", device="cpu")
    assert first.step == 6
    assert first.rows[0]["point"] == "8 x 168 px, 512 tokens, width 192"
    assert all(0 <= row["accuracy"] <= 1 for row in first.rows)
    assert first.rows[0]["gmacs"] == max(row["gmacs"] for row in first.rows)
    model = load(str(tmp_path / "first" / "model.safetensors"))
    assert model.embed_texts(["a red circle"]).shape == (1, 256)
    second = Nano(replace(config, init=tmp_path / "first")).build()
    assert torch.equal(second.model.video.cls_token, first.module.model.video.cls_token)
    fresh = Nano(config).build()
    assert not torch.equal(second.model.video.cls_token, fresh.model.video.cls_token)
    assert torch.equal(second.model.text.table, fresh.model.text.table)


@pytest.mark.slow
def test_shipped_weights_train_on_with_clips_that_nobody_labelled(tmp_path, monkeypatch):
    monkeypatch.setenv("ELASTIVID_CACHE", str(tmp_path / "cache"))
    config = replace(
        Nano.smoke(NanoConfig()), init=Path("nano"), head_steps=2, world_steps=(0, 0), masked_steps=3, scenes=1,
        shapes=((4, 56),), unlabelled=smoke_data(tmp_path / "clips"), cache=tmp_path,
    )  # fmt: skip
    recipe = Nano(config)
    begun, shipped = recipe.build(), load("nano")
    assert all(torch.equal(begun.model.state_dict()[name], value) for name, value in shipped.state_dict().items())
    finished = train(recipe, tmp_path / "run", device="cpu")
    assert finished.step == 5
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["heads"] * 2 + ["masked"] * 3
    assert all(0 < lines[-1][name] < 3 for name in ("hidden0", "seen0", "hidden1", "seen1"))
    assert load(str(tmp_path / "run" / "model.safetensors")).space_id != shipped.space_id
    following = Nano(replace(config, init=tmp_path / "run")).build()
    assert torch.equal(following.histograms.decoder.head.weight, finished.module.histograms.decoder.head.weight)
    torch.save({"module": {"model.video.cls_token": torch.zeros(1)}, "step": 0}, tmp_path / "other.pt")
    with pytest.raises(TrainingError, match=r"no start for nano; missing or of another shape: model\.log_scale"):
        Nano(replace(config, init=tmp_path / "other.pt")).build()


def test_labelled_clips_leave_the_first_blocks_alone(tmp_path):
    config = NanoConfig(world_steps=(0, 0), real_steps=1, labelled=tmp_path, frozen_blocks=4)
    recipe = Nano(config)
    names = [name for name, parameter in recipe.build().named_parameters() if parameter.requires_grad]
    trained = trained_names(recipe.stages()[0], names)
    assert {name.split(".")[3] for name in trained if "video.blocks" in name} == {"4", "5"}
    left = set(names) - set(trained)
    assert {"model.video.patch_embed.proj.weight", "model.video.positions", "histograms.seen.weight"} <= left
    assert {"model.video.pools.0.q.weight", "model.log_scale", "losses.patch.weight"} <= set(trained)
    everything = Nano(replace(config, frozen_blocks=0)).stages()[0]
    assert set(names) - set(trained_names(everything, names)) == {n for n in names if n.startswith("histograms.")}
    with pytest.raises(ValueError, match="frozen_blocks must be 0 to 6, got 7"):
        replace(config, frozen_blocks=7)


def test_every_clip_is_read_without_its_label(shared_data, tmp_path):
    labelled = shared_data / "labelled"
    recipe = Nano(NanoConfig(labelled=labelled, unlabelled=labelled, masked_steps=1, fold=1, cache=tmp_path))
    assert len(recipe.every_clip) == len(read_entries(labelled)) + len(recipe.clips)
    assert {entry.label for entry in recipe.every_clip.entries} == {""}


def moving(seed: int, batch: int = 2) -> torch.Tensor:
    """Noise that moves to the right by two pixels a frame: uint8 (B, 4, 28, 28, 3)."""
    wide = torch.rand(batch, 28, 40, 3, generator=torch.Generator().manual_seed(seed))
    return torch.stack([(wide[:, :, 8 - 2 * t : 36 - 2 * t] * 255).byte() for t in range(4)], dim=1)


def test_histograms_of_all_cells_are_predicted_from_the_visible_ones():
    torch.manual_seed(0)
    encoder = FluxViTConfig(embed_dim=48, depth=2, num_heads=3, num_frames=4, image_size=28, pool_heads=4, pool_dim=32)
    video, loss_of = encoder.build().eval(), HistogramLoss(encoder, DecoderConfig(48, 1, 3, 32, True, "factorised"))
    points = (OperatingPoint(tokens=8), OperatingPoint(tokens=4, width=16))
    clips, transform = moving(1), Transform(size=28)
    with pytest.raises(ValueError, match="2 frames or more"):
        loss_of(video, moving(1)[:, :1], transform, [3, 4], points)
    loss, parts = loss_of(video, clips, transform, [3, 4], points)
    assert list(parts) == ["hidden0", "seen0", "hidden1", "seen1"]
    assert float(loss) == pytest.approx(sum(float(part) for part in parts.values()) / 2, rel=1e-5)
    loss.backward()
    assert all(p.grad is not None for p in loss_of.parameters() if p.requires_grad)
    assert video.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    assert float(loss_of(video, clips, transform, [3, 4], points)[0]) == float(loss)
    assert len({float(loss_of(video, clips, transform, [seed, 4], points)[0]) for seed in range(6)}) > 1
    with torch.no_grad():
        for layer in (loss_of.decoder.head, loss_of.seen):
            layer.weight.zero_()
            layer.bias.zero_()
    target = standardised_kinds(cell_histograms(clips.movedim(-1, 2) / 255, 14), 4)
    nothing = loss_of(video, clips, transform, [3, 4], (OperatingPoint(tokens=8),))[1]  # half of the cells each
    wanted = 2 * torch.nn.functional.smooth_l1_loss(torch.zeros_like(target), target)
    assert float(nothing["hidden0"] + nothing["seen0"]) == pytest.approx(float(wanted), rel=1e-4)


def test_settings_of_the_recipe_are_checked():
    with pytest.raises(ValueError, match="masked_steps needs unlabelled or labelled"):
        NanoConfig(masked_steps=3)
    with pytest.raises(ValueError, match="there is nothing to train"):
        NanoConfig(world_steps=(0, 0))
    with pytest.raises(ValueError, match="real_steps needs labelled"):
        NanoConfig(real_steps=3)


def test_points_of_a_step_stay_within_the_clip_and_the_widths():
    generator = torch.Generator().manual_seed(0)
    steps = [draw_points(generator, 200, (64, 128, 192), depth=6) for _ in range(300)]
    assert all(p.tokens < 200 for points in steps for p in points)
    assert all(points[0].width is None for points in steps)
    widths = [p.width for points in steps for p in points[1:]]
    assert {w for row in widths for w in row} == {64, 128, 192}
    assert {len(row) for row in widths} == {6}
    uniform = sum(len(set(row)) == 1 for row in widths) / len(widths)
    falling = sum(list(row) == sorted(row, reverse=True) for row in widths) / len(widths)
    assert 0.25 < uniform < 0.45 < falling < 0.85
    few = [draw_points(generator, 600, (64, 128, 192), 6, dear=(96, 128)) for _ in range(60)]
    assert {points[0].tokens for points in few} == {96, 128}
    assert all(points[0].tokens >= max(points[1].tokens, points[2].tokens) for points in few)


def test_batches_share_a_shape_and_all_shapes_occur():
    config = MixtureConfig(length=64, shapes=((2, 28), (4, 14)), batch=4, seed=1)
    shapes = [config.shape_of(index) for index in range(64)]
    assert all(len(set(shapes[i : i + 4])) == 1 for i in range(0, 64, 4))
    assert set(shapes) == set(config.shapes)
    assert Mixture(config)[5].frames.shape[:2] == config.shape_of(5)


def test_samples_depend_on_seed_and_index_alone():
    config = MixtureConfig(length=4, seed=3, shapes=((8, 56),))
    one, two = Mixture(config)[2], Mixture(config)[2]
    assert np.array_equal(one.frames, two.frames)
    assert (one.text, one.hard_texts) == (two.text, two.hard_texts)
    assert Mixture(MixtureConfig(length=4, seed=4, shapes=((8, 56),)))[2].text != one.text


def test_a_batch_fits_the_loss():
    batch = collate([Mixture(MixtureConfig(length=6, shapes=((8, 56),)))[i] for i in range(6)])
    assert batch["frames"].shape == (6, 8, 56, 56, 3)
    assert batch["frames"].dtype == torch.uint8
    assert same_content(batch["contents"], batch["contents"]).diagonal().all()
    assert all(len(row) == 8 for row in batch["hard_texts"])
    assert all(0 <= n < k for row in batch["attributes"].tolist() for n, k in zip(row, ATTRIBUTE_SIZES, strict=True))


def test_a_text_describes_clips_that_show_its_parts_in_order():
    left, grow = Phrase("red", "circle", "left", "fast"), Phrase("red", "circle", "grow")
    slow = Phrase("red", "circle", "left", "slow")
    keys = [(slow,), (left, grow), (slow, grow), (grow, left), (left,), ("run",), ("walk",)]
    numbers = torch.tensor([content_numbers(key) for key in keys])
    fits = same_content(numbers, numbers).T.tolist()  # text, clip
    assert fits[0][:5] == [True, True, True, True, True]
    assert fits[1][:5] == [False, True, True, False, False]
    assert fits[3][:5] == [False, False, False, True, False]
    assert fits[5] == [False] * 5 + [True, False]
    assert not any(fits[0][5:])


def test_average_follows_the_model():
    model = torch.nn.Linear(2, 2)
    ema = Ema(model, decay=0.9)
    with torch.no_grad():
        model.weight += 1.0
    gap = (model.weight - ema.model.weight).abs().max()
    ema.update(model)
    assert (model.weight - ema.model.weight).abs().max().item() == pytest.approx(gap.item() * 2 / 11, rel=1e-4)
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1"):
        Ema(model, decay=1.0)


def test_labelled_clips_leave_a_fold_out(shared_data, tmp_path):
    labelled = shared_data / "labelled"
    recipe = Nano(NanoConfig(labelled=labelled, real_steps=1, fold=2, cache=tmp_path))
    folds = dict(
        zip((entry.path for entry in read_entries(labelled)), folds_by_size(read_entries(labelled), 5), strict=True)
    )
    assert {folds[entry.path] for entry in recipe.clips.entries} == {0, 1, 3, 4}
    config = MixtureConfig(length=40, shapes=((8, 56),), real_share=1.0, hard_texts=3)
    sample = Mixture(config, recipe.clips)[0]
    assert sample.frames.shape == (8, 56, 56, 3)
    assert sample.attributes == (IGNORED,) * 6
    assert len(set(sample.hard_texts)) == 3
    assert np.array_equal(Mixture(config, recipe.clips)[0].frames, sample.frames)
    with pytest.raises(ValueError, match="real_share is above 0, so labelled clips are needed"):
        Mixture(MixtureConfig(length=1, real_share=0.5))
