"""Operations of RandAugment: equal to Pillow's on one frame, the same for all frames of a clip."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from elastivid.data import randaugment
from elastivid.data.randaugment import FILL, OPERATIONS, RandAugment


def picture(seed: int = 0) -> np.ndarray:
    """Smooth colours of limited range, (1, 48, 64, 3)."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(30, 220, (6, 8, 3), dtype=np.uint8))
    return np.asarray(small.resize((64, 48), Image.Resampling.BICUBIC))[None]


PILLOW = {
    "autocontrast": lambda image, s, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, s, sign: ImageOps.equalize(image),
    "invert": lambda image, s, sign: ImageOps.invert(image),
    "posterize": lambda image, s, sign: ImageOps.posterize(image, 4 - int(4 * s)),
    "solarize": lambda image, s, sign: ImageOps.solarize(image, 256 - int(256 * s)),
    "colour": lambda image, s, sign: ImageEnhance.Color(image).enhance(max(0.1, 1 + 0.9 * s * sign)),
    "contrast": lambda image, s, sign: ImageEnhance.Contrast(image).enhance(max(0.1, 1 + 0.9 * s * sign)),
    "brightness": lambda image, s, sign: ImageEnhance.Brightness(image).enhance(max(0.1, 1 + 0.9 * s * sign)),
    "sharpness": lambda image, s, sign: ImageEnhance.Sharpness(image).enhance(max(0.1, 1 + 0.9 * s * sign)),
    "rotate": lambda image, s, sign: image.rotate(30 * s * sign, Image.Resampling.BILINEAR, fillcolor=FILL),
    "shear_x": lambda image, s, sign: moved(image, (1, 0.3 * s * sign, 0, 0, 1, 0)),
    "shear_y": lambda image, s, sign: moved(image, (1, 0, 0, 0.3 * s * sign, 1, 0)),
    "translate_x": lambda image, s, sign: moved(image, (1, 0, 0.45 * s * sign * 64, 0, 1, 0)),
    "translate_y": lambda image, s, sign: moved(image, (1, 0, 0, 0, 1, 0.45 * s * sign * 48)),
}


def moved(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=FILL)


@pytest.mark.parametrize("name", sorted(PILLOW))
def test_one_frame_equals_pillow(name):
    geometric = name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
    for strength, sign in ((0.3, 1.0), (0.75, -1.0), (0.9, 1.0)):
        frames = picture()
        ours = OPERATIONS[name](frames, strength, sign)[0].astype(int)
        theirs = np.asarray(PILLOW[name](Image.fromarray(frames[0]), strength, sign)).astype(int)
        apart = np.abs(ours - theirs).max(axis=-1)
        if geometric:  # Pillow fills all of a pixel that lies half outside
            assert np.mean(apart > 2) < 0.05
        else:
            assert apart.max() <= 1
        assert frames.flags.c_contiguous
        assert ours.shape == (48, 64, 3)


def test_solarize_add_in_numbers():
    frames = np.array([0, 100, 127, 128, 255], dtype=np.uint8).reshape(1, 1, 5, 1).repeat(3, axis=3)
    assert OPERATIONS["solarize_add"](frames, 0.5, 1.0)[0, 0, :, 0].tolist() == [55, 155, 182, 128, 255]


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_equal_frames_stay_equal_and_input_is_left_alone(name):
    clip = np.concatenate([picture(0), picture(1), picture(0)])
    before = clip.copy()
    out = OPERATIONS[name](clip, 0.8, 1.0)
    assert out.dtype == np.uint8
    assert out.shape == clip.shape
    assert np.array_equal(out[0], out[2])
    assert np.array_equal(clip, before)


def test_draws_repeat_and_vary():
    clip = picture()
    augment = RandAugment(magnitude=9, count=2)
    outs = [augment(clip, np.random.default_rng(seed)) for seed in range(30)]
    again = [augment(clip, np.random.default_rng(seed)) for seed in range(30)]
    assert all(np.array_equal(a, b) for a, b in zip(outs, again, strict=True))
    unchanged = np.mean([np.array_equal(out, clip) for out in outs])
    assert 0.05 < unchanged < 0.6  # both operations are left out in a quarter of all draws
    assert RandAugment(probability=0.0)(clip, np.random.default_rng(0)) is clip
    with pytest.raises(ValueError, match="magnitude is 0 to 10"):
        RandAugment(magnitude=11)


def test_all_operations_are_drawn(monkeypatch):
    used = []
    for name in OPERATIONS:
        monkeypatch.setitem(randaugment.OPERATIONS, name, lambda f, s, sign, name=name: used.append((name, s)) or f)
    for seed in range(300):
        RandAugment(9, 2, 0.5, 1.0)(picture(), np.random.default_rng(seed))
    assert {name for name, _ in used} == set(OPERATIONS)
    strengths = np.array([s for _, s in used])
    assert abs(strengths.mean() - 0.9) < 0.01
    assert 0.03 < strengths.std() < 0.06
