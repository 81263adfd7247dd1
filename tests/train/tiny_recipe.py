"""A recipe small enough to be trained hundreds of times: a perceptron with dropout that learns a random teacher."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from elastivid.train.order import Epochs
from elastivid.train.recipe import Recipe, RecipeConfig
from elastivid.train.stages import Stage


@dataclass(frozen=True)
class TinyConfig(RecipeConfig):
    """Sizes of the perceptron."""

    batch_size: int = 4
    num_workers: int = 0
    log_every: int = 3
    save_every: int = 4
    hidden: int = 8
    dropout: float = 0.2
    steps: tuple[int, ...] = (7, 12)


class Tiny(nn.Module):
    """Body, head, and a part that nothing uses."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, config.hidden), nn.GELU(), nn.Dropout(config.dropout))
        self.head = nn.Linear(config.hidden, 2)
        self.unused = nn.Linear(3, 3)


class TinyRecipe(Recipe):
    """Two stages: the head alone, then body and head."""

    config_class = TinyConfig

    def build(self) -> nn.Module:
        return Tiny(self.config)

    def stages(self) -> tuple[Stage, ...]:
        first, second = self.config.steps
        return (
            Stage("head", first, 1e-2, warmup_steps=2, trained=("head.*",), ema_decay=0.9),
            Stage("all", second, 5e-3, warmup_steps=1, trained=("!unused.*",), ema_decay=0.9, layer_decay=0.9),
        )

    def dataset(self, stage: Stage) -> Dataset:
        rng = np.random.default_rng(5)
        x = rng.standard_normal((10, 6)).astype(np.float32)
        y = np.tanh(x[:, :2] * 2)
        return Epochs([(i, x[i], y[i]) for i in range(10)], self.config.seed, self._noisy)

    def _noisy(self, item, rng):
        number, x, y = item
        return number, x + 0.1 * rng.standard_normal(6).astype(np.float32), y

    def step(self, module, batch, stage, draws):
        _, x, y = batch
        scale = 0.5 + torch.rand((), generator=draws)
        error = ((module.head(module.body(x)) - y) ** 2).mean(1)
        loss = scale * error.mean()
        return loss, {"error": error.mean()}

    def evaluate(self, module):
        rng = np.random.default_rng(6)
        x = torch.from_numpy(rng.standard_normal((64, 6)).astype(np.float32))
        error = ((module.head(module.body(x)) - torch.tanh(x[:, :2] * 2)) ** 2).mean()
        return [{"point": "only", "gmacs": 1e-6, "accuracy": float(torch.exp(-error))}]


RECIPE = TinyRecipe
