"""A FluxViT and a text tower that share one space: what `nano` is.

    cosine(clip, text) = <pool(fluxvit(clip)), text_tower(text)>   on unit vectors

One pool and one projection serve every token count, so vectors made at different operating points can be
compared (arXiv 2503.14237 trains its retrieval models likewise; its classifiers hold one pool per count).

Letters: B batch, T frames, H W pixels, D channels of the space.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastivid.core.cost import Cost
from elastivid.core.errors import PointError
from elastivid.core.point import OperatingPoint
from elastivid.layers.elastic import copy_first
from elastivid.models.base import DualEncoder
from elastivid.models.fluxvit import PRESETS as FLUXVIT
from elastivid.models.fluxvit import FluxViT, FluxViTConfig
from elastivid.models.text import TextConfig, TextTower
from elastivid.video.transforms import Transform


@dataclass(frozen=True)
class FluxDualConfig:
    """Sizes of the two towers; `video.pool_dim` must equal `text.output_dim`, the channels of the space."""

    video: FluxViTConfig = field(default_factory=lambda: FLUXVIT["nano"])
    text: TextConfig = field(default_factory=TextConfig)

    def __post_init__(self) -> None:
        if self.video.pool_dim != self.text.output_dim:
            raise ValueError(
                f"both towers must end in the same number of channels, got video.pool_dim={self.video.pool_dim} "
                f"and text.output_dim={self.text.output_dim}"
            )

    def build(self) -> FluxDual:
        """An untrained video tower beside the distilled text tower that the package ships."""
        tower = TextTower.from_file(output_dim=self.video.pool_dim)
        model = FluxDual(replace(self, text=tower.config))
        model.text = tower
        return model


class FluxDual(DualEncoder):
    """FluxViT for clips and images, `TextTower` for texts. `FluxDualConfig.build` gives one ready to train.

    Args:
        config: sizes of both towers.
        transform: what turns frames into input; by default a resize to the video tower's `image_size`.
        name: address the model goes by.
    """

    supported_axes: ClassVar[frozenset[str]] = FluxViT.supported_axes

    def __init__(self, config: FluxDualConfig, transform: Transform | None = None, name: str = "dual/nano") -> None:
        super().__init__()
        self.config = config
        self.name = name
        self.dim = config.video.pool_dim
        self.prefix_dims = (self.dim,)
        self.transform = transform or Transform(size=config.video.image_size)
        self.video = config.video.build()
        self.text = config.text.build()
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self._joined: tuple[str, str] | None = None  # own weights when derived, space of the model they come from

    @property
    def logit_scale(self) -> float:
        """Factor that training put on cosines."""
        return float(self.log_scale.detach().exp())

    @property
    def weights_id(self) -> str:
        """First 16 hexadecimal digits of the hash of every tensor, its name included."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

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
    def at(self, point: OperatingPoint) -> FluxDual:
        """See `VideoEncoder.at`: a narrower video tower, the same text tower, both copies; the space stays the same."""
        video = self.video.at(point)
        with torch.device("meta"):
            small = FluxDual(replace(self.config, video=video.config), self.transform, self.name)
        small.video = video
        small.text = small.text.to_empty(device=self.log_scale.device)
        small.log_scale = nn.Parameter(self.log_scale.detach().clone())
        copy_first(self.text, small.text)
        small.licence = self.licence
        small.join_space(self.space_id)
        return small.train(self.training)

    def cast(self, precision: str) -> FluxDual:
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
        """Unit vectors (B, D) float32 of clips (B, T, 3, H, W); a budget above the tokens at hand keeps them all."""
        point = point or OperatingPoint()
        if point.tokens is not None:
            p = self.config.video.patch_size
            available = video.shape[1] * (video.shape[3] // p) * (video.shape[4] // p)
            if point.tokens >= available:
                point = replace(point, tokens=None, selector=None)
        return F.normalize(self.video(video, point=point).embedding.float(), dim=-1)

    def embed_images(self, images: Tensor, *, point: OperatingPoint | None = None) -> Tensor:
        """Unit vectors (B, D) of images (B, 3, H, W), each a clip of one frame."""
        if images.ndim != 4:
            raise PointError(f"images must have shape (B, 3, H, W), got {tuple(images.shape)}")
        return self.embed_clips(images[:, None], point=point)  # (B, 1, 3, H, W)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (B, D) of texts."""
        ids, lengths = self.text.tokenize(list(texts))
        return F.normalize(self.text(ids, lengths), dim=-1)

    def cost(self, *, frames: int, size: int, point: OperatingPoint | None = None) -> Cost:
        """Closed-form cost of one clip."""
        point = point or OperatingPoint()
        available = frames * (size // self.config.video.patch_size) ** 2
        tokens = min(point.tokens or available, available)
        return self.config.video.cost(frames=frames, size=size, tokens=tokens, width=point.width)


PRESETS = {"nano": FluxDualConfig()}
