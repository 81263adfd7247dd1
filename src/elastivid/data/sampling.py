"""Which frames of a clip a training sample or a test view sees, and which shape a batch has.

    Segments().draw(100, 8, rng)         one frame out of each of 8 segments, its place drawn
    Segments().views(100, 8, 4)          4 views that look between each other's frames
    Shapes.flexi((4, 24, 2), (168, 252, 28), (2048, 4096)).at(seed, step)        (12, 224)

Letters: N frames of the clip, T frames of a sample, V views.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np

from elastivid.core.errors import PointError
from elastivid.video.samplers import dense, segments, uniform


class FrameSampling(Protocol):
    """Chooses frames by index."""

    def draw(self, num_frames: int, count: int, rng: np.random.Generator) -> np.ndarray:
        """Indices (T,) for a training sample, ascending, within [0, num_frames)."""
        ...

    def views(self, num_frames: int, count: int, num_views: int) -> np.ndarray:
        """Indices (V, T) for test views that are spread over the clip."""
        ...


@dataclass(frozen=True)
class Uniform:
    """The centres of equal parts, always the same; test views look between each other's frames."""

    def draw(self, num_frames: int, count: int, rng: np.random.Generator) -> np.ndarray:
        """Indices (T,), without any use of `rng`."""
        return uniform(num_frames, count)

    def views(self, num_frames: int, count: int, num_views: int) -> np.ndarray:
        """Indices (V, T): of each of T parts, the centre of the v-th of V smaller parts."""
        every = uniform(num_frames, count * num_views)  # (T*V,)
        return every.reshape(count, num_views).T  # (V, T)


@dataclass(frozen=True)
class Segments:
    """One frame out of each of equal segments, its place drawn (TSN, arXiv 1608.00859)."""

    def draw(self, num_frames: int, count: int, rng: np.random.Generator) -> np.ndarray:
        """Indices (T,)."""
        return segments(num_frames, count, rng)

    def views(self, num_frames: int, count: int, num_views: int) -> np.ndarray:
        """As `Uniform.views`: one view is that of the centres."""
        return Uniform().views(num_frames, count, num_views)


@dataclass(frozen=True)
class Dense:
    """Neighbouring frames, `step_frames` apart, from a drawn start (Kinetics' usual 8 x 8 or 16 x 4).

    Clips that are too short repeat their last frame.
    """

    step_frames: int = 4

    def draw(self, num_frames: int, count: int, rng: np.random.Generator) -> np.ndarray:
        """Indices (T,)."""
        last = max(num_frames - ((count - 1) * self.step_frames + 1), 0)
        return dense(num_frames, count, self.step_frames, int(rng.integers(last + 1)))

    def views(self, num_frames: int, count: int, num_views: int) -> np.ndarray:
        """Indices (V, T): starts spread evenly from the first possible to the last; one view lies in the middle."""
        last = max(num_frames - ((count - 1) * self.step_frames + 1), 0)
        starts = np.linspace(0, last, num_views).round().astype(int) if num_views > 1 else [last // 2]
        return np.stack([dense(num_frames, count, self.step_frames, int(start)) for start in starts])  # (V, T)


@dataclass(frozen=True)
class Shapes:
    """Shapes that batches may have; each batch has one, drawn from (seed, step) alone.

    Every process and every resumed run so draws the same, and no batch holds clips of two shapes.

    Args:
        choices: (frames, side in pixels), equally likely.

    Raises:
        PointError: there is no choice.
    """

    choices: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if not self.choices or min(min(pair) for pair in self.choices) < 1:
            raise PointError(f"shapes are pairs of at least 1 frame and 1 pixel, and at least one, got {self.choices}")

    @classmethod
    def flexi(
        cls,
        frames: tuple[int, int, int],
        sizes: tuple[int, int, int],
        tokens: tuple[int, int],
        patch_size: int = 14,
    ) -> Shapes:
        """Flexi-sampling (FluxViT, arXiv 2503.14237): all pairs whose number of tokens lies within a range.

        Args:
            frames: first, last and step of the number of frames.
            sizes: first, last and step of the side in pixels.
            tokens: fewest and most tokens of a clip, both allowed.
            patch_size: side of a patch in pixels.

        Raises:
            PointError: no pair has that many tokens, or a side is no multiple of the patch size.
        """
        sides = range(sizes[0], sizes[1] + 1, sizes[2])
        if any(side % patch_size for side in sides):
            raise PointError(f"sides must be multiples of the patch size {patch_size}, got {list(sides)}")
        pairs = product(range(frames[0], frames[1] + 1, frames[2]), sides)
        fitting = tuple((t, s) for t, s in pairs if tokens[0] <= t * (s // patch_size) ** 2 <= tokens[1])
        if not fitting:
            raise PointError(
                f"no pair of frames {frames} and sizes {sizes} (first, last, step) has {tokens[0]} to {tokens[1]} "
                f"tokens of {patch_size} pixels; widen one of them"
            )
        return cls(fitting)

    def at(self, seed: int, step: int) -> tuple[int, int]:
        """Frames and side of the batch of a step."""
        if len(self.choices) == 1:
            return self.choices[0]
        return self.choices[int(np.random.default_rng((seed, 1, step)).integers(len(self.choices)))]
