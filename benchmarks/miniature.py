"""Miniature FluxViTs on flux-bench: how each is trained, and which test clips it gets right at which operating point.

Four blocks of 128 channels, patches of 16 pixels, at most 16 frames of 64 pixels. A base per seed is trained first, as
the papers start from pre-trained models: one grid, full width, first on the 48 tokens that change most, as masked
pre-training does to be fast, then on all tokens. Besides the answer it names the colour, shape and motion in every
patch, which models this small need in order to start. Every other run continues from the base of its seed.
`reproduction.py` runs them all and writes the page.

Letters: B clips, T frames, H W pixels, N patches, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from elastivid.core.point import OperatingPoint
from elastivid.data import fluxbench
from elastivid.data.fluxbench import FIRST_CLASS, FRAMES, NUM_CLASSES, SIZE, TASKS, BenchSet, load_clips
from elastivid.data.mixture import PATCH_SIZES, patch_targets
from elastivid.layers.block import initialise_mimetic
from elastivid.layers.elastic import sample_widths
from elastivid.losses.contrastive import agreement_chain
from elastivid.models.fluxvit import FluxViT, FluxViTConfig
from elastivid.select.base import Selector
from elastivid.select.masks import RandomTokens, RandomTubes
from elastivid.select.motion import GroupDynamic
from elastivid.train.order import Epochs
from elastivid.train.recipe import Exported, Recipe, RecipeConfig, Row
from elastivid.train.stages import Stage

PATCH = 16
MODEL = FluxViTConfig(
    embed_dim=128, depth=4, num_heads=4, patch_size=PATCH, num_frames=FRAMES, image_size=SIZE, pool_heads=4,
    pool_dim=128, layer_scale=0.3, num_classes=NUM_CLASSES,
)  # fmt: skip
COUNTS = (128, 64, 32)  # K, K/2, K/4
FIXED = (8, 64)  # frames and side of the fixed grid: 128 tokens
FLEXIBLE = ((8, 64), (10, 64), (12, 64), (14, 64), (16, 64), (16, 48))  # grids of 128 to 256 tokens
WIDTHS = (32, 64, 96, 128)
ALIGN = 64.0  # weight of the self-distillation: with 128 channels half of one minus the cosine
PATCH_WEIGHT = 0.3
FEW_TOKENS, FEW_STEPS, BASE_STEPS, TUNE_STEPS = 48, 1600, 500, 200
Grid = tuple[int, int]
SelectorFor = Callable[[Sequence[int]], Selector]
SELECTORS: dict[str, SelectorFor] = {  # by a seed per clip
    "random": lambda seeds: RandomTokens(seeds),
    "tube": lambda seeds: RandomTubes(seeds),
    "dynamic": lambda seeds: GroupDynamic(1),
    "group-2": lambda seeds: GroupDynamic(2),
    "group-4": lambda seeds: GroupDynamic(),
}


@dataclass(frozen=True)
class Method:
    """How a model is trained.

    Args:
        grids: frames and side; a step draws one.
        counts: token counts that every clip is encoded at, the largest first; `None` keeps all.
        selector: name of what selects.
        widths: "full"; "half"; "drawn" (a width per block and step); "decreasing" (drawn, never growing); "below"
            (the largest count at full width, the others at drawn ones).
    """

    grids: tuple[Grid, ...] = (FIXED,)
    counts: tuple[int | None, ...] = (None,)
    selector: str = "group-4"
    widths: str = "full"


METHODS = {
    "base": Method(),
    "fixed": Method(),
    "flux-single": Method(FLEXIBLE, (COUNTS[0],)),
    "flux-multi": Method(FLEXIBLE, COUNTS),
    "random": Method(FLEXIBLE, (COUNTS[0],), "random"),
    "tube": Method(FLEXIBLE, (COUNTS[0],), "tube"),
    "dynamic": Method(FLEXIBLE, (COUNTS[0],), "dynamic"),
    "group-2": Method(FLEXIBLE, (COUNTS[0],), "group-2"),
    "width-sampled": Method(widths="drawn"),
    "width-decreasing": Method(widths="decreasing"),
    "half-width": Method(widths="half"),
    "joint": Method(FLEXIBLE, COUNTS, widths="below"),
}


def draw_step(method: Method, draws: torch.Generator, seeds: Sequence[int]) -> tuple[Grid, list[OperatingPoint]]:
    """Grid and operating points of one training step."""
    grid = method.grids[int(torch.randint(len(method.grids), (1,), generator=draws))]
    points = []
    for number, count in enumerate(method.counts):
        width: int | tuple[int, ...] | None = None
        if method.widths == "half":
            width = MODEL.embed_dim // 2
        elif method.widths in ("drawn", "decreasing") or (method.widths == "below" and number):
            width = sample_widths(draws, MODEL.depth, WIDTHS, decreasing=method.widths == "decreasing")
        selector = None if count is None else SELECTORS[method.selector](seeds)
        points.append(OperatingPoint(tokens=count, selector=selector, width=width))
    return grid, points


def training_gmacs(method: Method, draws: int = 400) -> float:
    """Multiply-accumulates of one clip in one step, forward and backward (three forwards), the mean over draws."""
    generator, total = torch.Generator().manual_seed(0), 0
    for _ in range(draws):
        (frames, size), points = draw_step(method, generator, (0,))
        total += sum(MODEL.cost(frames=frames, size=size, tokens=p.tokens, width=p.width).macs for p in points)
    return 3 * total / draws / 1e9


class Miniature(nn.Module):
    """The model, and the head that names what every patch shows, which the base alone has."""

    def __init__(self, *, patches: bool) -> None:
        super().__init__()
        self.model = FluxViT(MODEL)
        self.patch = nn.Linear(MODEL.embed_dim, sum(PATCH_SIZES)) if patches else None


def to_video(frames: Tensor, grid: Grid) -> Tensor:
    """Cached frames uint8 (B, 16, 64, 64, 3) to model input (B, T, 3, H, H): frames in the middle of equal spans."""
    num_frames, size = grid
    index = ((torch.arange(num_frames) + 0.5) * FRAMES / num_frames).long()
    video = frames[:, index].permute(0, 1, 4, 2, 3).float()  # (B, T, 3, 64, 64)
    if size != SIZE:
        small = F.interpolate(video.flatten(0, 1), size=size, mode="bilinear", antialias=True)  # (B*T, 3, H, H)
        video = small.unflatten(0, video.shape[:2])  # (B, T, 3, H, H)
    return (video - 110.0) / 60.0


_ALLOWED = torch.tensor(
    [[FIRST_CLASS[t] <= c < FIRST_CLASS[t] + len(task.classes) for c in range(NUM_CLASSES)]
     for t, task in enumerate(TASKS)]
)  # fmt: skip


def answers(logits: Tensor, tasks: Tensor) -> Tensor:
    """Logits (B, C) with the classes of other tasks out of reach."""
    return logits.float().masked_fill(~_ALLOWED[tasks], -1e9)


@dataclass(frozen=True)
class MiniatureConfig(RecipeConfig):
    """Settings of a run.

    Args:
        method: a name in `METHODS`.
        clips: folder of the rendered clips.
        base: weights to start from; `None` starts anew, as the method "base" does.
        train_clips: rendered clips to train on.
        steps: of the last stage.
        few_steps: of the first stage of a base.
        learning_rate: of the first stage.
    """

    method: str = "base"
    clips: Path = Path("runs/flux-bench")
    base: Path | None = None
    train_clips: int = 16_800
    steps: int = BASE_STEPS
    few_steps: int = FEW_STEPS
    learning_rate: float = 1.5e-3
    batch_size: int = 32
    precision: str = "bfloat16"
    num_workers: int = 0
    save_every: int = 100


class MiniatureRecipe(Recipe):
    """One run; see the module's text."""

    config_class = MiniatureConfig
    config: MiniatureConfig

    def build(self) -> nn.Module:
        """The miniature, new or from its base."""
        module = Miniature(patches=self.config.base is None)
        if self.config.base is None:
            for block in module.model.blocks:
                initialise_mimetic(block)  # type: ignore[arg-type]
        else:
            module.model.load_state_dict(load_file(self.config.base))
        return module

    def exported(self, module: nn.Module) -> Exported:
        """The model alone."""
        assert isinstance(module, Miniature)
        return Exported(module.model)

    def stages(self) -> tuple[Stage, ...]:
        """A stage with a short warm-up; before it, for the base, one on few tokens."""
        config = self.config
        warmup = max(1, config.steps // 20)
        last = Stage("train", config.steps, config.learning_rate, warmup, final_share=0.01, betas=(0.9, 0.98))
        if config.base is not None:
            return (last,)
        few = replace(last, name="few tokens", steps=config.few_steps, final_share=0.3)
        return few, replace(last, learning_rate=0.5 * config.learning_rate)

    def dataset(self, stage: Stage) -> Dataset:
        """Numbers of training clips; `collate` reads them."""
        self.clips = load_clips(self.config.clips, "train", self.config.train_clips)
        if self.config.base is None:
            self.patches = load_patches(self.config.clips, self.config.train_clips)
        return Epochs(range(self.config.train_clips), 2 * self.config.seed + (stage.name == "train"))

    def collate(self, samples: Sequence[Any]) -> Any:
        """Frames, tasks, classes and, for the base, what patches show."""
        rows = np.asarray(samples)
        batch = {
            "frames": torch.from_numpy(self.clips.frames[rows]),  # (B, 16, 64, 64, 3)
            "tasks": torch.from_numpy(self.clips.tasks[rows]),
            "labels": torch.from_numpy(self.clips.labels[rows]),
            "rows": rows.tolist(),
        }
        if self.config.base is None:
            batch["patches"] = torch.from_numpy(self.patches[rows])  # (B, 16, h, w, 3)
        return batch

    def step(
        self, module: nn.Module, batch: Any, stage: Stage, draws: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Cross-entropy over the task's classes at every point, self-distillation, and the patches of the base."""
        assert isinstance(module, Miniature)
        seeds = [int(s) for s in torch.randint(2**31, (len(batch["rows"]),), generator=draws)]
        grid, points = draw_step(METHODS[self.config.method], draws, seeds)
        if stage.name == "few tokens":
            points = [OperatingPoint(tokens=FEW_TOKENS)]
        video = to_video(batch["frames"], grid)
        wanted = torch.tensor(FIRST_CLASS)[batch["tasks"]] + batch["labels"]  # (B,)
        losses, features, shown = [], [], video.new_zeros(())
        for point in points:
            out = module.model(video, point=point)
            losses.append(F.cross_entropy(answers(out.logits, batch["tasks"]), wanted))
            features.append(out.embedding.float())
            if module.patch is not None:
                shown = patch_loss(module.patch(out.tokens.x[:, 1:]).float(), out.tokens.cells, batch["patches"], grid)
        right = (answers(out.logits, batch["tasks"]).argmax(dim=1) == wanted).float().mean()
        loss = torch.stack(losses).mean() + PATCH_WEIGHT * shown
        if len(points) > 1:
            loss = loss + ALIGN * agreement_chain(features) / (len(points) - 1)
        return loss, {"answer": losses[0].detach(), "patches": shown.detach(), "right": right}

    def evaluate(self, module: nn.Module) -> list[Row]:
        """Share of right answers on validation clips at the fixed grid, over all and by task."""
        assert isinstance(module, Miniature)
        clips = load_clips(self.config.clips, "validation", VALIDATION_CLIPS)
        hits = hits_at(module.model, clips, [Spot(*FIXED)])[0]
        tasks = {task.name: float(hits[number :: len(TASKS)].mean()) for number, task in enumerate(TASKS)}
        return [{"accuracy": float(hits.mean()), "gmacs": Spot(*FIXED).gmacs, **tasks}]


def patch_loss(logits: Tensor, cells: Tensor, shown: Tensor, grid: Grid) -> Tensor:
    """Cross-entropy of naming every kept patch, once over all of them and once over those that show a thing.

    Args:
        logits: (B, K, sum of `PATCH_SIZES`).
        cells: (B, K) which patch each is.
        shown: (B, 16, h, w, 3) class numbers at the cached frames.
        grid: frames and side of what the model saw; the side must be that of the cache.
    """
    index = ((torch.arange(grid[0]) + 0.5) * FRAMES / grid[0]).long()
    every = shown[:, index].flatten(1, 3).long()  # (B, N, 3)
    wanted = every.gather(1, cells[..., None].expand(-1, -1, 3)).flatten(0, 1)  # (B*K, 3)
    thing = wanted[:, 0] > 0
    total = logits.new_zeros(())
    for number, part in enumerate(logits.flatten(0, 1).split(list(PATCH_SIZES), dim=1)):  # (B*K, classes)
        total = total + F.cross_entropy(part, wanted[:, number]) + F.cross_entropy(part[thing], wanted[thing, number])
    return total


def load_patches(folder: Path, count: int) -> np.ndarray:
    """What the patches of the first training clips show, uint8 (N, 16, h, w, 3); computed once into a file."""
    path = folder / f"{fluxbench.VERSION}-patches-{count}.npy"
    if not path.exists():
        side = SIZE // PATCH
        stored = np.zeros((count, FRAMES, side, side, 3), dtype=np.uint8)
        for index in range(count):
            scene = fluxbench.draw_clip("train", index).scene
            stored[index] = patch_targets(scene, (np.arange(FRAMES) + 0.5) * scene.duration_seconds / FRAMES, side)
        partial_path = path.with_suffix(".partial.npy")
        np.save(partial_path, stored)
        partial_path.replace(path)
    shown: np.ndarray = np.load(path)
    return shown


VALIDATION_CLIPS, TEST_CLIPS = 420, 1260  # the first ones of each split; 60 and 180 of every task


@dataclass(frozen=True)
class Spot:
    """Where a model is asked: grid, tokens kept (`None`: all), width or widths of the blocks, name of the selector."""

    frames: int
    size: int
    tokens: int | None = None
    width: int | tuple[int, ...] | None = None
    selector: str = "group-4"

    @property
    def gmacs(self) -> float:
        """Billions of multiply-accumulates of one clip."""
        return MODEL.cost(frames=self.frames, size=self.size, tokens=self.tokens, width=self.width).gmacs

    @property
    def first_width(self) -> int:
        """Width of the first block."""
        return MODEL.widths_at(self.width)[0]

    def point(self, seeds: Sequence[int]) -> OperatingPoint:
        """As an operating point; random selectors take a seed per clip."""
        selector = None if self.tokens is None else SELECTORS[self.selector](seeds)
        return OperatingPoint(tokens=self.tokens, selector=selector, width=self.width)


def available_tokens(frames: int, size: int) -> int:
    """Patches of a grid."""
    return frames * (size // PATCH) ** 2


def choices(tokens: int) -> list[Grid]:
    """Grids that Token Optimization chooses from for a token count."""
    grids = [(frames, size) for frames in (2, 4, 8, 16) for size in (32, 48, 64)]
    return [grid for grid in grids if available_tokens(*grid) >= tokens]


@torch.inference_mode()
def hits_at(model: FluxViT, clips: BenchSet, spots: Sequence[Spot], batch: int = 56) -> np.ndarray:
    """Which clips are answered rightly at each spot: bool (spots, N).

    Spots that share grid and first width share the patch embedding. Products are in bfloat16.
    """
    found = np.zeros((len(spots), len(clips)), dtype=bool)
    order = sorted(range(len(spots)), key=lambda i: (spots[i].frames, spots[i].size, spots[i].first_width))
    model.eval()
    for start in range(0, len(clips), batch):
        part = slice(start, min(start + batch, len(clips)))
        frames = torch.from_numpy(np.array(clips.frames[part]))  # (B, 16, 64, 64, 3)
        tasks, labels = torch.from_numpy(clips.tasks[part]), torch.from_numpy(clips.labels[part])
        wanted, seeds = torch.tensor(FIRST_CLASS)[tasks] + labels, range(start, part.stop)
        for grid, members in groupby(order, key=lambda i: (spots[i].frames, spots[i].size)):
            video = to_video(frames, grid)
            for _, group in groupby(members, key=lambda i: spots[i].first_width):
                numbers = list(group)
                with torch.autocast("cpu", torch.bfloat16):
                    tokens = model.embed(video, spots[numbers[0]].point(seeds))
                    for number in numbers:
                        logits = model.encode(tokens, spots[number].point(seeds)).logits
                        found[number, part] = (answers(logits, tasks).argmax(dim=1) == wanted).numpy()
    return found
