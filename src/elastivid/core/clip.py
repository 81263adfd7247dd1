"""`Clip`: decoded frames together with where and when they come from.

Letters: T frames, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Clip:
    """Decoded frames of one source.

    Args:
        frames: uint8 array (T, H, W, C), channels in RGB order.
        indices: int64 array (T,), position of each frame in the sequentially decoded stream; -1 where unknown.
        times_seconds: float64 array (T,), presentation time of each frame.
        source: file or stream the frames came from.
        problem: empty when everything asked for was read; else says what is missing and why.

    Raises:
        TypeError: `frames` is not uint8.
        ValueError: the leading dimensions disagree or `frames` is not (T, H, W, C).
    """

    frames: np.ndarray
    indices: np.ndarray
    times_seconds: np.ndarray
    source: str = ""
    problem: str = ""

    def __post_init__(self) -> None:
        if self.frames.dtype != np.uint8:
            raise TypeError(f"Clip.frames must be uint8 as decoders give them, got {self.frames.dtype}")
        if self.frames.ndim != 4:
            raise ValueError(f"Clip.frames must have shape (T, H, W, C), got {self.frames.shape}")
        object.__setattr__(self, "indices", np.asarray(self.indices, dtype=np.int64))
        object.__setattr__(self, "times_seconds", np.asarray(self.times_seconds, dtype=np.float64))
        length = len(self.frames)
        if self.indices.shape != (length,) or self.times_seconds.shape != (length,):
            raise ValueError(
                f"Clip holds {length} frames, so indices and times_seconds must have shape ({length},); "
                f"got {self.indices.shape} and {self.times_seconds.shape}"
            )

    @property
    def is_partial(self) -> bool:
        """Whether something that was asked for could not be read; `problem` says what."""
        return bool(self.problem)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, key: slice | Sequence[int] | np.ndarray) -> Clip:
        """The frames at positions `key` (slice or list of positions) as a new clip."""
        if isinstance(key, int | np.integer):
            key = [int(key)]
        return Clip(self.frames[key], self.indices[key], self.times_seconds[key], self.source, self.problem)

    def __repr__(self) -> str:
        span = f"{self.times_seconds[0]:.3f}-{self.times_seconds[-1]:.3f} s" if len(self) else "no frames"
        shape = "x".join(str(n) for n in self.frames.shape)
        partial = f", partial: {self.problem}" if self.problem else ""
        return f"Clip({shape} uint8, {span}, source={self.source!r}{partial})"
