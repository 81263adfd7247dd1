"""The training recipe runs, learns from what it is given and keeps films apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

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
from elastivid.recipes.nano import Nano, NanoConfig
from elastivid.train.dual import draw_points
from elastivid.train.ema import Ema
from elastivid.train.loop import train
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


def test_settings_of_the_recipe_are_checked():
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
