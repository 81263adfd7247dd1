"""Probing and fine-tuning through the command line, on folders as users have them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from elastivid.app.cli import app
from elastivid.data.augment import Augmentation, Flip
from elastivid.models.classifier import MotionReader
from elastivid.recipes import _labelled
from elastivid.recipes._labelled import DataError, classifier_of, encoder_of, smoke_data
from elastivid.recipes.finetune import Finetune, FinetuneConfig
from elastivid.recipes.linear_probe import LinearProbe
from elastivid.train.stages import Stage
from elastivid.weights.classifier import load_classifier


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    """A cache folder of this test run alone, shared by its tests."""
    folder = tmp_path_factory.getbasetemp() / "elastivid-cache"
    monkeypatch.setenv("ELASTIVID_CACHE", str(folder))
    return folder


def train(name: str, out: Path, *settings: str, smoke: bool = True, resume: bool = False) -> str:
    """Run `elastivid train`; what it printed."""
    options = [part for setting in settings for part in ("--set", setting)]
    arguments = ["train", name, "--out", str(out), "--device", "cpu", *(["--smoke"] if smoke else []), *options]
    arguments += ["--resume"] if resume else []
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def evaluation(out: Path) -> list[dict]:
    lines = (out / "evaluation.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["rows"]


def test_a_probe_is_a_start_for_fine_tuning(tmp_path, cache):
    output = train("linear_probe", tmp_path / "probe")
    assert "leakage: none" in output
    assert "quarantine: all 3 clips could be used" in output
    (row,) = evaluation(tmp_path / "probe")
    assert row["clips"] == 3
    assert row["gmacs"] > 0
    losses = [json.loads(line)["loss"] for line in (tmp_path / "probe" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]  # the head learns
    train("finetune", tmp_path / "tuned", f"init={tmp_path / 'probe'}")
    rows = evaluation(tmp_path / "tuned")
    assert [row["point"].split(", ")[1] for row in rows] == ["all tokens", "32 tokens"]
    assert rows[1]["gmacs"] < rows[0]["gmacs"]
    assert (tmp_path / "tuned" / "model.safetensors").is_file()
    assert not (cache / "smoke" / "clips" / "quarantine.jsonl").exists()


def test_broken_clips_cost_a_line_and_not_the_run(tmp_path, cache):
    folder = tmp_path / "actions"
    smoke_data(folder)
    for label in ("left", "grow"):
        (folder / label / "broken.mp4").write_bytes(b"no video")
    clips = tmp_path / "clips"
    settings = (f"data={folder}", f"cache={clips}", "max_left_out=0.5", "epochs=2", "tokens=0")
    output = train("finetune", tmp_path / "run", *settings)
    rows = [json.loads(line) for line in (clips / "quarantine.jsonl").read_text().splitlines()]
    assert {Path(row["path"]).name for row in rows} == {"broken.mp4"}
    assert all("cannot be opened as a video" in row["reason"] for row in rows)
    assert "clips could not be used" in output or "all" in output


def test_two_lists_and_what_leaks_between_them(tmp_path, capsys):
    folder = smoke_data(tmp_path / "actions")
    files = sorted(folder.rglob("*.mp4"))
    (tmp_path / "train.txt").write_text("".join(f"{f} {f.parent.name}\n" for f in files))
    (tmp_path / "test.csv").write_text("path,label\n" + "".join(f"{f},{f.parent.name}\n" for f in files[::4]))
    config = FinetuneConfig(data=tmp_path / "train.txt", test=tmp_path / "test.csv", cache=tmp_path / "clips")
    parts = Finetune(config).parts
    assert (len(parts.train), len(parts.test)) == (12, 3)
    assert parts.train.classes == parts.test.classes == ("blink", "grow", "left")
    assert "3 contents and 3 sources on both sides" in capsys.readouterr().err
    alone = Finetune(FinetuneConfig(data=folder, fold=-1, cache=tmp_path / "clips"))
    assert alone.parts.test is None
    assert alone.evaluate(alone.build()) == []
    assert alone.score([]) == 0.0


def test_labels_that_name_a_side_are_not_mirrored(tmp_path):
    folder = smoke_data(tmp_path / "actions")
    for name, kept in (("finetune", {"left", "grow"}), ("probe", {"left"})):
        if name == "finetune":
            config = FinetuneConfig(data=folder, cache=tmp_path / "clips", unflipped=("grow",))
            assert Finetune(config).parts.train.reading.augmentation.flip.kept == kept
    small = LinearProbe.small()
    features, labels = small.features(small.build().eval())
    counts = np.bincount(labels.numpy(), minlength=3)
    left = small.parts.train.classes.index("left")
    assert all(count == (6 if number == left else 12) for number, count in enumerate(counts))
    assert features.shape == (len(labels), small.build().num_features)


def test_steps_depend_on_their_draws_alone():
    recipe = Finetune.small()
    module = recipe.build().eval()
    batch = recipe.collate([recipe.dataset(recipe.stages()[0])[position] for position in range(4)])
    stage = Stage("all", 1, 1e-3)
    start = recipe.step(module, batch, stage, torch.Generator().manual_seed(1))[0].item()
    assert start == pytest.approx(np.log(3), rel=1e-3)  # the head starts at zero
    torch.nn.init.normal_(module.head.weight)
    losses = [recipe.step(module, batch, stage, torch.Generator().manual_seed(n))[0].item() for n in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    assert module.config.blocks == (module.config.encoder.depth // 2,)
    assert Finetune(replace(recipe.config, blocks=())).build().num_features < module.num_features


def test_the_second_reader_is_solved_before_training_and_kept(tmp_path, monkeypatch):
    config = replace(Finetune.small().config, motion_words=4)
    recipe = Finetune(config)
    module = recipe.build()
    recipe.begin(module)
    start = module.motion.layer.weight
    assert start.abs().sum() > 0
    train("finetune", tmp_path / "run", "motion_words=4", "epochs=2", "tokens=32")
    model = load_classifier(str(tmp_path / "run" / "model.safetensors"))
    assert model.config.motion_words == 4
    assert model.config.seconds == pytest.approx(4.0, abs=0.1)
    assert torch.equal(model.motion.layer.weight, start)
    assert model.head.weight.abs().sum() > 0
    assert set(model(torch.randn(1, 4, 3, 56, 56)).taps) == {"encoder", "motion"}
    (tmp_path / "run" / "model.safetensors").unlink()
    monkeypatch.setattr(_labelled.LabelledRecipe, "solve", None)  # a resumed run finds nothing out again
    train("finetune", tmp_path / "run", "motion_words=4", "epochs=2", "tokens=32", resume=True)
    again = load_classifier(str(tmp_path / "run" / "model.safetensors"))
    assert torch.equal(again.motion.layer.weight, start)
    assert again.weights_id == model.weights_id


def test_the_second_reader_is_solved_from_test_views_and_as_many_samples(monkeypatch):
    """Twice two views of nine clips, what is drawn mirrored where that is the augmentation; and of a few where many."""
    given = []
    monkeypatch.setattr(MotionReader, "solve", lambda self, rows, labels, views: given.append((rows, labels, views)))
    recipe = LinearProbe(replace(LinearProbe.small().config, motion_words=4))
    model = classifier_of(recipe.config, recipe.parts.train.classes).eval()
    for augmentation in (Augmentation(), Augmentation(flip=Flip(1.0))):
        recipe.solve(model, model.motion, augmentation)
    (plain, labels, views), (mirrored, again, _) = given
    count = len(recipe.parts.train)
    assert plain.shape == (4 * count, model.motion.vectors.length)
    assert views == 4
    assert torch.equal(labels, again)
    wanted = np.bincount([recipe.parts.train.label_of(i) for i in range(count)])
    assert np.bincount(labels.numpy()).tolist() == (4 * wanted).tolist()
    of_views = torch.arange(4 * count) % 4 < 2
    assert torch.allclose(plain[of_views], mirrored[of_views])
    assert not torch.allclose(plain[~of_views], mirrored[~of_views], atol=0.1)
    monkeypatch.setattr(_labelled, "MOST_BYTES", 3 * 4 * 4 * model.motion.vectors.length)
    recipe.solve(model, model.motion, Augmentation())
    assert len(given[-1][0]) == 3 * 4
    assert _labelled.evenly(7, 3) == [0, 2, 4]
    assert _labelled.evenly(3, 7) == [0, 1, 2]


def test_encoders_by_address(monkeypatch):
    assert encoder_of("nano")[1].mean == (0.485, 0.456, 0.406)
    for address in ("fluxvit/tiny", "adavid/tiny"):
        encoder, transform = encoder_of(address)
        assert encoder.config.embed_dim > 0
        assert transform.size > 0
    monkeypatch.setattr(_labelled, "build", lambda address: torch.nn.Linear(2, 2))
    with pytest.raises(DataError, match=r"some/thing is a Linear, which has no video encoder of ours to train"):
        encoder_of("some/thing")


def test_missing_data_is_named():
    with pytest.raises(DataError, match=r"nothing to train on; name a list or a folder of classes: --set data=FOLDER"):
        _ = LinearProbe().parts
    with pytest.raises(ValueError, match=r"short_side must be at least size 224, got 128"):
        FinetuneConfig(size=224)
    with pytest.raises(ValueError, match=r"fold must be -1 to 4, got 5"):
        FinetuneConfig(fold=5)
    for words, frames in ((-1, 8), (32, 1)):
        with pytest.raises(ValueError, match=rf"clips of 2 frames or more; got {words} for {frames} frames"):
            FinetuneConfig(motion_words=words, frames=frames)
    with pytest.raises(ValueError, match=r"2 views of 32 frames need kept_frames of 64 or more, or 0 for all, got 32"):
        FinetuneConfig(motion_words=32, frames=32)
    recipe = LinearProbe(replace(LinearProbe.small().config, motion_words=500))
    module = recipe.build()
    with pytest.raises(DataError, match=r"motion_words=500: 500 words of 24 dims need at least 500 descriptors, got"):
        recipe.begin(module)
    with pytest.raises(ValueError, match=r"sampling must be one of segments, uniform, dense, got 'random'"):
        FinetuneConfig(sampling="random")
