"""Processes that read files for indexing: what a file does to its reader happens to one process, which is replaced.

    parent   one thread per worker hands it files, passes on what comes, and replaces a worker that died or hangs
    worker   reads one file at a time and puts the frames of every window into a slot of the memory both share

Frames never travel through a pipe. The shared memory has no name, so it is gone with the last process that has it
open, however that one ends. What a worker sends is JSON: nothing from the side that touches hostile files is unpickled.
A worker ends when its parent does, whatever kills it, and takes no notice of Ctrl-C: the parent ends it.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import NoReturn

import numpy as np

from elastivid.core.errors import ElastividError
from elastivid.search.reading import Ending, Job, Put, Reading, Window, read_file
from elastivid.video.child import Child, confine, joined
from elastivid.video.subtitles import MAX_LINES, Line

COUNT = max(2, (os.cpu_count() or 2) // 2)
QUEUED_WINDOWS = 32  # read ahead of the encoder, by all workers together
START_SECONDS = 120.0  # a process may take this long to start, on a machine that is busy
GRACE_SECONDS = 5.0  # a worker keeps to Limits.stall_seconds itself; it is stopped when it does not
TICK_SECONDS = 1.0
MESSAGE_BYTES = 1 << 16
LINES_AT_ONCE = 8  # of up to 1000 characters, each up to 6 bytes in JSON
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Take = Callable[[Job], Job | None]  # what a file is, just before it is read; None: it need not be read
SKIPPED = "skipped"  # how such a file ends
ReadFile = Callable[[Job, Reading, Put], Ending]


class WorkerError(ElastividError, RuntimeError):
    """A process that reads files cannot be started; no file is to blame."""


@dataclass(frozen=True)
class _Setup:
    """What a worker is told first."""

    read: ReadFile
    reading: Reading
    slots: int


@dataclass(frozen=True)
class Arrival:
    """What came of a file: a window, or how reading it ended. Windows of a file come in order, its ending last."""

    job: Job
    what: Window | Ending
    worker: _Worker | None = None
    slot: int = 0

    def take_frames(self, out: np.ndarray) -> None:
        """Copy the frames of the window, uint8 (T, H, W, 3), and let the worker use their place again. Only once."""
        assert self.worker is not None
        np.copyto(out, self.worker.frames[self.slot])
        self.worker.release(self.slot)


class Workers:
    """Reads files in other processes. A context manager: leaving it ends them, finished or not.

    Args:
        jobs: files to read, in order.
        reading: how they are read, and what each may cost.
        take: asked about each file before it is read; None reads all of them.
        count: how many processes read at the same time.
        read: what a worker does with a file; a function at the top level of an importable module.
    """

    def __init__(
        self,
        jobs: list[Job],
        reading: Reading,
        take: Take | None = None,
        *,
        count: int | None = None,
        read: ReadFile = read_file,
    ) -> None:
        self._jobs, self._take = deque(jobs), take
        count = min(count or COUNT, len(jobs))
        self._setup = _Setup(read, reading, max(QUEUED_WINDOWS // max(count, 1), 1))
        self._arrivals: queue.SimpleQueue[Arrival | BaseException] = queue.SimpleQueue()
        self._stop, self._stopped = Pipe()
        self._threads = [
            threading.Thread(target=self._serve, name=f"elastivid-worker-{number}", daemon=True)
            for number in range(count)
        ]

    def __enter__(self) -> Workers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._jobs.clear()
        self._stop.close()  # makes the other end readable
        for thread in self._threads:
            thread.join(GRACE_SECONDS)

    def get(self) -> Arrival:
        """What comes next; waits for it.

        Raises:
            WorkerError: workers cannot be started.
            OSError: the system refuses another process, or memory for it.
        """
        arrival = self._arrivals.get()
        if isinstance(arrival, BaseException):
            raise arrival
        return arrival

    # in one thread per worker

    def _serve(self) -> None:
        """Have files read until none is left, by one worker and its successors."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # inherited: Ctrl-C is for the parent alone
        worker: _Worker | None = None
        try:
            while (job := self._next()) is not None:
                taken = self._take(job) if self._take else job
                if taken is None:
                    self._arrivals.put(Arrival(job, Ending(SKIPPED, 0)))
                    continue
                worker = worker or _Worker(self._setup)
                ending = self._read(worker, taken)
                if worker.ended:
                    worker = None
                self._arrivals.put(Arrival(taken, ending))
        except _Stopped:
            pass
        except BaseException as error:  # the caller is told in `get`
            self._arrivals.put(error)
        finally:
            if worker is not None:
                worker.end()

    def _next(self) -> Job | None:
        try:
            return self._jobs.popleft()
        except IndexError:
            return None

    def _read(self, worker: _Worker, job: Job) -> Ending:
        """Have a file read and pass its windows on; a worker that is of no use any more is ended."""
        patience_seconds = self._setup.reading.limits.stall_seconds + GRACE_SECONDS
        worker.assign(job)
        while True:
            try:
                ready = wait([self._stopped, worker.connection], TICK_SECONDS)
                if self._stopped in ready:
                    raise _Stopped
                if ready:
                    message = json.loads(worker.connection.recv_bytes(MESSAGE_BYTES))
                    if (ending := self._accept(worker, job, message)) is not None:
                        return ending
                elif worker.hangs(patience_seconds):
                    return worker.stop(f"gave nothing for {patience_seconds - GRACE_SECONDS:g} s")
            except (EOFError, ConnectionError):
                return worker.mourn()
            except (OSError, ValueError, TypeError, KeyError) as error:
                return worker.stop(f"sent what it should not ({type(error).__name__})")

    def _accept(self, worker: _Worker, job: Job, message: dict) -> Ending | None:
        worker.heard = time.monotonic()
        if "ending" in message:
            return Ending(**{**message["ending"], "lines": tuple(worker.lines)})
        if "lines" in message:
            worker.lines += [Line(float(start), float(end), str(text)) for start, end, text in message["lines"]]
            if len(worker.lines) > MAX_LINES:
                raise ValueError("more subtitles than a file may have")
            return None
        if "window" in message:
            slot = worker.fill(int(message["slot"]))
            self._arrivals.put(Arrival(job, Window(**message["window"]), worker, slot))
        else:
            worker.ready = bool(message["ready"])
        return None


class _Stopped(Exception):
    """The caller went away."""


class _Worker:
    """The parent's side of one process."""

    def __init__(self, setup: _Setup) -> None:
        self.given = 0  # windows of the file that is being read
        self.ready = self.ended = False
        self.heard = time.monotonic()
        self.lines: list[Line] = []  # subtitles of the file that is being read
        self._waiting: set[int] = set()  # slots whose windows nobody took yet
        self._slots = setup.slots
        self._lock = threading.Lock()
        shape = (setup.slots, *setup.reading.window_shape)
        self._child = Child(__name__, int(np.prod(shape)))
        self.connection = self._child.connection
        self.frames = np.frombuffer(self._child.memory, np.uint8).reshape(shape)  # (S, T, H, W, 3)
        self._send(setup)

    def assign(self, job: Job) -> None:
        """Let the worker read a file."""
        self.given, self.heard, self.lines = 0, time.monotonic(), []
        self._send(job)

    def fill(self, slot: int) -> int:
        """Note that a slot holds a window of the job."""
        with self._lock:
            if not 0 <= slot < self._slots or slot in self._waiting:
                raise ValueError(slot)
            self._waiting.add(slot)
        self.given += 1
        return slot

    def release(self, slot: int) -> None:
        """Let the worker use a slot again. Called by whoever takes windows, in another thread."""
        with self._lock:
            self._waiting.remove(slot)
            self.heard = time.monotonic()
        self._send(slot)

    def hangs(self, seconds: float) -> bool:
        """Whether the worker could give something and has not done so for a while."""
        patience = seconds if self.ready else START_SECONDS
        return len(self._waiting) < self._slots and time.monotonic() - self.heard > patience

    def stop(self, why: str) -> Ending:
        """End a worker that does not do what it should; its file ends with that reason."""
        self._require_start(self.end())
        return Ending("partial" if self.given else "failed", self.given, f"stopped: {why}")

    def mourn(self) -> Ending:
        """How a file ends whose worker died."""
        how = self.end(GRACE_SECONDS)
        self._require_start(how)
        return Ending("crashed", self.given, f"the process that read it {how}")

    def end(self, patience_seconds: float = 0.0) -> str:
        """End the process, after giving it some time to end by itself.

        Returns:
            how it ended, in words.
        """
        self.ended = True
        with self._lock:
            self.connection.close()
        return self._child.end(patience_seconds)

    def _require_start(self, how: str) -> None:
        if not self.ready:
            raise WorkerError(f"a process that reads files cannot be started: {how}; {self._child.last_words()}")

    def _send(self, what: object) -> None:
        with self._lock:
            if not self.connection.closed:
                try:
                    self.connection.send_bytes(pickle.dumps(what))
                except OSError:
                    return  # it died; reading from it tells


# in the worker


def work(channel: str, memory: str, parent: str) -> NoReturn:
    """Read files until the parent has no more of them or ends."""
    with joined(channel, memory, parent) as (connection, shared):
        setup: _Setup = pickle.loads(connection.recv_bytes())
        shape = (setup.slots, *setup.reading.window_shape)
        frames = np.frombuffer(shared, np.uint8).reshape(shape)  # (S, T, H, W, 3)
        confine(setup.reading.limits.memory_megabytes)
        _Reader(connection, frames, setup).run()
    os._exit(0)


class _Reader:
    """The worker's side: reads jobs, one after the other."""

    def __init__(self, connection: Connection, frames: np.ndarray, setup: _Setup) -> None:
        self._connection, self._frames, self._setup = connection, frames, setup
        self._free = deque(range(setup.slots))

    def run(self) -> NoReturn:
        """Until the connection ends."""
        self._tell(ready=True)
        while True:
            job = self._listen()
            if job is not None:
                ending = self._setup.read(job, self._setup.reading, self._put)
                for first in range(0, len(ending.lines), LINES_AT_ONCE):
                    self._tell(lines=[astuple(line) for line in ending.lines[first : first + LINES_AT_ONCE]])
                self._tell(ending=asdict(replace(ending, lines=())))

    def _put(self, window: Window, frames: list[np.ndarray]) -> None:
        while not self._free:
            self._listen()
        slot = self._free.popleft()
        np.stack(frames, out=self._frames[slot])
        self._tell(slot=slot, window=asdict(window))

    def _listen(self) -> Job | None:
        """The next job, or None when a slot became free."""
        heard: Job | int = pickle.loads(self._connection.recv_bytes())
        if isinstance(heard, Job):
            return heard
        self._free.append(heard)
        return None

    def _tell(self, **message: object) -> None:
        self._connection.send_bytes(json.dumps(message).encode())
