"""Flux-Single and Flux-Multi: heads per count, drawn shapes, trunks that move on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import elastivid as ev
from elastivid.core.errors import WeightsError
from elastivid.core.point import OperatingPoint
from elastivid.data.staging import sample_scene
from elastivid.data.synthetic import VideoFormat, write_video
from elastivid.models.flux_classifier import FluxClassifierConfig
from elastivid.models.fluxvit import PRESETS
from elastivid.models.towers import hash_of_tensors
from elastivid.planning.subject import describe
from elastivid.recipes._bench import BenchClips
from elastivid.recipes._flux import load_encoder
from elastivid.recipes._labelled import encoder_of
from elastivid.recipes.flux_tune import FluxTune, FluxTuneConfig
from elastivid.search.reading import Reading, read_windows
from elastivid.train.checkpoint import LAST, MODEL, load_checkpoint
from elastivid.train.loop import train
from elastivid.train.stages import TrainingError
from elastivid.weights.classifier import load_classifier
from elastivid.weights.convert import load_encoder as load_encoder_file


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


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a run with the smoke settings."""
    folder = tmp_path_factory.mktemp("flux")
    recipe = FluxTune(replace(FluxTune.smoke(FluxTuneConfig()), cache=folder / "cache"))
    train(recipe, folder / "run", device="cpu")
    return folder / "run"


def test_a_trunk_moves_from_a_classifier_into_a_dual_encoder(run):
    video = replace(FluxTune.smoke(FluxTuneConfig()).model, pool_dim=16).build()
    load_encoder(video, run)
    trained = load_checkpoint(run / LAST)["average"]
    assert torch.equal(video.blocks[1].mlp.fc1.weight, trained["blocks.1.mlp.fc1.weight"])
    with pytest.raises(TrainingError, match=r"does not fit the video tower; .*: positions, patch"):
        load_encoder(PRESETS["tiny"].build(), run)


def test_what_it_leaves_classifies_at_any_number_of_tokens(run, tmp_path):
    """By hand: the head of the nearest count on the middle squares of the frames that are read."""
    scene, path = sample_scene(np.random.default_rng(1), kind="single", aspect=1.0), tmp_path / "scene.mp4"
    write_video(scene, path, VideoFormat(64, 64, 12))
    model = str(run / MODEL)
    found = ev.classify(path, model=model)
    assert found.point == OperatingPoint(tokens=96)  # the most that a head was trained at, of 256
    assert (found.sampling.frames, found.sampling.size) == (16, 64)
    (file,) = found.files
    assert file.names == BenchClips.classes
    kept = load_encoder_file(run / MODEL)
    classifier = load_classifier(model)
    assert found.weights_id == classifier.weights_id == hash_of_tensors(kept)
    reading = Reading(found.sampling, transform=classifier.config.transform)
    with reading.open(str(path)) as reader, torch.inference_mode():
        windows = [np.stack(frames) for _, _, frames, _ in read_windows(reader, found.sampling)]
        video = torch.stack([classifier.config.transform(window) for window in windows])
        by_hand = kept(video, point=found.point, head=0).logits.softmax(-1).mean(0)
    assert np.abs(by_hand.numpy() - file.probabilities).max() < 1e-5
    for tokens, head in ((96, 0), (200, 0), (60, 1), (48, 1), (30, 2), (1, 2)):
        point = OperatingPoint(tokens=tokens)
        assert torch.equal(classifier(video, point=point).logits, kept(video, point=point, head=head).logits)
    assert torch.equal(classifier(video).logits, kept(video, head=0).logits)
    cheap = ev.classify(path, model=model, budget="32tokens")
    assert cheap.point.tokens == 32
    assert cheap.gmacs_per_window < found.gmacs_per_window
    assert describe(model).fewest_tokens == 24
    assert encoder_of(model)[0].config == kept.config  # fine-tuning may start from it


def test_a_damaged_file_is_refused(run, tmp_path):
    damaged = bytearray((run / MODEL).read_bytes())
    damaged[-3] ^= 0x40
    (tmp_path / "damaged.safetensors").write_bytes(damaged)
    with pytest.raises(WeightsError, match="it is damaged"):
        load_classifier(str(tmp_path / "damaged.safetensors"))
    sizes = replace(PRESETS["tiny"], num_classes=2, num_pools=2)
    with pytest.raises(ValueError, match=r"the heads tell 2 classes apart, so as many .* needed, got 1"):
        FluxClassifierConfig(sizes, ("a",), (8, 4))
    with pytest.raises(ValueError, match=r"token_counts must be 2 numbers >= 1, one per head, got \(8,\)"):
        FluxClassifierConfig(sizes, ("a", "b"), (8,))


def test_settings_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ValueError, match="token_counts must fall"):
        FluxTuneConfig(token_counts=(512, 1024))
    with pytest.raises(ValueError, match="give both train and validation, or neither"):
        FluxTuneConfig(train=tmp_path)
