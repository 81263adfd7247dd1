"""Files to vectors: decoding overlaps encoding, memory stays bounded.

    worker processes:  file -> frames played at the wanted times -> windows (uint8)   --shared memory-->
    calling thread:    batches of windows, across files; one commit per second of finished files
    encoder threads:   batch -> vectors, each on one core

Windows read ahead and batches under way are bounded, so an hour-long file costs no more memory than a short one.
Encoder threads of one core each share the machine with decoding better than one encoder on all cores: nobody waits
for the slowest of several threads (2 cores: see docs/benchmarks/indexing.md).

Letters: B batch, T frames, H W pixels, D channels of a vector.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from elastivid.core.point import OperatingPoint
from elastivid.search.printing import printable
from elastivid.search.reading import Ending, Job, Reading, Window
from elastivid.search.records import FileRecord, Place
from elastivid.search.snapshot import WINDOW
from elastivid.search.workers import SKIPPED, Arrival, Take, Workers
from elastivid.search.writer import IndexedFile
from elastivid.video.transforms import Transform

if TYPE_CHECKING:
    from elastivid.search.index import Encoder

BATCH_WINDOWS = 8  # larger batches are slower on CPUs: their tensors no longer fit the cache or the allocator's pools
ENCODER_THREADS = os.cpu_count() or 1
COMMIT_EVERY_SECONDS = 1.0


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
    """Seconds of work by kind. Decoding and encoding overlap, and are summed over processes and threads.

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


@dataclass
class _OpenFile:
    """A file some of whose windows have arrived."""

    job: Job
    times: list[tuple[float, float]] = field(default_factory=list)
    vectors: list[np.ndarray] = field(default_factory=list)
    fraction: float = 0.0
    ending: Ending | None = None

    def add(self, window: Window, vector: np.ndarray) -> None:
        """Keep the vector (D,) of one more window."""
        self.times.append((window.start_seconds, window.end_seconds))
        self.vectors.append(vector)
        self.fraction = window.fraction


Commit = Callable[[list[IndexedFile]], None]  # stores finished files


class Engine(Protocol):
    """What makes a `Pipeline`, or something that does the same elsewhere."""

    def __call__(
        self,
        encoder: Encoder,
        reading: Reading,
        point: OperatingPoint,
        commit: Commit,
        progress: Callable[[Progress], None] | None = None,
    ) -> Pipeline: ...


class _Batch:
    """Windows that are embedded together."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.windows: list[tuple[int, Window]] = []  # with the job's id
        self._frames = np.empty((BATCH_WINDOWS, *shape), dtype=np.uint8)  # (B, T, H, W, 3)

    def add(self, arrival: Arrival, window: Window) -> None:
        """Copy a window's frames out of its worker's memory."""
        arrival.take_frames(self._frames[len(self.windows)])
        self.windows.append((arrival.job.id, window))

    @property
    def frames(self) -> np.ndarray:
        """uint8 (B, T, H, W, 3)."""
        return self._frames[: len(self.windows)]

    @property
    def is_full(self) -> bool:
        """Whether nothing fits any more."""
        return len(self.windows) == BATCH_WINDOWS


class Encoders:
    """Threads that embed batches, one core each. A context manager; results come in the order of the batches.

    Args:
        encoder: embeds batches of windows.
        point: what it spends on a window.
        threads: how many batches are embedded at the same time.
    """

    def __init__(self, encoder: Encoder, point: OperatingPoint, threads: int = ENCODER_THREADS) -> None:
        import torch

        self._encoder, self._point, self._threads = encoder, point, threads
        self._pending: deque[tuple[_Batch, Future[tuple[np.ndarray, float]]]] = deque()
        self._torch_threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(threads, "elastivid-encoder", initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> Encoders:
        return self

    def __exit__(self, *exception: object) -> None:
        import torch

        self._pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._torch_threads)  # what threads that start later take as their number

    def submit(self, batch: _Batch) -> None:
        """Hand over a batch; an empty one is nothing to do."""
        if batch.windows:
            self._pending.append((batch, self._pool.submit(self._work, batch)))

    def results(self, wait_for_all: bool = False) -> Iterator[tuple[_Batch, np.ndarray, float]]:
        """Batches that are done: windows, vectors float32 (B, D), seconds. Waits while every thread has two to do."""
        while self._pending:
            batch, future = self._pending[0]
            if not (wait_for_all or len(self._pending) >= 2 * self._threads or future.done()):
                return
            vectors, seconds = future.result()
            self._pending.popleft()
            yield batch, vectors, seconds

    def _work(self, batch: _Batch) -> tuple[np.ndarray, float]:
        started = time.perf_counter()
        vectors = embed_windows(self._encoder, batch.frames, self._point)
        return vectors, time.perf_counter() - started


class Pipeline:
    """Runs jobs through workers and encoders, and hands finished files over.

    Args:
        encoder: embeds batches of windows.
        reading: how files are read, and what each may cost.
        point: what the encoder spends on a window.
        commit: stores finished files; called about once a second and at the end.
        progress: called after every batch and every file.
        cores: processes that read and threads that embed; None takes what suits this machine.
    """

    def __init__(
        self,
        encoder: Encoder,
        reading: Reading,
        point: OperatingPoint,
        commit: Commit,
        progress: Callable[[Progress], None] | None = None,
        cores: int | None = None,
    ) -> None:
        self._encoder, self._reading, self._point = encoder, reading, point
        self._commit, self._progress, self._cores = commit, progress, cores
        self._open: dict[int, _OpenFile] = {}
        self._batch = _Batch(reading.window_shape)
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
            with (
                Workers(jobs, self._reading, take, count=self._cores) as workers,
                Encoders(self._encoder, self._point, self._cores or ENCODER_THREADS) as encoders,
            ):
                ended = 0
                while ended < len(jobs):
                    arrival = workers.get()
                    ended += isinstance(arrival.what, Ending)
                    self._accept(arrival, encoders)
                last, self._batch = self._batch, _Batch(self._reading.window_shape)  # empty for the next run
                encoders.submit(last)
                self._receive(encoders, wait_for_all=True)
        finally:
            self._store()

    def _accept(self, arrival: Arrival, encoders: Encoders) -> None:
        opened = self._open.setdefault(arrival.job.id, _OpenFile(arrival.job))
        if isinstance(arrival.what, Ending):
            opened.ending = arrival.what
            self.spent.decode_seconds += arrival.what.seconds
            self._receive(encoders)
            return
        self._batch.add(arrival, arrival.what)
        if self._batch.is_full:
            encoders.submit(self._batch)
            self._batch = _Batch(self._reading.window_shape)
            self._receive(encoders)

    def _receive(self, encoders: Encoders, wait_for_all: bool = False) -> None:
        """Give vectors to their files, close files that have all of theirs, store them once a second."""
        current = ""
        for batch, vectors, seconds in encoders.results(wait_for_all):
            self.spent.encode_seconds += seconds
            self.windows_done += len(batch.windows)
            for (job_id, window), vector in zip(batch.windows, vectors, strict=True):
                opened = self._open[job_id]
                opened.add(window, vector)
                self.video_seconds += window.new_seconds
                current = opened.job.path
        self._close_ended()
        if time.perf_counter() - self._committed >= COMMIT_EVERY_SECONDS:
            self._store()
        self._report(current)

    def _close_ended(self) -> None:
        """Turn files whose windows are all embedded into finished ones."""
        for opened in list(self._open.values()):
            if opened.ending is None or len(opened.vectors) < opened.ending.windows:
                continue
            del self._open[opened.job.id]
            self._bytes_done += opened.job.size_bytes
            if opened.ending.status == SKIPPED:
                self._skipped += 1
                continue
            finished = _finish(opened, opened.ending, self._encoder.dim)
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
    """Unit vectors float32 (B, D) of windows uint8 (B, T, H, W, 3), cropped as `Reading` hands them over."""
    import torch

    transform = encoder.transform
    if isinstance(transform, Transform):
        transform = replace(transform, shortest_edge=None)
    with torch.inference_mode():
        b, t = frames.shape[:2]
        flat = transform(frames.reshape(b * t, *frames.shape[2:]))  # (B, T, H, W, 3) -> (B * T, 3, H, W)
        video = flat.reshape(b, t, *flat.shape[1:])  # (B * T, 3, H, W) -> (B, T, 3, H, W)
        vectors = encoder.embed_clips(video, point=point)
    return vectors.float().cpu().numpy()


def _finish(opened: _OpenFile, ending: Ending, dim: int) -> IndexedFile:
    job = opened.job
    windows = np.zeros(len(opened.times), dtype=WINDOW)
    if opened.times:
        windows["start_seconds"], windows["end_seconds"] = np.array(opened.times).T
    record = FileRecord(
        id=-1,  # given when it is stored, as are those of its windows
        content=job.content,
        size_bytes=job.size_bytes,
        places=(Place(job.path, job.modified_ns),),
        status=ending.status,
        reason=printable(ending.reason),
        duration_seconds=ending.duration_seconds,
        width=ending.width,
        height=ending.height,
        windows=len(windows),
    )
    vectors = np.stack(opened.vectors) if opened.vectors else np.zeros((0, dim), dtype=np.float32)
    return IndexedFile(record, windows, vectors, job.replaces, ending.lines)
