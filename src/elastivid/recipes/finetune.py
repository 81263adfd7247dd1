"""Train a classifier end to end on labelled clips: an encoder of ours, a new head, layer decay, mixing of clips.

    elastivid train finetune --set model=nano --set data=FOLDER --out runs/x
    elastivid train finetune --set init=runs/probe --set data=FOLDER --out runs/x       # from a linear probe

Every batch is encoded at one token budget, drawn with (seed, step): one model serves all of `tokens`. Cropped
as UMT does (MultiScaleCrop), mirrored where labels allow, RandAugment and erasing if wanted, mixup and cutmix with
smoothed labels; rates fall by `layer_decay` from block to block towards the input; a moving average is kept.

Full scale, FluxViT-S on Kinetics-400 (arXiv 2503.14237): data=train.csv test=val.csv model=fluxvit/small frames=8
size=224 short_side=256 tokens=2048,1024,512 batch_size=512 epochs=40 learning_rate=2e-4 layer_decay=0.75
randaugment=9 mixing=1 test_views=4 test_crops=3. What nano reaches: docs/benchmarks/actions.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from elastivid.core.point import OperatingPoint
from elastivid.data.augment import (
    Augmentation,
    ClipOperation,
    ColourJitter,
    Flip,
    MultiScaleCrop,
    RandomErasing,
    directional,
)
from elastivid.data.clips import ClipStream, collate
from elastivid.data.listing import classes_of
from elastivid.data.mixing import Mixing, soft_targets
from elastivid.data.randaugment import RandAugment
from elastivid.data.sampling import Shapes
from elastivid.models.classifier import ClipClassifier
from elastivid.recipes._labelled import (
    LabelledConfig,
    LabelledRecipe,
    Parts,
    classifier_of,
    labelled_entries,
    parts_of,
    smoke_settings,
)
from elastivid.train.checkpoint import load_weights
from elastivid.train.stages import Stage


@dataclass(frozen=True)
class FinetuneConfig(LabelledConfig):
    """Settings of `finetune`.

    Args:
        init: run or checkpoint of `linear_probe` or `finetune` with the same model, blocks, motion words and classes to
            start from.
        train_tokens: budgets that training draws from, one for each batch; without, those of `tokens`.
        epochs: passes over the training clips.
        learning_rate, layer_decay, weight_decay: of AdamW.
        drop_path: of the encoder, where its family has it.
        ema_decay: of the moving average that is kept.
        scales: shares of the shorter side that crops take.
        flip: probability of mirroring; labels that name a side are never mirrored, nor are those in `unflipped`.
        unflipped: more labels that are not mirrored.
        jitter: most that contrast changes, brightness half as much; a fifth of the clips turns grey; 0 for none.
        randaugment: magnitude, 0 to 10; 0 for none.
        erasing: probability of erasing a rectangle.
        mixup, cutmix: alphas, 0 for none.
        mixing: probability that a batch is mixed.
        smoothing: of labels.
    """

    init: Path | None = None
    train_tokens: tuple[int, ...] = ()
    epochs: float = 30.0
    learning_rate: float = 1e-3
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    drop_path: float = 0.1
    ema_decay: float = 0.99
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    flip: float = 0.5
    unflipped: tuple[str, ...] = ()
    jitter: float = 0.2
    randaugment: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.8
    cutmix: float = 1.0
    mixing: float = 0.5
    smoothing: float = 0.1


class Finetune(LabelledRecipe):
    """See the module's text."""

    config_class = FinetuneConfig
    config: FinetuneConfig

    @classmethod
    def smoke(cls, config: FinetuneConfig) -> FinetuneConfig:
        """Twelve rendered clips of 64 pixels, a few steps."""
        small = smoke_settings(config)
        return replace(small, tokens=(0, 32), batch_size=4, epochs=3.0, num_workers=0, log_every=1)

    @cached_property
    def parts(self) -> Parts:
        """The clips."""
        config = self.config
        kept = directional(classes_of(labelled_entries(config.data))) | set(config.unflipped)
        operations: list[ClipOperation] = []
        if config.jitter:
            operations.append(ColourJitter(config.jitter, config.jitter / 2))
        if config.randaugment:
            operations.append(RandAugment(config.randaugment))
        if config.erasing:
            operations.append(RandomErasing(config.erasing))
        crop = MultiScaleCrop(config.scales)
        return parts_of(config, Augmentation(crop, Flip(config.flip, kept), tuple(operations)))

    def build(self) -> nn.Module:
        """The encoder and a head, from `init` if that is given."""
        module = classifier_of(
            self.config, self.parts.train.classes, drop_path=self.config.drop_path, seconds=self.seconds
        )
        if self.config.init is not None:
            load_weights(module, self.config.init)
        return module

    def begin(self, module: nn.Module) -> None:
        """Solve for the second reader, unless `init` brought one."""
        assert isinstance(module, ClipClassifier)
        if module.motion is not None and self.config.init is None:
            self.solve(module, module.motion, self.parts.train.reading.augmentation)

    def stages(self) -> tuple[Stage, ...]:
        """One: everything that a classifier uses, but for the layer that was solved for."""
        config = self.config
        steps = max(1, round(config.epochs * len(self.parts.train) / config.batch_size))
        stage = Stage(
            "all",
            steps,
            config.learning_rate,
            warmup_steps=steps // 10,
            final_share=0.01,
            weight_decay=config.weight_decay,
            layer_decay=config.layer_decay,
            trained=("*", "!motion.*") if config.motion_words else ("*",),
            ema_decay=config.ema_decay,
        )
        return (stage,)

    def dataset(self, stage: Stage) -> Dataset:
        """Augmented training clips."""
        return ClipStream(self.parts.train, Shapes((self.config.shape,)), self.config.batch_size, self.config.seed)

    def collate(self, samples: Sequence[Any]) -> Any:
        """See `elastivid.data.clips.collate`."""
        return collate(samples)

    def step(
        self, module: nn.Module, batch: Any, stage: Stage, draws: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Cross-entropy with soft targets of mixed clips at one drawn budget, of what the encoder is read for."""
        assert isinstance(module, ClipClassifier)
        config = self.config
        seed, choice = torch.randint(2**31, (2,), generator=draws).tolist()
        video = module.config.transform.normalised(batch["frames"])
        targets = soft_targets(batch["labels"], len(module.config.classes), config.smoothing)
        mixing = Mixing(config.mixup, config.cutmix, config.mixing)
        video, targets = mixing(video, targets, np.random.default_rng(seed))
        counts = config.train_tokens or config.tokens
        point = OperatingPoint(tokens=counts[choice % len(counts)] or None)
        logits = module.classify(module.features(video, point=point))
        loss = -(targets * logits.float().log_softmax(dim=-1)).sum(dim=-1).mean()
        return loss, {"accuracy": (logits.argmax(dim=1) == targets.argmax(dim=1)).float().mean()}


RECIPE = Finetune
