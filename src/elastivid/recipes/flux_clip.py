"""Train a dual encoder that is good at three token counts at once: FluxViT with a text tower (arXiv 2503.14237).

    elastivid train flux_clip --out runs/clip --set clips=captions.csv --set encoder=runs/tune --processes 8

Every step encodes the same clips at three token counts, from the most to the fewest, and minimises

    sum over counts of InfoNCE(clips at K, texts) + sum of SmoothL1(clips at a count, clips at the next larger one)

on unit vectors; one pool and one projection serve all counts. Frames and side of a batch are drawn (flexi-sampling).
Stage `projector` trains the pool, the text projection and the temperature, stage `all` everything, with the text tower
frozen unless `train_text`.

Full scale, as published: FluxViT-S or -B (`model.video...`), 2048, 1024 and 512 tokens, 4096 samples a step, AdamW
with betas 0.9 and 0.98 and decay 0.02; `projector` 3 epochs of 25 million pairs at 4e-4, `all` one epoch of 2.5 million
at 2e-5. The paper's text tower is MobileCLIP-B; ours is the small tower of `elastivid.models.text`, so expect less of
its texts. `encoder` is a run of `flux_tune` (or of this recipe) that the video tower starts from. `clips` is a list
with the columns path and text; without it, scenes are rendered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from elastivid.core.point import OperatingPoint
from elastivid.data.clips import ClipStream
from elastivid.data.sampling import Shapes
from elastivid.losses.contrastive import agreement_chain, contrastive
from elastivid.losses.gather import gathered
from elastivid.models.dual import FluxDual, FluxDualConfig
from elastivid.models.fluxvit import PRESETS as FLUXVIT
from elastivid.models.text import TextConfig
from elastivid.recipes._captioned import (
    Captioned,
    CaptionedScenes,
    ListedCaptions,
    choice_rows,
    collate_captioned,
)
from elastivid.recipes._flux import point_at, require_falling, start
from elastivid.train.recipe import Exported, Recipe, RecipeConfig, Row
from elastivid.train.stages import Stage

_SMALL = FluxDualConfig(FLUXVIT["small"], TextConfig(output_dim=768))
_TINY = FluxDualConfig(replace(FLUXVIT["tiny"], pool_dim=128, layer_scale=0.3), TextConfig(output_dim=128))


@dataclass(frozen=True)
class FluxClipConfig(RecipeConfig):
    """Settings of `flux_clip`.

    Args:
        model: sizes of both towers.
        token_counts: what every clip is encoded at, the most first.
        frames, sizes, tokens: first, last and step of the number of frames and of the side in pixels; fewest and most
            tokens of a clip before selection.
        train_text: train the text tower in stage `all`.
        clips: list of clips with texts; `None` renders them.
        cache: folder of the quarantine of `clips`.
        encoder: run or checkpoint whose video tower is the start.
        projector_steps, all_steps: of the two stages; 0 leaves one out.
        scenes: scenes per attribute of an evaluation.
    """

    batch_size: int = 4096
    num_workers: int = 8
    model: FluxDualConfig = field(default_factory=lambda: _SMALL)
    token_counts: tuple[int, ...] = (2048, 1024, 512)
    frames: tuple[int, int, int] = (4, 24, 2)
    sizes: tuple[int, int, int] = (168, 252, 28)
    tokens: tuple[int, int] = (2048, 4096)
    train_text: bool = True
    clips: Path | None = None
    cache: Path = Path("runs")
    encoder: Path | None = None
    projector_steps: int = 18_300
    all_steps: int = 610
    scenes: int = 40

    def __post_init__(self) -> None:
        super().__post_init__()
        require_falling(self.token_counts)


class FluxClip(Recipe):
    """See the module's text."""

    config_class = FluxClipConfig
    config: FluxClipConfig

    @classmethod
    def smoke(cls, config: FluxClipConfig) -> FluxClipConfig:
        """The tiny video tower, a few steps."""
        return replace(
            config, batch_size=8, num_workers=0, model=_TINY, token_counts=(48, 24, 12), frames=(4, 8, 4),
            sizes=(56, 70, 14), tokens=(64, 200), projector_steps=3, all_steps=5, scenes=2, log_every=2,
        )  # fmt: skip

    def build(self) -> nn.Module:
        """Both towers, the video tower from `encoder` if that is given."""
        model = self.config.model.build()
        start(model.video, self.config.encoder)
        return model

    def stages(self) -> tuple[Stage, ...]:
        """`projector` and `all`, those of them that have steps."""
        config = self.config
        projector = ("video.pools.*", "video.pool_norm.*", "text.projection.*", "log_scale")
        shared: dict[str, Any] = {"weight_decay": 0.02, "betas": (0.9, 0.98)}
        first, second = config.projector_steps, config.all_steps
        everything = ("*",) if config.train_text else ("!text.*",)
        made = (
            Stage("projector", max(first, 1), 4e-4, warmup_steps=first // 6, trained=projector, **shared),
            Stage("all", max(second, 1), 2e-5, warmup_steps=second // 5, trained=everything, **shared),
        )
        return tuple(stage for stage, steps in zip(made, (first, second), strict=True) if steps)

    def dataset(self, stage: Stage) -> Dataset:
        """Captioned clips; every batch has a drawn number of frames and side."""
        config = self.config
        shapes = Shapes.flexi(config.frames, config.sizes, config.tokens, config.model.video.patch_size)
        source: Any = CaptionedScenes()
        if config.clips is not None:
            source = ListedCaptions(config.clips, config.cache, config.sizes[1] * 8 // 7)
        return ClipStream(source, shapes, config.batch_size, config.seed)

    def collate(self, samples: Sequence[Captioned]) -> dict[str, Any]:
        """See `collate_captioned`."""
        return collate_captioned(samples)

    def step(
        self, module: nn.Module, batch: Any, stage: Stage, draws: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Contrastive loss at every count; each count teaches the next smaller one."""
        assert isinstance(module, FluxDual)
        video = module.transform.normalised(batch["frames"])
        texts = gathered(F.normalize(module.text(*module.text.tokenize(batch["texts"])), dim=-1))  # (B, D)
        actions = gathered(batch["actions"])
        same, scale = actions[:, None] == actions[None], module.log_scale.exp().clamp(max=100)
        vectors, parts = [], {}
        loss = texts.new_zeros(())
        for count in self.config.token_counts:
            out = module.video(video, point=point_at(count, video, module.config.video.patch_size))
            vectors.append(F.normalize(out.embedding.float(), dim=-1))  # (B, D)
            matched = contrastive(gathered(vectors[-1]), texts, scale, same=same)
            parts[f"contrastive_{count}"] = matched
            loss = loss + matched
        aligned = agreement_chain(vectors) if len(vectors) > 1 else loss.new_zeros(())
        return loss + aligned, {**parts, "agreement": aligned}

    def evaluate(self, module: nn.Module) -> list[Row]:
        """Right captions of rendered scenes at every token count, on the grid of the position table."""
        assert isinstance(module, FluxDual)
        video = self.config.model.video
        points = [OperatingPoint(tokens=count) for count in self.config.token_counts]
        return choice_rows(module, [(video.num_frames, video.image_size, p) for p in points], self.config.scenes)

    def exported(self, module: nn.Module) -> Exported:
        """Both towers, and the token counts that plans may use."""
        counts = self.config.token_counts
        return Exported(module, measured={"trained_tokens": [counts[-1], counts[0]]})


RECIPE = FluxClip
