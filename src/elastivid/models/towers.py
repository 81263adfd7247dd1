"""`TwoTowers`: what our own dual encoders share, whatever their towers: one space, also for narrower or rounder copies.

    weights_id = hash of every tensor;  space_id = weights_id of the whole model in float32

Letters: B batch, T frames, H W pixels, D channels of the space.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastivid.core.cost import Cost
from elastivid.core.errors import PointError
from elastivid.core.point import OperatingPoint
from elastivid.models.base import DualEncoder, VideoEncoder
from elastivid.video.transforms import Transform


class TwoTowers(DualEncoder):
    """A video tower and a text tower of ours that end in the same space.

    A subclass sets `config_class` and, in its constructor, `video`, `text`, and what training needs beside them. Its
    config has the fields `video` and `text`, `dim` (channels D), and `from_dict`, which undoes `dataclasses.asdict`.

    Args:
        config: sizes of both towers.
        transform: what turns frames into input.
        name: address the model goes by.
    """

    config_class: ClassVar[Any]
    video: VideoEncoder
    text: nn.Module

    def __init__(self, config: Any, transform: Transform, name: str) -> None:
        super().__init__()
        self.config = config
        self.transform = transform
        self.dim = config.dim
        self.prefix_dims = (self.dim,)
        self.name = name
        self._joined: tuple[str, str] | None = None  # own weights when derived, space of the model they come from

    @property
    def weights_id(self) -> str:
        """First 16 hexadecimal digits of the hash of every tensor, its name included."""
        return hash_of_tensors(self)

    @property
    def space_id(self) -> str:
        """`weights_id` of the whole model in float32, for `at` and `cast` as well: their vectors lie in its space.

        Any other change of a weight makes a space of its own.
        """
        own = self.weights_id
        return self._joined[1] if self._joined and self._joined[0] == own else own

    def join_space(self, space_id: str) -> None:
        """Declare that this model with its weights of now embeds into the space of the model it was derived from."""
        self._joined = (self.weights_id, space_id)

    @torch.no_grad()
    def at(self, point: OperatingPoint) -> Self:
        """See `VideoEncoder.at`: a narrower video tower, the same text tower, both copies; the space stays the same."""
        video = self.video.at(point)
        with torch.device("meta"):
            small = type(self)(replace(self.config, video=video.config), self.transform, self.name)
        small.video = nn.Module()  # type: ignore[assignment]  # so that no memory is made for it
        small = small.to_empty(device=next(self.parameters()).device)
        for name, value in small.state_dict().items():
            value.copy_(self.state_dict()[name])
        small.video = video
        small.licence = self.licence
        small.join_space(self.space_id)
        return small.train(self.training)

    def cast(self, precision: str) -> Self:
        """Hold the video tower's weights in `precision` from now on, in place; returns the model.

        The text tower stays in float32: it costs next to nothing. The space stays the same; how far vectors move is
        measured in docs/benchmarks/elastic.md.

        Raises:
            PointError: there is no such precision.
        """
        space_id = self.space_id
        self.video.cast(precision)
        self.join_space(space_id)
        return self

    def embed_clips(self, video: Tensor, *, point: OperatingPoint | None = None) -> Tensor:
        """Unit vectors (B, D) float32 of clips (B, T, 3, H, W)."""
        return F.normalize(self.video(video, point=point).embedding.float(), dim=-1)

    def embed_images(self, images: Tensor, *, point: OperatingPoint | None = None) -> Tensor:
        """Unit vectors (B, D) of images (B, 3, H, W), each a clip of one frame."""
        if images.ndim != 4:
            raise PointError(f"images must have shape (B, 3, H, W), got {tuple(images.shape)}")
        return self.embed_clips(images[:, None], point=point)  # (B, 1, 3, H, W)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (B, D) of texts."""
        ids, lengths = self.text.tokenize(list(texts))  # type: ignore[operator]
        return F.normalize(self.text(ids, lengths), dim=-1)

    def has_word(self, word: str) -> bool:
        """Whether the tokenizer has an entry for `word`; else it is only spelled from pieces."""
        known: bool = self.text.tokenizer.has_word(word)  # type: ignore[union-attr, operator]
        return known

    def cost(self, *, frames: int, size: int, point: OperatingPoint | None = None) -> Cost:
        """Closed-form cost of one clip.

        Raises:
            PointError: the point has an axis the video tower lacks.
        """
        point = point or OperatingPoint()
        point.require_axes(self.supported_axes, type(self).__name__)
        cost: Cost = self.config.video.cost(frames=frames, size=size, tokens=point.tokens, width=point.width)
        return cost


def hash_of_tensors(module: nn.Module) -> str:
    """First 16 hexadecimal digits of the hash of every tensor of a module, its name included."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
