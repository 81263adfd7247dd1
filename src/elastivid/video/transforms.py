"""`Transform`: decoded frames -> model input. It travels with the weights.

Letters: T frames, H height, W width, S side of the model input.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from elastivid.core.errors import PointError, UnknownNameError

if TYPE_CHECKING:
    import torch

FILTERS = ("bilinear", "bicubic")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Transform:
    """Resize to a square, scale to [0, 1], subtract `mean`, divide by `std`. The whole picture is kept: no crop.

    Args:
        size: side of the square in pixels.
        mean: per channel (red, green, blue), in units of [0, 1].
        std: per channel, in units of [0, 1].
        filter: "bilinear" or "bicubic", both antialiased; used when the frames are not of that size yet.

    Raises:
        PointError: a value is out of range.
        UnknownNameError: `filter` is not known.
    """

    size: int = 168
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    filter: str = "bilinear"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        if self.size < 1:
            raise PointError(f"Transform.size must be >= 1 pixel, got {self.size}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise PointError(f"Transform needs 3 means and 3 positive stds, got mean={self.mean}, std={self.std}")
        if self.filter not in FILTERS:
            raise UnknownNameError("resize filter", self.filter, FILTERS)

    def __call__(self, frames: np.ndarray) -> torch.Tensor:
        """Model input of a clip.

        Args:
            frames: uint8 (T, H, W, 3), RGB.

        Returns:
            float32 (T, 3, S, S).

        Raises:
            PointError: `frames` is not uint8 of that shape.
        """
        import torch
        from torch.nn.functional import interpolate

        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise PointError(f"Transform takes uint8 frames (T, H, W, 3), got {frames.dtype} {frames.shape}")
        video = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)  # (T, 3, H, W) uint8
        if video.shape[-2:] != (self.size, self.size):
            size = (self.size, self.size)
            video = interpolate(video.float(), size, mode=self.filter, antialias=True).clamp_(0, 255)  # (T, 3, S, S)
        scale = 1.0 / (255.0 * torch.tensor(self.std))
        offset = -torch.tensor(self.mean) / torch.tensor(self.std)
        shape = (1, 3, 1, 1)
        out = video.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        return out.mul_(scale.view(shape)).add_(offset.view(shape))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; `from_dict` reverses it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Transform:
        """The transform that `to_dict` described.

        Raises:
            UnknownNameError: a key is not an argument of `Transform`.
        """
        known = set(cls.__dataclass_fields__)
        for key in values:
            if key not in known:
                raise UnknownNameError("Transform field", key, known)
        return cls(**values)
