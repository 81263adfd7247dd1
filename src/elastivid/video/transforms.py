"""`Transform`: decoded frames -> model input. It travels with the weights.

Letters: T frames, H height, W width, S side of the model input.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from fractions import Fraction
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
    """Resize, scale to [0, 1], subtract `mean`, divide by `std`.

    By default the whole picture is squeezed into a square. `shortest_edge` keeps the aspect and cuts out the middle;
    `patch_size` and `max_patches` keep the aspect and the whole picture, so the input is no square (NaFlex, arXiv
    2502.14786). Resizing works on bytes, as Pillow does: equal in 98 % of pixels, else off by a grey level or two.

    Args:
        size: side of the square in pixels; with `max_patches` that of a square picture.
        mean: per channel (red, green, blue), in units of [0, 1].
        std: per channel, in units of [0, 1].
        filter: "bilinear" or "bicubic", both antialiased; used when the frames are not of that size yet.
        shortest_edge: resize the shorter side to this many pixels, then keep the middle square of `size`.
        patch_size: side of a patch: both sides of the input are multiples of it.
        max_patches: the input has as many patches as fit under this.

    Raises:
        PointError: a value is out of range, or two rules of size contradict each other.
        UnknownNameError: `filter` is not known.
    """

    size: int = 168
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    filter: str = "bilinear"
    shortest_edge: int | None = None
    patch_size: int | None = None
    max_patches: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        if self.size < 1:
            raise PointError(f"Transform.size must be >= 1 pixel, got {self.size}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise PointError(f"Transform needs 3 means and 3 positive stds, got mean={self.mean}, std={self.std}")
        if self.filter not in FILTERS:
            raise UnknownNameError("resize filter", self.filter, FILTERS)
        if self.shortest_edge is not None and self.shortest_edge < self.size:
            raise PointError(
                f"Transform.shortest_edge must be at least size {self.size}, got {self.shortest_edge}: "
                "the middle square is cut out of the resized picture"
            )
        patches = (self.patch_size, self.max_patches)
        if (patches[0] is None) != (patches[1] is None) or min(p or 1 for p in patches) < 1:
            raise PointError(f"patch_size and max_patches must both be None or both >= 1, got {patches}")
        if self.patch_size is not None and self.shortest_edge is not None:
            raise PointError("a Transform has either shortest_edge or patch_size with max_patches, got both")

    def frame_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to which a picture is resized, before the middle is cut out.

        A decoder that hands over frames of this size spares the transform all resizing.
        """
        if self.shortest_edge is not None:
            short, long = sorted((height, width))
            longer = self.shortest_edge * long // short
            return (self.shortest_edge, longer) if height <= width else (longer, self.shortest_edge)
        if self.patch_size is not None and self.max_patches is not None:
            rows, columns = _most_patches(height, width, self.max_patches)
            return rows * self.patch_size, columns * self.patch_size
        return self.size, self.size

    def crop(self, pictures: Any) -> Any:
        """The part (..., S, S, 3) of resized pictures (..., H, W, 3) that the model sees, as a view."""
        if self.shortest_edge is None:
            return pictures
        top, left = (pictures.shape[-3] - self.size) // 2, (pictures.shape[-2] - self.size) // 2
        return pictures[..., top : top + self.size, left : left + self.size, :]

    def squared(self, size: int) -> Transform:
        """The same for a square input of `size` pixels: what a decoder has to know to hand over pictures of one size.

        A rule that keeps the aspect without cropping gives way to squeezing.
        """
        edge = None if self.shortest_edge is None else round(self.shortest_edge * size / self.size)
        return replace(self, size=size, shortest_edge=edge, patch_size=None, max_patches=None)

    def __call__(self, frames: np.ndarray) -> torch.Tensor:
        """Model input of a clip.

        Args:
            frames: uint8 (T, H, W, 3), RGB.

        Returns:
            float32 (T, 3, S, S); with `max_patches` (T, 3, rows * patch_size, columns * patch_size).

        Raises:
            PointError: `frames` is not uint8 of that shape.
        """
        import torch
        from torch.nn.functional import interpolate

        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise PointError(f"Transform takes uint8 frames (T, H, W, 3), got {frames.dtype} {frames.shape}")
        video = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)  # (T, 3, H, W) uint8
        size = self.frame_size(*video.shape[-2:])
        if video.shape[-2:] != size:
            video = interpolate(video, size, mode=self.filter, antialias=True)  # (T, 3, *size)
        video = self.crop(video.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (T, 3, S, S)
        scale = 1.0 / (255.0 * torch.tensor(self.std))
        offset = -torch.tensor(self.mean) / torch.tensor(self.std)
        shape = (1, 3, 1, 1)
        out = video.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        return out.mul_(scale.view(shape)).add_(offset.view(shape))

    def normalised(self, frames: torch.Tensor) -> torch.Tensor:
        """Model input of frames that have the right size already: uint8 (..., T, H, W, 3) to float32 (..., T, 3, H, W).

        On the device of `frames`, a whole batch at once; what training does, whose samples are cut out before.
        """
        import torch

        mean, std = (torch.tensor(v, device=frames.device).view(3, 1, 1) for v in (self.mean, self.std))
        video = frames.movedim(-1, -3).to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        return video.mul_(1.0 / (255.0 * std)).sub_(mean / std)

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


def _most_patches(height: int, width: int, most: int) -> tuple[int, int]:
    """Rows and columns of patches at the largest scale at which a picture covers at most `most` of them.

    At scale s (patches per pixel) a picture takes ceil(s height) rows and ceil(s width) columns. Both only change
    where one of them is whole, so those scales are all that need trying; in whole numbers nothing is rounded.
    """
    best = Fraction(0)
    for count in range(1, most + 1):
        if count * -(-width * count // height) <= most:
            best = max(best, Fraction(count, height))
        if count * -(-height * count // width) <= most:
            best = max(best, Fraction(count, width))
    return -(-height * best.numerator // best.denominator), -(-width * best.numerator // best.denominator)
