"""Augmentation of decoded clips: crops, flips, erasing. What is drawn is drawn once for all frames of a clip.

Functions of uint8 frames (T, H, W, 3) and a generator; equal generators give equal clips. Normalising is the model's
`Transform`.

Letters: T frames, H W pixels, S side of the sample.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

SIDES = re.compile(r"(?<![a-z])(left|right|clockwise|counterclockwise|anticlockwise)(?![a-z])")


class Crop(Protocol):
    """Chooses a rectangle of a picture."""

    def draw(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width of a rectangle within the picture."""
        ...


@dataclass(frozen=True)
class MultiScaleCrop:
    """Corner, centre and side positions at several scales (TSN, arXiv 1608.00859; used by VideoMAE and UMT).

    Height and width are each one of `scales` times the shorter side and at most `max_distort` places apart in that
    list. With more fixed positions the rectangle lies on one of 13 places: a grid of quarters of the free room.

    Args:
        scales: shares of the shorter side, falling.
        max_distort: how many places in `scales` height and width may differ.
    """

    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    max_distort: int = 1

    def draw(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width."""
        sides = [int(min(height, width) * scale) for scale in self.scales]
        places = range(len(sides))
        pairs = [(sides[i], sides[j]) for i in places for j in places if abs(i - j) <= self.max_distort]
        h, w = pairs[int(rng.integers(len(pairs)))]
        row, column = QUARTERS[int(rng.integers(len(QUARTERS)))]
        return (height - h) // 4 * row, (width - w) // 4 * column, h, w


# in quarters of the free room: corners and centre, middles of the four sides, and the four places between
QUARTERS = ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (2, 0), (2, 4), (0, 2), (4, 2), (1, 1), (1, 3), (3, 1), (3, 3))


@dataclass(frozen=True)
class RandomResizedCrop:
    """A rectangle of drawn area and aspect (Inception, arXiv 1409.4842).

    Args:
        area: smallest and largest share of the picture.
        aspect: smallest and largest width over height, drawn on a logarithmic scale.
    """

    area: tuple[float, float] = (0.5, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)

    def draw(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width; after ten draws that do not fit, the largest middle part of allowed aspect."""
        for _ in range(10):
            pixels = height * width * rng.uniform(*self.area)
            ratio = math.exp(rng.uniform(math.log(self.aspect[0]), math.log(self.aspect[1])))
            h, w = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
            if 0 < h <= height and 0 < w <= width:
                return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
        ratio = min(max(width / height, self.aspect[0]), self.aspect[1])
        h, w = min(height, round(width / ratio)), min(width, round(height * ratio))
        return (height - h) // 2, (width - w) // 2, h, w


@dataclass(frozen=True)
class Flip:
    """Mirrors left and right, but not where the label tells them apart.

    Args:
        probability: of mirroring.
        kept: labels that are never mirrored; `directional` finds them by name.
    """

    probability: float = 0.5
    kept: frozenset[str] = frozenset()

    def draw(self, label: str, rng: np.random.Generator) -> bool:
        """Whether to mirror a clip of this label. Draws one number in any case."""
        return bool(rng.random() < self.probability) and label not in self.kept


def directional(labels: Iterable[str]) -> frozenset[str]:
    """Labels that name a side or a sense of rotation: "swipe_left", "Pulling [something] from right to left"."""
    return frozenset(label for label in labels if SIDES.search(label.lower()))


@dataclass(frozen=True)
class RandomErasing:
    """Fills one rectangle, the same in all frames, with noise (arXiv 1708.04896).

    Args:
        probability: of erasing at all.
        area: smallest and largest share of the picture.
        aspect: smallest height over width; the largest is its inverse.
    """

    probability: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: float = 0.3

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """uint8 (T, H, W, 3) with the rectangle filled; the same array when nothing is erased."""
        if rng.random() >= self.probability:
            return frames
        height, width = frames.shape[1:3]
        box = RandomResizedCrop(self.area, (self.aspect, 1 / self.aspect)).draw(height, width, rng)
        top, left, h, w = box
        out = frames.copy()
        noise = rng.normal(114.0, 58.0, (len(frames), h, w, 3))  # about the mean and spread of natural pictures
        out[:, top : top + h, left : left + w] = noise.clip(0, 255)
        return out


@dataclass(frozen=True)
class ColourJitter:
    """Draws contrast and brightness and, at times, takes the colours away; the same for all frames.

    Args:
        contrast: most that the factor on the distance from middle grey differs from 1.
        brightness: most that is added or taken away, as a share of white.
        grey: probability of grey pictures.
    """

    contrast: float = 0.3
    brightness: float = 0.1
    grey: float = 0.2

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """uint8 (T, H, W, 3) to the same."""
        factor = 1 + rng.uniform(-self.contrast, self.contrast)
        shift = 255 * rng.uniform(-self.brightness, self.brightness)
        out = (frames.astype(np.float32) - 128) * np.float32(factor) + np.float32(128 + shift)
        if rng.random() < self.grey:
            out = np.broadcast_to(out.mean(axis=-1, keepdims=True), out.shape)
        return out.clip(0, 255).astype(np.uint8)


class ClipOperation(Protocol):
    """Changes the pixels of a clip, all frames in the same way."""

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """uint8 (T, S, S, 3) to the same."""
        ...


@dataclass(frozen=True)
class Augmentation:
    """What happens to the frames of a training sample, in this order: crop, resize, mirror, operations.

    Args:
        crop: chooses the rectangle.
        flip: mirrors left and right.
        operations: such as `RandAugment` and `RandomErasing`.
    """

    crop: Crop = MultiScaleCrop()
    flip: Flip = Flip()
    operations: Sequence[ClipOperation] = ()

    def __call__(self, frames: np.ndarray, size: int, rng: np.random.Generator, label: str = "") -> np.ndarray:
        """uint8 (T, H, W, 3) to (T, size, size, 3)."""
        top, left, h, w = self.crop.draw(frames.shape[1], frames.shape[2], rng)
        out = resized(frames[:, top : top + h, left : left + w], size)
        if self.flip.draw(label, rng):
            out = np.ascontiguousarray(out[:, :, ::-1])
        for operation in self.operations:
            out = operation(out, rng)
        return out


def resized(frames: np.ndarray, height: int, width: int | None = None) -> np.ndarray:
    """Antialiased bilinear resize: uint8 (T, H, W, 3) to (T, height, width, 3), a square when only one is given."""
    import torch
    from torch.nn.functional import interpolate

    width = height if width is None else width
    if frames.shape[1:3] == (height, width):
        return frames
    planes = torch.from_numpy(np.require(frames, requirements=("C", "W"))).permute(
        0, 3, 1, 2
    )  # (T, 3, H, W), channels last
    planes = interpolate(planes, (height, width), mode="bilinear", antialias=True)  # (T, 3, height, width)
    return np.ascontiguousarray(planes.permute(0, 2, 3, 1).numpy())


def square_views(frames: np.ndarray, size: int, crops: int) -> np.ndarray:
    """Squares along the longer side, at full height of the shorter one, resized.

    Args:
        frames: uint8 (T, H, W, 3).
        size: side of the squares in pixels.
        crops: 1 for the middle, 3 for both ends too.

    Returns:
        uint8 (crops, T, size, size, 3).

    Raises:
        ValueError: there are neither 1 nor 3 crops.
    """
    if crops not in (1, 3):
        raise ValueError(f"crops must be 1 (the middle) or 3 (both ends too), got {crops}")
    height, width = frames.shape[1:3]
    side = min(height, width)
    parts = []
    for place in (1,) if crops == 1 else (0, 1, 2):
        top, left = (height - side) * place // 2, (width - side) * place // 2
        parts.append(resized(frames[:, top : top + side, left : left + side], size))
    return np.stack(parts)
