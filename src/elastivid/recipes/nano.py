"""Train `nano`: a FluxViT and a text tower in one space, elastic in tokens and in width.

    elastivid train nano --out runs/world --device cuda --set num_workers=16 --set minutes=7
    elastivid train nano --out runs/real --set init=runs/world --set world_steps=0,0 --set real_steps=240 \
        --set labelled=../shared/data/labelled [--set fold=0]

The loss is that of `elastivid.train.dual`: contrastive with hard negative captions at three operating points a step,
the dearest at full width teaching two with drawn token counts and widths (arXiv 2503.14237, 2504.12513); batches differ
in frames and frame size. A moving average of the weights is what gets kept. Stages: `plain` (scenes without clutter,
one token count: shapes and motions are learned sooner), `world` (rendered clips), `real` (labelled clips mixed in).

Full scale, as the shipped weights were made: 96 clips a step, 7.2 minutes on one H100 with 16 processor cores, 2,304
steps. Rendering is the bottleneck: 10 ms a clip and core. Expected: docs/benchmarks/front.md, demo.md and actions.md.
Over several processes the loss of the patch head is a mean of means, all else equals one process with the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from elastivid.core.point import OperatingPoint
from elastivid.data.cache import ClipCache
from elastivid.data.clips import Clips
from elastivid.data.listing import read_entries
from elastivid.data.mixture import PATCH_PIXELS, REAL_READING, Mixture, MixtureConfig, Sample, collate
from elastivid.data.quarantine import Quarantine
from elastivid.data.splits import folds_by_size
from elastivid.models.dual import PRESETS, FluxDual
from elastivid.models.text import TextTower
from elastivid.recipes._captioned import choice_rows
from elastivid.recipes._flux import start
from elastivid.train.checkpoint import load_weights
from elastivid.train.dual import DualLoss, add_words, draw_points
from elastivid.train.recipe import Exported, Recipe, RecipeConfig, Row
from elastivid.train.stages import Stage

SHAPES = ((8, 112), (8, 168), (8, 168), (8, 168), (4, 168), (4, 224), (16, 112), (16, 168))  # frames, side in pixels
PLAIN_TOKENS = 64
FOLDS = 5
CACHE_BYTES = 20 << 30
TRAINED_TOKENS = (32, 512)  # fewest and most that `draw_points` draws
POINTS = (  # what is evaluated: frames, side, tokens, width
    (8, 168, 512, 192),
    (8, 168, 128, 192),
    (8, 168, 128, 64),
    (4, 112, 64, 128),
)


@dataclass(frozen=True)
class NanoConfig(RecipeConfig):
    """Settings of `nano`.

    Args:
        world_steps: steps of the stages `plain` and `world`; 0 leaves one out.
        real_steps: steps of the stage `real`; it needs `labelled`.
        init: run or checkpoint to start from.
        labelled: list or folder of labelled clips.
        cache: folder for the decoded frames of the labelled clips, and for the list of those that cannot be read.
        fold: fold of sources to leave out, 0 to 4; -1 uses all.
        widths: what a layer may be run at: one, two or three heads.
        shapes: frames and side of the clips of a batch, drawn evenly.
        scenes: scenes per attribute of an evaluation; compositions that training never draws.

    Raises:
        ValueError: no steps at all, or real steps without labelled clips.
    """

    batch_size: int = 96
    save_every: int = 250
    world_steps: tuple[int, int] = (1000, 3000)
    real_steps: int = 0
    init: Path | None = None
    labelled: Path | None = None
    cache: Path = Path("runs")
    fold: int = -1
    widths: tuple[int, ...] = (64, 128, 192)
    shapes: tuple[tuple[int, int], ...] = SHAPES
    scenes: int = 40

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any((*self.world_steps, self.real_steps)):
            raise ValueError("world_steps and real_steps are all 0, so there is nothing to train")
        if self.real_steps and self.labelled is None:
            raise ValueError("real_steps needs labelled, a list or folder of labelled clips")


class WithHeads(nn.Module):
    """The model and the linear heads that serve training only."""

    def __init__(self, model: FluxDual) -> None:
        super().__init__()
        self.model = model
        self.losses = DualLoss(model.dim, model.config.video.embed_dim)


class Nano(Recipe):
    """See the module's text."""

    config_class = NanoConfig
    config: NanoConfig

    @classmethod
    def smoke(cls, config: NanoConfig) -> NanoConfig:
        """Two clips a step, a few steps."""
        return replace(
            config, batch_size=2, world_steps=(2, 4), shapes=((8, 112), (4, 112)), scenes=2, log_every=1, num_workers=0
        )

    @cached_property
    def clips(self) -> Clips:
        """The labelled clips without the fold that is left out."""
        assert self.config.labelled is not None
        entries, cache = read_entries(self.config.labelled), self.config.cache
        kept = folds_by_size(entries, FOLDS) != self.config.fold
        entries = [entry for entry, keep in zip(entries, kept, strict=True) if keep]
        quarantine = Quarantine(cache / "quarantine.jsonl", len(entries))
        return Clips(entries, REAL_READING, quarantine, cache=ClipCache(cache / "clips", CACHE_BYTES))

    def build(self) -> nn.Module:
        """The dual encoder and the heads of training, from `init` if that is given."""
        module = WithHeads(PRESETS["nano"].build())
        if self.config.init is not None:
            load_weights(module, self.config.init)
            return module
        start(module.model.video, None)
        return module

    def stages(self) -> tuple[Stage, ...]:
        """`plain`, `world` and `real`, those of them that have steps."""
        plain, world = self.config.world_steps
        shared: dict[str, Any] = {"ema_decay": 0.998, "betas": (0.9, 0.98)}
        made: tuple[tuple[int, float, dict[str, Any]], ...] = (
            (plain, 2e-3, {"warmup_steps": plain // 5, "final_share": 0.85}),
            (world, 1.7e-3, {"warmup_steps": 0 if plain else world // 20, "final_share": 0.01}),
            (self.config.real_steps, 6e-4, {"warmup_steps": self.config.real_steps // 20, "final_share": 0.01}),
        )
        return tuple(
            Stage(name, steps, rate, **own, **shared)
            for name, (steps, rate, own) in zip(("plain", "world", "real"), made, strict=True)
            if steps
        )

    def dataset(self, stage: Stage) -> Dataset:
        """Rendered scenes, in stage `real` two labelled clips in five."""
        number = ("plain", "world", "real").index(stage.name)
        config = MixtureConfig(
            length=stage.steps * self.config.batch_size,
            seed=self.config.seed * 1000 + number,
            shapes=self.config.shapes[:1] if stage.name == "plain" else self.config.shapes,
            batch=self.config.batch_size,
            real_share=0.4 if stage.name == "real" else 0.0,
            plain_share={"plain": 0.7, "world": 0.15, "real": 0.0}[stage.name],
        )
        if stage.name != "real":
            return Mixture(config)
        return Mixture(config, self.clips)

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """The batch of `elastivid.data.mixture.collate`, with words."""
        return add_words(collate(samples), self._tokenizer)

    @cached_property
    def _tokenizer(self) -> Any:
        return TextTower.from_file(output_dim=PRESETS["nano"].dim).tokenizer

    def step(
        self, module: nn.Module, batch: Any, stage: Stage, draws: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss at three points, in stage `plain` at one."""
        assert isinstance(module, WithHeads)
        if stage.name == "plain":
            return module.losses(module.model, batch, (OperatingPoint(tokens=PLAIN_TOKENS),))
        frames, side = batch["frames"].shape[1:3]
        available, depth = frames * (side // PATCH_PIXELS) ** 2, len(module.model.video.blocks)
        return module.losses(module.model, batch, draw_points(draws, available, self.config.widths, depth))

    def evaluate(self, module: nn.Module) -> list[Row]:
        """Share of right captions among captions wrong in one attribute, at four operating points."""
        assert isinstance(module, WithHeads)
        points = [(frames, side, OperatingPoint(tokens=t, width=width)) for frames, side, t, width in POINTS]
        return choice_rows(module.model, points, self.config.scenes)

    def exported(self, module: nn.Module) -> Exported:
        """The dual encoder without the heads, with the widths and token counts that plans may use."""
        assert isinstance(module, WithHeads)
        measured = {"trained_widths": list(self.config.widths), "trained_tokens": list(TRAINED_TOKENS)}
        return Exported(module.model, licence="Apache-2.0", measured=measured)


RECIPE = Nano
