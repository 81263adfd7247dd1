"""A folder of labelled clips: `labels.csv` with columns file, label, source, frames.

Clips cut from one film look alike, so folds are made of whole sources: no film is ever on both sides, the
films that hold several labels included.

Letters: N clips, T frames, H W pixels.
"""

from __future__ import annotations

import csv
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elastivid.video.samplers import uniform


@dataclass(frozen=True)
class LabelledClips:
    """Files of a labelled folder, in the order of `labels.csv`.

    Args:
        paths: the files.
        labels: class name of each file.
        sources: film that each file was cut from.
    """

    paths: tuple[Path, ...]
    labels: tuple[str, ...]
    sources: tuple[str, ...]

    @classmethod
    def from_folder(cls, folder: Path) -> LabelledClips:
        """Read `labels.csv` in `folder`.

        Raises:
            FileNotFoundError: the table or one of its files is missing.
        """
        table = folder / "labels.csv"
        if not table.is_file():
            raise FileNotFoundError(f"no labels.csv in {folder}; expected columns file, label, source, frames")
        with table.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        paths = tuple(folder / row["file"] for row in rows)
        missing = [str(p) for p in paths if not p.is_file()]
        if missing:
            raise FileNotFoundError(f"{table} names {len(missing)} files that do not exist, the first {missing[0]}")
        return cls(paths, tuple(row["label"] for row in rows), tuple(row["source"] for row in rows))

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in alphabetical order."""
        return tuple(sorted(set(self.labels)))

    def folds(self, count: int = 5) -> np.ndarray:
        """Fold number (N,) of every clip: sources are dealt out whole, the largest first, to the smallest fold.

        The order is fixed by the sources' sizes and names, not by a seed.
        """
        sizes: dict[str, int] = {}
        for source in self.sources:
            sizes[source] = sizes.get(source, 0) + 1
        totals = [0] * count
        fold_of: dict[str, int] = {}
        for source in sorted(sizes, key=lambda s: (-sizes[s], zlib.crc32(s.encode()))):
            fold_of[source] = totals.index(min(totals))
            totals[fold_of[source]] += sizes[source]
        return np.array([fold_of[source] for source in self.sources])


def cache_frames(clips: LabelledClips, file: Path, *, frames: int, size: int) -> np.ndarray:
    """Evenly spread frames of every clip as one memory-mapped array (N, frames, size, size, 3) uint8.

    The array is kept in `file` (.npy) and reused when its shape still fits.
    """
    shape = (len(clips.paths), frames, size, size, 3)
    if file.is_file():
        cached: np.ndarray = np.load(file, mmap_mode="r")
        if cached.shape == shape:
            return cached
    from elastivid.video.reader import VideoReader  # machines that only train on kept frames need no decoder

    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
    for i, path in enumerate(clips.paths):
        with VideoReader(path, size=size) as reader:
            decoded = np.concatenate([clip.frames for clip in reader.iterate()])  # (T, H, W, 3)
        array[i] = decoded[uniform(len(decoded), frames)]
    array.flush()
    partial.replace(file)
    return np.load(file, mmap_mode="r")
