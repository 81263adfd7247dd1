"""`Clips`: entries of a list or folder as training samples and test views, decoded safely and, if wanted, only once.

    clips = Clips(read_entries(folder), ClipReading(), cache=ClipCache(...), quarantine=Quarantine(...))
    clips.draw(position, seed, (8, 112))                # a training sample: depends on (seed, position) alone
    clips.views(3, (8, 112), views=4, crops=3)          # uint8 (12, 8, 112, 112, 3)

A clip that cannot be used is listed in the quarantine and the next usable one of the list takes its place.

Letters: T frames, H W pixels, S side of a sample, V views.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from elastivid.core.errors import ElastividError
from elastivid.data.augment import Augmentation, square_views
from elastivid.data.cache import ClipCache, cache_key
from elastivid.data.decoding import Choose, ClipDecoder, DecodingError
from elastivid.data.listing import Entry, classes_of
from elastivid.data.quarantine import Quarantine
from elastivid.data.sampling import FrameSampling, Segments, Shapes
from elastivid.video.samplers import uniform


@dataclass(frozen=True)
class ClipSample:
    """One training sample.

    Args:
        frames: uint8 (T, S, S, 3).
        label: number of its class; -1 where it has none.
        text: what it shows in words; "" where nobody wrote it.
        index: place of the entry in the list.
    """

    frames: np.ndarray
    label: int
    text: str
    index: int


@dataclass(frozen=True)
class ClipReading:
    """How clips are read for training and testing.

    Args:
        sampling: which frames of a clip.
        augmentation: what happens to the frames of a training sample.
        short_side: pixels of the shorter side of decoded frames; samples are cut out of these.
        kept_frames: most frames that a cache keeps of a clip, spread evenly; `None` keeps all, as `Dense` needs.
    """

    sampling: FrameSampling = field(default_factory=Segments)
    augmentation: Augmentation = field(default_factory=Augmentation)
    short_side: int = 128
    kept_frames: int | None = 32

    @property
    def taken(self) -> str:
        """What a cache keeps of a clip, for its key."""
        return f"{self.kept_frames} frames, short side {self.short_side}"


class Clips:
    """A data set of clips. Safe to pickle and to use in the workers of a data loader.

    Args:
        entries: the clips.
        reading: how they are read.
        quarantine: lists what cannot be used; missing files are listed at once.
        classes: all labels, in the order of their numbers; `None` takes those that occur.
        cache: keeps decoded clips; `None` decodes every time.
        decoder: reads clips; `None` takes the usual limits.

    Raises:
        ValueError: there are no entries, or a label is not among `classes`.
        QuarantineError: too many files are missing.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        reading: ClipReading,
        quarantine: Quarantine,
        *,
        classes: Sequence[str] | None = None,
        cache: ClipCache | None = None,
        decoder: ClipDecoder | None = None,
    ) -> None:
        if not entries:
            raise ValueError("a data set needs at least one clip, got none")
        self.entries, self.reading, self.quarantine = tuple(entries), reading, quarantine
        self.classes = classes_of(entries) if classes is None else tuple(classes)
        self._number = {label: number for number, label in enumerate(self.classes)}
        unknown = sorted({entry.label for entry in entries} - {""} - set(self.classes))
        if unknown:
            raise ValueError(
                f"{len(unknown)} labels are not among the {len(self.classes)} classes, such as {unknown[:3]}"
            )
        self.cache, self.decoder = cache, decoder or ClipDecoder()
        for entry in self.entries:
            if not entry.path.is_file():
                quarantine.add(entry.name, f"{entry.path}: no such file")

    def __len__(self) -> int:
        return len(self.entries)

    def label_of(self, index: int) -> int:
        """Number of the class of an entry; -1 where it has no label."""
        return self._number.get(self.entries[index].label, -1)

    def frames(self, index: int, choose: Choose) -> np.ndarray:
        """Frames of a clip at the decoded size.

        Args:
            index: place in the list.
            choose: from the number of frames at hand to the indices wanted.

        Returns:
            uint8 (T, H, W, 3), a copy.

        Raises:
            DecodingError: the clip cannot be read.
        """
        entry, reading = self.entries[index], self.reading
        if self.cache is None:
            return self.decoder.read(entry, choose, reading.short_side)
        try:
            key = cache_key(entry, reading.taken)
        except OSError as error:
            raise DecodingError(f"{entry.path}: no such file ({error})") from error
        kept = self.cache.get(key)
        if kept is None:
            most = reading.kept_frames
            kept = self.decoder.read(entry, lambda count: uniform(count, min(count, most or count)), reading.short_side)
            self.cache.put(key, kept)
        return np.ascontiguousarray(kept[choose(len(kept))])

    def draw(self, position: int, seed: int, shape: tuple[int, int]) -> ClipSample:
        """The training sample at a position of an endless stream, which goes through all clips in every epoch.

        Args:
            position: of the stream, from 0 on.
            seed: of the orders and of augmentation.
            shape: frames and side in pixels.

        Raises:
            QuarantineError: too many clips, or all of them, cannot be used.
        """
        count, size = shape
        first, failed = place_in_epoch(position, seed, len(self)), []
        for step in range(len(self)):
            index = (first + step) % len(self)
            entry, rng = self.entries[index], np.random.default_rng((seed, position, step))
            if entry.name in self.quarantine:
                continue
            try:
                frames = self.frames(index, partial(self.reading.sampling.draw, count=count, rng=rng))
            except DecodingError as error:
                failed.append((entry.name, str(error)))
                continue
            for name, reason in failed:
                self.quarantine.add(name, reason, replaced_by=entry.name)
            frames = self.reading.augmentation(frames, size, rng, entry.label or entry.text)
            return ClipSample(frames, self.label_of(index), entry.text, index)
        for name, reason in failed:
            self.quarantine.add(name, reason)
        raise NoClipError(f"none of the {len(self)} clips can be used; the reasons are in {self.quarantine.file}")

    def views(self, index: int, shape: tuple[int, int], *, views: int = 1, crops: int = 1) -> np.ndarray:
        """Test views of a clip: `views` choices of frames, each at `crops` places (see `square_views`).

        Returns:
            uint8 (views * crops, T, S, S, 3).

        Raises:
            DecodingError: the clip cannot be read.
        """
        count, size = shape
        frames = self.frames(index, lambda n: self.reading.sampling.views(n, count, views).reshape(-1))
        parts = frames.reshape(views, count, *frames.shape[1:])  # (V, T, H, W, 3)
        return np.concatenate([square_views(part, size, crops) for part in parts])

    def usable(self, indices: Sequence[int] | None = None) -> Iterator[int]:
        """Indices of clips that can be read; the others go to the quarantine. With a cache this fills it.

        Raises:
            QuarantineError: too many clips cannot be used.
        """
        for index in range(len(self)) if indices is None else indices:
            name = self.entries[index].name
            if name in self.quarantine:
                continue
            try:
                self.frames(index, lambda count: np.zeros(1, dtype=np.int64))
            except DecodingError as error:
                self.quarantine.add(name, str(error))
                continue
            yield index


class NoClipError(ElastividError, RuntimeError):
    """Not one clip of a data set can be used."""


class Source(Protocol):
    """An endless stream of samples; what comes at a position depends on it, the seed and the shape alone."""

    def draw(self, position: int, seed: int, shape: tuple[int, int]) -> Any:
        """The sample at a position, with `shape[0]` frames of `shape[1]` pixels."""
        ...


class ClipStream(Dataset):
    """A source as a data set for `elastivid.train`: the samples of every batch share one shape.

    Args:
        source: `Clips` or a `Weighted` mixture.
        shapes: what each batch may look like.
        batch_size: samples of a step, over all processes: step s takes positions [s * batch_size, (s+1) * batch_size).
        seed: everything drawn depends on it and the position.
    """

    def __init__(self, source: Source, shapes: Shapes, batch_size: int, seed: int = 0) -> None:
        self.source, self.shapes, self.batch_size, self.seed = source, shapes, batch_size, seed

    def __getitem__(self, position: int) -> Any:
        return self.source.draw(position, self.seed, self.shapes.at(self.seed, position // self.batch_size))


class Weighted:
    """A mixture of sources in given shares. Itself a source.

    Of every `block` positions each source gets its share to within one sample, in an order drawn from the seed, and
    goes through its own stream without leaving out or repeating anything. What a position holds does not depend on
    who asks, so any number of workers and processes, and a resumed run, see the same.

    Args:
        parts: sources and their weights.
        block: positions within which the shares hold.

    Raises:
        ValueError: there is no source, a weight is not positive, or too small for the block.
    """

    def __init__(self, parts: Sequence[tuple[Source, float]], block: int = 1000) -> None:
        if not parts or min(weight for _, weight in parts) <= 0:
            raise ValueError(f"a mixture needs sources with weights > 0, got weights {[weight for _, weight in parts]}")
        self.sources = [source for source, _ in parts]
        exact = np.array([weight for _, weight in parts], dtype=np.float64)
        exact *= block / exact.sum()
        self.counts = np.floor(exact).astype(np.int64)
        for part in np.argsort(self.counts - exact, kind="stable")[: block - int(self.counts.sum())]:
            self.counts[part] += 1  # the largest remainders
        if self.counts.min() < 1:
            raise ValueError(f"the smallest weight gets no sample of a block of {block}; raise block")

    def draw(self, position: int, seed: int, shape: tuple[int, int]) -> Any:
        """The sample at a position: of the source whose turn it is, at its own next position."""
        part, place = self.place(position, seed)
        return self.sources[part].draw(place, int(np.random.SeedSequence((seed, part)).generate_state(1)[0]), shape)

    def place(self, position: int, seed: int) -> tuple[int, int]:
        """Which source a position takes from, and at which position of that source's own stream."""
        block, within = divmod(position, int(self.counts.sum()))
        turns = _turns(seed, block, tuple(self.counts.tolist()))
        part = int(turns[within])
        return part, block * int(self.counts[part]) + int((turns[:within] == part).sum())


def place_in_epoch(position: int, seed: int, length: int) -> int:
    """Item at a position of a stream that goes through `length` items again and again, each time in another order."""
    epoch, place = divmod(position, length)
    return int(_order(seed, epoch, length)[place])


def collate(samples: Sequence[ClipSample]) -> dict[str, Any]:
    """A batch: `frames` uint8 (B, T, S, S, 3), `labels` (B,), `texts` [B], `indices` (B,)."""
    return {
        "frames": torch.from_numpy(np.stack([sample.frames for sample in samples])),  # (B, T, S, S, 3)
        "labels": torch.tensor([sample.label for sample in samples]),
        "texts": [sample.text for sample in samples],
        "indices": torch.tensor([sample.index for sample in samples]),
    }


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(length)


@lru_cache(maxsize=8)
def _turns(seed: int, block: int, counts: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng((seed, 2, block)).permutation(np.repeat(np.arange(len(counts)), counts))
