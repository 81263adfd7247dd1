"""A FluxViT and a text tower that share one space: what `nano` is.

    cosine(clip, text) = <pool(fluxvit(clip)), text_tower(text)>   on unit vectors

One pool and one projection serve every token count, so vectors made at different operating points can be
compared (arXiv 2503.14237 trains its retrieval models likewise; its classifiers hold one pool per count).

Letters: B batch, T frames, H W pixels, D channels of the space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastivid.core.cost import Cost
from elastivid.core.point import OperatingPoint
from elastivid.models.fluxvit import PRESETS as FLUXVIT
from elastivid.models.fluxvit import FluxViT, FluxViTConfig
from elastivid.models.text import TextConfig, TextTower
from elastivid.models.towers import TwoTowers
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

    @property
    def dim(self) -> int:
        """Channels of the space."""
        return self.video.pool_dim

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FluxDualConfig:
        """Config from what `dataclasses.asdict` made of one; `TypeError` or `ValueError` where it is none."""
        return cls(video=FluxViTConfig(**values["video"]), text=TextConfig(**values["text"]))

    def build(self) -> FluxDual:
        """An untrained video tower beside the distilled text tower that the package ships."""
        tower = TextTower.from_file(output_dim=self.video.pool_dim)
        model = FluxDual(replace(self, text=tower.config))
        model.text = tower
        return model


class FluxDual(TwoTowers):
    """FluxViT for clips and images, `TextTower` for texts. `FluxDualConfig.build` gives one ready to train.

    Args:
        config: sizes of both towers.
        transform: what turns frames into input; by default a resize to the video tower's `image_size`.
        name: address the model goes by.
    """

    supported_axes: ClassVar[frozenset[str]] = FluxViT.supported_axes
    config_class = FluxDualConfig
    config: FluxDualConfig
    video: FluxViT
    text: TextTower

    def __init__(self, config: FluxDualConfig, transform: Transform | None = None, name: str = "dual/nano") -> None:
        super().__init__(config, transform or Transform(size=config.video.image_size), name)
        self.video = config.video.build()
        self.text = config.text.build()
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def logit_scale(self) -> float:
        """Factor that training put on cosines."""
        return float(self.log_scale.detach().exp())

    def embed_clips(self, video: Tensor, *, point: OperatingPoint | None = None) -> Tensor:
        """Unit vectors (B, D) float32 of clips (B, T, 3, H, W); a budget above the tokens at hand keeps them all."""
        point = point or OperatingPoint()
        available = video.shape[1] * (video.shape[3] // self._patch_size) * (video.shape[4] // self._patch_size)
        return super().embed_clips(video, point=_within(point, available))

    def embed_tokens(self, x: Tensor) -> Tensor:
        """Unit vectors (B, M, D) of single tokens (B, M, d): what the pool makes of each when it is alone.

        Brings tokens into the space of the texts, for `TextGuided(..., project=model.embed_tokens)`. Final tokens
        say more than patch embeddings do.
        """
        alone = self.video.pool_norm(self.video.pools[0](x.flatten(0, 1).unsqueeze(1)))  # (B*M, 1, d) -> (B*M, D)
        return F.normalize(alone.float(), dim=-1).unflatten(0, x.shape[:2])  # (B, M, D)

    def cost(self, *, frames: int, size: int, point: OperatingPoint | None = None) -> Cost:
        """Closed-form cost of one clip."""
        return super().cost(
            frames=frames, size=size, point=_within(point or OperatingPoint(), frames * (size // self._patch_size) ** 2)
        )

    @property
    def _patch_size(self) -> int:
        return self.config.video.patch_size


def _within(point: OperatingPoint, available: int) -> OperatingPoint:
    """`point`, or without selection where it asks for all the `available` tokens or more."""
    if point.tokens is None or point.tokens < available:
        return point
    return replace(point, tokens=None, selector=None)


PRESETS = {"nano": FluxDualConfig()}
