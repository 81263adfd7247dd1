"""Training samples drawn from the synthetic world and, in a given share, from labelled clips.

Every sample depends on (seed, index) alone, so a run can be repeated whatever the number of workers.

Letters: B clips, T frames, H W (or h w) pixels, M wrong texts per clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from elastivid.data.augment import Augmentation, ColourJitter, RandomResizedCrop
from elastivid.data.captions import captions, hard_negatives
from elastivid.data.clips import ClipReading, Clips
from elastivid.data.render import render_frames
from elastivid.data.staging import sample_scene
from elastivid.data.world import COLOURS, MOTIONS, SHAPES, Camera, Content, Scene

ASPECTS = (1.0, 4 / 3, 4 / 3, 16 / 9)  # aspect of the file that a square training frame was squashed from
ATTRIBUTE_SIZES = (len(COLOURS) + 1, len(SHAPES) + 1, len(MOTIONS) + 1) * 2  # the last class is "no such phrase"
PATCH_SIZES = (len(COLOURS) + 1, len(SHAPES) + 1, len(MOTIONS) + 2)  # classes of `patch_targets`
PATCH_PIXELS = 14
IGNORED = -100  # class number that cross-entropy leaves out
PROMPTS = ("{}", "a person {}", "someone {}", "a video of a person {}", "people {}", "the action of {}")
GERUNDS = {
    "brush_hair": "brushing hair",
    "catch": "catching a ball",
    "clap": "clapping hands",
    "climb_stairs": "climbing stairs",
    "golf": "playing golf",
    "jump": "jumping",
    "kick_ball": "kicking a ball",
    "pick": "picking something up",
    "pour": "pouring a drink",
    "pullup": "doing pull ups",
    "push": "pushing something",
    "run": "running",
    "shoot_ball": "shooting a basketball",
    "shoot_bow": "shooting a bow and arrow",
    "shoot_gun": "shooting a gun",
    "sit": "sitting down",
    "stand": "standing up",
    "swing_baseball": "swinging a baseball bat",
    "throw": "throwing a ball",
    "walk": "walking",
    "wave": "waving a hand",
}


@dataclass(frozen=True)
class Sample:
    """One clip with a text that describes it and texts that do not.

    Args:
        frames: uint8 (T, H, W, 3).
        text: a true caption.
        hard_texts: captions that are wrong in one respect.
        key: what the clip shows, to tell when the text of one sample also describes another.
        attributes: (6,) class numbers of colour, shape and motion of the first and second phrase, see
            `attribute_numbers`; all `IGNORED` for labelled clips.
        patches: (T, h, w, 3) what each patch shows, see `patch_targets`; all `IGNORED` for labelled clips.
    """

    frames: np.ndarray
    text: str
    hard_texts: tuple[str, ...]
    key: tuple[Any, ...]
    attributes: tuple[int, ...]
    patches: np.ndarray


class Mixture(Dataset):
    """Samples of the world and of labelled clips; see the module's text.

    Args:
        config: sizes, seed and shares.
        clips: labelled clips, their labels those of `GERUNDS`; needed when `config.real_share` is above 0.

    Raises:
        ValueError: they are needed and missing.
    """

    def __init__(self, config: MixtureConfig, clips: Clips | None = None) -> None:
        if config.real_share > 0 and clips is None:
            raise ValueError("real_share is above 0, so labelled clips are needed")
        self.config, self.clips = config, clips

    def __len__(self) -> int:
        return self.config.length

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng((self.config.seed, index))
        frames, size = self.config.shape_of(index)
        if self.clips is not None and rng.random() < self.config.real_share:
            return self._real(self.clips, index, rng, (frames, size))
        return self._scene(rng, frames, size)

    def _scene(self, rng: np.random.Generator, num_frames: int, size: int) -> Sample:
        config = self.config
        kind = str(rng.choice(["single", "sequence", "pair"], p=[0.4, 0.3, 0.3]))
        scene = sample_scene(rng, split="train", kind=kind, aspect=float(rng.choice(ASPECTS)))
        if rng.random() < config.plain_share:
            background = replace(scene.background, kind="plain")
            scene = replace(scene, background=background, camera=Camera("still"), distractors=())
        step = 4.0 / num_frames
        times = (np.arange(num_frames) + 0.5) * step + rng.uniform(-0.5, 0.5)
        times = times.clip(0, None)
        frames = render_frames(scene, times, size)
        wrong = hard_negatives(scene, rng, config.hard_texts, split="train")
        return Sample(
            frames=frames,
            text=captions(scene, rng),
            hard_texts=tuple(text for _, text in wrong),
            key=scene.content,
            attributes=attribute_numbers(scene.content),
            patches=patch_targets(scene, times, size // PATCH_PIXELS),
        )

    def _real(self, clips: Clips, index: int, rng: np.random.Generator, shape: tuple[int, int]) -> Sample:
        config, drawn, (num_frames, size) = self.config, clips.draw(index, self.config.seed, shape), shape
        label = clips.entries[drawn.index].label
        others = rng.permutation([c for c in clips.classes if c != label])[: config.hard_texts]
        prompt = str(rng.choice(PROMPTS))
        return Sample(
            frames=drawn.frames,
            text=prompt.format(GERUNDS[label]),
            hard_texts=tuple(str(rng.choice(PROMPTS)).format(GERUNDS[c]) for c in others),
            key=(label,),
            attributes=(IGNORED,) * len(ATTRIBUTE_SIZES),
            patches=np.full((num_frames, *(size // PATCH_PIXELS,) * 2, len(PATCH_SIZES)), IGNORED),
        )


@dataclass(frozen=True)
class MixtureConfig:
    """What a `Mixture` draws.

    Args:
        length: number of samples.
        seed: samples depend on this and their index.
        shapes: (frames, side in pixels) to draw from; every `batch` consecutive samples share one.
        batch: samples of a batch.
        hard_texts: wrong texts per clip.
        real_share: probability that a sample is a labelled clip.
        plain_share: probability that a scene has a plain background, a still camera and no clutter: shapes and
            motions are learned sooner when training starts with many of these.
    """

    length: int
    seed: int = 0
    shapes: tuple[tuple[int, int], ...] = ((8, 168),)
    batch: int = 1
    hard_texts: int = 8
    real_share: float = 0.0
    plain_share: float = 0.0

    def shape_of(self, index: int) -> tuple[int, int]:
        """Frames and side of the sample with this index."""
        if len(self.shapes) == 1:
            return self.shapes[0]
        rng = np.random.default_rng((self.seed, 1, index // self.batch))
        return self.shapes[int(rng.integers(len(self.shapes)))]


def attribute_numbers(content: Content) -> tuple[int, ...]:
    """Class numbers of colour, shape and motion of two phrases; a missing second phrase takes the last class."""
    numbers: list[int] = []
    for phrase in (*content, None)[:2]:
        for table, name in ((tuple(COLOURS), "colour"), (SHAPES, "shape"), (MOTIONS, "motion")):
            numbers.append(len(table) if phrase is None else table.index(getattr(phrase, name)))
    return tuple(numbers)


def patch_targets(scene: Scene, times_seconds: np.ndarray, grid: int) -> np.ndarray:
    """What every patch of every frame shows: class numbers (T, grid, grid, 3) of colour, shape and motion.

    A patch shows a thing when its centre lies in the thing's box, widened by a quarter of a patch. Number 0 is
    background; colour and shape count from 1 as the world lists them; a thing that does nothing at that time has
    motion 1 and an active one counts from 2.
    """
    targets = np.zeros((len(times_seconds), grid, grid, len(PATCH_SIZES)), dtype=np.int64)
    centres = (np.arange(grid) + 0.5) / grid
    margin = 0.25 / grid
    for t, seconds in enumerate(times_seconds):
        acting = {e.actor: e.motion for e in scene.events if e.start_seconds <= seconds < e.end_seconds}
        for box in scene.boxes_at(float(seconds)):
            thing = scene.things[box.thing]
            rows = (centres > box.top - margin) & (centres < box.bottom + margin)
            columns = (centres > box.left - margin) & (centres < box.right + margin)
            motion = 2 + MOTIONS.index(acting[box.thing]) if box.thing in acting else 1
            shown = (1 + tuple(COLOURS).index(thing.colour), 1 + SHAPES.index(thing.shape), motion)
            targets[t][np.ix_(rows, columns)] = shown
    return targets


def content_numbers(key: tuple[Any, ...]) -> tuple[int, ...]:
    """(6,) numbers that stand for what a clip shows, for `same_content`: `attribute_numbers` of a scene; of a labelled
    clip -1 - the number of its class among `GERUNDS`, six times."""
    if isinstance(key[0], str):
        return (-1 - list(GERUNDS).index(key[0]),) * len(ATTRIBUTE_SIZES)
    return attribute_numbers(key)


def same_content(texts: torch.Tensor, clips: torch.Tensor) -> torch.Tensor:
    """Which texts (B, 6) say what happens in which clips (A, 6), both as `content_numbers`: (A, B) bool.

    A text of one phrase fits a clip that shows it first or second, a text of two phrases a clip that shows both in
    this order; speeds do not count. A labelled clip fits the texts of its class.
    """
    missing = torch.tensor(ATTRIBUTE_SIZES[3:], device=texts.device) - 1  # (3,), how a missing phrase is numbered
    one, two = texts[None, :, :3], texts[None, :, 3:]  # (1, B, 3) each
    first, second = clips[:, None, :3], clips[:, None, 3:]  # (A, 1, 3) each
    alone = (two == missing).all(-1)  # (1, B)
    starts = (one == first).all(-1)  # (A, B)
    return torch.where(alone, starts | (one == second).all(-1), starts & (two == second).all(-1))


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """A batch: `frames` uint8 (B, T, H, W, 3), `texts` [B], `hard_texts` [B][M], `contents` (B, 6) for `same_content`,
    `attributes` (B, 6), `patches` (B, N, 3)."""
    return {
        "frames": torch.from_numpy(np.stack([s.frames for s in samples])),  # (B, T, H, W, 3)
        "texts": [s.text for s in samples],
        "hard_texts": [list(s.hard_texts) for s in samples],
        "attributes": torch.tensor([s.attributes for s in samples]),  # (B, 6)
        "patches": torch.from_numpy(np.stack([s.patches for s in samples])).flatten(1, 3),  # (B, T*h*w, 3)
        "contents": torch.tensor([content_numbers(s.key) for s in samples]),  # (B, 6)
    }


REAL_READING = ClipReading(  # how labelled clips are read
    augmentation=Augmentation(RandomResizedCrop((0.36, 1.0), (0.6, 1.7)), operations=(ColourJitter(),)),
    short_side=224,
    kept_frames=16,
)
