"""Train AdaVid-EgoVLP: a clip encoder at any width per block and a text tower in one space (arXiv 2504.12513).

    elastivid train adavid_contrastive --out runs/ego --set clips=egoclip.csv --processes 32
    elastivid train adavid_contrastive --out runs/ego-dec --set decreasing=true ...

Every step draws a width for every block, each by itself or, with `decreasing`, in schedules that never grow with depth
(the paper's *-dec* model), and minimises EgoNCE (arXiv 2206.01670): a clip finds all texts of the batch that name its
action, and every sample brings a second clip from nearby in the same video as a negative.

Full scale, as far as it is published: divided attention over 4 frames of 224 px in patches of 16, DistilBERT, a space
of 256 channels, temperature 0.05, widths 768, 576, 384 and 192, start from EgoVLP's weights (`init`). The paper leaves
optimiser and schedule open; the defaults are EgoVLP's: AdamW at 3e-5, 512 samples a step over 3.8 million clips of
EgoClip, 10 epochs. `clips` is a list with the columns path, text, source and the times (docs of
`elastivid.data.listing`); it has no verbs and nouns, so texts that are equal count as the same action, and the nearby
clip is the next one of the same source. Without `clips` the samples are rendered: two moments of one scene, actions by
thing and motion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from elastivid.core.point import OperatingPoint
from elastivid.data.clips import ClipStream
from elastivid.data.sampling import Shapes
from elastivid.layers.elastic import sample_widths
from elastivid.losses.contrastive import egonce
from elastivid.losses.gather import gathered
from elastivid.models.adavid import PRESETS, AdaVidDual, AdaVidDualConfig
from elastivid.recipes._captioned import (
    Captioned,
    CaptionedMoments,
    ListedCaptions,
    choice_rows,
    collate_captioned,
    number_of,
)
from elastivid.train.checkpoint import load_weights
from elastivid.train.recipe import Exported, Recipe, RecipeConfig, Row
from elastivid.train.stages import Stage


@dataclass(frozen=True)
class AdaVidContrastiveConfig(RecipeConfig):
    """Settings of `adavid_contrastive`.

    Args:
        model: sizes of both towers.
        widths: what a block may be run at.
        decreasing: draw schedules that never grow with depth.
        full_width: train the ordinary model, at full width only: the baseline.
        clips: list of clips with texts; `None` renders them.
        cache: folder of the quarantine of `clips`.
        init: run or checkpoint to start from.
        steps, learning_rate: of the one stage.
        scenes: scenes per attribute of an evaluation.
    """

    batch_size: int = 512
    num_workers: int = 8
    model: AdaVidDualConfig = field(default_factory=AdaVidDualConfig)
    widths: tuple[int, ...] = (768, 576, 384, 192)
    decreasing: bool = False
    full_width: bool = False
    clips: Path | None = None
    cache: Path = Path("runs")
    init: Path | None = None
    steps: int = 74_000
    learning_rate: float = 3e-5
    scenes: int = 40


class NearbyCaptions:
    """Clips of a list, each with the next one of the same source. A source without a second clip gives it twice."""

    def __init__(self, listed: ListedCaptions) -> None:
        self.listed, entries = listed, listed.clips.entries
        order = sorted(range(len(entries)), key=lambda k: (entries[k].origin, entries[k].start_seconds or 0.0))
        self.next = dict.fromkeys(order, -1)
        for one, other in pairwise(order):
            if entries[one].origin == entries[other].origin:
                self.next[one] = other
                self.next[other] = one if self.next[other] < 0 else self.next[other]

    def draw(self, position: int, seed: int, shape: tuple[int, int]) -> tuple[Captioned, Captioned]:
        """The sample at a position and its neighbour."""
        clips = self.listed.clips
        sample = clips.draw(position, seed, shape)
        own = Captioned(sample.frames, sample.text, number_of(sample.text))
        near = self.next[sample.index]
        if near < 0:
            return own, own
        rng = np.random.default_rng((seed, 3, position))
        frames = clips.frames(near, lambda count: clips.reading.sampling.draw(count, shape[0], rng))
        text = clips.entries[near].text
        return own, Captioned(clips.reading.augmentation(frames, shape[1], rng, text), text, number_of(text))


class AdaVidContrastive(Recipe):
    """See the module's text."""

    config_class = AdaVidContrastiveConfig
    config: AdaVidContrastiveConfig

    @classmethod
    def smoke(cls, config: AdaVidContrastiveConfig) -> AdaVidContrastiveConfig:
        """The tiny towers, a few steps."""
        tiny = PRESETS["egovlp-tiny"]
        assert isinstance(tiny, AdaVidDualConfig)
        return replace(
            config, batch_size=8, num_workers=0, model=tiny, widths=(48, 32, 16), steps=6,
            learning_rate=1e-3, scenes=2, log_every=2,
        )  # fmt: skip

    def build(self) -> nn.Module:
        """Both towers."""
        model = self.config.model.build()
        if self.config.init is not None:
            load_weights(model, self.config.init)
        return model

    def stages(self) -> tuple[Stage, ...]:
        """One stage, all of both towers."""
        steps, rate = self.config.steps, self.config.learning_rate
        return (Stage("contrastive", steps, rate, warmup_steps=steps // 50, weight_decay=0.01, betas=(0.9, 0.98)),)

    def dataset(self, stage: Stage) -> Dataset:
        """Pairs of clips from nearby."""
        config, video = self.config, self.config.model.video
        shapes = Shapes(((video.num_frames, video.image_sides[0]),))
        if config.clips is None:
            return ClipStream(CaptionedMoments(), shapes, config.batch_size, config.seed)
        listed = ListedCaptions(config.clips, config.cache, video.image_sides[0] * 8 // 7)
        return ClipStream(NearbyCaptions(listed), shapes, config.batch_size, config.seed)

    def collate(self, samples: Sequence[tuple[Captioned, Captioned]]) -> dict[str, Any]:
        """The clips, then their neighbours: 2 B samples."""
        return collate_captioned([pair[0] for pair in samples] + [pair[1] for pair in samples])

    def step(
        self, module: nn.Module, batch: Any, stage: Stage, draws: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """EgoNCE at drawn widths."""
        assert isinstance(module, AdaVidDual)
        depth = self.config.model.video.depth
        widths = sample_widths(draws, depth, self.config.widths, decreasing=self.config.decreasing)
        point = OperatingPoint(width=None if self.config.full_width else widths)
        video = module.transform.normalised(batch["frames"])
        clips = F.normalize(module.video(video, point=point).embedding.float(), dim=-1)  # (2B, E)
        texts = F.normalize(module.text(*module.text.tokenize(batch["texts"])), dim=-1)  # (2B, E)
        clips, texts, actions = gathered(clips), gathered(texts), gathered(batch["actions"])
        loss = egonce(clips, texts, module.logit_scale, actions[:, None] == actions[None])
        found = (clips @ texts.T).argmax(1)
        return loss, {"right_text": (actions[found] == actions).float().mean()}

    def evaluate(self, module: nn.Module) -> list[Row]:
        """Right captions of rendered scenes at every width, and at a schedule that falls."""
        assert isinstance(module, AdaVidDual)
        video, widths = self.config.model.video, sorted(self.config.widths, reverse=True)
        falling = tuple(widths[min(k * len(widths) // video.depth, len(widths) - 1)] for k in range(video.depth))
        points = [OperatingPoint(width=width) for width in widths] + [OperatingPoint(width=falling)]
        side = video.image_sides[0]
        return choice_rows(module, [(video.num_frames, side, point) for point in points], self.config.scenes)

    def exported(self, module: nn.Module) -> Exported:
        """Both towers, and the widths that plans may use."""
        return Exported(module, measured={"trained_widths": list(self.config.widths)})


RECIPE = AdaVidContrastive
