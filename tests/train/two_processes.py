"""Trains a contrastive recipe over the processes of this launch (`torch.distributed.run`), or alone.

    python two_processes.py FOLDER

Two small towers and the smoke settings of two recipes; every process sees its part of each batch and gathers the rest.
Several processes also train one of them with weights spread over them, stopped and resumed on the way.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tiny_recipe import TinyConfig, TinyRecipe
from torch import nn

from elastivid.losses.contrastive import contrastive
from elastivid.losses.gather import gathered
from elastivid.recipes import find
from elastivid.recipes.flux_clip import FluxClip
from elastivid.train.loop import train
from elastivid.train.order import Epochs
from elastivid.train.stages import Stage


class Pairs(TinyRecipe):
    """Vectors and noisy views of them find each other."""

    def build(self):
        return nn.ModuleDict({"clip": nn.Linear(6, 8), "text": nn.Linear(6, 8)})

    def stages(self):
        return (
            Stage("text", 5, 1e-2, trained=("text.*",)),
            Stage("both", 25, 1e-2, warmup_steps=3, ema_decay=0.9),
        )

    def dataset(self, stage):
        rng = np.random.default_rng(1)
        clips = rng.standard_normal((40, 6)).astype(np.float32)
        texts = clips + 0.3 * rng.standard_normal((40, 6)).astype(np.float32)
        return Epochs(list(zip(clips, texts, strict=True)), self.config.seed)

    def step(self, module, batch, stage, draws):
        clips, texts = (F.normalize(module[name](x), dim=-1) for name, x in zip(("clip", "text"), batch, strict=True))
        scale = 5 + 5 * torch.rand((), generator=draws)
        loss = contrastive(gathered(clips), gathered(texts), scale)
        return loss, {"cosine": (clips * texts).sum(-1).mean()}

    def evaluate(self, module):
        return []


class Averaged(FluxClip):
    """With a moving average."""

    def stages(self):
        return tuple(replace(stage, ema_decay=0.9) for stage in super().stages())


def main(folder: Path) -> None:
    """Train everything into folders of `folder`."""
    config = replace(TinyConfig(), batch_size=8, log_every=5, save_every=10)
    train(Pairs(config), folder / "pairs", device="cpu")
    for name in ("flux_clip", "adavid_contrastive"):
        train(find(name).small(), folder / name, device="cpu")
    averaged = find("flux_clip").small().config
    if not torch.distributed.is_initialized():
        train(Averaged(averaged), folder / "sharded", device="cpu")
        return
    recipe, asked = Averaged(replace(averaged, sharded=True)), iter(range(1000))
    train(recipe, folder / "sharded", device="cpu", should_stop=lambda: next(asked) == 4)
    train(recipe, folder / "sharded", device="cpu", resume=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
