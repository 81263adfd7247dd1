"""Classifying files: names in words, heads of files, bad files beside good ones, budgets, what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner
from worlds import render

import elastivid as ev
from elastivid.app.cli import app
from elastivid.core.errors import BudgetError, WeightsError
from elastivid.core.point import OperatingPoint, Sampling
from elastivid.data.staging import sample_scene
from elastivid.data.synthetic import write_video
from elastivid.evaluate.classifiers import ZeroShot, open_classifier
from elastivid.evaluate.names import ClassesError, Names, labels_as_names, read_names, split_names, spoken
from elastivid.models.classifier import ClassifierConfig
from elastivid.models.fluxvit import PRESETS
from elastivid.models.towers import hash_of_tensors
from elastivid.search.classify import plan_for_classes
from elastivid.video.transforms import Transform
from elastivid.weights.classifier import load_classifier, save_classifier
from elastivid.weights.load import load

COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("videos")
    for name in ("red", "blue"):
        render(made / f"{name}.mp4", (name, 5.0))
    (made / "broken.mp4").write_bytes(b"no video at all")
    return made


@pytest.fixture(scope="module")
def headed(tmp_path_factory) -> Path:
    """An untrained tiny model with three classes."""
    torch.manual_seed(0)
    model = ClassifierConfig(PRESETS["tiny"], COLOURS, blocks=(1,), transform=Transform(size=56), frames=4).build()
    torch.nn.init.normal_(model.head.weight, std=0.2)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_classifier(model.eval(), path, address="tiny@0", licence="MIT")
    return path


def test_nano_tells_rendered_scenes_apart_by_names_given_in_words(tmp_path):
    """Both kinds of scene are drawn; what it says is what the scene's own names say."""
    rng, hits = np.random.default_rng(3), 0
    names, files = [], []
    for number in range(6):
        scene = sample_scene(rng, "train", "single")
        (phrase,) = scene.content
        names.append(f"a {phrase.colour} {phrase.shape}")
        write_video(scene, tmp_path / f"{number}.mp4")
        files.append(tmp_path / f"{number}.mp4")
    classes = sorted(set(names))
    found = ev.classify(files, classes)
    assert [Path(file.path) for file in found.files] == files
    for file, name in zip(found.files, names, strict=True):
        assert file.probabilities.sum() == pytest.approx(1.0, abs=1e-5)
        hits += file.top(1)[0][0] == name
    assert hits >= 5


def test_probabilities_are_the_mean_over_windows_of_the_softmax(folder):
    """By hand on the same windows: decode, transform, embed, compare."""
    from elastivid.search.examples import transform_of
    from elastivid.search.indexing import embed_windows
    from elastivid.search.reading import Reading, read_windows

    model = load("nano")
    names = Names(("red", "a dog"), ("{}", "a film of {}"))
    found = ev.classify(folder / "red.mp4", names.classes, prompts=names.prompts)
    reading = Reading(Sampling(), transform=transform_of(model))
    with reading.open(str(folder / "red.mp4")) as reader:
        windows = np.stack([np.stack(frames) for _, _, frames, _ in read_windows(reader, Sampling())])
    vectors = torch.from_numpy(embed_windows(model, windows, OperatingPoint(tokens=256)))
    texts = []
    for name in names.classes:
        each = model.embed_texts([name, f"a film of {name}"]).detach()
        texts.append(torch.nn.functional.normalize(each.mean(0), dim=0))
    wanted = (model.logit_scale * vectors @ torch.stack(texts).T).softmax(-1).mean(0)
    assert found.files[0].windows == len(windows) == 2
    assert np.abs(found.files[0].probabilities - wanted.numpy()).max() < 1e-5


def test_a_file_with_a_head_gives_its_own_names_and_survives_being_written(folder, headed):
    found = ev.classify([folder], model=str(headed))
    by_name = {Path(file.path).name: file for file in found.files}
    assert by_name["red.mp4"].names == COLOURS
    assert (found.sampling.frames, found.sampling.size, by_name["red.mp4"].windows) == (4, 56, 2)
    kept = load_classifier(str(headed))
    assert found.weights_id == hash_of_tensors(kept)
    video = Transform(size=56)(np.full((4, 56, 56, 3), (220, 20, 20), np.uint8))[None]
    logits = kept(video).logits.softmax(-1)[0].detach().numpy()
    assert np.abs(logits - by_name["red.mp4"].probabilities).max() < 0.02  # mpeg4 is not the flat colour exactly


def test_bad_files_stop_nothing_and_are_named(folder):
    found = ev.classify([folder, folder / "absent.mp4"], ("red", "blue"))
    status = {Path(file.path).name: file.status for file in found.files}
    assert status == {"blue.mp4": "classified", "broken.mp4": "failed", "red.mp4": "classified", "absent.mp4": "failed"}
    bad = {Path(file.path).name: file.reason for file in found.files if file.reason}
    assert "no such file" in bad["absent.mp4"]
    assert bad["broken.mp4"]
    assert found.files[1].top() == []


def test_budgets(folder, headed):
    found = ev.classify(folder / "red.mp4", ("red", "blue"), budget="0.3gmacs")
    assert found.gmacs_per_window <= 0.3
    assert found.plan is not None
    plain = ev.classify(folder / "red.mp4", ("red", "blue"))
    assert plain.gmacs_per_window > 0.3
    cheap = ev.classify(folder / "red.mp4", model=str(headed), budget="40tokens")
    assert cheap.point.tokens == 40
    with pytest.raises(BudgetError, match="give one of them"):
        ev.classify(folder, ("a", "b"), budget="1gmacs", point=OperatingPoint(tokens=8))


def test_the_command_prints_classes_troubles_and_cost(folder):
    done = CliRunner().invoke(app, ["classify", str(folder), "--classes", "red, green, blue", "--top", "2"])
    assert done.exit_code == 0
    assert "trouble: " in done.stdout
    assert "2 files classified, 1 could not be read" in done.stdout
    assert "MMACs each" in done.stdout
    done = CliRunner().invoke(app, ["classify", str(folder), "--classes", "red, green, blue", "--json", "--top", "1"])
    values = json.loads(done.stdout)
    assert [len(file["classes"]) for file in values["files"]] == [1, 0, 1]
    assert values["cost"]["windows"] == 4
    done = CliRunner().invoke(app, ["classify", str(folder / "broken.mp4"), "--classes", "red, green"])
    assert done.exit_code == 1


def test_names_from_a_file_and_from_labels(tmp_path):
    (tmp_path / "names.txt").write_text("# animals\n\n a dog \na cat\n")
    assert read_names(tmp_path / "names.txt") == ("a dog", "a cat")
    assert split_names("a dog, a cat") == ("a dog", "a cat")
    assert [spoken(label) for label in ("brush_hair", "PlayingGuitar", "sit-up")] == [
        "brush hair",
        "playing guitar",
        "sit up",
    ]
    assert labels_as_names(("a_b", "a-b")) == ("a_b", "a-b")
    with pytest.raises(ClassesError, match="cannot read the names"):
        read_names(tmp_path / "absent.txt")


def test_wrong_names(headed):
    for classes, message in (
        (("one",), "at least two"),
        (("a", " a"), "occurs twice"),
        (("a", ""), "none of them empty"),
    ):
        with pytest.raises(ClassesError, match=message):
            Names(classes)
    with pytest.raises(ClassesError, match=r"needs a \{\}"):
        Names(("a", "b"), ("a film",))
    with pytest.raises(ClassesError, match="needs names of classes"):
        ZeroShot(load("nano"), Names())
    with pytest.raises(ClassesError, match="classes of its own"):
        open_classifier(str(headed), Names(("a", "b")))


def test_plans_look_at_windows_as_training_did(folder, tmp_path):
    config = ClassifierConfig(PRESETS["tiny"], COLOURS, (), Transform(size=56), frames=4, seconds=1.5)
    path = tmp_path / "short.safetensors"
    save_classifier(config.build().eval(), path, address="short@0", licence="MIT")
    plan = plan_for_classes([folder], str(path), "1gmacs")
    assert plan.sampling == config.sampling
    assert ev.classify(folder / "red.mp4", model=str(path), plan=plan).files[0].windows > 4


def test_a_damaged_file_of_a_classifier_is_refused(headed, tmp_path):
    damaged = bytearray(headed.read_bytes())
    damaged[-3] ^= 0x40
    (tmp_path / "damaged.safetensors").write_bytes(damaged)
    with pytest.raises(WeightsError, match="it is damaged"):
        load_classifier(str(tmp_path / "damaged.safetensors"))
