"""Predicted peak memory against what torch's allocator sees."""

from __future__ import annotations

import pytest
import torch
from peak import peak_bytes

from elastivid.core.point import OperatingPoint, Runtime
from elastivid.models.fluxvit import FluxViTConfig
from elastivid.planning.run import Executor
from elastivid.planning.subject import describe


@pytest.fixture(scope="module")
def subject():
    return describe("nano")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("frames", "size", "tokens", "width", "batch"),
    [
        (8, 168, 72, None, 1),
        (8, 168, 1152, None, 1),
        (8, 168, 576, 64, 1),
        (8, 168, 256, None, 8),
        (4, 112, 128, 128, 2),
    ],
)
def test_peak_memory_is_predicted_within_15_percent(subject, precision, frames, size, tokens, width, batch):
    torch.manual_seed(0)
    runtime, point = Runtime(precision=precision, batch=batch, threads=1), OperatingPoint(tokens=tokens, width=width)
    executor = Executor(subject.config.build().eval(), runtime)
    video = torch.randn(batch, frames, 3, size, size)
    measured = peak_bytes(lambda: executor.embed_clips(video, point=point)) + video.nbytes
    assert subject.activation_bytes(frames, size, point, runtime) == pytest.approx(measured, rel=0.15)


def test_more_of_anything_never_takes_less(subject):
    def spend(frames=8, size=168, tokens=256, width=None, **runtime):
        return subject.activation_bytes(frames, size, OperatingPoint(tokens=tokens, width=width), Runtime(**runtime))

    assert spend(tokens=1152) > spend() > spend(frames=4)
    assert spend(batch=8) > spend(batch=1)
    assert spend(batch=8, workers=2) == 2 * spend(batch=8)
    assert spend(width=64) < spend()


def test_tables_of_other_grids_are_counted():
    config = FluxViTConfig(depth=1)
    native = config.activation_bytes(frames=24, size=252, tokens=16)
    small = config.activation_bytes(frames=2, size=56, tokens=16)
    assert small > 4 * 7776 * 128  # the native table passes through memory although the clip is small
    assert small < native
