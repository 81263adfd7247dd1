"""The miniatures of benchmarks/: what a training step draws, what a model is asked, and how hits are kept."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import miniature as mini

from elastivid.data.fluxbench import FIRST_CLASS, NUM_CLASSES, TASKS, load_clips
from elastivid.train.loop import train

pytest.importorskip("accelerate")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    load_clips(root, "train", 14)
    return root


def test_steps_draw_what_their_method_says():
    draws = torch.Generator().manual_seed(0)
    for method in mini.METHODS.values():
        for _ in range(20):
            grid, points = mini.draw_step(method, draws, (0,))
            assert grid in method.grids
            assert tuple(p.tokens for p in points) == method.counts
            assert mini.available_tokens(*grid) >= (method.counts[0] or 0)
            widths = [p.width for p in points]
            if method.widths == "decreasing":
                assert all(list(w) == sorted(w, reverse=True) for w in widths)
            if method.widths == "below":
                assert widths[0] is None
                assert all(len(w) == mini.MODEL.depth for w in widths[1:])


def test_training_cost_is_three_forwards():
    assert mini.training_gmacs(mini.METHODS["fixed"], 3) == pytest.approx(3 * mini.Spot(*mini.FIXED).gmacs)
    assert mini.training_gmacs(mini.METHODS["width-sampled"], 50) < mini.training_gmacs(mini.METHODS["fixed"], 3)


def test_video_takes_frames_from_the_middle_of_equal_spans():
    frames = torch.arange(16, dtype=torch.uint8)[None, :, None, None, None].expand(1, 16, 64, 64, 3)
    seen = mini.to_video(frames, (4, 32)) * 60 + 110
    assert seen.shape == (1, 4, 3, 32, 32)
    assert seen[0, :, 0, 0, 0].round().tolist() == [2, 6, 10, 14]


def test_answers_leave_only_the_classes_of_the_task():
    best = mini.answers(torch.zeros(len(TASKS), NUM_CLASSES), torch.arange(len(TASKS)))
    for number, task in enumerate(TASKS):
        open_classes = (best[number] > -1).nonzero().flatten().tolist()
        assert open_classes == list(range(FIRST_CLASS[number], FIRST_CLASS[number] + len(task.classes)))


@torch.no_grad()
def test_hits_are_those_of_one_clip_after_another(folder):
    torch.manual_seed(0)
    model, clips = mini.Miniature(patches=False).model.eval(), load_clips(folder, "train", 14)
    spots = [mini.Spot(8, 64), mini.Spot(16, 64, 32, selector="random"), mini.Spot(8, 64, width=64), mini.Spot(4, 32)]
    found = mini.hits_at(model, clips, spots, batch=5)
    for spot, row in zip(spots, found, strict=True):
        for index in (0, 4, 5, 13):
            video = mini.to_video(torch.from_numpy(np.array(clips.frames[index : index + 1])), (spot.frames, spot.size))
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(video, point=spot.point([index])).logits
            answer = mini.answers(logits, torch.tensor([clips.tasks[index]])).argmax()
            assert row[index] == (answer == FIRST_CLASS[clips.tasks[index]] + clips.labels[index])


def test_a_run_continues_from_its_base(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(mini, "VALIDATION_CLIPS", 7)
    small = mini.MiniatureConfig(
        clips=folder, train_clips=14, batch_size=4, steps=2, few_steps=2, evaluate_every=10**6, precision="float32"
    )
    base = train(mini.MiniatureRecipe(small), tmp_path / "base", device="cpu")
    assert base.rows[0]["accuracy"] <= 1
    tuned = replace(small, method="joint", base=tmp_path / "base" / "model.safetensors", learning_rate=1e-5)
    done = train(mini.MiniatureRecipe(tuned), tmp_path / "joint", device="cpu")
    for name, value in base.module.model.state_dict().items():
        assert torch.allclose(value, done.module.model.state_dict()[name], atol=1e-3), name
