"""`VideoReader`: frames and times of a file, exactly those of decoding it from start to end.

Letters: T frames, H height, W width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType

import av
import numpy as np
from av.stream import Discard

from elastivid.core.clip import Clip
from elastivid.core.errors import PointError
from elastivid.core.point import DECODE_MODES
from elastivid.video.decoder import Decoded, Decoder, IndexMismatch
from elastivid.video.errors import TruncatedVideoError, VideoTooLargeError
from elastivid.video.frames import FrameConverter, FrameSize
from elastivid.video.index import PacketIndex
from elastivid.video.source import Limits, VideoMetadata, describe, open_container
from elastivid.video.subtitles import TEXT_CODECS, Line, embedded_lines

HOLD_SECONDS = 1.0


class VideoReader:
    """Reads one video file. A context manager; not safe to share between threads.

    Times count from the first frame of the video stream (`metadata.start_seconds` is its place on the file's clock).
    Indices count frames as sequential decoding gives them. Frames are RGB uint8, rotated as the file asks; when the
    resolution changes within the stream, frames are resized to that of the first one.

    A packet that cannot be decoded does not end reading: the rest is read, and `Clip.problem` says what is missing.

    Args:
        path: local file, or an address where `allow_url` permits.
        size: `None` keeps the stored size; one int makes a square, (height, width) any other size. A function from
            height and width to height and width, such as `Transform.frame_size`, may keep the aspect ratio.
        filter: how frames are resized: "bilinear" or "bicubic", both antialiased.
        limits: what reading may cost; `None` takes the defaults of `Limits`.
        threads: decoder threads; `None` takes all cores where that helps: sequential reading from 320x240 on
            (640x480 for codecs older than H.264), frames by index from 720p on.
        allow_url: also read http and https addresses. Nothing is fetched otherwise.

    Raises:
        VideoNotFoundError, NotAVideoError, NoVideoStreamError, EncryptedVideoError, VideoTooLargeError,
        VideoTimeoutError: the file cannot be opened (see `elastivid.video.errors`).
        ValueError: `size` or `threads` is not positive.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        size: FrameSize | None = None,
        filter: str = "bilinear",
        limits: Limits | None = None,
        threads: int | None = None,
        allow_url: bool = False,
    ) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be >= 1 or None, got {threads}")
        self._convert = FrameConverter(size, filter)
        self._decoder = Decoder(path, limits or Limits(), threads, allow_url)
        self._path = self._decoder.path
        self._allow_url = allow_url
        self._metadata: VideoMetadata | None = None

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Closing twice is fine."""
        self._decoder.close()

    @property
    def metadata(self) -> VideoMetadata:
        """What the header says, with width, height and rotation as of the first frame.

        Raises:
            TruncatedVideoError: no frame can be decoded.
        """
        if self._metadata is None:
            decoder = self._decoder
            decoder.start_clock()
            if decoder.first is None and next(decoder.sequential(), None) is None:
                raise TruncatedVideoError(self._nothing())
            described = describe(self._path, decoder.container, decoder.stream, decoder.first)
            if described.duration_seconds is None:
                described = replace(described, duration_seconds=decoder.measure_seconds())
            self._metadata = described
        return self._metadata

    def subtitles(self) -> list[Line]:
        """Lines of the text subtitle streams inside the file, at times that count as those of frames do.

        Where there are none nothing is read. Otherwise the file is opened once more and its packets are passed over.

        Raises:
            VideoError: the file cannot be read to its end.
        """
        decoder = self._decoder
        if not any(stream.codec_context.name in TEXT_CODECS for stream in decoder.container.streams.subtitles):
            return []
        start = self.metadata.start_seconds or 0.0
        container, _ = open_container(self._path, decoder.limits, allow_url=self._allow_url)
        try:
            for stream in container.streams:
                if stream.type != "subtitle":
                    stream.discard = Discard.all
            return embedded_lines(container, start)
        except av.error.FFmpegError as error:
            raise TruncatedVideoError(f"{self._path}: its subtitles end early: {error}") from error
        finally:
            container.close()

    def measure_seconds(self) -> float:
        """Duration that the packets tell, whatever the header claims. Reads the whole file without decoding it."""
        self._decoder.start_clock()
        return self._decoder.measure_seconds()

    def count_frames(self) -> int:
        """Frames of the stream, counted: from the packet index where there is one, else by decoding everything."""
        self._decoder.start_clock()
        index = self._decoder.index()
        return index.num_frames if index is not None else sum(1 for _ in self._decoder.sequential())

    def frame_times(self) -> np.ndarray:
        """Seconds of all frames since the first one, float64 (T,): from the packet index where there is one, else by
        decoding everything.

        Raises:
            VideoError: a limit is exceeded.
        """
        self._decoder.start_clock()
        index = self._decoder.index()
        if index is not None:
            return index.times_seconds()
        return np.array([item.seconds for item in self._decoder.sequential()], dtype=np.float64)

    def frames_at(self, indices: Sequence[int] | np.ndarray) -> Clip:
        """Frames by index into the sequentially decoded stream, in the order and with the repeats asked for.

        Raises:
            IndexError: an index is negative, or lies beyond the end of a stream that decodes without a problem.
            TruncatedVideoError: no frame can be decoded.
            VideoError: a limit is exceeded.
        """
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)  # (T,)
        if len(wanted) and wanted.min() < 0:
            raise IndexError(f"{self._path}: frame indices must be >= 0, got {wanted.min()}")
        self._decoder.start_clock()
        unique, place = np.unique(wanted, return_inverse=True)
        try:
            clip = self._collect(self._select(unique), len(unique))
        except IndexMismatch:
            self._decoder.distrust()
            clip = self._collect(self._select(unique), len(unique))
        if len(clip) < len(unique) and not clip.problem:
            raise IndexError(
                f"{self._path}: frame {unique[len(clip)]} was asked for, but the stream ends before it; "
                "`count_frames()` tells how many there are"
            )
        return _arrange(clip, place)

    def frames_played_at(self, seconds: Sequence[float] | np.ndarray, *, decode: str = "exact") -> Clip:
        """The frame on display at each time, in the order and with the repeats asked for.

        That is the last frame before the first one whose time lies after the time asked for; times before the first
        frame show the first one. The last frame stays on display for `HOLD_SECONDS` after its end; later times are
        left out and reported in `Clip.problem`.

        Args:
            seconds: times since the first frame.
            decode: "exact", or "keyframes" for the nearest keyframe at or before each time.

        Raises:
            TruncatedVideoError: no frame can be decoded.
            VideoError: a limit is exceeded.
        """
        wanted = np.asarray(seconds, dtype=np.float64).reshape(-1)  # (T,)
        unique, place = np.unique(wanted, return_inverse=True)
        self._decoder.start_clock()
        distinct: list[Clip] = []
        shown: list[int] = []
        size_bytes = 0
        for clip in self.iterate_played_at(unique, decode=decode):
            if not distinct or clip is not distinct[-1]:
                distinct.append(clip)
                size_bytes += clip.frames.nbytes
                self._need_bytes(size_bytes)
            shown.append(len(distinct) - 1)
        problem = self._decoder.problem
        if len(shown) < len(unique) and not problem:
            problem = f"the video ends more than {HOLD_SECONDS} s before {unique[len(shown)]:.3f} s"
        if not distinct:
            distinct.append(Clip(np.empty((0, 0, 0, 3), dtype=np.uint8), np.zeros(0), np.zeros(0)))
        clip = Clip(
            np.concatenate([c.frames for c in distinct]),
            np.concatenate([c.indices for c in distinct]),
            np.concatenate([c.times_seconds for c in distinct]),
            self._path,
            problem,
        )
        return _arrange(clip, np.array(shown, dtype=np.int64)[place[place < len(shown)]])

    def iterate(self) -> Iterator[Clip]:
        """All frames in order, as clips of one frame each, in bounded memory.

        Raises:
            TruncatedVideoError: no frame can be decoded.
            VideoError: a limit is exceeded.
        """
        self._decoder.start_clock()
        for item in self._decoder.sequential():
            yield self._one(item)
            self._decoder.start_clock()
        self._need_frames()

    def iterate_played_at(self, seconds: Sequence[float] | np.ndarray, *, decode: str = "exact") -> Iterator[Clip]:
        """`frames_played_at` for ascending times: one clip of one frame per time, in bounded memory.

        Consecutive times that show the same frame give the same clip object. Fewer clips than times mean that the
        video ends earlier.

        Raises:
            PointError: the times do not ascend, or `decode` is not known.
            TruncatedVideoError: no frame can be decoded.
            VideoError: a limit is exceeded.
        """
        wanted = np.asarray(seconds, dtype=np.float64).reshape(-1)  # (T,)
        if decode not in DECODE_MODES:
            raise PointError(f"decode must be one of {DECODE_MODES}, got {decode!r}")
        if not np.all(np.isfinite(wanted)) or np.any(np.diff(wanted) < 0):
            raise PointError("times must be finite and ascending; sort them first")
        self._decoder.start_clock()
        given, last, clip = 0, None, None
        try:
            for item in self._play(wanted, decode):
                if clip is None or item is not last:
                    last, clip = item, self._one(item)
                yield clip
                given += 1
                self._decoder.start_clock()
        except IndexMismatch:
            self._decoder.distrust()
            for item in self._play(wanted[given:], decode):
                yield self._one(item)
                self._decoder.start_clock()
        if len(wanted):
            self._need_frames()

    def decoded_frames_at(self, indices: Sequence[int] | np.ndarray) -> Iterator[Decoded]:
        """As `frames_at` for ascending indices without repeats, but undisturbed: native planes, neither converted,
        resized nor rotated, as (index, seconds, av.VideoFrame).

        Raises:
            IndexMismatch: the packet index turned out wrong (`frames_at` reads sequentially then).
            VideoError: as `frames_at`.
        """
        self._decoder.start_clock()
        return self._select(np.asarray(indices, dtype=np.int64).reshape(-1))

    @property
    def earns_random_access(self) -> bool:
        """Whether frames are reached through a packet index; otherwise reading is one sequential pass."""
        return self._decoder.index() is not None

    def _select(self, unique: np.ndarray) -> Iterator[Decoded]:
        """Frames by ascending index; ends early where the stream does."""
        if len(unique) == 0:
            return
        index = self._decoder.index()
        if index is not None:
            within = unique[unique < index.num_frames]
            if index.beats_sequential(within):
                yield from self._decoder.indexed(within)
                return
        wanted = iter(unique.tolist())
        target = next(wanted, None)
        for item in self._decoder.sequential():
            if item.index == target:
                yield item
                target = next(wanted, None)
                if target is None:
                    return

    def _play(self, wanted: np.ndarray, decode: str) -> Iterator[Decoded]:
        """One item per time; the same object again while the same frame is on display."""
        index = self._decoder.index() if len(wanted) else None
        if index is None:
            yield from self._play_sequential(wanted, keyframes_only=decode == "keyframes")
            return
        wanted = wanted[wanted <= index.end_seconds() + HOLD_SECONDS]
        self._decoder.settle(_shown_at(index, wanted, keyframes_only=False))
        frames = _shown_at(index, wanted, keyframes_only=decode == "keyframes")
        unique, repeats = np.unique(frames, return_counts=True)
        for item, count in zip(self._decoder.indexed(unique), repeats.tolist(), strict=True):
            for _ in range(count):
                yield item

    def _play_sequential(self, wanted: np.ndarray, *, keyframes_only: bool) -> Iterator[Decoded]:
        position, shown = 0, None
        for item in self._decoder.sequential(keyframes_only=keyframes_only):
            while position < len(wanted) and shown is not None and item.seconds > wanted[position]:
                yield shown
                position += 1
            if position == len(wanted):
                return
            shown = item
        if shown is None:
            return
        end = shown.seconds + self._decoder.shown_seconds(shown.frame)
        if keyframes_only:
            end = max(end, self._decoder.read_seconds)
        while position < len(wanted) and wanted[position] <= end + HOLD_SECONDS:
            yield shown
            position += 1

    def _collect(self, items: Iterator[Decoded], count: int) -> Clip:
        frames = np.empty((0, 0, 0, 3), dtype=np.uint8)
        indices: list[int] = []
        times: list[float] = []
        for item in items:
            if not indices:
                height, width = self._shape()
                self._need_bytes(count * height * width * 3)
                frames = np.empty((count, height, width, 3), dtype=np.uint8)  # (T, H, W, 3)
            self._pixels(item, frames[len(indices)])
            indices.append(item.index)
            times.append(item.seconds)
        if count:
            self._need_frames()
        return Clip(frames[: len(indices)], np.array(indices), np.array(times), self._path, self._decoder.problem)

    def _one(self, item: Decoded) -> Clip:
        self._shape()
        pixels = self._pixels(item)[None]  # (1, H, W, 3)
        return Clip(pixels, np.array([item.index]), np.array([item.seconds]), self._path, self._decoder.problem)

    def _pixels(self, item: Decoded, out: np.ndarray | None = None) -> np.ndarray:
        frame, limits = item.frame, self._decoder.limits
        if frame.width * frame.height > limits.pixels:
            raise VideoTooLargeError(
                f"{self._path}: a frame of {frame.width}x{frame.height} pixels exceeds Limits.pixels={limits.pixels}"
            )
        try:
            return self._convert(frame, out)
        except av.error.FFmpegError as error:
            height, width = self._convert.shape
            raise TruncatedVideoError(
                f"{self._path}: a frame of {frame.width}x{frame.height} pixels cannot be turned into RGB of "
                f"{width}x{height} ({error.strerror})"
            ) from error

    def _shape(self) -> tuple[int, int]:
        if not self._convert.ready:
            assert self._decoder.first is not None
            self._convert.prepare(self._decoder.first)
        return self._convert.shape

    def _need_bytes(self, size: int) -> None:
        limit = self._decoder.limits.clip_bytes
        if size > limit:
            raise VideoTooLargeError(
                f"{self._path}: the clip would take {size} bytes, more than Limits.clip_bytes={limit}; "
                "ask for fewer frames or a smaller size, or use iterate()"
            )

    def _need_frames(self) -> None:
        if self._decoder.first is None and self._decoder.index() is None:
            raise TruncatedVideoError(self._nothing())

    def _nothing(self) -> str:
        problem = self._decoder.problem
        why = f" ({problem})" if problem else "; the file may be cut off"
        if not self._decoder.stream.codec_context.width:  # the decoder refused them before it told their size
            why += f"; or its frames have more than Limits.pixels={self._decoder.limits.pixels} pixels"
        return f"{self._path}: no frame can be decoded{why}"


def _shown_at(index: PacketIndex, seconds: np.ndarray, *, keyframes_only: bool) -> np.ndarray:
    """Frame on display at each time, int64 (T,)."""
    times = np.maximum.accumulate(index.times_seconds())  # (F,)
    frames = np.searchsorted(times, seconds, side="right") - 1
    if keyframes_only:
        keys = np.flatnonzero(np.isin(index.packet_of_frame, index.starts))
        frames = keys[np.maximum(np.searchsorted(keys, frames, side="right") - 1, 0)]
    return np.maximum(frames, 0)


def _arrange(clip: Clip, place: np.ndarray) -> Clip:
    """Frames of `clip` at `place`, those that are there; without a copy when that changes nothing."""
    place = place[place < len(clip)]
    return clip if np.array_equal(place, np.arange(len(clip))) else clip[place]
