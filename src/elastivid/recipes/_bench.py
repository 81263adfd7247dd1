"""flux-bench as a source of training samples and test views, and a user's lists as the same.

Letters: N clips, T frames, S side in pixels.
"""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Protocol

import numpy as np

from elastivid.data.augment import Augmentation, resized
from elastivid.data.cache import ClipCache
from elastivid.data.clips import ClipReading, Clips, ClipSample, place_in_epoch
from elastivid.data.fluxbench import FIRST_CLASS, NUM_CLASSES, TASKS, BenchSet, load_clips
from elastivid.data.listing import classes_of, read_entries
from elastivid.data.quarantine import Quarantine
from elastivid.data.randaugment import RandAugment
from elastivid.data.sampling import Segments
from elastivid.video.samplers import uniform


class Labelled(Protocol):
    """Clips to train on and to test on, with class numbers. `Clips` is one."""

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def draw(self, position: int, seed: int, shape: tuple[int, int]) -> ClipSample:
        """The training sample at a position of an endless stream."""
        ...

    def views(self, index: int, shape: tuple[int, int]) -> np.ndarray:
        """Test views (1, T, S, S, 3) of a clip."""
        ...

    def label_of(self, index: int) -> int:
        """Class number of a clip."""
        ...


class BenchClips:
    """A split of flux-bench; classes are those of all tasks in a row. Frames are drawn one out of each segment.

    Args:
        folder: where rendered clips are kept.
        split: see `elastivid.data.fluxbench`.
        count: clips of it.
    """

    classes = tuple(f"{task.name}: {name}" for task in TASKS for name in task.classes)

    def __init__(self, folder: Path, split: str, count: int) -> None:
        assert len(self.classes) == NUM_CLASSES
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "rendering.lock").open("w") as lock:  # one of several processes renders, the others wait
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.clips: BenchSet = load_clips(folder, split, count)

    def __len__(self) -> int:
        return len(self.clips)

    def label_of(self, index: int) -> int:
        """Class number of a clip among all tasks."""
        return FIRST_CLASS[int(self.clips.tasks[index])] + int(self.clips.labels[index])

    def draw(self, position: int, seed: int, shape: tuple[int, int]) -> ClipSample:
        """The training sample at a position."""
        index = place_in_epoch(position, seed, len(self))
        frames = self.clips.frames[index]
        chosen = Segments().draw(len(frames), shape[0], np.random.default_rng((seed, position)))
        return ClipSample(resized(frames[chosen], shape[1]), self.label_of(index), "", index)

    def views(self, index: int, shape: tuple[int, int]) -> np.ndarray:
        """Evenly spread frames, one view."""
        frames = self.clips.frames[index]
        return resized(frames[uniform(len(frames), shape[0])], shape[1])[None]


def listed(
    train: Path, validation: Path, cache: Path, limit_gigabytes: float, short_side: int
) -> tuple[Labelled, Labelled]:
    """Clips of two lists with the classes of the first, trained on with RandAugment (9, 0.5) as FluxViT is.

    Args:
        train, validation: the lists.
        cache: folder of the quarantine and of decoded clips.
        limit_gigabytes: what decoded clips may take there; 0 decodes every time.
        short_side: pixels of the shorter side of decoded frames.
    """
    reading = ClipReading(augmentation=Augmentation(operations=(RandAugment(),)), short_side=short_side)
    parts = [read_entries(path) for path in (train, validation)]
    classes = classes_of(parts[0])
    quarantine = Quarantine(cache / "quarantine.jsonl", sum(map(len, parts)))
    kept = ClipCache(cache / "clips", int(limit_gigabytes * 2**30)) if limit_gigabytes else None
    first, second = (Clips(entries, reading, quarantine, classes=classes, cache=kept) for entries in parts)
    return first, second
