"""The roles a model can play. Small abstract classes; concrete models are final.

Letters: B batch, T frames, C channels, H W pixels, D channels of an embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from elastivid.core.output import Output
from elastivid.core.point import OperatingPoint
from elastivid.core.state import State

if TYPE_CHECKING:
    from elastivid.core.cost import Cost
    from elastivid.video.transforms import Transform


class VideoEncoder(nn.Module, ABC):
    """Maps clips to embeddings and tokens at any operating point it supports."""

    supported_axes: ClassVar[frozenset[str]]

    @abstractmethod
    def forward(self, video: Tensor, *, point: OperatingPoint | None = None, state: State | None = None) -> Output:
        """Encode `video` (B, T, C, H, W), float, already through the model's transform."""


class DualEncoder(nn.Module, ABC):
    """Maps clips, images and texts into one space, where cosines compare them.

    Attributes:
        name: address the model was loaded from.
        dim: channels D of the space.
        prefix_dims: how many leading channels form a usable smaller space; the last entry is `dim`.
        transform: what turns decoded frames into model input; it travels with the weights.
        supported_axes: axes of an operating point that `embed_clips` honours.
        licence: what the weights state, as an SPDX expression or a hub's name; "unknown" when they state nothing.
    """

    name: str
    dim: int
    prefix_dims: tuple[int, ...]
    transform: Transform
    supported_axes: ClassVar[frozenset[str]]
    licence: str = "unknown"

    @property
    @abstractmethod
    def space_id(self) -> str:
        """Hash of everything that shapes the space. Vectors with different ids must not be compared."""

    @property
    @abstractmethod
    def logit_scale(self) -> float:
        """Factor that training put on cosines."""

    @abstractmethod
    def embed_clips(self, video: Tensor, *, point: OperatingPoint | None = None) -> Tensor:
        """Unit vectors (B, D) of clips (B, T, 3, H, W)."""

    @abstractmethod
    def embed_images(self, images: Tensor, *, point: OperatingPoint | None = None) -> Tensor:
        """Unit vectors (B, D) of images (B, 3, H, W)."""

    @abstractmethod
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (B, D) of texts."""

    @abstractmethod
    def cost(self, *, frames: int, size: int, point: OperatingPoint | None = None) -> Cost:
        """Predicted cost of embedding one clip of `frames` squares of `size` pixels."""
