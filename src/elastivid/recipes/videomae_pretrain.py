"""Pre-train a VideoMAE without labels: rebuild the pixels of nine tenths of a clip from the rest.

    elastivid train videomae_pretrain --set data=FOLDER --out runs/mae [--set preset=small]
    elastivid train finetune --set model=runs/mae/model.safetensors --set data=LABELLED --out runs/tuned

Tube masks, pixels standardised per cube and colour, mean squared error over hidden cubes (arXiv 2203.12602).

Full scale, ViT-B on Kinetics-400 (64 GPUs): batch_size=1024 steps=187500 learning_rate=6e-4; on Something-Something
stride=2 flip=0. The rate is 1.5e-4 times the batch over 256. Run leaves the encoder; the decoder stays in the
checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from elastivid.losses.masked import cubes, masked_regression, standardised
from elastivid.models.videomae import PRETRAINING, MaskedAutoencoder, PretrainingConfig, Rebuilt
from elastivid.recipes._masked import MaskedConfig, MaskedRecipe, at_places, grid_tokens
from elastivid.select.masks import RandomTubes
from elastivid.video.transforms import Transform


@dataclass(frozen=True)
class VideoMAEConfig(MaskedConfig):
    """Settings of `videomae_pretrain`.

    Args:
        standardise: predict standardised pixels instead of plain ones.
    """

    standardise: bool = True


class VideoMAEPretrain(MaskedRecipe):
    """See the module's text."""

    config_class = VideoMAEConfig
    config: VideoMAEConfig

    def build(self) -> nn.Module:
        """Encoder and decoder of the preset, at the settings' frames and size."""
        return sized(PRETRAINING[self.config.preset], self.config).build()

    def loss(self, module: nn.Module, video: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Mean squared error over hidden cubes."""
        assert isinstance(module, MaskedAutoencoder)
        grid = module.config.encoder.table_grid
        visible = RandomTubes(seeds).select(grid_tokens(grid, len(video), video.device), num_visible(grid, self.config))
        return rebuilt_loss(module, module(video, visible), video, standardise=self.config.standardise), {}

    def gmacs(self, module: nn.Module) -> float:
        """Encoder on the visible tubes, decoder on the whole grid."""
        assert isinstance(module, MaskedAutoencoder)
        t, h, w = module.config.encoder.table_grid
        visible = num_visible((t, h, w), self.config)
        return module.config.cost(visible=visible, predicted=t * h * w - visible).gmacs


def sized(pretraining: PretrainingConfig, config: MaskedConfig) -> PretrainingConfig:
    """`pretraining` for clips of the settings."""
    encoder = replace(pretraining.encoder, num_frames=config.frames, image_size=config.size)
    return replace(pretraining, encoder=encoder)


def num_visible(grid: tuple[int, int, int], config: MaskedConfig) -> int:
    """Tokens that stay visible: whole tubes, at least one."""
    steps, rows, columns = grid
    return steps * max(1, rows * columns - int(rows * columns * config.mask))


def rebuilt_loss(module: MaskedAutoencoder, out: Rebuilt, video: Tensor, *, standardise: bool) -> Tensor:
    """Mean squared error of predicted pixels at the places that count."""
    sizes: Any = module.config.encoder
    transform = Transform()
    mean, std = (torch.tensor(v, device=video.device).view(3, 1, 1) for v in (transform.mean, transform.std))
    cut = cubes(video * std + mean, sizes.tubelet_size, sizes.patch_size)  # (B, N, kPP, 3)
    target = (standardised(cut) if standardise else cut).flatten(2)  # (B, N, kPP*3)
    return masked_regression(out.prediction, at_places(target, out.places), out.counted)


RECIPE = VideoMAEPretrain
