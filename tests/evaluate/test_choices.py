"""Multiple choice on rendered scenes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from elastivid.core.point import OperatingPoint, Sampling
from elastivid.data.world import Phrase
from elastivid.evaluate.choices import ATTRIBUTES, CHANCE, accuracy, draw_choices, render_choice, wrong_contents
from elastivid.video.transforms import Transform

RED = Phrase("red", "circle", "left", "fast")


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_choices_depend_on_the_seed_alone_and_hold_one_right_caption(attribute):
    one, two = (list(draw_choices(attribute, "train", 3, seed=5)) for _ in range(2))
    assert one == two
    assert one != list(draw_choices(attribute, "train", 3, seed=6))
    for choice in one:
        assert len(choice.captions) == len(set(choice.captions)) == round(1 / CHANCE[attribute])


def test_wrong_contents_differ_in_one_attribute():
    for attribute in ("colour", "shape", "motion"):
        for (phrase,) in wrong_contents((RED,), attribute):
            apart = [name for name in ("colour", "shape", "motion") if getattr(phrase, name) != getattr(RED, name)]
            assert apart == [attribute]
    blue = Phrase("blue", "star", "grow")
    assert [[p.colour for p in content] for content in wrong_contents((RED, blue), "order")] == [["blue", "red"]]


def test_frames_are_spread_over_the_scene():
    choice = next(iter(draw_choices("motion", "train", 1, seed=1)))
    frames = render_choice(choice, Sampling(frames=4, size=56))
    assert frames.shape == (4, 56, 56, 3)
    assert not np.array_equal(frames[0], frames[-1])


def test_a_model_that_knows_scores_one_and_one_that_errs_scores_zero():
    class Oracle:
        transform = Transform(size=28)

        def embed_texts(self, captions):
            return torch.eye(4)[: len(captions)]

        def embed_clips(self, video, *, point):
            return torch.eye(4)[[0 if point.tokens == 1 else 1] * len(video)]

    choices = list(draw_choices("colour", "train", 5, seed=2))
    points = [OperatingPoint(tokens=1), OperatingPoint(tokens=2)]
    assert accuracy(Oracle(), choices, Sampling(frames=2, size=28), points, batch=2) == [1.0, 0.0]
