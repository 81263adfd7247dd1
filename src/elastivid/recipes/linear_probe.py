"""Train a linear classifier on a frozen encoder: what it knows about labelled clips without learning anything.

    elastivid train linear_probe --set data=FOLDER --out runs/probe [--set model=nano] [--set blocks=1,3,5]

Features of every training clip are computed once, for a few choices of frames and mirrored, at every budget of
`tokens`; the head then sees them thousands of times for next to nothing. `blocks` says which it reads (mean, spread
and change of their tokens, see `elastivid.models.classifier`). The run is a start for the recipe `finetune`.

Full scale: Kinetics-400 with data=train.csv test=val.csv size=224 short_side=256 is one pass over two views of the
training set. What nano reaches: docs/benchmarks/actions.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, TensorDataset

from elastivid.data.augment import Augmentation, Flip, directional
from elastivid.models.classifier import ClipClassifier
from elastivid.recipes._labelled import (
    LabelledConfig,
    LabelledRecipe,
    Parts,
    classifier_of,
    computing_in,
    parts_of,
    smoke_settings,
)
from elastivid.train.order import Epochs
from elastivid.train.stages import Stage


@dataclass(frozen=True)
class LinearProbeConfig(LabelledConfig):
    """Settings of `linear_probe`.

    Args:
        steps: steps of the head.
        learning_rate, weight_decay: of the head.
        train_views: choices of frames of every training clip; each is seen mirrored too, where its label allows.
        smoothing: of labels.
    """

    batch_size: int = 64
    num_workers: int = 0
    steps: int = 2000
    learning_rate: float = 2e-3
    weight_decay: float = 0.5
    train_views: int = 2
    smoothing: float = 0.1


class LinearProbe(LabelledRecipe):
    """See the module's text."""

    config_class = LinearProbeConfig
    config: LinearProbeConfig

    @classmethod
    def smoke(cls, config: LinearProbeConfig) -> LinearProbeConfig:
        """Twelve rendered clips of 64 pixels, a hundred steps."""
        return replace(smoke_settings(config), batch_size=8, steps=100, save_every=100)

    @cached_property
    def parts(self) -> Parts:
        """The clips."""
        return parts_of(self.config, Augmentation())

    def build(self) -> nn.Module:
        """The encoder and a head of zeros; the second reader, if there is one, as it stays."""
        module = classifier_of(self.config, self.parts.train.classes, seconds=self.seconds)
        return module

    def begin(self, module: nn.Module) -> None:
        """Solve for the second reader, if there is one."""
        assert isinstance(module, ClipClassifier)
        if module.motion is not None:
            self.solve(module, module.motion, Augmentation(flip=Flip(kept=directional(module.config.classes))))

    def stages(self) -> tuple[Stage, ...]:
        """One: the head."""
        config = self.config
        stage = Stage(
            "head",
            config.steps,
            config.learning_rate,
            warmup_steps=config.steps // 20,
            weight_decay=config.weight_decay,
            trained=("head.*",),
            ema_decay=0.99,
        )
        return (stage,)

    def dataset(self, stage: Stage) -> Dataset:
        """Features and labels of every view of every training clip."""
        features, labels = self.features(classifier_of(self.config, self.parts.train.classes).eval())
        return Epochs(TensorDataset(features, labels), self.config.seed)

    @torch.no_grad()
    def features(self, model: ClipClassifier, batch: int = 8) -> tuple[Tensor, Tensor]:
        """Features float32 (N, F) and labels (N,): clips x views x budgets, mirrored too where labels allow."""
        clips, config = self.parts.train, self.config
        kept = {clips.classes.index(label) for label in directional(clips.classes)}
        indices = list(clips.usable())
        features, labels = [], []
        for start in range(0, len(indices), batch):
            part = indices[start : start + batch]
            views = np.concatenate([clips.views(i, config.shape, views=config.train_views) for i in part])
            numbers = np.repeat([clips.label_of(i) for i in part], config.train_views)  # (B*V,)
            turned = ~np.isin(numbers, list(kept))
            both = np.concatenate([views, views[turned][:, :, :, ::-1]])  # (up to 2*B*V, T, S, S, 3)
            video = model.config.transform.normalised(torch.from_numpy(both))
            for point in config.points:
                with computing_in(config, video.device):
                    features.append(model.features(video, point=point))
                labels.append(torch.from_numpy(np.concatenate([numbers, numbers[turned]])))
        return torch.cat(features), torch.cat(labels)

    def step(
        self, module: nn.Module, batch: Any, stage: Stage, draws: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Cross-entropy of the head."""
        assert isinstance(module, ClipClassifier)
        features, labels = batch
        logits = module.classify(features)
        loss = cross_entropy(logits, labels, label_smoothing=self.config.smoothing)
        return loss, {"accuracy": (logits.argmax(dim=1) == labels).float().mean()}


RECIPE = LinearProbe
