"""`VideoReader`: frames and times of a file, exactly those of decoding it from start to end.

Letters: T frames, H height, W width.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from types import TracebackType

import av
import numpy as np
from av.video.frame import VideoFrame

from elastivid.core.clip import Clip
from elastivid.video.errors import TruncatedVideoError, VideoTimeoutError, VideoTooLargeError
from elastivid.video.frames import FrameConverter
from elastivid.video.source import Limits, VideoMetadata, describe, open_container

THREADED_PIXELS = 1280 * 720
HOLD_SECONDS = 1.0


class VideoReader:
    """Reads one local video file. A context manager; not safe to share between threads.

    Times count from the first frame of the video stream (`metadata.start_seconds` is its place on the file's clock).
    Indices count frames as sequential decoding gives them. Frames are RGB uint8, rotated as the file asks; when the
    resolution changes within the stream, frames are resized to that of the first one.

    Args:
        path: local file.
        size: `None` keeps the stored size; one int makes a square, (height, width) any other size. Resizing is
            antialiased bilinear, without keeping the aspect ratio.
        limits: what reading may cost.
        threads: decoder threads; `None` takes one below 720p and all cores from there on.

    Raises:
        VideoNotFoundError, NotAVideoError, NoVideoStreamError, EncryptedVideoError, VideoTooLargeError,
        VideoTimeoutError: the file cannot be opened (see `elastivid.video.errors`).
        ValueError: `size` or `threads` is not positive.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        size: int | tuple[int, int] | None = None,
        limits: Limits | None = None,
        threads: int | None = None,
    ) -> None:
        self._path = os.fspath(path)
        self._limits = limits or Limits()
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be >= 1 or None, got {threads}")
        self._threads = threads
        self._convert = FrameConverter(size)
        self._metadata: VideoMetadata | None = None
        self._problem = ""
        self._deadline = 0.0
        self._fresh = False
        self._open()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Closing twice is fine."""
        self._container.close()

    @property
    def metadata(self) -> VideoMetadata:
        """What the header says, with width, height and rotation as of the first frame.

        Raises:
            TruncatedVideoError: no frame can be decoded.
        """
        if self._metadata is None:
            first = next((frame for _, _, frame in self._decode()), None)
            if first is None:
                raise TruncatedVideoError(self._nothing())
            self._prepare(first)
        assert self._metadata is not None
        return self._metadata

    def frames_at(self, indices: Sequence[int] | np.ndarray) -> Clip:
        """Frames by index into the sequentially decoded stream, in the order and with the repeats asked for.

        Raises:
            IndexError: an index is negative, or not within a stream that decodes without a problem.
            VideoError: nothing can be decoded, or a limit is exceeded.
        """
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)  # (T,)
        if len(wanted) and wanted.min() < 0:
            raise IndexError(f"{self._path}: frame indices must be >= 0, got {wanted.min()}")
        unique, place = np.unique(wanted, return_inverse=True)
        found = list(self._pick(unique))
        if len(found) < len(unique) and not self._problem:
            raise IndexError(f"{self._path}: frame {unique[len(found)]} was asked for, but the stream is shorter")
        return self._clip(found, place[place < len(found)])

    def frames_played_at(self, seconds: Sequence[float] | np.ndarray, *, decode: str = "exact") -> Clip:
        """The frame on display at each time, in the order and with the repeats asked for.

        That is the last frame before the first one whose time lies after the time asked for. The last frame stays on
        display for `HOLD_SECONDS` after its end; later times are left out and reported in `Clip.problem`.

        Args:
            seconds: times since the first frame.
            decode: "exact", or "keyframes" for the nearest keyframe at or before each time.
        """
        wanted = np.asarray(seconds, dtype=np.float64).reshape(-1)  # (T,)
        unique, place = np.unique(wanted, return_inverse=True)
        clips = list(self.iterate_played_at(unique, decode=decode))
        if not clips:
            raise TruncatedVideoError(self._nothing())
        frames = np.concatenate([c.frames for c in clips])
        clip = Clip(
            frames,
            np.concatenate([c.indices for c in clips]),
            np.concatenate([c.times_seconds for c in clips]),
            self._path,
            self._problem,
        )
        return clip[place[place < len(clip)]]

    def iterate(self) -> Iterator[Clip]:
        """All frames in order, as clips of one frame each."""
        for index, seconds, frame in self._decode():
            yield self._one(index, seconds, frame)
            self._start_clock()

    def iterate_played_at(self, seconds: Sequence[float] | np.ndarray, *, decode: str = "exact") -> Iterator[Clip]:
        """`frames_played_at` for ascending times, as clips of one frame each and in bounded memory."""
        wanted = np.asarray(seconds, dtype=np.float64).reshape(-1)  # (T,)
        position = 0
        shown: tuple[int, float, VideoFrame] | None = None
        for item in self._decode():
            while position < len(wanted) and shown is not None and item[1] > wanted[position]:
                yield self._one(*shown)
                position += 1
                self._start_clock()
            if position == len(wanted):
                return
            shown = item
        while position < len(wanted) and shown is not None and wanted[position] <= shown[1] + HOLD_SECONDS:
            yield self._one(*shown)
            position += 1

    def _open(self) -> None:
        self._container, self._stream = open_container(self._path, self._limits)
        codec = self._stream.codec_context
        big = codec.width * codec.height >= THREADED_PIXELS
        codec.thread_type = "AUTO" if big or (self._threads or 1) > 1 else "SLICE"
        codec.thread_count = self._threads or (0 if big else 1)
        self._fresh = True

    def _start_clock(self) -> None:
        self._deadline = time.monotonic() + self._limits.timeout_seconds

    def _decode(self) -> Iterator[tuple[int, float, VideoFrame]]:
        """The whole stream in order: index, seconds since the first frame, frame."""
        if not self._fresh:
            self.close()
            self._open()
        self._fresh = False
        self._start_clock()
        count, failed = 0, 0
        origin = 0.0
        packets = self._container.demux(self._stream)
        while True:
            if time.monotonic() > self._deadline:
                raise VideoTimeoutError(f"{self._path}: took longer than {self._limits.timeout_seconds} s")
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                frames = packet.decode()
            except av.error.EOFError:
                break
            except av.error.FFmpegError as error:
                failed += 1
                self._problem = f"{failed} packets could not be decoded ({error.strerror})"
                if failed > 1000:
                    break
                continue
            for frame in frames:
                seconds = self._seconds(frame, count)
                if count == 0:
                    origin = seconds
                    self._prepare(frame)
                if count >= self._limits.max_frames:
                    raise VideoTooLargeError(f"{self._path}: more than Limits.max_frames={self._limits.max_frames}")
                yield count, seconds - origin, frame
                count += 1
        if count == 0:
            raise TruncatedVideoError(self._nothing())

    def _seconds(self, frame: VideoFrame, index: int) -> float:
        if frame.pts is not None:
            return float(frame.pts * frame.time_base)
        return index / float(self._stream.average_rate or self._stream.guessed_rate or 25)

    def _prepare(self, first: VideoFrame) -> None:
        if self._metadata is None:
            self._metadata = describe(self._path, self._container, self._stream, first)
            self._convert.prepare(first)

    def _pick(self, unique: np.ndarray) -> Iterator[tuple[int, float, VideoFrame]]:
        wanted = iter(unique.tolist())
        target = next(wanted, None)
        if target is None:
            return
        for item in self._decode():
            if item[0] == target:
                yield item
                target = next(wanted, None)
                if target is None:
                    return

    def _one(self, index: int, seconds: float, frame: VideoFrame) -> Clip:
        pixels = self._convert(frame)[None]  # (1, H, W, 3)
        return Clip(pixels, np.array([index]), np.array([seconds]), self._path, self._problem)

    def _clip(self, found: list[tuple[int, float, VideoFrame]], place: np.ndarray) -> Clip:
        height, width = self._convert.shape if found else (0, 0)
        frames = np.empty((len(found), height, width, 3), dtype=np.uint8)
        for i, (_, _, frame) in enumerate(found):
            self._convert(frame, frames[i])
        clip = Clip(frames, np.array([f[0] for f in found]), np.array([f[1] for f in found]), self._path, self._problem)
        return clip if np.array_equal(place, np.arange(len(found))) else clip[place]

    def _nothing(self) -> str:
        return f"{self._path}: no frame can be decoded" + (f" ({self._problem})" if self._problem else "")
