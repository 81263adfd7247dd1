"""Views of clips, streamed: several choices of frames times several crops, at several grids, each clip decoded once.

A view is what a model sees at once. Scores of all views of a clip are averaged, so the cost of a clip is views times
that of a view (16 x 224 px, 5 x 3 views and the like in papers). One crop shows the picture as the model's own
transform does; three are squares of full height at the ends and in the middle of the longer side.

Memory holds the views of the clips that are read ahead and one batch, however many clips there are.

Letters: V views of a clip, T frames, H W pixels, S side of the input, B views that run together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from elastivid.core.errors import PointError
from elastivid.core.point import OperatingPoint
from elastivid.data.augment import square_views
from elastivid.data.decoding import ClipDecoder, DecodingError
from elastivid.data.listing import Entry
from elastivid.data.sampling import FrameSampling, Segments
from elastivid.evaluate.classifiers import Encodes, model_input

AHEAD = 2  # clips decoded while the model works


@dataclass(frozen=True)
class Setting:
    """One row of an evaluation: what is read of a clip, and what the model spends on it.

    Args:
        frames, size: of a view.
        point: tokens and width.
        clips: choices of frames, spread over the clip.
        crops: 1 or 3.

    Raises:
        PointError: a number is out of range.
    """

    frames: int
    size: int
    point: OperatingPoint
    clips: int = 1
    crops: int = 1

    def __post_init__(self) -> None:
        if min(self.frames, self.size, self.clips) < 1 or self.crops not in (1, 3):
            raise PointError(f"frames, size and clips must be >= 1 and crops 1 or 3, got {self}")

    @property
    def views(self) -> int:
        """Views of a clip."""
        return self.clips * self.crops

    def __str__(self) -> str:
        parts = [f"{self.frames} x {self.size} px"]
        if self.point.tokens is not None:
            parts.append(f"{self.point.tokens} tokens")
        if self.point.width is not None:
            parts.append(f"width {self.point.width}")
        if self.views > 1:
            parts.append(f"{self.clips} x {self.crops} views")
        return ", ".join(parts)


@dataclass(frozen=True)
class Viewed:
    """The clip at a place of the list: its views per setting, uint8 (V, T, H, W, 3), or why there are none."""

    index: int
    views: tuple[np.ndarray, ...] = ()
    problem: str = ""


def stream_views(
    entries: Sequence[Entry],
    settings: Sequence[Setting],
    sampling: FrameSampling | None = None,
    decoder: ClipDecoder | None = None,
) -> Iterator[Viewed]:
    """Clips in order, each decoded once for all settings, the next ones ahead in a thread.

    A clip is read by a process that may die alone; one that cannot be read comes with the reason.

    Args:
        entries: the clips.
        settings: what is wanted of each.
        sampling: which frames a view shows; `None` takes one of each of equal segments.
        decoder: reads clips; `None` takes the usual limits. It is closed at the end.
    """
    chosen, reader = sampling or Segments(), decoder or ClipDecoder()
    short_side = max(setting.size for setting in settings)

    def read(index: int) -> Viewed:
        try:
            return Viewed(index, _views(reader, entries[index], settings, chosen, short_side))
        except DecodingError as error:
            return Viewed(index, problem=str(error))

    pool, waiting = ThreadPoolExecutor(1, "elastivid-views"), deque[Future[Viewed]]()
    try:
        for index in range(len(entries)):
            waiting.append(pool.submit(read, index))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        reader.close()


def _views(
    reader: ClipDecoder, entry: Entry, settings: Sequence[Setting], chosen: FrameSampling, short_side: int
) -> tuple[np.ndarray, ...]:
    def wanted(count: int) -> np.ndarray:
        return np.concatenate([chosen.views(count, s.frames, s.clips).reshape(-1) for s in settings])

    frames, made, start = reader.read(entry, wanted, short_side), [], 0
    for setting in settings:
        count = setting.frames * setting.clips
        part = frames[start : start + count].reshape(
            setting.clips, setting.frames, *frames.shape[1:]
        )  # (V, T, H, W, 3)
        start += count
        if setting.crops == 1:
            made.append(part)
        else:
            made.append(np.concatenate([square_views(clip, setting.size, setting.crops) for clip in part]))
    return tuple(made)


class Batches:
    """Runs views of one setting through a model, B at a time, across clips. A clip's vectors come when all are done.

    Args:
        encoder: embeds clips.
        setting: size and point.
        batch: B.
        device: torch's name of it.
    """

    def __init__(self, encoder: Encodes, setting: Setting, batch: int, device: str = "cpu") -> None:
        self._encoder, self._setting, self._batch, self._device = encoder, setting, batch, device
        self._views: list[tuple[int, Tensor]] = []
        self._vectors: dict[int, list[Tensor]] = {}

    def add(self, index: int, views: np.ndarray) -> Iterator[tuple[int, Tensor]]:
        """Take a clip's views uint8 (V, T, H, W, 3); yields clips (index, vectors (V, D)) that are complete now."""
        video = model_input(self._encoder.transform, views, self._setting.size)  # (V, T, 3, S, S)
        self._views += [(index, view) for view in video]
        while len(self._views) >= self._batch:
            yield from self._run(self._batch)

    def rest(self) -> Iterator[tuple[int, Tensor]]:
        """Run what is left."""
        while self._views:
            yield from self._run(self._batch)

    def _run(self, count: int) -> Iterator[tuple[int, Tensor]]:
        now, self._views = self._views[:count], self._views[count:]
        shapes = {view.shape for _, view in now}
        if len(shapes) > 1:  # a transform that keeps the aspect gives each clip another shape
            vectors = [self._embed(view[None])[0] for _, view in now]
        else:
            vectors = list(self._embed(torch.stack([view for _, view in now])))
        for (index, _), vector in zip(now, vectors, strict=True):
            kept = self._vectors.setdefault(index, [])
            kept.append(vector)
            if len(kept) == self._setting.views:
                yield index, torch.stack(self._vectors.pop(index))  # (V, D)

    @torch.inference_mode()
    def _embed(self, video: Tensor) -> Tensor:
        return self._encoder.embed_clips(video.to(self._device), point=self._setting.point).float().cpu()
