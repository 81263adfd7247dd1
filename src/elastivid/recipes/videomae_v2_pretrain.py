"""Pre-train a VideoMAE V2: as VideoMAE, but the decoder predicts a part of the places too, half of them by default.

    elastivid train videomae_v2_pretrain --set data=FOLDER --out runs/mae2 [--set decoder_mask=0.75]

Running cells choose what is predicted, another phase for every clip; places that the encoder saw do not count
(arXiv 2303.16727). Costs a quarter less than VideoMAE for ViT-B.

Full scale, ViT-g on 1.35 M clips (64 GPUs): preset=giant batch_size=8192 steps=198000 learning_rate=1.92e-2 clips
repeated four times; stride=2 for clips of Something-Something, 4 for others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from elastivid.models.videomae import PRETRAINING, MaskedAutoencoder
from elastivid.recipes._masked import MaskedConfig, MaskedRecipe, grid_tokens
from elastivid.recipes.videomae_pretrain import num_visible, rebuilt_loss, sized
from elastivid.select.base import Selector
from elastivid.select.masks import BlockCell, RandomTubes, RunningCell


@dataclass(frozen=True)
class VideoMAEV2Config(MaskedConfig):
    """Settings of `videomae_v2_pretrain`.

    Args:
        decoder_mask: share of the places that are not predicted.
        cell: "running", or "block" for one block of space-time at a drawn place; see docs/masked-pretraining.md.
        standardise: predict standardised pixels instead of plain ones.

    Raises:
        ValueError: a value is out of range.
    """

    decoder_mask: float = 0.5
    cell: str = "running"
    standardise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.decoder_mask < 1 or self.cell not in ("running", "block"):
            raise ValueError(
                f"decoder_mask must be at least 0 and below 1 and cell running or block, got {self.decoder_mask} and "
                f"{self.cell!r}"
            )


class VideoMAEV2Pretrain(MaskedRecipe):
    """See the module's text."""

    config_class = VideoMAEV2Config
    config: VideoMAEV2Config

    def build(self) -> nn.Module:
        """Encoder and decoder of the preset, at the settings' frames and size."""
        return sized(PRETRAINING[self.config.preset], self.config).build()

    def loss(self, module: nn.Module, video: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Mean squared error over cubes that are hidden and predicted."""
        assert isinstance(module, MaskedAutoencoder)
        grid = module.config.encoder.table_grid
        tokens = grid_tokens(grid, len(video), video.device)
        visible = RandomTubes(seeds).select(tokens, num_visible(grid, self.config))
        predicted = self._cell(seeds).select(tokens, self._num_predicted(grid))
        out = module(video, visible, predicted)
        counted = out.counted.float().mean()
        return rebuilt_loss(module, out, video, standardise=self.config.standardise), {"counted": counted}

    def gmacs(self, module: nn.Module) -> float:
        """Encoder on the visible tubes, decoder on them and on what is predicted."""
        assert isinstance(module, MaskedAutoencoder)
        grid = module.config.encoder.table_grid
        return module.config.cost(visible=num_visible(grid, self.config), predicted=self._num_predicted(grid)).gmacs

    def _cell(self, seeds: Sequence[int]) -> Selector:
        if self.config.cell == "running":
            return RunningCell([seed % 4 for seed in seeds])
        return BlockCell(seed=seeds)

    def _num_predicted(self, grid: tuple[int, int, int]) -> int:
        steps, rows, columns = grid
        return max(1, round(steps * rows * columns * (1 - self.config.decoder_mask)))


RECIPE = VideoMAEV2Pretrain
