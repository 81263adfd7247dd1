"""One file to windows: what every engine of indexing does with a file, in a process that may die alone.

Windows overlap, so a frame belongs to several: it is decoded once, and frames wait in a buffer that never holds more
than one window.

Letters: T frames, H W pixels, N windows.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from elastivid.core.point import Sampling
from elastivid.video.address import is_url
from elastivid.video.errors import TruncatedVideoError, VideoError, VideoTimeoutError, VideoTooLargeError
from elastivid.video.reader import VideoReader
from elastivid.video.samplers import window_starts, window_times
from elastivid.video.source import Limits
from elastivid.video.subtitles import Line
from elastivid.video.transforms import Transform


@dataclass(frozen=True)
class Job:
    """A file to be read, as the folder listing found it.

    Args:
        id: number within this run.
        path: absolute path.
        size_bytes: its size.
        modified_ns: its modification time in nanoseconds.
        content: identity of its bytes; "" while it is not known (see `intake`).
        replaces: id of the record that reading it again supersedes.
    """

    id: int
    path: str
    size_bytes: int
    modified_ns: int
    content: str = ""
    replaces: int | None = None


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Args:
        sampling: which frames.
        limits: what one file may cost.
        allow_url: whether http and https addresses are read too.
        transform: what the model does to pictures: its filter is used and what it would cut off is not handed over.
    """

    sampling: Sampling
    limits: Limits = field(default_factory=Limits)
    allow_url: bool = False
    transform: Transform = field(default_factory=Transform)

    def open(self, path: str) -> VideoReader:
        """A reader whose frames are those of the windows, before `crop`."""
        square = self._square
        return VideoReader(
            path, size=square.frame_size, filter=square.filter, limits=self.limits, allow_url=self.allow_url
        )

    def crop(self, frames: Any) -> Any:
        """The squares (..., S, S, 3) of frames (..., H, W, 3) that are handed over."""
        return self._square.crop(frames)

    @property
    def _square(self) -> Transform:
        return self.transform.squared(self.sampling.size)

    @property
    def window_shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, 3) of a window in uint8."""
        return self.sampling.frames, self.sampling.size, self.sampling.size, 3


@dataclass(frozen=True)
class Window:
    """A stretch of a video.

    Args:
        start_seconds: from here,
        end_seconds: to here.
        new_seconds: video time that no earlier window covers.
        fraction: share of the file that ends with this window.
    """

    start_seconds: float
    end_seconds: float
    new_seconds: float
    fraction: float


@dataclass(frozen=True)
class Ending:
    """How reading a file went.

    Args:
        status: as in `elastivid.search.records.FileRecord`.
        windows: how many were given.
        reason: why the status is not "indexed".
        seconds: time spent reading, without waiting for whoever takes the windows.
        duration_seconds: as the file claims; 0 where it says nothing.
        width: pixels, 0 where unknown.
        height: pixels, 0 where unknown.
        lines: subtitles inside the file.
    """

    status: str
    windows: int
    reason: str = ""
    seconds: float = 0.0
    duration_seconds: float = 0.0
    width: int = 0
    height: int = 0
    lines: tuple[Line, ...] = ()


Put = Callable[[Window, list[np.ndarray]], None]


WindowsOf = Callable[[VideoReader, Sampling, Limits], Iterator[tuple[float, float, list[np.ndarray], str]]]


def read_file(job: Job, reading: Reading, put: Put, windows_of: WindowsOf | None = None) -> Ending:
    """Read one file and hand over its windows in order of time.

    Args:
        job: the file.
        reading: how it is read, and what that may cost.
        put: takes a window and its T frames uint8 (H, W, 3); may block.
        windows_of: which windows an open video has; None takes `read_windows`.

    Returns:
        how that went; nothing that a file does to the decoder is raised.
    """
    clock, limits = _Clock(), reading.limits
    sent, covered, problem, status = 0, 0.0, "", "failed"
    values: dict[str, Any] = {}
    try:
        with reading.open(job.path) as reader:
            metadata = reader.metadata
            duration = metadata.duration_seconds or 0.0
            values = {"duration_seconds": duration, "width": metadata.width, "height": metadata.height}
            for start, end, frames, trouble in (windows_of or read_windows)(reader, reading.sampling, limits):
                problem = problem or trouble
                clock.pause()
                share = min(end / duration, 1.0) if duration else 0.0
                put(Window(start, end, end - max(start, covered), share), [reading.crop(frame) for frame in frames])
                clock.resume()
                sent, covered = sent + 1, end
                if clock.total() > limits.seconds:
                    raise VideoTimeoutError(
                        f"reading took longer than Limits.seconds={limits.seconds:g}, up to {end:.1f} s of the video"
                    )
            if not is_url(job.path):  # it would be fetched a second time
                values["lines"] = tuple(reader.subtitles())
        problem = problem or _changed(job)
    except MemoryError:
        problem = f"reading needs more memory than Limits.memory_megabytes={limits.memory_megabytes}"
    except (VideoError, OSError) as error:
        problem = str(error)
    except Exception as error:  # whatever one file does to the decoder, the others are indexed
        problem, status = f"unexpected {type(error).__name__}: {error}", "crashed"
    if not sent and not problem:
        problem = "no frame could be read"
    if sent and status != "crashed":
        status = "partial" if problem else "indexed"
    return Ending(status, sent, problem.removeprefix(f"{job.path}: "), clock.total(), **values)


def _changed(job: Job) -> str:
    """What is wrong with a file that is no longer the one that was listed; the next run reads it again."""
    if is_url(job.path):
        return ""
    found = os.stat(job.path)
    same = (found.st_size, found.st_mtime_ns) == (job.size_bytes, job.modified_ns)
    return "" if same else "the file changed while it was read; index again when it is complete"


class _Clock:
    """Seconds of work, pauses left out."""

    def __init__(self) -> None:
        self._sum, self._since = 0.0, time.perf_counter()

    def pause(self) -> None:
        self._sum += time.perf_counter() - self._since

    def resume(self) -> None:
        self._since = time.perf_counter()

    def total(self) -> float:
        return self._sum + time.perf_counter() - self._since


def decode_mode(reader: VideoReader, sampling: Sampling) -> str:
    """How to read this file: keyframes alone are asked for only where a packet index tells what lies between them.

    Without one, a pass over keyframes may find that some formats mark none after the first frame or none at all: such a
    file is read frame by frame, or most of it would be missing.
    """
    return sampling.decode if reader.earns_random_access else "exact"


def read_windows(
    reader: VideoReader, sampling: Sampling, limits: Limits | None = None
) -> Iterator[tuple[float, float, list[np.ndarray], str]]:
    """Windows of an open video in order of time; each frame is decoded once however many windows show it.

    Yields:
        start in seconds, end in seconds, T frames uint8 (H, W, 3), and what is wrong with them ("" when nothing is).

    Raises:
        VideoError: the file cannot be decoded (further); what could be read was yielded before.
    """
    claimed, duration = _durations(reader, sampling, limits or Limits())
    starts, length = window_starts(duration, sampling)
    grids = np.round(starts[:, None] + window_times(0.0, length, sampling.frames), 6)  # (N, T)
    wanted = np.unique(grids)
    frames: dict[float, np.ndarray] = {}
    when, trouble, position, mode = -1.0, "", 0, decode_mode(reader, sampling)
    for when, clip in zip(wanted.tolist(), reader.iterate_played_at(wanted, decode=mode), strict=False):
        frames[when] = clip.frames[0]
        trouble = trouble or clip.problem
        while position < len(grids) and grids[position, -1] <= when:
            start = float(starts[position])
            yield start, start + length, [frames[t] for t in grids[position].tolist()], trouble
            position += 1
            oldest = grids[position, 0] if position < len(grids) else np.inf
            frames = {t: frame for t, frame in frames.items() if t >= oldest}
    if position == len(grids) and claimed <= duration:
        return
    problem = trouble or f"frames end at about {max(when, 0.0):.1f} s of {claimed:.1f} s"
    seen = grids[position - 1, -1] if position else -1.0
    if when > seen:  # frames that no window has shown yet: one more window, held on the last of them
        start = float(starts[position])
        shown = [frames.get(t, frames[when]) for t in grids[position].tolist()]
        yield start, min(start + length, when + sampling.window_seconds / sampling.frames), shown, problem
    raise TruncatedVideoError(f"{reader.metadata.path}: {problem}")


def _durations(reader: VideoReader, sampling: Sampling, limits: Limits) -> tuple[float, float]:
    """Seconds that the header claims, and seconds to read: a claim that is beyond the limits is not believed."""
    claimed = reader.metadata.duration_seconds or 0.0
    longest = limits.frames / sampling.frames * sampling.stride_seconds
    if 0 <= claimed <= longest:
        return claimed, claimed
    measured = reader.measure_seconds()
    if not 0 <= measured <= longest:
        raise VideoTooLargeError(
            f"{reader.metadata.path}: its frames spread over {measured / 3600:.1f} hours; at most {longest / 3600:.1f} "
            f"are read with Limits.frames={limits.frames}"
        )
    return claimed, measured
