"""Plans for classifiers: one that reads motion words costs more than its encoder, in time and memory as well."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from elastivid.core.point import OperatingPoint, Runtime
from elastivid.evaluate.classifiers import Logits
from elastivid.models.base import VideoEncoder
from elastivid.models.classifier import ClassifierConfig
from elastivid.models.fluxvit import PRESETS
from elastivid.planning.meter import RealMeter
from elastivid.planning.subject import Subject, describe
from elastivid.video.transforms import Transform
from elastivid.weights.classifier import save_classifier

FRAMES, SIZE = 6, 70


def subject_of(folder: Path, words: int) -> Subject:
    torch.manual_seed(0)
    config = ClassifierConfig(PRESETS["tiny"], ("a", "b"), (1,), Transform(size=SIZE), FRAMES, motion_words=words)
    path = folder / f"{words}.safetensors"
    save_classifier(config.build().eval(), path, address=f"tiny@{words}", licence="MIT")
    return describe(str(path))


def test_a_reader_of_motion_words_is_planned_with(tmp_path):
    plain, both, more = (subject_of(tmp_path, words) for words in (0, 4, 8))
    point, runtime = OperatingPoint(tokens=20), Runtime(batch=3)
    assert isinstance(plain.build(), VideoEncoder)
    assert isinstance(both.build(), Logits)
    assert len({plain.key, both.key, more.key}) == 3
    assert (both.frames, both.size) == (FRAMES, SIZE)
    costs = [subject.cost(FRAMES, SIZE, point) for subject in (plain, both, more)]
    assert costs[0].macs < costs[1].macs < costs[2].macs
    assert costs[1] == both.build().cost(frames=FRAMES, size=SIZE, point=point)
    pixels = 3 * FRAMES * SIZE**2
    least = 4 * (10 * pixels + 3 * pixels)  # what flow holds, and the input
    assert both.activation_bytes(FRAMES, SIZE, point, runtime) >= least
    assert plain.activation_bytes(FRAMES, SIZE, point, runtime) < least


def test_it_is_never_planned_or_measured_with_one_frame(tmp_path):
    plain, both = subject_of(tmp_path, 0), subject_of(tmp_path, 4)
    assert (plain.whole_tubelets(0.2), both.whole_tubelets(0.2), both.whole_tubelets(5)) == (1, 2, 5)
    milliseconds, _ = RealMeter(both)(2, SIZE, OperatingPoint(tokens=20), Runtime(threads=1))
    assert milliseconds > 0
    with pytest.raises(ValueError, match="2 frames of 28 pixels"):
        both.build().embed_clips(torch.zeros(1, 1, 3, SIZE, SIZE))
