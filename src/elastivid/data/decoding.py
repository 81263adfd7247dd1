"""Reads clips in a process of its own, so that a file that hangs or kills its reader costs one clip and not the run.

    decoder = ClipDecoder()
    frames = decoder.read(entry, lambda count: uniform(count, 8), short_side=128)      # uint8 (8, H, W, 3)

The process finds out how many frames the clip has, the caller chooses among them, and only the chosen ones are
converted. Requests and answers are JSON, pixels come through shared memory; nothing that is unpickled comes back.

Letters: T frames, H W pixels.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy as np

from elastivid.core.errors import ElastividError
from elastivid.data.listing import Entry
from elastivid.video.child import Child, confine, joined
from elastivid.video.errors import VideoError
from elastivid.video.source import Limits
from elastivid.video.transforms import Transform

if TYPE_CHECKING:
    from elastivid.video.reader import VideoReader

LIMITS = Limits(seconds=120.0, stall_seconds=60.0, memory_megabytes=3072, clip_bytes=1 << 30)
START_SECONDS = 120.0
GRACE_SECONDS = 2.0
MESSAGE_BYTES = 1 << 16
MODULE = __name__  # whose `work` the process runs

Choose = Callable[[int], np.ndarray]


class DecodingError(ElastividError, RuntimeError):
    """A clip cannot be read; the message names the file and says why."""


class DecoderError(ElastividError, RuntimeError):
    """The process that reads clips cannot be started; no file is to blame."""


class ClipDecoder:
    """Reads clips, one at a time, through a process that is started when it is needed and replaced when it dies.

    Copies for other processes (pickled, or inherited by a fork) start a process of their own. Not safe to share
    between threads.

    Args:
        limits: what one clip may cost; `seconds` is the time until an answer.
    """

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.limits = limits
        self._child: Child | None = None
        self._owner = 0

    def __reduce__(self) -> tuple[type[Self], tuple[Limits]]:
        return type(self), (self.limits,)  # another process starts a child of its own

    def read(self, entry: Entry, choose: Choose, short_side: int | None = None) -> np.ndarray:
        """Chosen frames of a clip, upright, RGB.

        Args:
            entry: the clip; frames outside its start and end do not count.
            choose: from the number of frames to the indices wanted, in any order and with repeats.
            short_side: pixels that the shorter side is resized to, the aspect kept; `None` keeps the stored size.

        Returns:
            uint8 (T, H, W, 3), a copy.

        Raises:
            DecodingError: the file cannot be read, is damaged at a place that was wanted, takes too long or kills its
                reader.
            DecoderError: the process cannot be started.
        """
        request = {"path": str(entry.path), "start": entry.start_seconds, "end": entry.end_seconds, "side": short_side}
        count = int(self._ask(entry, request)["count"])
        wanted = np.asarray(choose(count), dtype=np.int64)
        shape = self._ask(entry, {"frames": wanted.tolist()})["shape"]
        assert self._child is not None
        size = int(np.prod(shape))
        return np.frombuffer(self._child.memory, np.uint8, size).reshape(shape).copy()  # (T, H, W, 3)

    def seconds(self, entry: Entry) -> float:
        """How long a clip plays, from its first frame to its last and a frame more. Decodes nothing where the file
        has an index of its packets.

        Raises:
            DecodingError, DecoderError: see `read`.
        """
        request = {"path": str(entry.path), "start": entry.start_seconds, "end": entry.end_seconds, "side": None}
        self._ask(entry, request)
        return float(self._ask(entry, {"seconds": True})["seconds"])

    def close(self) -> None:
        """End the process. The next `read` starts another one."""
        child, self._child = self._child, None
        if child is not None and self._owner == os.getpid():
            child.connection.close()
            child.end(GRACE_SECONDS)

    def _ask(self, entry: Entry, request: dict[str, Any]) -> dict[str, Any]:
        child = self._running()
        try:
            child.connection.send_bytes(json.dumps(request).encode())
            patience_seconds = self.limits.seconds + GRACE_SECONDS
            if not child.connection.poll(patience_seconds):
                self._end(0.0)
                raise DecodingError(f"{entry.path}: gave nothing for {self.limits.seconds:g} s; its reader was stopped")
            answer: dict[str, Any] = json.loads(child.connection.recv_bytes(MESSAGE_BYTES))
        except (EOFError, OSError, ValueError) as error:
            how = self._end(GRACE_SECONDS)
            raise DecodingError(f"{entry.path}: the process that read it {how}") from error
        if "error" in answer:
            raise DecodingError(str(answer["error"]))
        return answer

    def _running(self) -> Child:
        if self._child is None or self._owner != os.getpid():
            self._child, self._owner = Child(MODULE, self.limits.clip_bytes), os.getpid()
            limits = json.dumps(vars(self.limits)).encode()
            try:
                self._child.connection.send_bytes(limits)
                started = self._child.connection.poll(START_SECONDS) and self._child.connection.recv_bytes(
                    MESSAGE_BYTES
                )
            except (EOFError, OSError):
                started = b""
            if not started:
                words = self._child.last_words()
                raise DecoderError(f"a process that reads clips cannot be started: {self._end(0.0)}; {words}")
        return self._child

    def _end(self, patience_seconds: float) -> str:
        child, self._child = self._child, None
        assert child is not None
        child.connection.close()
        return child.end(patience_seconds)


# in the process


def work(channel: str, memory: str, parent: str) -> NoReturn:
    """Answer requests until the parent has no more of them or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    with joined(channel, memory, parent) as (connection, pixels):
        limits = Limits(**json.loads(connection.recv_bytes()))
        confine(limits.memory_megabytes)
        connection.send_bytes(b"{}")
        _Server(connection, np.frombuffer(pixels, np.uint8), limits).run()
    os._exit(0)


class _Server:
    """Holds the file that was asked about last."""

    def __init__(self, connection: Connection, pixels: np.ndarray, limits: Limits) -> None:
        self._connection, self._pixels, self._limits = connection, pixels, limits
        self._reader: VideoReader | None = None
        self._first = 0

    def run(self) -> NoReturn:
        """Until the connection ends."""
        while True:
            request = json.loads(self._connection.recv_bytes())
            try:
                if "path" in request:
                    answer = self._span(**request)
                else:
                    answer = self._frames(request["frames"]) if "frames" in request else self._seconds()
            except (VideoError, IndexError, DecodingError) as error:
                answer = {"error": str(error)}
            except MemoryError:
                answer = {"error": f"{request.get('path', 'the clip')}: reading it needs more memory than it may take"}
            self._connection.send_bytes(json.dumps(answer).encode())

    def _span(self, path: str, start: float | None, end: float | None, side: int | None) -> dict[str, Any]:
        """Open a file and count the frames between two times."""
        from elastivid.video.reader import VideoReader

        if self._reader is not None:
            self._reader.close()
        size = None if side is None else Transform(size=side, shortest_edge=side).frame_size
        self._path = path
        self._reader = VideoReader(path, size=size, limits=self._limits, threads=1)
        if start is None and end is None:
            self._first, count = 0, self._reader.count_frames()
        else:
            times = self._reader.frame_times()
            self._first = int(np.searchsorted(times, start or 0.0))
            count = (len(times) if end is None else int(np.searchsorted(times, end))) - self._first
        if count < 1:
            raise DecodingError(f"{path}: no frames between {start or 0} s and {'its end' if end is None else end}")
        self._count = count
        return {"count": count}

    def _seconds(self) -> dict[str, Any]:
        """How long the frames play that were counted; the last as long as they do on average."""
        assert self._reader is not None
        times = self._reader.frame_times()[self._first : self._first + self._count]
        played = float(times[-1] - times[0])
        return {"seconds": played * len(times) / max(1, len(times) - 1)}

    def _frames(self, places: list[int]) -> dict[str, Any]:
        """Put frames into the shared memory."""
        assert self._reader is not None
        clip = self._reader.frames_at(np.asarray(places, dtype=np.int64) + self._first)
        if clip.problem or len(clip) < len(places):
            raise DecodingError(f"{self._path}: {clip.problem or 'it ends early'}")
        if clip.frames.size > len(self._pixels):
            raise DecodingError(
                f"{self._path}: {len(clip)} frames take {clip.frames.size} bytes, more than "
                f"Limits.clip_bytes={len(self._pixels)}; ask for fewer or smaller ones"
            )
        self._pixels[: clip.frames.size] = clip.frames.reshape(-1)
        return {"shape": clip.frames.shape}
