"""Files to vectors: decoding overlaps encoding, every frame is decoded once, memory stays bounded.

    decoder threads:  file -> frames played at the wanted times -> windows (uint8)   --bounded queue-->
    calling thread:   batches of windows, across files; one commit per second of finished files
    encoder threads:  batch -> vectors, each on one core

Windows overlap, so a frame belongs to several: frames wait in a buffer that never holds more than one window.
The queue and the batches under way are bounded, so an hour-long file costs no more memory than a short one.
Encoder threads of one core each share the machine with decoding better than one encoder on all cores: nobody waits
for the slowest of several threads (2 cores: see docs/benchmarks/indexing.md).

Letters: B batch, T frames, H W pixels, D channels of a vector.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from elastivid.core.point import OperatingPoint, Sampling
from elastivid.search.printing import printable
from elastivid.search.records import FileRecord, Place
from elastivid.search.snapshot import WINDOW
from elastivid.search.writer import IndexedFile
from elastivid.video.errors import TruncatedVideoError, VideoError
from elastivid.video.reader import VideoReader
from elastivid.video.samplers import windows as plan_windows

if TYPE_CHECKING:
    from elastivid.search.index import Encoder

BATCH_WINDOWS = 8  # larger batches are slower on CPUs: their tensors no longer fit the cache or the allocator's pools
QUEUE_WINDOWS = 32
DECODER_THREADS = max(2, (os.cpu_count() or 2) // 2)
ENCODER_THREADS = os.cpu_count() or 1
COMMIT_EVERY_SECONDS = 1.0


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


Take = Callable[[Job], Job | None]  # what a file is, just before it is read; None: it need not be read
SKIPPED = "skipped"  # how such a file ends


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
    """Seconds of work by kind. Decoding and encoding overlap, and are summed over their threads.

    Args:
        load_seconds: loading torch and the model.
        decode_seconds: reading files to windows.
        encode_seconds: windows to vectors.
        store_seconds: writing tables and snapshot.
    """

    load_seconds: float = 0.0
    decode_seconds: float = 0.0
    encode_seconds: float = 0.0
    store_seconds: float = 0.0


@dataclass(frozen=True)
class _WindowItem:
    job: Job
    start_seconds: float
    end_seconds: float
    frames: np.ndarray  # uint8 (T, H, W, 3)
    new_seconds: float  # video time that no earlier window covers
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

    def add(self, item: _WindowItem, vector: np.ndarray) -> None:
        """Keep the vector (D,) of one more window."""
        self.times.append((item.start_seconds, item.end_seconds))
        self.vectors.append(vector)
        self.fraction = item.fraction


class _Stopped(Exception):
    """The caller went away; a decoder thread ends."""


class Decoders:
    """Threads that turn jobs into windows. A context manager: leaving it ends the threads.

    Args:
        jobs: files to read, in order.
        sampling: which frames are read.
        take: asked about each file before it is read; None reads all of them.
        threads: how many files are decoded at the same time.
    """

    def __init__(
        self, jobs: list[Job], sampling: Sampling, take: Take | None = None, threads: int = DECODER_THREADS
    ) -> None:
        self._jobs = deque(jobs)
        self._take = take
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
                taken = self._take(job) if self._take else job
                self._put(self._decode(taken) if taken else _EndItem(job, 0.0, 0, SKIPPED))
        except _Stopped:
            return

    def _decode(self, job: Job) -> _EndItem:
        """Send the windows of a file; returns how that went."""
        clock, sent, covered, problem, status = _Clock(), 0, 0.0, "", "failed"
        values: dict[str, Any] = {}
        try:
            with VideoReader(job.path, size=self._sampling.size) as reader:
                metadata = reader.metadata
                duration = metadata.duration_seconds or 0.0
                values = {"duration_seconds": duration, "width": metadata.width, "height": metadata.height}
                for start, end, frames, trouble in read_windows(reader, self._sampling):
                    problem = problem or trouble
                    clock.pause()
                    share = min(end / duration, 1.0) if duration else 0.0
                    self._put(_WindowItem(job, start, end, frames, end - max(start, covered), share))
                    clock.resume()
                    sent, covered = sent + 1, end
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


def decode_mode(reader: VideoReader, sampling: Sampling) -> str:
    """How to read this file: keyframes alone are asked for only where a packet index tells what lies between them.

    Without one, a pass over keyframes cannot know how long the last of them stays on display, and some formats mark
    none after the first frame or none at all: such a file is read frame by frame, or most of it would be missing.
    """
    return sampling.decode if reader.earns_random_access else "exact"


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
    when, trouble, position, mode = -1.0, "", 0, decode_mode(reader, sampling)
    for when, clip in zip(wanted.tolist(), reader.iterate_played_at(wanted, decode=mode), strict=False):
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


class Encoders:
    """Threads that embed batches, one core each. A context manager; results come in the order of the batches.

    Args:
        encoder: embeds batches of windows.
        point: what it spends on a window.
        threads: how many batches are embedded at the same time.
    """

    def __init__(self, encoder: Encoder, point: OperatingPoint, threads: int = ENCODER_THREADS) -> None:
        self._encoder, self._point, self._threads = encoder, point, threads
        self._pending: deque[tuple[list[_WindowItem], Future[tuple[np.ndarray, float]]]] = deque()
        self._pool = ThreadPoolExecutor(threads, "elastivid-encoder", initializer=_use_one_core)

    def __enter__(self) -> Encoders:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, batch: list[_WindowItem]) -> None:
        """Hand over a batch; an empty one is nothing to do."""
        if batch:
            self._pending.append((batch, self._pool.submit(self._work, batch)))

    def results(self, wait_for_all: bool = False) -> Iterator[tuple[list[_WindowItem], np.ndarray, float]]:
        """Batches that are done: windows, vectors float32 (B, D), seconds. Waits while every thread has two to do."""
        while self._pending:
            batch, future = self._pending[0]
            if not (wait_for_all or len(self._pending) >= 2 * self._threads or future.done()):
                return
            vectors, seconds = future.result()
            self._pending.popleft()
            yield batch, vectors, seconds

    def _work(self, batch: list[_WindowItem]) -> tuple[np.ndarray, float]:
        started = time.perf_counter()
        vectors = embed_windows(self._encoder, np.stack([item.frames for item in batch]), self._point)
        return vectors, time.perf_counter() - started


def _use_one_core() -> None:
    import torch

    torch.set_num_threads(1)


class Pipeline:
    """Runs jobs through decoders and encoders, and hands finished files over.

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
        self._bytes_done, self._bytes_total, self._files_total, self._skipped = 0, 0, 0, 0
        self.spent = Spent()
        self.records: list[FileRecord] = []
        self.windows_done = 0
        self.video_seconds = 0.0

    def run(self, jobs: list[Job], take: Take | None = None) -> None:
        """Index `jobs`. When interrupted, files that were finished are stored before the interruption goes on.

        Args:
            jobs: files to read, each with another id.
            take: asked about each file before it is read; None reads all of them.
        """
        self._bytes_total += sum(job.size_bytes for job in jobs)
        self._files_total += len(jobs)
        if not jobs:
            return
        try:
            with Decoders(jobs, self._sampling, take) as decoders, Encoders(self._encoder, self._point) as encoders:
                ended = 0
                while ended < len(jobs):
                    item = decoders.get()
                    ended += isinstance(item, _EndItem)
                    self._accept(item, encoders)
                encoders.submit(self._batch)
                self._receive(encoders, wait_for_all=True)
        finally:
            self._store()

    def _accept(self, item: _WindowItem | _EndItem, encoders: Encoders) -> None:
        opened = self._open.setdefault(item.job.id, _OpenFile(item.job))
        if isinstance(item, _EndItem):
            opened.end = item
            self.spent.decode_seconds += item.decode_seconds
            self._receive(encoders)
            return
        self._batch.append(item)
        if len(self._batch) == BATCH_WINDOWS:
            encoders.submit(self._batch)
            self._batch = []
            self._receive(encoders)

    def _receive(self, encoders: Encoders, wait_for_all: bool = False) -> None:
        """Give vectors to their files, close files that have all of theirs, store them once a second."""
        current = ""
        for batch, vectors, seconds in encoders.results(wait_for_all):
            self.spent.encode_seconds += seconds
            self.windows_done += len(batch)
            for item, vector in zip(batch, vectors, strict=True):
                self._open[item.job.id].add(item, vector)
                self.video_seconds += item.new_seconds
                current = item.job.path
        self._close_ended()
        if time.perf_counter() - self._committed >= COMMIT_EVERY_SECONDS:
            self._store()
        self._report(current)

    def _close_ended(self) -> None:
        """Turn files whose windows are all embedded into finished ones."""
        for opened in list(self._open.values()):
            if opened.end is None or len(opened.vectors) < opened.end.windows:
                continue
            del self._open[opened.job.id]
            self._bytes_done += opened.job.size_bytes
            if opened.end.status == SKIPPED:
                self._skipped += 1
                continue
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
                files_done=len(self.records) + self._skipped,
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
    if opened.times:
        windows["start_seconds"], windows["end_seconds"] = np.array(opened.times).T
    record = FileRecord(
        id=-1,  # given when it is stored, as are those of its windows
        content=job.content,
        size_bytes=job.size_bytes,
        places=(Place(job.path, job.modified_ns),),
        status=end.status,
        reason=printable(end.reason.removeprefix(f"{job.path}: ")),
        duration_seconds=end.duration_seconds,
        width=end.width,
        height=end.height,
        windows=len(windows),
    )
    vectors = np.stack(opened.vectors) if opened.vectors else np.zeros((0, dim), dtype=np.float32)
    return IndexedFile(record, windows, vectors, job.replaces)
