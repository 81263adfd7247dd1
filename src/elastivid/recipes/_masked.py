"""What the recipes of masked pre-training share: clips without labels, masks by step, teachers by address.

Letters: B clips, T frames, S side in pixels, N tokens of the grid, V visible, O channels of a target.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from elastivid.core.tokens import Tokens
from elastivid.data.augment import Augmentation, Flip, MultiScaleCrop
from elastivid.data.cache import ClipCache
from elastivid.data.clips import ClipReading, Clips, ClipStream, collate
from elastivid.data.listing import read_entries
from elastivid.data.quarantine import Quarantine
from elastivid.data.sampling import Dense, FrameSampling, Segments, Shapes
from elastivid.layers.embed import patch_coordinates
from elastivid.models.base import VideoEncoder
from elastivid.models.umt import ClipTeacher, hub_teacher
from elastivid.planning.profile import cache_folder
from elastivid.recipes._labelled import DataError, encoder_of, smoke_data
from elastivid.train.order import mixed
from elastivid.train.recipe import Exported, Recipe, RecipeConfig, Row
from elastivid.train.stages import Stage
from elastivid.video.transforms import Transform
from elastivid.weights.hub import is_hub, locate

EVALUATED = 16  # clips that an evaluation looks at


@dataclass(frozen=True)
class MaskedConfig(RecipeConfig):
    """Settings of recipes that train on clips without labels.

    Args:
        data: list or folder of clips, see docs/data.md; labels are not used.
        preset: size of the model, a name in the family's `PRETRAINING`.
        frames, size: of a sample; `size` is the side in pixels.
        mask: share of the tokens that the encoder does not see.
        steps, learning_rate, warmup_share, final_share, weight_decay: of the only stage.
        stride: frames from one to the next, taken from a random start; 0 takes one of each of `frames` segments.
        flip: probability of mirroring a clip.
        scales: shares of the shorter side that crops take.
        short_side: pixels of the shorter side of decoded frames, which samples are cut out of.
        kept_frames: most frames of a clip that the cache keeps; 0 keeps all.
        cache: folder of decoded clips and of the quarantine; by default in the user's cache folder.
        cache_gigabytes: what it may take; 0 decodes every time.
        max_left_out: share of clips that may be unreadable before the run stops.

    Raises:
        ValueError: a value is out of range.
    """

    data: Path | None = None
    preset: str = "base"
    frames: int = 16
    size: int = 224
    mask: float = 0.9
    steps: int = 100_000
    learning_rate: float = 1.2e-3
    warmup_share: float = 0.05
    final_share: float = 0.01
    weight_decay: float = 0.05
    stride: int = 4
    flip: float = 0.5
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    short_side: int = 256
    kept_frames: int = 0
    cache: Path | None = None
    cache_gigabytes: float = 20.0
    max_left_out: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mask < 1:
            raise ValueError(f"mask must be above 0 and below 1, got {self.mask}")
        if self.size > self.short_side:
            raise ValueError(f"short_side must be at least size {self.size}, got {self.short_side}")

    @property
    def folder(self) -> Path:
        """Where decoded clips and the quarantine lie."""
        return self.cache or cache_folder() / "clips"


class MaskedRecipe(Recipe):
    """A recipe with one stage whose loss is a function of a clip and its masks. Subclasses build and give the loss."""

    config_class: ClassVar[type[RecipeConfig]] = MaskedConfig
    config: Any
    betas: ClassVar[tuple[float, float]] = (0.9, 0.95)
    trained: ClassVar[tuple[str, ...]] = ("*",)

    @classmethod
    def smoke(cls, config: Any) -> Any:
        """Twelve rendered clips of 64 pixels, a few steps of the tiny preset."""
        folder = cache_folder() / "smoke"
        return replace(
            config,
            data=smoke_data(folder / "actions"),
            cache=folder / "clips",
            preset="tiny",
            frames=8,
            size=56,
            short_side=64,
            stride=0,
            batch_size=4,
            steps=12,
            num_workers=0,
            log_every=1,
        )

    @cached_property
    def clips(self) -> Clips:
        """The clips; those that cannot be used are listed in the quarantine."""
        config = self.config
        if config.data is None:
            raise DataError("there is nothing to train on; name a list or a folder of clips: --set data=FOLDER")
        entries = [replace(entry, label="") for entry in read_entries(config.data)]
        sampling: FrameSampling = Dense(config.stride) if config.stride else Segments()
        augmentation = Augmentation(MultiScaleCrop(config.scales), Flip(config.flip))
        reading = ClipReading(sampling, augmentation, config.short_side, config.kept_frames or None)
        config.folder.mkdir(parents=True, exist_ok=True)
        cache = ClipCache(config.folder, int(config.cache_gigabytes * 2**30)) if config.cache_gigabytes else None
        quarantine = Quarantine(config.folder / "quarantine.jsonl", len(entries), config.max_left_out)
        return Clips(entries, reading, quarantine, cache=cache)

    def stages(self) -> tuple[Stage, ...]:
        """One."""
        config = self.config
        stage = Stage(
            "masked",
            config.steps,
            config.learning_rate,
            warmup_steps=round(config.steps * config.warmup_share),
            final_share=config.final_share,
            weight_decay=config.weight_decay,
            betas=self.betas,
            trained=self.trained,
        )
        return (stage,)

    def dataset(self, stage: Stage) -> Dataset:
        """Cropped and mirrored clips."""
        return ClipStream(self.clips, self.shapes(), self.config.batch_size, self.config.seed)

    def shapes(self) -> Shapes:
        """Frames and sides of batches."""
        return Shapes(((self.config.frames, self.config.size),))

    def collate(self, samples: Sequence[Any]) -> Any:
        """See `elastivid.data.clips.collate`."""
        return collate(samples)

    def step(
        self, module: nn.Module, batch: Any, stage: Stage, draws: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss at masks that depend on the step and the clip."""
        base = int(torch.randint(2**31, (1,), generator=draws))
        seeds = [mixed(base, index) for index in batch["indices"].tolist()]
        return self.loss(module, Transform().normalised(batch["frames"]), seeds)

    @abstractmethod
    def loss(self, module: nn.Module, video: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Loss of clips (B, T, 3, S, S) that already passed the transform, masked by a seed each, and its parts."""

    @abstractmethod
    def gmacs(self, module: nn.Module) -> float:
        """What the forward pass of one clip costs, teachers included."""

    def evaluate(self, module: nn.Module) -> list[Row]:
        """The loss of a few clips at fixed masks; `accuracy` is what it leaves of 1, so more is better."""
        indices = list(islice(self.clips.usable(), EVALUATED))  # no clip beyond them is opened
        views = [self.clips.views(index, (self.config.frames, self.config.size))[0] for index in indices]
        device = next(module.parameters()).device
        video = Transform().normalised(torch.stack([torch.from_numpy(view) for view in views]).to(device))
        loss, parts = self.loss(module, video, indices)
        row: Row = {
            "point": f"{self.config.frames} x {self.config.size} px, {self.config.mask:.0%} hidden",
            "gmacs": self.gmacs(module),
            "accuracy": 1.0 - float(loss),
            "loss": float(loss),
            **{name: float(value) for name, value in parts.items()},
        }
        return [row]

    def exported(self, module: nn.Module) -> Exported:
        """The encoder alone."""
        encoder = module.encoder
        assert isinstance(encoder, VideoEncoder)
        return Exported(encoder)


def grid_tokens(grid: tuple[int, int, int], batch: int, device: torch.device) -> Tokens:
    """Tokens without features: what a mask is drawn on."""
    coords = patch_coordinates(grid).to(device).expand(batch, -1, -1)  # (B, N, 3)
    return Tokens(x=coords[..., :1], coords=coords, grid=grid)


def at_places(values: Tensor, places: Tensor) -> Tensor:
    """Rows of (..., B, N, O) at places (B, V): (..., B, V, O)."""
    index = places[..., None].expand(*values.shape[:-2], places.shape[-1], values.shape[-1])
    return values.gather(-2, index)


def frozen(module: nn.Module) -> nn.Module:
    """`module` in evaluation mode, its parameters not to be trained."""
    return module.eval().requires_grad_(False)


def teacher_of(address: str) -> VideoEncoder | ClipTeacher:
    """A frozen teacher: an `hf:` address of a CLIP checkpoint, a file of ours, a shipped name, or `family/preset`.

    A preset is untrained: it teaches nothing and serves to try a recipe.

    Raises:
        DataError, UnknownNameError, WeightsError: there is no such teacher.
    """
    if is_hub(address):
        teacher: nn.Module = hub_teacher(locate(address))
    else:
        teacher = encoder_of(address)[0]
    frozen(teacher)
    assert isinstance(teacher, VideoEncoder | ClipTeacher)
    return teacher
