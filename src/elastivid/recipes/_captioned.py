"""What the recipes of dual encoders share: captioned samples, rendered or listed, and rows of an evaluation.

Letters: B samples, T frames, S side in pixels.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from elastivid.core.point import OperatingPoint, Sampling
from elastivid.data.captions import canonical_caption, captions
from elastivid.data.clips import ClipReading, Clips
from elastivid.data.listing import ListError, read_entries
from elastivid.data.quarantine import Quarantine
from elastivid.data.render import render_frames
from elastivid.data.staging import sample_scene
from elastivid.data.world import Content
from elastivid.evaluate.choices import ATTRIBUTES, accuracy, draw_choices
from elastivid.models.towers import TwoTowers
from elastivid.train.recipe import Row

SCENE_SECONDS = 4.0


@dataclass(frozen=True)
class Captioned:
    """A clip and what it shows.

    Args:
        frames: uint8 (T, S, S, 3).
        text: a caption.
        action: number of what is said: samples with equal numbers are no negatives of each other.
    """

    frames: np.ndarray
    text: str
    action: int


def number_of(text: str) -> int:
    """A number for a text; equal texts have equal numbers."""
    return zlib.crc32(text.encode())


class CaptionedScenes:
    """Rendered scenes of 4 s with paraphrased captions, a `Source` of `elastivid.data.clips`."""

    def draw(self, position: int, seed: int, shape: tuple[int, int]) -> Captioned:
        """The scene at a position: a function of (seed, position)."""
        rng = np.random.default_rng((seed, position))
        kind = str(rng.choice(["single", "sequence", "pair"], p=[0.4, 0.3, 0.3]))
        scene = sample_scene(rng, "train", kind, aspect=1.0)
        times = (np.arange(shape[0]) + 0.5) * SCENE_SECONDS / shape[0]
        return Captioned(render_frames(scene, times, shape[1]), captions(scene, rng), _number(scene.content))


class CaptionedMoments:
    """Two moments of one rendered scene, each with its own caption: what EgoVLP calls a clip and one from nearby.

    Samples are pairs: a thing that does one thing and then another, or two things one after the other.
    """

    def draw(self, position: int, seed: int, shape: tuple[int, int]) -> tuple[Captioned, Captioned]:
        """The moments at a position, in drawn order: a function of (seed, position)."""
        rng = np.random.default_rng((seed, position))
        scene = sample_scene(rng, "train", str(rng.choice(["sequence", "pair"])), aspect=1.0)
        moments = []
        for event, phrase in zip(sorted(scene.events, key=lambda e: e.start_seconds), scene.content, strict=False):
            length = event.end_seconds - event.start_seconds
            times = event.start_seconds + (np.arange(shape[0]) + 0.5) * length / shape[0]
            content = (phrase,)
            moments.append(Captioned(render_frames(scene, times, shape[1]), captions(content, rng), _number(content)))
        first, second = moments
        return (first, second) if rng.random() < 0.5 else (second, first)


def _number(content: Content) -> int:
    return number_of(canonical_caption(content))


class ListedCaptions:
    """Clips of a list with a text for each, a `Source`; equal texts count as the same action.

    Args:
        path: list or folder, see `elastivid.data.listing`.
        cache: folder of the quarantine.
        short_side: pixels of the shorter side of decoded frames.

    Raises:
        ListError: the list cannot be read, or no clip of it has a text.
    """

    def __init__(self, path: Path, cache: Path, short_side: int) -> None:
        entries = [entry for entry in read_entries(path) if entry.text]
        if not entries:
            raise ListError(f"{path}: no clip has a text; a column text, caption, sentence or description is needed")
        quarantine = Quarantine(cache / "quarantine.jsonl", len(entries))
        self.clips = Clips(entries, ClipReading(short_side=short_side), quarantine)

    def draw(self, position: int, seed: int, shape: tuple[int, int]) -> Captioned:
        """The sample at a position of the stream."""
        sample = self.clips.draw(position, seed, shape)
        return Captioned(sample.frames, sample.text, number_of(sample.text))


def collate_captioned(samples: Sequence[Captioned]) -> dict[str, Any]:
    """A batch: `frames` uint8 (B, T, S, S, 3), `texts` [B], `actions` (B,)."""
    return {
        "frames": torch.from_numpy(np.stack([sample.frames for sample in samples])),  # (B, T, S, S, 3)
        "texts": [sample.text for sample in samples],
        "actions": torch.tensor([sample.action for sample in samples]),  # (B,)
    }


def choice_rows(
    model: TwoTowers, points: Sequence[tuple[int, int, OperatingPoint]], scenes: int, seed: int = 7
) -> list[Row]:
    """Share of right captions among captions wrong in one attribute, on compositions that training never draws.

    Args:
        model: the dual encoder.
        points: frames, side in pixels and operating point of every row.
        scenes: scenes per attribute.
        seed: of the scenes.
    """
    drawn = {name: list(draw_choices(name, "held_out", scenes, seed)) for name in ATTRIBUTES}
    rows: list[Row] = []
    for frames, side, point in points:
        sampling = Sampling(frames=frames, size=side)
        shares = {name: accuracy(model, choices, sampling, [point])[0] for name, choices in drawn.items()}
        parts = [f"{frames} x {side} px"]
        parts += [f"{point.tokens} tokens"] if point.tokens else []
        parts += [f"width {point.width}"] if point.width else []
        rows.append(
            {
                "point": ", ".join(parts),
                "gmacs": model.cost(frames=frames, size=side, point=point).gmacs,
                "accuracy": sum(shares.values()) / len(shares),
                **shares,
            }
        )
    return rows
