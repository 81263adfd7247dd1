"""Recipes of masked pre-training: a run of each, what it leaves, and what its masks and teachers do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from elastivid.app.cli import app
from elastivid.models.videomae import VideoMAE
from elastivid.recipes import find
from elastivid.recipes._labelled import DataError, encoder_of
from elastivid.recipes.flux_umt import FluxUMT, FluxUMTConfig, see
from elastivid.recipes.mvd_distill import DistillConfig, MVDDistill
from elastivid.recipes.umt_pretrain import UMTPretrain, UMTPretrainConfig, whole
from elastivid.recipes.videomae_pretrain import VideoMAEPretrain
from elastivid.recipes.videomae_v2_pretrain import VideoMAEV2Config, VideoMAEV2Pretrain
from elastivid.weights.convert import load_encoder

NAMES = ("videomae_pretrain", "videomae_v2_pretrain", "mvd_distill", "umt_pretrain", "flux_umt")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    """A cache folder of this test run alone, shared by its tests."""
    folder = tmp_path_factory.getbasetemp() / "elastivid-cache"
    monkeypatch.setenv("ELASTIVID_CACHE", str(folder))
    return folder


def run(name, out, *settings):
    options = [part for setting in settings for part in ("--set", setting)]
    arguments = ["train", name, "--out", str(out), "--device", "cpu", "--smoke", *options]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_learns_and_leaves_an_encoder(name, tmp_path):
    losses = run(name, tmp_path / "run", "steps=24", "learning_rate=2e-3")
    assert sum(losses[-4:]) < sum(losses[:4])
    encoder = load_encoder(tmp_path / "run" / "model.safetensors")
    assert encoder(torch.randn(1, 8, 3, 56, 56)).embedding.isfinite().all()
    row = json.loads((tmp_path / "run" / "evaluation.jsonl").read_text().splitlines()[-1])["rows"][0]
    assert row["gmacs"] > 0
    assert row["loss"] == pytest.approx(1 - row["accuracy"])


def test_an_encoder_is_the_start_of_a_classifier_and_of_a_teacher(tmp_path):
    run("videomae_pretrain", tmp_path / "mae")
    file = tmp_path / "mae" / "model.safetensors"
    assert isinstance(encoder_of(str(file))[0], VideoMAE)
    run("mvd_distill", tmp_path / "mvd", f"video_teacher={file}", "steps=2")
    arguments = ["train", "finetune", "--smoke", "--device", "cpu", "--out", str(tmp_path / "tuned")]
    settings = [f"model={file}", "epochs=3", "frames=8", "tokens=0"]
    done = CliRunner().invoke(app, [*arguments, *(p for s in settings for p in ("--set", s))], catch_exceptions=False)
    assert done.exit_code == 0, done.output


def video(batch=2):
    return torch.randn(batch, 8, 3, 56, 56, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [VideoMAEPretrain, UMTPretrain])
def test_masks_depend_on_step_and_clip_alone(kind):
    recipe = kind.small()
    module = recipe.build().eval()
    batch = {"frames": (video() * 40 + 128).clamp(0, 255).byte().movedim(2, -1), "indices": torch.tensor([3, 5])}

    def loss(step):
        return float(recipe.step(module, batch, recipe.stages()[0], torch.Generator().manual_seed(step))[0])

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)


@pytest.mark.parametrize("cell", ["running", "block"])
def test_v2_costs_less_than_videomae(cell):
    dual, plain = VideoMAEV2Pretrain(replace(VideoMAEV2Pretrain.small().config, cell=cell)), VideoMAEPretrain.small()
    module = dual.build().eval()
    assert 0 < dual.gmacs(module) < plain.gmacs(module)
    loss, parts = dual.loss(module, video(), [0, 1])
    assert loss.isfinite()
    assert 0 < float(parts["counted"]) <= 1
    with pytest.raises(ValueError, match="cell running or block, got"):
        VideoMAEV2Config(cell="other")


def test_teachers_stay_frozen_and_are_asked_for():
    with pytest.raises(DataError, match="there is no image_teacher"):
        MVDDistill(DistillConfig()).build()
    with pytest.raises(DataError, match="there is no teacher"):
        FluxUMT(FluxUMTConfig()).build()
    with pytest.raises(DataError, match="there is no teacher"):
        UMTPretrain(UMTPretrainConfig()).build()
    with pytest.raises(DataError, match="taught_blocks must be 1 to 3, as many as student and teacher have, got 6"):
        UMTPretrain(replace(UMTPretrain.small().config, taught_blocks=6)).build()
    with pytest.raises(DataError, match="cubes of one frame, got 2"):
        MVDDistill(replace(MVDDistill.small().config, image_teacher="videomae/tiny")).build()
    with pytest.raises(DataError, match="name a list or a folder of clips"):
        VideoMAEPretrain().dataset(VideoMAEPretrain().stages()[0])
    module = MVDDistill.small().build().train()
    assert not any(p.requires_grad for p in module.image_teacher.parameters())


def test_the_student_sees_what_the_teacher_attends_to_among_what_it_saw():
    recipe = FluxUMT.small()
    module = recipe.build().eval()
    seen = see(module.teacher, video(), 48, 2)
    assert seen.places.shape == (2, 48)
    assert seen.features.shape == (2, 2, 48, 48)
    assert seen.attention.shape == (2, 48)
    assert seen.attention.sum(1).lt(1).all()  # the class token also attends to itself
    loss, parts = recipe.loss(module, video(), [0, 0])
    assert list(parts) == ["at_48", "at_32", "at_16"]
    assert float(loss) == pytest.approx(sum(float(part) for part in parts.values()), rel=1e-5)
    assert recipe.gmacs(module) > 0


def test_a_student_of_cubes_learns_from_the_first_frame_of_each():
    recipe = UMTPretrain.small()
    module = recipe.build().eval()
    sizes = replace(module.student.config.encoder, tubelet_size=2)
    features, attention = whole(module.teacher, video()[:, ::2], sizes, 2)
    assert features.shape == (2, 2, 64, 48)  # 4 x 4 x 4 places
    changed = video()
    changed[:, 1::2] = 0  # what the teacher does not see
    assert torch.equal(features, whole(module.teacher, changed[:, ::2], sizes, 2)[0])
    assert torch.equal(attention, whole(module.teacher, changed[:, ::2], sizes, 2)[1])
    assert recipe.gmacs(module) > 0


def test_an_evaluation_opens_few_clips_of_a_large_set(monkeypatch):
    recipe, opened = VideoMAEPretrain.small(), []
    clips = recipe.clips
    monkeypatch.setattr("elastivid.recipes._masked.EVALUATED", 2)
    read = clips.frames
    monkeypatch.setattr(clips, "frames", lambda index, choose: opened.append(index) or read(index, choose))
    recipe.evaluate(recipe.build().eval())
    assert set(opened) == {0, 1}


def test_a_clip_checkpoint_teaches(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    config = transformers.CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, image_size=56, patch_size=14,
        projection_dim=24, hidden_act="quick_gelu",
    )  # fmt: skip
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "clip")
    (tmp_path / "clip" / "tokenizer.json").write_text("{}")
    for name in ("flux_umt", "umt_pretrain"):
        losses = run(name, tmp_path / name, f"teacher=hf:{tmp_path / 'clip'}", "steps=3")
        assert len(losses) == 3
    config = replace(UMTPretrain.small().config, teacher=f"hf:{tmp_path / 'clip'}")
    with pytest.raises(DataError, match="the teacher sees 4 patches a side and the student 5; set size to 56"):
        UMTPretrain(replace(config, size=70, short_side=70)).build()
    recipe = UMTPretrain(config)
    module = recipe.build()
    assert recipe.gmacs(module) > module.teacher.config.cost(frames=8).gmacs


def test_every_recipe_has_a_first_line():
    for name in NAMES:
        assert find(name).small().name == name
