"""RandAugment for clips: a few operations of drawn kind, at about one strength, the same for all frames.

    for each of `count`: with probability 1/2 one of OPERATIONS at strength ~ N(magnitude, spread), within [0, 10]

The operations and their ranges are those of the "increasing" set that video transformers are fine-tuned with
(arXiv 1909.13719; timm's rand-m9-mstd0.5-inc1). Where an operation looks at the picture (contrast, equalize), it looks
at all frames together: frame by frame it would flicker.

Letters: T frames, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

FILL = (124, 116, 104)  # what appears where a picture was moved away: the mean of natural pictures
MOST = 10.0  # strongest magnitude
GREY = np.array([19595, 38470, 7471], dtype=np.int64)  # of 65536, ITU-R 601


@dataclass(frozen=True)
class RandAugment:
    """See the module's text.

    Args:
        magnitude: mean strength, 0 to 10.
        count: operations that are drawn for a clip.
        spread: standard deviation of the strength.
        probability: that a drawn operation is applied.

    Raises:
        ValueError: a value is out of range.
    """

    magnitude: float = 9.0
    count: int = 2
    spread: float = 0.5
    probability: float = 0.5

    def __post_init__(self) -> None:
        if not (0 <= self.magnitude <= MOST and self.count >= 0 and self.spread >= 0 and 0 <= self.probability <= 1):
            raise ValueError(f"magnitude is 0 to 10, count and spread >= 0, probability 0 to 1; got {self}")

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """uint8 (T, H, W, 3) to the same; `frames` itself is not changed."""
        names = list(OPERATIONS)
        for _ in range(self.count):
            name = names[int(rng.integers(len(names)))]
            strength = min(max(rng.normal(self.magnitude, self.spread), 0.0), MOST) / MOST
            sign = 1.0 if rng.random() < 0.5 else -1.0
            if rng.random() < self.probability:
                frames = OPERATIONS[name](frames, strength, sign)
        return frames


def autocontrast(frames: np.ndarray, strength: float = 0.0, sign: float = 1.0) -> np.ndarray:
    """Stretch every channel so that its darkest value over the clip becomes 0 and its brightest 255."""
    tables = []
    for channel in range(3):
        low, high = int(frames[..., channel].min()), int(frames[..., channel].max())
        scale = 255.0 / (high - low) if high > low else 1.0
        values = np.arange(256) * scale - (low * scale if high > low else 0.0)
        tables.append(values.clip(0, 255).astype(np.uint8))
    return _looked_up(frames, tables)


def equalize(frames: np.ndarray, strength: float = 0.0, sign: float = 1.0) -> np.ndarray:
    """Make the histogram of every channel over the clip as flat as it gets."""
    tables = []
    for channel in range(3):
        histogram = np.bincount(frames[..., channel].reshape(-1), minlength=256)
        step = (histogram.sum() - histogram[np.flatnonzero(histogram)[-1]]) // 255
        if step == 0:
            tables.append(np.arange(256, dtype=np.uint8))
        else:
            below = np.concatenate([[0], np.cumsum(histogram)[:-1]])
            tables.append(((below + step // 2) // step).clip(0, 255).astype(np.uint8))
    return _looked_up(frames, tables)


def invert(frames: np.ndarray, strength: float = 0.0, sign: float = 1.0) -> np.ndarray:
    """255 minus every value."""
    return 255 - frames


def posterize(frames: np.ndarray, strength: float, sign: float = 1.0) -> np.ndarray:
    """Keep the upper 4 to 0 bits of every value."""
    return frames & np.uint8(0xFF00 >> (4 - int(strength * 4)) & 0xFF)


def solarize(frames: np.ndarray, strength: float, sign: float = 1.0) -> np.ndarray:
    """Invert values from a threshold on, which falls from 256 to 0."""
    return np.where(frames >= 256 - int(strength * 256), 255 - frames, frames)


def solarize_add(frames: np.ndarray, strength: float, sign: float = 1.0) -> np.ndarray:
    """Add up to 110 to values below 128."""
    return np.where(frames < 128, np.minimum(frames.astype(np.int16) + int(strength * 110), 255), frames).astype(
        np.uint8
    )


def colour(frames: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """More or less saturated: away from or towards its own grey."""
    return _blended(np.broadcast_to(_grey(frames)[..., None], frames.shape), frames, _factor(strength, sign))


def contrast(frames: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Away from or towards the mean grey of the clip."""
    mean = int(_grey(frames).mean() + 0.5)
    return _blended(np.full((1, 1, 1, 1), mean), frames, _factor(strength, sign))


def brightness(frames: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Away from or towards black."""
    return _blended(np.zeros((1, 1, 1, 1)), frames, _factor(strength, sign))


def sharpness(frames: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Away from or towards its own mean over 3 x 3 pixels, the middle one counting five times; edges stay."""
    wide = frames.astype(np.int64)
    total = 4 * wide[:, 1:-1, 1:-1]
    for dy in range(3):
        for dx in range(3):
            total = total + wide[:, dy : wide.shape[1] - 2 + dy, dx : wide.shape[2] - 2 + dx]
    smooth = frames.copy()
    smooth[:, 1:-1, 1:-1] = (total / 13.0 + 0.5).astype(np.uint8)
    return _blended(smooth, frames, _factor(strength, sign))


def rotate(frames: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Turn by up to 30 degrees around the middle, counter-clockwise for a positive sign."""
    angle = math.radians(30 * strength * sign)
    height, width = frames.shape[1:3]
    c, s = math.cos(angle), math.sin(angle)
    y, x = height / 2, width / 2
    return affine(frames, (c, -s, x - c * x + s * y), (s, c, y - s * x - c * y))


def shear_x(frames: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Move rows by up to 0.3 of their distance from the top."""
    return affine(frames, (1, 0.3 * strength * sign, 0), (0, 1, 0))


def shear_y(frames: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Move columns by up to 0.3 of their distance from the left edge."""
    return affine(frames, (1, 0, 0), (0.3 * strength * sign, 1, 0))


def translate_x(frames: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Move by up to 0.45 of the width."""
    return affine(frames, (1, 0, 0.45 * strength * sign * frames.shape[2]), (0, 1, 0))


def translate_y(frames: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Move by up to 0.45 of the height."""
    return affine(frames, (1, 0, 0), (0, 1, 0.45 * strength * sign * frames.shape[1]))


Operation = Callable[[np.ndarray, float, float], np.ndarray]
OPERATIONS: dict[str, Operation] = {
    function.__name__: function
    for function in (
        autocontrast,
        equalize,
        invert,
        rotate,
        posterize,
        solarize,
        solarize_add,
        colour,
        contrast,
        brightness,
        sharpness,
        shear_x,
        shear_y,
        translate_x,
        translate_y,
    )
}


def affine(frames: np.ndarray, x_row: tuple[float, float, float], y_row: tuple[float, float, float]) -> np.ndarray:
    """Move pictures: the value at (x, y) comes from (a x + b y + c, d x + e y + f), bilinear; `FILL` from outside.

    Args:
        frames: uint8 (T, H, W, 3).
        x_row: a, b, c; coordinates are in pixels and the first pixel's middle is at 0.5.
        y_row: d, e, f.
    """
    import torch
    from torch.nn.functional import grid_sample

    height, width = frames.shape[1:3]
    y, x = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")  # (H, W)
    there = [(a * x + b * y + c) / size * 2 - 1 for (a, b, c), size in ((x_row, width), (y_row, height))]
    grid = torch.from_numpy(np.stack(there, axis=-1)).float()  # (H, W, 2)
    fill = torch.tensor(FILL, dtype=torch.float32).view(3, 1, 1)
    planes = (
        torch.from_numpy(np.require(frames, requirements=("C", "W"))).permute(0, 3, 1, 2).float() - fill
    )  # (T, 3, H, W)
    moved = grid_sample(planes, grid.expand(len(frames), -1, -1, -1), align_corners=False) + fill
    return (moved + 0.5).clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()  # (T, H, W, 3)


def _factor(strength: float, sign: float) -> float:
    return max(0.1, 1.0 + 0.9 * strength * sign)


def _blended(other: np.ndarray, frames: np.ndarray, factor: float) -> np.ndarray:
    """`factor` of the frames and 1 - `factor` of something else, which may lie beyond either."""
    mixed = other + (frames.astype(np.float32) - other) * np.float32(factor)
    return mixed.clip(0, 255).astype(np.uint8)


def _grey(frames: np.ndarray) -> np.ndarray:
    """Luma, whole numbers (T, H, W)."""
    return (frames.astype(np.int64) @ GREY + 0x8000) >> 16


def _looked_up(frames: np.ndarray, tables: list[np.ndarray]) -> np.ndarray:
    return np.stack([table[frames[..., channel]] for channel, table in enumerate(tables)], axis=-1)
