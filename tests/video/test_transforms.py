from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from elastivid.core.errors import PointError, UnknownNameError
from elastivid.video.transforms import Transform


def test_scales_and_normalises_without_touching_the_frames():
    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    before = frames.copy()
    out = Transform(size=8)(frames)
    assert out.shape == (2, 3, 8, 8)
    assert out.dtype == torch.float32
    assert out.is_contiguous()
    mean, std = np.array(Transform().mean), np.array(Transform().std)
    expected = ((before / 255 - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-5)
    np.testing.assert_array_equal(frames, before)


@pytest.mark.parametrize("filter_", ["bilinear", "bicubic"])
def test_resizes_with_antialiasing(filter_):
    stripes = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    stripes[:, :, ::2] = 255
    out = Transform(size=8, mean=(0, 0, 0), std=(1, 1, 1), filter=filter_)(stripes)
    assert out.shape == (1, 3, 8, 8)
    assert abs(out - 0.5).max() < 0.1


def test_a_batch_is_normalised_as_a_clip_is():
    frames = np.random.default_rng(0).integers(256, size=(2, 3, 20, 20, 3), dtype=np.uint8)
    transform = Transform(size=20)
    out = transform.normalised(torch.from_numpy(frames))  # (2, 3, 3, 20, 20)
    assert out.is_contiguous()
    assert torch.allclose(out, torch.stack([transform(clip) for clip in frames]), atol=1e-6)


def test_round_trip_through_json():
    transform = Transform(size=112, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), filter="bicubic")
    assert Transform.from_dict(json.loads(json.dumps(transform.to_dict()))) == transform
    with pytest.raises(UnknownNameError, match="sized"):
        Transform.from_dict({"sized": 3})


def test_wrong_values_are_refused():
    for arguments in ({"size": 0}, {"std": (1, 1, 0)}, {"mean": (0, 0)}):
        with pytest.raises(PointError):
            Transform(**arguments)
    with pytest.raises(UnknownNameError, match="bilinear"):
        Transform(filter="bilinar")
    with pytest.raises(PointError, match="uint8"):
        Transform()(np.zeros((1, 4, 4, 3), dtype=np.float32))


def test_importing_the_package_brings_in_neither_torch_nor_av():
    code = (
        "import sys, elastivid.video, elastivid.video.samplers, elastivid.video.transforms\n"
        "elastivid.video.VideoError\n"
        "sys.exit(bool({'torch', 'av'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
