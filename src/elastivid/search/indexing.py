"""Files to vectors: decoding overlaps encoding, every frame is decoded once, memory stays bounded.

    decoder threads:  file -> frames played at the wanted times -> windows (uint8)  --bounded queue-->
    calling thread:   batches of windows, across files -> encoder -> vectors -> one commit per second of finished files

Windows overlap, so a frame belongs to several: frames wait in a buffer that never holds more than one window.
The queue holds `QUEUE_WINDOWS` windows, so an hour-long file costs no more memory than a short one.

Letters: B batch, T frames, H W pixels, D channels of a vector.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from elastivid.core.point import OperatingPoint, Sampling
from elastivid.search.records import FileRecord
from elastivid.search.snapshot import WINDOW
from elastivid.search.store import IndexedFile
from elastivid.video.errors import TruncatedVideoError, VideoError
from elastivid.video.reader import VideoReader
from elastivid.video.samplers import windows as plan_windows

if TYPE_CHECKING:
    from elastivid.search.index import Encoder

BATCH_WINDOWS = 16
QUEUE_WINDOWS = 48
DECODER_THREADS = 2
COMMIT_EVERY_SECONDS = 1.0


@dataclass(frozen=True)
class Job:
    """A file to be read, as the folder listing found it."""

    id: int
    path: str
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class Progress:
    """How far indexing is. Bytes are those of the files that had to be read."""

    files_done: int
    files_total: int
    bytes_done: float
    bytes_total: int
    windows_done: int
    video_seconds: float
    elapsed_seconds: float
    current: str = ""

    @property
    def x_realtime(self) -> float:
        """Seconds of video per second of work."""
        return self.video_seconds / self.elapsed_seconds if self.elapsed_seconds else 0.0

    @property
    def eta_seconds(self) -> float | None:
        """Predicted seconds to the end, from the share of bytes; None before there is anything to go by."""
        if self.bytes_done <= 0:
            return None
        return self.elapsed_seconds * max(self.bytes_total / self.bytes_done - 1.0, 0.0)


@dataclass
class Spent:
    """Seconds of work by kind. Decoding is summed over its threads and overlaps the rest."""

    load_seconds: float = 0.0
    decode_seconds: float = 0.0
    encode_seconds: float = 0.0
    store_seconds: float = 0.0
    wait_seconds: float = 0.0


@dataclass(frozen=True)
class _WindowItem:
    job: Job
    start_seconds: float
    end_seconds: float
    frames: np.ndarray  # uint8 (T, H, W, 3)
    fraction: float  # share of the file that ends with this window


@dataclass(frozen=True)
class _EndItem:
    job: Job
    decode_seconds: float
    windows: int
    status: str
    reason: str = ""
    duration_seconds: float = 0.0
    width: int = 0
    height: int = 0


@dataclass
class _OpenFile:
    """A file some of whose windows have arrived."""

    job: Job
    times: list[tuple[float, float]] = field(default_factory=list)
    vectors: list[np.ndarray] = field(default_factory=list)
    fraction: float = 0.0
    end: _EndItem | None = None


class _Stopped(Exception):
    """The caller went away; a decoder thread ends."""


class Decoders:
    """Threads that turn jobs into windows. A context manager: leaving it ends the threads.

    Args:
        jobs: files to read, in order.
        sampling: which frames are read.
        threads: how many files are decoded at the same time.
    """

    def __init__(self, jobs: list[Job], sampling: Sampling, threads: int = DECODER_THREADS) -> None:
        self._jobs = deque(jobs)
        self._sampling = sampling
        self._queue: queue.Queue[_WindowItem | _EndItem] = queue.Queue(QUEUE_WINDOWS)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name=f"elastivid-decoder-{n}", daemon=True)
            for n in range(min(threads, len(jobs)))
        ]

    def __enter__(self) -> Decoders:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=5.0)

    def get(self) -> _WindowItem | _EndItem:
        """The next item; windows of one file come in order, its end item last."""
        return self._queue.get()

    def _put(self, item: _WindowItem | _EndItem) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=0.2)
            except queue.Full:
                continue
        raise _Stopped

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    job = self._jobs.popleft()
                except IndexError:
                    return
                self._put(self._decode(job))
        except _Stopped:
            return

    def _decode(self, job: Job) -> _EndItem:
        """Send the windows of a file; returns how that went."""
        clock, sent, problem, status = _Clock(), 0, "", "failed"
        values: dict[str, Any] = {}
        try:
            with VideoReader(job.path, size=self._sampling.size) as reader:
                metadata = reader.metadata
                duration = metadata.duration_seconds or 0.0
                values = {"duration_seconds": duration, "width": metadata.width, "height": metadata.height}
                for start, end, frames, trouble in read_windows(reader, self._sampling):
                    problem = problem or trouble
                    clock.pause()
                    self._put(_WindowItem(job, start, end, frames, min(end / duration, 1.0) if duration else 0.0))
                    clock.resume()
                    sent += 1
        except (VideoError, OSError) as error:
            problem = str(error)
        except _Stopped:
            raise
        except Exception as error:  # whatever one file does to the decoder, the others are indexed
            problem, status = f"unexpected {type(error).__name__}: {error}", "crashed"
        if not sent and not problem:
            problem = "no frame could be read"
        if sent and status != "crashed":
            status = "partial" if problem else "indexed"
        return _EndItem(job, clock.total(), sent, status, problem, **values)


class _Clock:
    """Seconds of work of one thread, pauses left out."""

    def __init__(self) -> None:
        self._sum, self._since = 0.0, time.perf_counter()

    def pause(self) -> None:
        self._sum += time.perf_counter() - self._since

    def resume(self) -> None:
        self._since = time.perf_counter()

    def total(self) -> float:
        return self._sum + time.perf_counter() - self._since


def read_windows(reader: VideoReader, sampling: Sampling) -> Iterator[tuple[float, float, np.ndarray, str]]:
    """Windows of an open video in order of time; each frame is decoded once however many windows show it.

    Yields:
        start in seconds, end in seconds, frames uint8 (T, H, W, 3), and what is wrong with them ("" when nothing is).

    Raises:
        VideoError: the file cannot be decoded (further); what could be read was yielded before.
    """
    duration = reader.metadata.duration_seconds
    if duration is None:  # some streams do not say: one pass over the frames finds out
        duration = max((float(clip.times_seconds[-1]) for clip in reader.iterate()), default=0.0)
    spans = plan_windows(duration, sampling)
    grids = [np.round(times, 6).tolist() for _, _, times in spans]
    wanted = np.unique(np.concatenate(grids))
    frames: dict[float, np.ndarray] = {}
    when, trouble, position = -1.0, "", 0
    for when, clip in zip(wanted.tolist(), reader.iterate_played_at(wanted, decode=sampling.decode), strict=False):
        frames[when] = clip.frames[0]
        trouble = trouble or clip.problem
        while position < len(spans) and grids[position][-1] <= when:
            start, end, _ = spans[position]
            yield start, end, np.stack([frames[t] for t in grids[position]]), trouble
            position += 1
            oldest = grids[position][0] if position < len(spans) else np.inf
            frames = {t: frame for t, frame in frames.items() if t >= oldest}
    if position == len(spans):
        return
    problem = trouble or f"frames end at about {max(when, 0.0):.1f} s of {duration:.1f} s"
    seen = grids[position - 1][-1] if position else -1.0
    if when > seen:  # frames that no window has shown yet: one more window, held on the last of them
        start, end, _ = spans[position]
        shown = [frames.get(t, frames[when]) for t in grids[position]]
        yield start, min(end, when + sampling.window_seconds / sampling.frames), np.stack(shown), problem
    raise TruncatedVideoError(f"{reader.metadata.path}: {problem}")


class Pipeline:
    """Runs jobs through decoders and an encoder, and hands finished files over.

    Args:
        encoder: embeds batches of windows.
        sampling: which frames are read.
        point: what the encoder spends on a window.
        commit: stores finished files; called about once a second and at the end.
        progress: called after every batch and every file.
    """

    def __init__(
        self,
        encoder: Encoder,
        sampling: Sampling,
        point: OperatingPoint,
        commit: Callable[[list[IndexedFile]], None],
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self._encoder, self._sampling, self._point = encoder, sampling, point
        self._commit, self._progress = commit, progress
        self._open: dict[int, _OpenFile] = {}
        self._batch: list[_WindowItem] = []
        self._finished: list[IndexedFile] = []
        self._started = self._committed = time.perf_counter()
        self._bytes_done, self._bytes_total, self._files_total = 0, 0, 0
        self.spent = Spent()
        self.records: list[FileRecord] = []
        self.windows_done = 0
        self.video_seconds = 0.0

    def run(self, jobs: list[Job]) -> None:
        """Index `jobs`. When interrupted, files that were finished are stored before the interruption goes on."""
        self._bytes_total, self._files_total = sum(job.size_bytes for job in jobs), len(jobs)
        self._started = self._committed = time.perf_counter()
        if not jobs:
            return
        with Decoders(jobs, self._sampling) as decoders:
            try:
                ended = 0
                while ended < len(jobs):
                    waiting = time.perf_counter()
                    item = decoders.get()
                    self.spent.wait_seconds += time.perf_counter() - waiting
                    if isinstance(item, _EndItem):
                        ended += 1
                    self._accept(item)
                self._encode()
                self._close_ended()
                self._report("")
            finally:
                self._store()

    def _accept(self, item: _WindowItem | _EndItem) -> None:
        opened = self._open.setdefault(item.job.id, _OpenFile(item.job))
        if isinstance(item, _WindowItem):
            self._batch.append(item)
            if len(self._batch) < BATCH_WINDOWS:
                return
            self._encode()
        else:
            opened.end = item
            self.spent.decode_seconds += item.decode_seconds
        self._close_ended()
        if time.perf_counter() - self._committed >= COMMIT_EVERY_SECONDS:
            self._store()
        self._report(item.job.path)

    def _encode(self) -> None:
        """Embed the windows that wait, and give the vectors to their files."""
        if not self._batch:
            return
        started = time.perf_counter()
        batch, self._batch = self._batch, []
        vectors = embed_windows(self._encoder, np.stack([item.frames for item in batch]), self._point)
        for item, vector in zip(batch, vectors, strict=True):
            opened = self._open[item.job.id]
            covered = opened.times[-1][1] if opened.times else item.start_seconds
            self.video_seconds += max(item.end_seconds - covered, 0.0)
            opened.times.append((item.start_seconds, item.end_seconds))
            opened.vectors.append(vector)
            opened.fraction = item.fraction
        self.windows_done += len(batch)
        self.spent.encode_seconds += time.perf_counter() - started

    def _close_ended(self) -> None:
        """Turn files whose windows are all embedded into finished ones."""
        for opened in list(self._open.values()):
            if opened.end is None or len(opened.vectors) < opened.end.windows:
                continue
            del self._open[opened.job.id]
            self._bytes_done += opened.job.size_bytes
            finished = _finish(opened, opened.end, self._encoder.dim)
            self._finished.append(finished)
            self.records.append(finished.record)

    def _store(self) -> None:
        started = time.perf_counter()
        finished, self._finished = self._finished, []
        if finished:
            self._commit(finished)
        self._committed = time.perf_counter()
        self.spent.store_seconds += self._committed - started

    def _report(self, current: str) -> None:
        if self._progress is None:
            return
        partly = sum(opened.fraction * opened.job.size_bytes for opened in self._open.values())
        self._progress(
            Progress(
                files_done=len(self.records),
                files_total=self._files_total,
                bytes_done=self._bytes_done + partly,
                bytes_total=self._bytes_total,
                windows_done=self.windows_done,
                video_seconds=self.video_seconds,
                elapsed_seconds=time.perf_counter() - self._started,
                current=current,
            )
        )


def embed_windows(encoder: Encoder, frames: np.ndarray, point: OperatingPoint) -> np.ndarray:
    """Unit vectors float32 (B, D) of windows uint8 (B, T, H, W, 3)."""
    import torch

    with torch.inference_mode():
        b, t = frames.shape[:2]
        flat = encoder.transform(frames.reshape(b * t, *frames.shape[2:]))  # (B, T, H, W, 3) -> (B * T, 3, H, W)
        video = flat.reshape(b, t, *flat.shape[1:])  # (B * T, 3, H, W) -> (B, T, 3, H, W)
        vectors = encoder.embed_clips(video, point=point)
    return vectors.float().cpu().numpy()


def _finish(opened: _OpenFile, end: _EndItem, dim: int) -> IndexedFile:
    job = opened.job
    windows = np.zeros(len(opened.times), dtype=WINDOW)
    windows["file_id"] = job.id
    if opened.times:
        windows["start_seconds"], windows["end_seconds"] = np.array(opened.times).T
    record = FileRecord(
        id=job.id,
        path=job.path,
        size_bytes=job.size_bytes,
        modified_ns=job.modified_ns,
        status=end.status,
        reason=end.reason,
        duration_seconds=end.duration_seconds,
        width=end.width,
        height=end.height,
        windows=len(windows),
    )
    vectors = np.stack(opened.vectors) if opened.vectors else np.zeros((0, dim), dtype=np.float32)
    return IndexedFile(record, windows, vectors)
