"""Every shipped recipe: its smoke run trains, evaluates and leaves a model; over two processes it trains the same."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import two_processes
from test_training_processes import HERE, python

from elastivid.core.point import OperatingPoint
from elastivid.models.adavid import AdaVidAggConfig
from elastivid.recipes import find, summaries
from elastivid.recipes._captioned import CaptionedMoments, ListedCaptions
from elastivid.recipes._flux import point_at
from elastivid.recipes.adavid_agg import AdaVidAggRecipe
from elastivid.recipes.adavid_contrastive import AdaVidContrastive, NearbyCaptions
from elastivid.recipes.flux_clip import FluxClip, FluxClipConfig
from elastivid.train.checkpoint import load_checkpoint
from elastivid.train.log import read_lines
from elastivid.train.loop import train
from elastivid.train.settings import from_values, keys, to_values
from elastivid.train.stages import TrainingError, trained_names
from elastivid.weights.load import load

OURS = ("adavid_agg", "adavid_contrastive", "flux_clip", "flux_tune")


def small(name: str, cache: Path):
    """The recipe with its smoke settings and its files under `cache`."""
    kind = find(name)
    config = kind.smoke(kind.config_class())
    return kind(replace(config, cache=cache) if "cache" in keys(config) else config)


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_a_smoke_run_trains_evaluates_and_leaves_a_model(name, tmp_path):
    finished = train(small(name, tmp_path), tmp_path / "run", device="cpu")
    assert finished.complete
    assert finished.rows
    for row in finished.rows:
        assert row["gmacs"] > 0
        assert 0 <= row["accuracy"] <= 1
    gmacs = [row["gmacs"] for row in finished.rows if "(" not in row["point"] and "mean" not in row["point"]]
    assert gmacs == sorted(gmacs, reverse=True)
    assert len(gmacs) >= 3
    assert (tmp_path / "run" / "model.safetensors").stat().st_size > 10_000
    if name in ("adavid_contrastive", "flux_clip"):
        model = load(str(tmp_path / "run" / "model.safetensors"))
        assert model.embed_texts(["a red circle grows"]).shape == (1, model.dim)


@pytest.mark.parametrize("name", [*OURS, "nano"])
def test_settings_survive_the_run_folder_and_the_docstring_says_how_it_is_run(name):
    kind = find(name)
    for config in (kind.config_class(), kind.smoke(kind.config_class())):
        assert from_values(kind.config_class, to_values(config)) == config
    text = inspect.getdoc(inspect.getmodule(kind))
    assert f"elastivid train {name}" in text
    assert "Full scale" in text
    assert summaries()[name] == text.splitlines()[0]


@pytest.mark.slow
def test_two_processes_with_half_the_batch_train_like_one_with_all_of_it(tmp_path):
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    python(*launch, HERE / "two_processes.py", tmp_path / "two")
    two_processes.main(tmp_path / "one")
    for name, parts in {
        "pairs": ("module", "average"),
        "flux_clip": ("module",),
        "adavid_contrastive": ("module",),
        "sharded": ("module", "average"),
    }.items():
        lines = [read_lines(tmp_path / count / name / "metrics.jsonl") for count in ("one", "two")]
        assert len(lines[0]) == len(lines[1]) >= 3
        for a, b in zip(*lines, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
            assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-3)
        one, two = (load_checkpoint(tmp_path / count / name / "last.pt") for count in ("one", "two"))
        for part in parts:
            apart = {key: float((one[part][key].float() - two[part][key].float()).abs().max()) for key in one[part]}
            assert max(apart.values()) < 1e-4, (name, sorted(apart.items(), key=lambda item: -item[1])[:5])
    models = [load(str(tmp_path / count / "sharded" / "model.safetensors")) for count in ("one", "two")]
    vectors = [model.embed_texts(["a red circle grows"]) for model in models]
    assert torch.allclose(*vectors, atol=1e-3)


def test_a_count_that_the_clip_does_not_have_keeps_all_tokens():
    video = torch.zeros(1, 4, 3, 28, 28)
    assert point_at(15, video, 14) == OperatingPoint(tokens=15)
    assert point_at(16, video, 14) == point_at(99, video, 14) == OperatingPoint()


def test_moments_of_a_pair_come_from_one_scene_and_differ_in_action():
    source = CaptionedMoments()
    pairs = [source.draw(k, 1, (4, 56)) for k in range(20)]
    again = source.draw(3, 1, (4, 56))
    assert (again[0].text, again[1].text) == (pairs[3][0].text, pairs[3][1].text)
    assert all(a.frames.shape == b.frames.shape == (4, 56, 56, 3) for a, b in pairs)
    assert all(a.action != b.action for a, b in pairs)
    corner = [(a.frames[0, :4, :4].mean(), b.frames[0, :4, :4].mean()) for a, b in pairs]
    assert sum(abs(x - y) for x, y in corner) / 20 < 15 < sum(abs(x - y) for x, _ in corner for _, y in corner) / 400


@pytest.mark.parametrize("train_text", [False, True])
def test_the_text_tower_trains_only_where_it_is_asked_to(train_text):
    recipe = FluxClip(replace(FluxClip.smoke(FluxClipConfig()), train_text=train_text, projector_steps=0))
    (stage,) = recipe.stages()
    named = [name for name, p in recipe.build().named_parameters() if p.requires_grad]
    trained = trained_names(stage, named)
    assert any(name.startswith("text.") for name in trained) == train_text
    assert {"log_scale", "video.cls_token"} <= set(trained)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="token_counts must fall"):
        FluxClipConfig(token_counts=(512, 1024))
    config = replace(AdaVidAggRecipe.smoke(AdaVidAggRecipe.config_class()), model=AdaVidAggConfig(feature_dim=8))
    with pytest.raises(TrainingError, match=r"model.feature_dim must be the encoder's 32, got 8"):
        AdaVidAggRecipe(config).build()


def test_lists_with_texts_are_read_with_their_neighbours(shared_data, tmp_path):
    clips = sorted((shared_data / "labelled" / "catch").glob("*.mp4"))[:3]
    rows = [f"{path},text {k},{chr(97 + k // 2)},0" for k, path in enumerate(clips)]
    (tmp_path / "list.csv").write_text("\n".join(["path,text,source,start_seconds", *rows]) + "\n")
    listed = ListedCaptions(tmp_path / "list.csv", tmp_path, 64)
    nearby = NearbyCaptions(listed)
    assert nearby.next == {0: 1, 1: 0, 2: -1}
    pairs = [nearby.draw(k, 0, (2, 56)) for k in range(3)]
    assert all(a.frames.shape == b.frames.shape == (2, 56, 56, 3) for a, b in pairs)
    assert {(a.text, b.text) for a, b in pairs} == {("text 0", "text 1"), ("text 1", "text 0"), ("text 2", "text 2")}
    recipe = AdaVidContrastive(replace(AdaVidContrastive.smoke(AdaVidContrastive.config_class()),
                                       clips=tmp_path / "list.csv", cache=tmp_path, batch_size=2))  # fmt: skip
    batch = recipe.collate([recipe.dataset(recipe.stages()[0])[k] for k in range(2)])
    assert batch["frames"].shape == (4, 4, 70, 70, 3)
