"""The roles a model can play. Small abstract classes; concrete models are final.

Letters: B batch, T frames, C channels, H W pixels, D channels of an embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from elastivid.core.errors import PointError
from elastivid.core.output import Output
from elastivid.core.point import OperatingPoint, Runtime
from elastivid.core.state import State
from elastivid.layers.elastic import copy_first

if TYPE_CHECKING:
    from elastivid.core.cost import Cost
    from elastivid.video.transforms import Transform


class VideoEncoder(nn.Module, ABC):
    """Maps clips to embeddings and tokens at any operating point it supports."""

    supported_axes: ClassVar[frozenset[str]]
    config: Any

    @abstractmethod
    def forward(self, video: Tensor, *, point: OperatingPoint | None = None, state: State | None = None) -> Output:
        """Encode `video` (B, T, C, H, W), float, already through the model's transform."""

    def at(self, point: OperatingPoint) -> Self:
        """A model of its own that holds only what `point`'s width uses, as dense copies; see docs/elastic.md.

        Its `config`, whose `widths` say what each block holds, rebuilds it around its state dict. It computes what
        this model computes at that width. Tokens and selector stay arguments of its `forward`.

        Raises:
            PointError: `point` has an axis the family lacks or a width it cannot have.
        """
        small: Self = cut(self, point)
        return small

    def cast(self, precision: str) -> Self:
        """Hold the weights in `precision` (see `Runtime`) from now on: in place, and returns the model.

        Input of any floating type is accepted then. Casting weights is faster than autocast, which converts them on
        every call and leaves the norms in float32.

        Raises:
            PointError: there is no such precision.
        """
        return self.to(dtype_of(precision))


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

    def has_word(self, word: str) -> bool:
        """Whether the tokenizer has an entry for `word`; true where that is not known."""
        return True

    def at(self, point: OperatingPoint) -> Self:
        """A model of its own with only what `point`'s width uses; its vectors stay in this model's space.

        Raises:
            PointError: the model cannot be cut.
        """
        raise PointError(f"{self.name} has no width to cut; run it as it is")

    def cast(self, precision: str) -> Self:
        """Embed clips and images with weights in `precision` from now on, in place; the space stays the same.

        Raises:
            PointError: the model cannot run in that precision.
        """
        if precision != "float32":
            raise PointError(f"{self.name} runs in float32 only, got {precision!r}")
        return self

    @abstractmethod
    def cost(self, *, frames: int, size: int, point: OperatingPoint | None = None) -> Cost:
        """Predicted cost of embedding one clip of `frames` squares of `size` pixels."""


@torch.no_grad()
def cut(model: Any, point: OperatingPoint) -> Any:
    """What `VideoEncoder.at` does, for any module with `supported_axes` and a `config` that has `widths_at`."""
    point.require_axes(model.supported_axes, type(model).__name__)
    config = model.config
    if point.width is not None:
        config = replace(config, widths=config.widths_at(point.width))
    parameter = next(model.parameters())
    with torch.device("meta"):  # neither memory nor random numbers for values that are overwritten
        small = config.build()
    small = small.to(parameter.dtype).to_empty(device=parameter.device)
    copy_first(model, small)
    return small.train(model.training)


def dtype_of(precision: str) -> torch.dtype:
    """torch's type for a precision of `Runtime`, such as "bfloat16".

    Raises:
        PointError: there is no such precision.
    """
    return getattr(torch, Runtime(precision=precision).precision)
