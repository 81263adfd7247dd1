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

    @property
    def logit_scale(self) -> float:
        """Factor that training put on cosines."""
        return float(self.log_scale.detach().exp())

    @property
    def space_id(self) -> str:
        """First 16 hexadecimal digits of the hash of every tensor, its name included."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def embed_clips(self, video: Tensor, *, point: OperatingPoint | None = None) -> Tensor:
        """Unit vectors (B, D) of clips (B, T, 3, H, W); a budget above the tokens at hand keeps them all."""
        point = point or OperatingPoint()
        if point.tokens is not None:
            p = self.config.video.patch_size
            available = video.shape[1] * (video.shape[3] // p) * (video.shape[4] // p)
            if point.tokens >= available:
                point = replace(point, tokens=None, selector=None)
        return F.normalize(self.video(video, point=point).embedding, dim=-1)

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
