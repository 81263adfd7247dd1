"""`FluxClassifier`: a FluxViT with a pool and a classifier per token count (Flux-Multi, arXiv 2503.14237) as one model.

    head(K) = the one that was trained at the count nearest to K, as a ratio

Every head learned from clips of its own count. Published results are given at these counts alone; in between we take
the nearest head.

Letters: B clips, T frames, H W pixels, S side in pixels, P side of a patch, K tokens, D channels of a feature.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from elastivid.core.cost import Cost
from elastivid.core.output import Output
from elastivid.core.point import OperatingPoint, Sampling
from elastivid.core.state import State
from elastivid.models.fluxvit import FluxViT, FluxViTConfig
from elastivid.models.towers import hash_of_tensors
from elastivid.video.transforms import Transform


@dataclass(frozen=True)
class FluxClassifierConfig:
    """What such a classifier is made of.

    Args:
        encoder: sizes, with `num_pools` and `num_classes`.
        classes: names of the classes.
        token_counts: what each head was trained at, in the order of the heads.

    Raises:
        ValueError: names, counts and heads differ in number, a name occurs twice, or a count is below 1.
    """

    encoder: FluxViTConfig
    classes: tuple[str, ...]
    token_counts: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "token_counts", tuple(int(count) for count in self.token_counts))
        if len(self.classes) != self.encoder.num_classes or len(set(self.classes)) < len(self.classes):
            raise ValueError(
                f"the heads tell {self.encoder.num_classes} classes apart, so as many different names are needed, got "
                f"{len(self.classes)}: {self.classes}"
            )
        if len(self.token_counts) != self.encoder.num_pools or min(self.token_counts) < 1:
            raise ValueError(
                f"token_counts must be {self.encoder.num_pools} numbers >= 1, one per head, got {self.token_counts}"
            )

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> FluxClassifierConfig:
        """The config of a file that `flux_tune` left: its `config`, `classes` and `trained_tokens`."""
        return cls(FluxViTConfig(**metadata["config"]), metadata["classes"], metadata["trained_tokens"])

    def build(self) -> FluxClassifier:
        """An untrained classifier."""
        return FluxClassifier(self)

    @property
    def transform(self) -> Transform:
        """The middle square at the size of the position table, as `flux_tune` tests."""
        return Transform(size=self.encoder.image_size, shortest_edge=self.encoder.image_size)

    @property
    def frames(self) -> int:
        """Frames of the position table."""
        return self.encoder.num_frames

    @property
    def sampling(self) -> Sampling:
        """Windows of a video, with frames and size that the heads were trained at."""
        return Sampling(frames=self.frames, size=self.transform.size)

    @property
    def point(self) -> OperatingPoint:
        """What is spent where nobody says otherwise: the most tokens that a head was trained at."""
        most = max(self.token_counts)
        return OperatingPoint(tokens=most if most < math.prod(self.encoder.table_grid) else None)


class FluxClassifier(nn.Module):
    """See the module's text. Honours the axes of FluxViT."""

    def __init__(self, config: FluxClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder: FluxViT = config.encoder.build()

    @property
    def supported_axes(self) -> frozenset[str]:
        """Axes of an operating point that the encoder honours."""
        return self.encoder.supported_axes

    @property
    def weights_id(self) -> str:
        """Hash of the tensors as the file of the encoder holds them."""
        return hash_of_tensors(self.encoder)

    def head_at(self, tokens: int) -> int:
        """Number of the head for clips of `tokens` tokens; of two as near the one of more."""
        counts = self.config.token_counts
        return min(range(len(counts)), key=lambda i: (abs(math.log(counts[i] / tokens)), -counts[i]))

    def forward(self, video: Tensor, *, point: OperatingPoint | None = None, state: State | None = None) -> Output:
        """Classify clips; arguments, results and errors as `FluxViT.forward`, with the head that fits the tokens."""
        _, frames, _, height, width = video.shape  # (B, T, 3, H, W)
        patch = self.config.encoder.patch_size
        tokens = point.tokens if point and point.tokens else frames * (height // patch) * (width // patch)
        return self.encoder(video, point=point, state=state, head=self.head_at(max(tokens, 1)))

    def cost(self, *, frames: int, size: int, point: OperatingPoint | None = None) -> Cost:
        """Predicted cost of one clip of `frames` squares of `size` pixels; one head of all runs."""
        point = point or OperatingPoint()
        return self.config.encoder.cost(frames=frames, size=size, tokens=point.tokens, width=point.width)
