"""Fine-tune or train a FluxViT classifier for several token counts: Flux-Single and Flux-Multi (arXiv 2503.14237).

    elastivid train flux_tune --out runs/k400 --set train=k400/train.csv --set validation=k400/val.csv --processes 8
    elastivid train flux_tune --out runs/single --set token_counts=2048 ...

Batches have a drawn number of frames and side (flexi-sampling), and every clip keeps the tokens that change most
(group-dynamic selection). With one count in `token_counts` this is Flux-Single. With several it is Flux-Multi: every
clip is classified at each, by a pool and a classifier of its own,

    sum over counts of cross-entropy + sum over neighbours of SmoothL1(features at a count, features at the larger one)

on unit vectors before the classifiers, without gradient to the larger count. The text of the paper is followed: each
count teaches the next; the released code lets the largest teach all through extra projections.

Full scale, as published for Kinetics-400 and FluxViT-S: start from Flux-UMT weights (`init`), AdamW 0.9 and 0.999,
decay 0.05, 2e-4, layer decay 0.75, drop path 0.1, RandAugment (9, 0.5), 512 clips a step, 40 epochs of which 5 warm up,
4 to 24 frames of 168 to 252 px with 2048 to 4096 tokens, 2048, 1024 and 512 kept (3072, 2048 and 1024 for the largest
numbers). Published top-1 with 12 views: 87.3, 84.7 and 80.1 %. Without `train` the clips are flux-bench's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from elastivid.data.clips import ClipSample, ClipStream, collate
from elastivid.data.fluxbench import VALIDATION_CLIPS
from elastivid.data.sampling import Shapes
from elastivid.losses.contrastive import agreement_chain
from elastivid.models.fluxvit import PRESETS, FluxViT, FluxViTConfig
from elastivid.recipes._bench import BenchClips, Labelled, listed
from elastivid.recipes._flux import point_at, require_falling, start
from elastivid.train.recipe import Exported, Recipe, RecipeConfig, Row
from elastivid.train.stages import Stage
from elastivid.video.transforms import Transform

TRANSFORM = Transform()  # the usual mean and standard deviation


@dataclass(frozen=True)
class FluxTuneConfig(RecipeConfig):
    """Settings of `flux_tune`.

    Args:
        model: sizes; pools and classifiers follow from `token_counts` and the classes.
        token_counts: what every clip is classified at, the most first.
        frames, sizes, tokens: first, last and step of the number of frames and of the side in pixels; fewest and most
            tokens of a clip before selection.
        align_weight: weight of the alignment between counts, which is a mean over channels and so small by itself: of
            D channels, unit vectors with cosine c give (1 - c) / D.
        label_smoothing: share of the target that is spread over all classes.
        train, validation: lists of labelled clips; `None` takes flux-bench.
        bench_clips: training clips of flux-bench.
        cache: folder of rendered or decoded clips, and of the quarantine.
        cache_gigabytes: what decoded clips may take; 0 decodes them every time.
        init: run or checkpoint whose trunk is the start.
        steps, warmup_steps, learning_rate, layer_decay: of the one stage.
        evaluated_clips: clips of the validation set, spread evenly, that an evaluation takes.
    """

    batch_size: int = 512
    num_workers: int = 8
    model: FluxViTConfig = field(default_factory=lambda: replace(PRESETS["small"], drop_path=0.1))
    token_counts: tuple[int, ...] = (2048, 1024, 512)
    frames: tuple[int, int, int] = (4, 24, 2)
    sizes: tuple[int, int, int] = (168, 252, 28)
    tokens: tuple[int, int] = (2048, 4096)
    align_weight: float = 1.0
    label_smoothing: float = 0.1
    train: Path | None = None
    validation: Path | None = None
    bench_clips: int = 14_000
    cache: Path = Path("runs")
    cache_gigabytes: float = 20.0
    init: Path | None = None
    steps: int = 18_800
    warmup_steps: int = 2_350
    learning_rate: float = 2e-4
    layer_decay: float = 0.75
    evaluated_clips: int = 20_000

    def __post_init__(self) -> None:
        super().__post_init__()
        require_falling(self.token_counts)
        if (self.train is None) != (self.validation is None):
            raise ValueError(f"give both train and validation, or neither, got {self.train} and {self.validation}")


class FluxTune(Recipe):
    """See the module's text."""

    config_class = FluxTuneConfig
    config: FluxTuneConfig

    @classmethod
    def smoke(cls, config: FluxTuneConfig) -> FluxTuneConfig:
        """A small model on a few clips of flux-bench."""
        model = FluxViTConfig(embed_dim=48, depth=3, num_heads=4, patch_size=16, num_frames=16, image_size=64,
                              pool_heads=4, pool_dim=32, layer_scale=0.3)  # fmt: skip
        return replace(
            config, batch_size=16, num_workers=0, model=model, token_counts=(96, 48, 24), frames=(8, 16, 4),
            sizes=(48, 64, 16), tokens=(100, 256), bench_clips=140, steps=12, warmup_steps=2, learning_rate=1e-3,
            layer_decay=1.0, evaluated_clips=56, log_every=4,
        )  # fmt: skip

    @cached_property
    def clips(self) -> tuple[Labelled, Labelled]:
        """Training and validation clips."""
        config = self.config
        if config.train is not None and config.validation is not None:
            side = config.sizes[1] * 8 // 7
            return listed(config.train, config.validation, config.cache, config.cache_gigabytes, side)
        held_out = min(VALIDATION_CLIPS, config.evaluated_clips)
        return (
            BenchClips(config.cache, "train", config.bench_clips),
            BenchClips(config.cache, "validation", held_out),
        )

    def build(self) -> nn.Module:
        """The model with a pool and a classifier per token count, its trunk from `init` if that is given."""
        classes = len(self.clips[0].classes)
        model = replace(self.config.model, num_pools=len(self.config.token_counts), num_classes=classes).build()
        start(model, self.config.init)
        return model

    def stages(self) -> tuple[Stage, ...]:
        """One stage, all parameters."""
        config = self.config
        return (
            Stage(
                "tune", config.steps, config.learning_rate, warmup_steps=config.warmup_steps, final_share=0.01,
                layer_decay=config.layer_decay, ema_decay=0.999,
            ),
        )  # fmt: skip

    def dataset(self, stage: Stage) -> Dataset:
        """Training clips; every batch has a drawn number of frames and side."""
        config = self.config
        shapes = Shapes.flexi(config.frames, config.sizes, config.tokens, config.model.patch_size)
        return ClipStream(self.clips[0], shapes, config.batch_size, config.seed)

    def collate(self, samples: Sequence[ClipSample]) -> dict[str, Any]:
        """See `elastivid.data.clips.collate`."""
        return collate(samples)

    def step(
        self, module: nn.Module, batch: Any, stage: Stage, draws: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Cross-entropy at every count; each count teaches the next smaller one."""
        assert isinstance(module, FluxViT)
        config, labels = self.config, batch["labels"]
        video = TRANSFORM.normalised(batch["frames"])
        features, parts = [], {}
        loss = video.new_zeros(())
        for head, count in enumerate(config.token_counts):
            out = module(video, point=point_at(count, video, config.model.patch_size), head=head)
            assert out.logits is not None
            wrong = F.cross_entropy(out.logits.float(), labels, label_smoothing=config.label_smoothing)
            parts[f"cross_entropy_{count}"] = wrong
            parts[f"right_{count}"] = (out.logits.argmax(1) == labels).float().mean()
            features.append(out.embedding.float())
            loss = loss + wrong
        aligned = agreement_chain(features) if len(features) > 1 else loss.new_zeros(())
        return loss + config.align_weight * aligned, {**parts, "agreement": aligned}

    def evaluate(self, module: nn.Module) -> list[Row]:
        """Top-1 of one view at every token count, on the grid of the position table."""
        assert isinstance(module, FluxViT)
        model, clips, device = module.config, self.clips[1], next(module.parameters()).device
        shape = (model.num_frames, model.image_size)
        indices = torch.linspace(0, len(clips) - 1, min(len(clips), self.config.evaluated_clips)).long().unique()
        right = [0] * len(self.config.token_counts)
        for part in indices.split(32):
            frames = torch.stack([torch.from_numpy(clips.views(int(i), shape)[0]) for i in part])  # (B, T, S, S, 3)
            labels = torch.tensor([clips.label_of(int(i)) for i in part], device=device)
            video = TRANSFORM.normalised(frames.to(device))
            for head, count in enumerate(self.config.token_counts):
                logits = module(video, point=point_at(count, video, model.patch_size), head=head).logits
                right[head] += int((logits.argmax(1) == labels).sum())
        return [
            {
                "point": f"{shape[0]} x {shape[1]} px, {count} tokens",
                "gmacs": model.cost(frames=shape[0], size=shape[1], tokens=count).gmacs,
                "accuracy": hits / len(indices),
                "clips": len(indices),
            }
            for count, hits in zip(self.config.token_counts, right, strict=True)
        ]

    def exported(self, module: nn.Module) -> Exported:
        """The classifier with its classes."""
        counts = self.config.token_counts
        measured = {"classes": list(self.clips[0].classes), "trained_tokens": list(counts)}
        return Exported(module, measured=measured)


RECIPE = FluxTune
