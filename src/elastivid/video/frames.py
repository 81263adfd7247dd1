"""Decoded frames (any pixel format, any orientation) -> RGB uint8 arrays.

Letters: H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from elastivid.video.source import orientation

FrameSize = int | tuple[int, int] | Callable[[int, int], tuple[int, int]]


class FrameConverter:
    """Converts frames of one stream to RGB of one size, and turns them upright.

    Args:
        size: `None` keeps the size of the first frame; one int makes a square, else (height, width), or a function
            from the upright height and width of the first frame to those of the converted ones.
        filter: "bilinear" or "bicubic", both antialiased.

    Raises:
        ValueError: `size` is not positive.
    """

    def __init__(self, size: FrameSize | None, filter: str = "bilinear") -> None:
        self._shape: tuple[int, int] | None = None
        self._rule = size if callable(size) else None
        self._filter = filter.upper()
        if size is not None and not callable(size):
            height, width = (size, size) if isinstance(size, int) else size
            if height < 1 or width < 1:
                raise ValueError(f"size must be None, a positive int or (height, width), got {size}")
            self._shape = (int(height), int(width))
        self._turns, self._mirrored = 0, False
        self.ready = False
        self._reformatter = VideoReformatter()

    def prepare(self, first: VideoFrame) -> None:
        """Take orientation, and where it was left open the size, from the first frame of the stream."""
        self._turns, self._mirrored = orientation(first)
        if self._shape is None:
            upright = (first.width, first.height) if self._turns % 2 else (first.height, first.width)
            self._shape = self._rule(*upright) if self._rule else upright
        self.ready = True

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of converted frames."""
        assert self._shape is not None
        return self._shape

    def __call__(self, frame: VideoFrame, out: np.ndarray | None = None) -> np.ndarray:
        """RGB of `frame`: uint8 (H, W, 3), written to `out` when given."""
        height, width = self.shape
        if out is None:
            out = np.empty((height, width, 3), dtype=np.uint8)
        if self._turns % 2:
            height, width = width, height
        rgb = self._reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation=self._filter, threads=1
        )
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), dtype=np.uint8, count=height * plane.line_size)
        pixels = rows.reshape(height, plane.line_size)[:, : 3 * width].reshape(height, width, 3)  # (H, W, 3)
        if self._mirrored:
            pixels = pixels[:, ::-1]
        if self._turns or self._mirrored:
            turned = np.rot90(pixels, self._turns)
            for channel in range(3):  # five times faster than turning three-byte pixels at once
                out[..., channel] = turned[..., channel]
        else:
            np.copyto(out, pixels)
        return out
