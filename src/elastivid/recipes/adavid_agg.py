"""Train AdaVid-Agg: segments of a long video to one vector, over a clip encoder that stays as it is (arXiv 2504.12513).

    elastivid train adavid_contrastive --out runs/ego ...
    elastivid train adavid_agg --out runs/agg --set encoder=runs/ego/model.safetensors --set videos=summaries.csv

Every video is cut into equal segments, the frozen encoder turns each into a unit vector of its space, and an adaptive
transformer makes one of them, at a width drawn per block, that finds the video's summary among those of the batch
(InfoNCE; the temperature is the encoder's).

Full scale, as far as it is published: 12 blocks of 768 channels over 16 segments, widths 768, 576, 384 and 192, the
encoder of `adavid_contrastive`. Optimiser and schedule are open in the paper; the defaults are ours. `videos` is a list
with the columns path and text; without it, films of several scenes are rendered and described scene by scene.
Segments are encoded anew in every step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from elastivid.core.point import OperatingPoint
from elastivid.data.captions import canonical_caption
from elastivid.data.clips import ClipStream
from elastivid.data.render import render_frames
from elastivid.data.sampling import Shapes
from elastivid.data.staging import compose_parts, sample_content
from elastivid.layers.elastic import sample_widths
from elastivid.losses.contrastive import contrastive
from elastivid.losses.gather import gathered
from elastivid.models.adavid import PRESETS, AdaVidAgg, AdaVidAggConfig, AdaVidDual, segment_features
from elastivid.recipes._captioned import (
    SCENE_SECONDS,
    Captioned,
    ListedCaptions,
    collate_captioned,
    number_of,
)
from elastivid.train.recipe import Exported, Recipe, RecipeConfig, Row
from elastivid.train.stages import Stage, TrainingError
from elastivid.weights.load import build, load

FRESH_SEED = 1_000_003  # of the films of an evaluation, which training never draws


@dataclass(frozen=True)
class AdaVidAggRecipeConfig(RecipeConfig):
    """Settings of `adavid_agg`.

    Args:
        model: sizes of the aggregator; `feature_dim` is the space of the encoder.
        widths: what a block may be run at.
        segments: segments of a video, at most `model.num_segments`.
        frames_per_segment, size: what the encoder sees of a segment; `size` in pixels.
        encoder: weights file of an `AdaVidDual`; `None` takes untrained tiny towers, which shows that all works.
        videos: list of videos with summaries; `None` renders them.
        cache: folder of the quarantine of `videos`.
        steps, learning_rate: of the one stage.
        films: rendered films of an evaluation.
    """

    batch_size: int = 256
    num_workers: int = 8
    model: AdaVidAggConfig = field(default_factory=AdaVidAggConfig)
    widths: tuple[int, ...] = (768, 576, 384, 192)
    segments: int = 16
    frames_per_segment: int = 4
    size: int = 224
    encoder: Path | None = None
    videos: Path | None = None
    cache: Path = Path("runs")
    steps: int = 10_000
    learning_rate: float = 1e-4
    films: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.segments <= self.model.num_segments:
            raise ValueError(f"segments must be 1 to model.num_segments {self.model.num_segments}, got {self.segments}")


class Films:
    """Rendered films of several scenes of 4 s, described scene by scene, a `Source`."""

    def __init__(self, scenes: int) -> None:
        self.scenes = scenes

    def draw(self, position: int, seed: int, shape: tuple[int, int]) -> Captioned:
        """The film at a position: a function of (seed, position)."""
        rng = np.random.default_rng((seed, position))
        contents = tuple(sample_content(rng, "train", "single") for _ in range(self.scenes))
        scene = compose_parts(contents, rng, aspect=1.0)
        times = (np.arange(shape[0]) + 0.5) * self.scenes * SCENE_SECONDS / shape[0]
        text = ", ".join(canonical_caption(content) for content in contents)
        return Captioned(render_frames(scene, times, shape[1]), text, number_of(text))


class OverFrozen(nn.Module):
    """The aggregator and the encoder that it reads."""

    def __init__(self, encoder: AdaVidDual, agg: AdaVidAgg) -> None:
        super().__init__()
        self.encoder, self.agg = encoder, agg


class AdaVidAggRecipe(Recipe):
    """See the module's text."""

    config_class = AdaVidAggRecipeConfig
    config: AdaVidAggRecipeConfig

    @classmethod
    def smoke(cls, config: AdaVidAggRecipeConfig) -> AdaVidAggRecipeConfig:
        """Tiny everything, three segments, a few steps."""
        tiny = PRESETS["agg-tiny"]
        assert isinstance(tiny, AdaVidAggConfig)
        return replace(
            config, batch_size=8, num_workers=0, model=tiny, widths=(48, 32, 16), segments=3, frames_per_segment=2,
            size=70, steps=6, learning_rate=1e-3, films=8, log_every=2,
        )  # fmt: skip

    def build(self) -> nn.Module:
        """The frozen encoder and an untrained aggregator."""
        config = self.config
        encoder = build("adavid/egovlp-tiny") if config.encoder is None else load(str(config.encoder))
        if not isinstance(encoder, AdaVidDual):
            raise TrainingError(f"encoder must hold an AdaVidDual, {config.encoder} holds a {type(encoder).__name__}")
        if encoder.dim != config.model.feature_dim:
            raise TrainingError(
                f"model.feature_dim must be the encoder's {encoder.dim}, got {config.model.feature_dim}"
            )
        return OverFrozen(encoder, config.model.build())

    def stages(self) -> tuple[Stage, ...]:
        """One stage, the aggregator alone."""
        steps = self.config.steps
        return (
            Stage("aggregate", steps, self.config.learning_rate, warmup_steps=steps // 20, final_share=0.01,
                  trained=("agg.*",)),
        )  # fmt: skip

    def dataset(self, stage: Stage) -> Dataset:
        """Videos with summaries; the frames of all segments in a row."""
        config = self.config
        source: Any = Films(config.segments)
        if config.videos is not None:
            source = ListedCaptions(config.videos, config.cache, config.size * 8 // 7)
        shapes = Shapes(((config.segments * config.frames_per_segment, config.size),))
        return ClipStream(source, shapes, config.batch_size, config.seed)

    def collate(self, samples: Sequence[Captioned]) -> dict[str, Any]:
        """See `collate_captioned`."""
        return collate_captioned(samples)

    def _vectors(self, module: OverFrozen, batch: Any) -> tuple[Tensor, Tensor]:
        """Segments (B, S, E) and summaries (B, E) in the encoder's space, without gradient."""
        with torch.no_grad():
            video = module.encoder.transform.normalised(batch["frames"])  # (B, S*T, 3, H, W)
            features = segment_features(module.encoder, video.unflatten(1, (self.config.segments, -1)), at_once=64)
            return features, module.encoder.embed_texts(batch["texts"])

    def step(
        self, module: nn.Module, batch: Any, stage: Stage, draws: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """InfoNCE against summaries at drawn widths."""
        assert isinstance(module, OverFrozen)
        features, texts = self._vectors(module, batch)
        point = OperatingPoint(width=sample_widths(draws, self.config.model.depth, self.config.widths))
        vectors = gathered(F.normalize(module.agg(features, point=point).embedding.float(), dim=-1))  # (B, E)
        texts, actions = gathered(texts), gathered(batch["actions"])
        loss = contrastive(vectors, texts, module.encoder.logit_scale, same=actions[:, None] == actions[None])
        found = (vectors @ texts.T).argmax(1)
        return loss, {"right_text": (actions[found] == actions).float().mean()}

    def evaluate(self, module: nn.Module) -> list[Row]:
        """R@1 of summaries among fresh rendered films, both ways, at every width and with no aggregator at all."""
        assert isinstance(module, OverFrozen)
        config, device = self.config, next(module.parameters()).device
        films, shape = Films(config.segments), (config.segments * config.frames_per_segment, config.size)
        parts = []
        for start in range(0, config.films, 8):
            drawn = [films.draw(k, FRESH_SEED, shape) for k in range(start, min(start + 8, config.films))]
            batch = collate_captioned(drawn)
            parts.append(self._vectors(module, {**batch, "frames": batch["frames"].to(device)}))
        features, texts = (torch.cat(part) for part in zip(*parts, strict=True))  # (N, S, E), (N, E)
        encoding = module.encoder.cost(frames=config.frames_per_segment, size=config.size).gmacs * config.segments
        rows = [{"point": "mean of the segments", "gmacs": encoding, **_recall(features.mean(1), texts)}]
        for width in config.widths:
            vectors = module.agg(features, point=OperatingPoint(width=width)).embedding
            gmacs = encoding + config.model.cost(segments=config.segments, width=width).gmacs
            rows.append({"point": f"width {width}", "gmacs": gmacs, **_recall(vectors, texts)})
        return rows

    def exported(self, module: nn.Module) -> Exported:
        """The aggregator, with the space that it lives in."""
        assert isinstance(module, OverFrozen)
        measured = {"trained_widths": list(self.config.widths), "space_id": module.encoder.space_id}
        return Exported(module.agg, measured=measured)


def _recall(vectors: Tensor, texts: Tensor) -> dict[str, float]:
    """R@1 both ways and their mean, of (N, E) and (N, E) whose rows belong together."""
    cosines = F.normalize(vectors, dim=-1) @ F.normalize(texts, dim=-1).T  # (N, N)
    own = torch.arange(len(cosines), device=cosines.device)
    ways = [float((c.argmax(1) == own).float().mean()) for c in (cosines, cosines.T)]
    return {"accuracy": sum(ways) / 2, "video_to_text": ways[0], "text_to_video": ways[1]}


RECIPE = AdaVidAggRecipe
