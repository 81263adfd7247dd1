"""Flux-Single and Flux-Multi: heads per count, drawn shapes, trunks that move on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from elastivid.models.fluxvit import PRESETS
from elastivid.recipes._flux import load_encoder
from elastivid.recipes.flux_tune import FluxTune, FluxTuneConfig
from elastivid.train.loop import train
from elastivid.train.stages import TrainingError


def test_flux_single_has_one_head_and_no_alignment(tmp_path):
    recipe = FluxTune(replace(FluxTune.smoke(FluxTuneConfig()), token_counts=(48,), cache=tmp_path, bench_clips=28))
    module = recipe.build()
    assert len(module.pools) == len(module.classifiers) == 1
    stage = recipe.stages()[0]
    batch = recipe.collate([recipe.dataset(stage)[k] for k in range(16)])
    assert batch["frames"].shape[2] in (48, 64)
    loss, parts = recipe.step(module, batch, stage, torch.Generator())
    assert loss.item() == pytest.approx(parts["cross_entropy_48"].item())
    assert parts["agreement"] == 0


def test_batches_of_a_step_share_a_drawn_shape(tmp_path):
    recipe = FluxTune(replace(FluxTune.smoke(FluxTuneConfig()), cache=tmp_path))
    data, size = recipe.dataset(recipe.stages()[0]), recipe.config.batch_size
    shapes = [{data[k].frames.shape for k in range(step * size, (step + 1) * size)} for step in range(6)]
    assert all(len(found) == 1 for found in shapes)
    assert len(set.union(*shapes)) > 1


def test_a_trunk_moves_from_a_classifier_into_a_dual_encoder(tmp_path):
    recipe = FluxTune(replace(FluxTune.smoke(FluxTuneConfig()), cache=tmp_path))
    trained = train(recipe, tmp_path / "run", device="cpu").module
    video = replace(recipe.config.model, pool_dim=16).build()
    load_encoder(video, tmp_path / "run")
    assert torch.equal(video.blocks[1].mlp.fc1.weight, trained.blocks[1].mlp.fc1.weight)
    with pytest.raises(TrainingError, match=r"does not fit the video tower; .*: positions, patch"):
        load_encoder(PRESETS["tiny"].build(), tmp_path / "run")


def test_settings_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ValueError, match="token_counts must fall"):
        FluxTuneConfig(token_counts=(512, 1024))
    with pytest.raises(ValueError, match="give both train and validation, or neither"):
        FluxTuneConfig(train=tmp_path)
