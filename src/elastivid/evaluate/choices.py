"""Multiple choice on rendered scenes: the right caption among captions that are wrong in one attribute.

What it measures is whether a model sees colour, shape, motion and the order of two events, each by itself: the wrong
captions differ from the right one in that attribute alone. Scenes depend on the seed and on nothing else.

Letters: T frames, C captions, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from elastivid.core.point import OperatingPoint, Sampling
from elastivid.data.captions import canonical_caption, swapped
from elastivid.data.render import render_frames
from elastivid.data.staging import sample_scene
from elastivid.data.world import COLOURS, MOTIONS, SHAPES, Content, Scene, in_split, is_possible
from elastivid.models.base import DualEncoder

ATTRIBUTES = ("colour", "shape", "motion", "order")
CHANCE = {"colour": 0.25, "shape": 0.25, "motion": 0.25, "order": 0.5}
WINDOW_SECONDS = 4.0


@dataclass(frozen=True)
class Choice:
    """A scene with captions, the right one first."""

    scene: Scene
    captions: tuple[str, ...]


def wrong_contents(content: Content, attribute: str) -> list[Content]:
    """All contents of one phrase that differ in `attribute` alone; for order the swapped content."""
    if attribute == "order":
        other = swapped(content)
        return [other] if other else []
    values = {"colour": tuple(COLOURS), "shape": SHAPES, "motion": MOTIONS}[attribute]
    (phrase,) = content
    changed = [(replace(phrase, **{attribute: value, "speed": ""}),) for value in values]
    return [c for c in changed if getattr(c[0], attribute) != getattr(phrase, attribute) and is_possible(c)]


def draw_choices(attribute: str, split: str, count: int, seed: int) -> Iterator[Choice]:
    """Scenes of 4 s with four captions, or two for order.

    Args:
        attribute: one of `ATTRIBUTES`.
        split: "train" for compositions that training draws, "held_out" for those it never does.
        count: number of scenes.
        seed: equal seeds give equal scenes.
    """
    rng = np.random.default_rng((seed, ATTRIBUTES.index(attribute), split == "train"))
    done = 0
    while done < count:
        kind = str(rng.choice(["sequence", "pair"])) if attribute == "order" else "single"
        scene = sample_scene(rng, split, kind)
        wrong = wrong_contents(scene.content, attribute)
        if not wrong or not in_split(scene.content, split):
            continue
        picked = [wrong[i] for i in rng.permutation(len(wrong))[:3]]
        yield Choice(scene, tuple(canonical_caption(content) for content in (scene.content, *picked)))
        done += 1


def render_choice(choice: Choice, sampling: Sampling) -> np.ndarray:
    """Frames uint8 (T, H, W, 3) of a scene, evenly spread over it."""
    times = (np.arange(sampling.frames) + 0.5) * WINDOW_SECONDS / sampling.frames
    return render_frames(choice.scene, times, sampling.size)


def accuracy(
    model: DualEncoder,
    choices: Sequence[Choice],
    sampling: Sampling,
    points: Sequence[OperatingPoint],
    *,
    batch: int = 8,
) -> list[float]:
    """Share of scenes whose own caption is nearest, at each operating point.

    Args:
        model: clips and texts to one space.
        choices: scenes with captions.
        sampling: frames and size of what the model sees.
        points: what it spends on a clip.
        batch: clips that are encoded together.
    """
    return [float(right.mean()) for right in hits(model, choices, sampling, points, batch=batch)]


@torch.inference_mode()
def hits(
    model: DualEncoder,
    choices: Sequence[Choice],
    sampling: Sampling,
    points: Sequence[OperatingPoint],
    *,
    batch: int = 8,
) -> np.ndarray:
    """Which scenes' own caption is nearest, bool (points, scenes); arguments as for `accuracy`."""
    found = np.zeros((len(points), len(choices)), dtype=bool)
    transform = replace(model.transform, size=sampling.size)
    for start in range(0, len(choices), batch):
        part = choices[start : start + batch]
        frames = np.stack([render_choice(choice, sampling) for choice in part])  # (B, T, H, W, 3)
        video = transform(frames.reshape(-1, *frames.shape[2:])).unflatten(0, frames.shape[:2])  # (B, T, 3, H, W)
        texts = [model.embed_texts(choice.captions) for choice in part]  # each (C, D)
        for number, point in enumerate(points):
            clips = model.embed_clips(video, point=point)  # (B, D)
            found[number, start : start + batch] = [
                int((t @ clip).argmax()) == 0 for t, clip in zip(texts, clips, strict=True)
            ]
    return found
