"""A process of ours that reads files and may die alone: how it is started, fed, confined and ended.

    parent   Child("elastivid.x")   a pipe, memory that both sides map, and how it ended in words
    child    elastivid.x.work       is called with what `joined` turns into the other ends of pipe and memory

The memory has no name, so it is gone with the last process that has it open. The child ends with its parent, whatever
kills that. It is started as a program of its own: callers have threads, and torch, that a fork would copy.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO

LAST_WORDS_BYTES = 2000
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
START = "import sys; sys.path[:] = sys.argv[4:]; from {module} import work; work(*sys.argv[1:4])"


class Child:
    """The parent's side.

    Args:
        module: an importable module whose function `work(channel, memory, parent)` the process runs.
        memory_bytes: size of the memory that both map; pages that nobody touches cost nothing.

    Raises:
        OSError: the system refuses another process, or memory for it.
    """

    def __init__(self, module: str, memory_bytes: int) -> None:
        self.connection, theirs = Pipe()
        with theirs, _unnamed_file(memory_bytes) as memory:
            self.memory = mmap.mmap(memory.fileno(), 0)
            self._errors = _unnamed_file()
            numbers = [str(number) for number in (theirs.fileno(), memory.fileno(), os.getpid())]
            self._process = subprocess.Popen(
                [sys.executable, "-c", START.format(module=module), *numbers, *sys.path],
                pass_fds=(theirs.fileno(), memory.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env={**os.environ, **ENVIRONMENT},
            )

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def end(self, patience_seconds: float = 0.0) -> str:
        """End the process, after giving it some time to end by itself. The connection must be closed.

        Returns:
            how it ended, in words.
        """
        try:
            code = self._process.wait(patience_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code >= 0:
            return f"ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"died of {name}" + (" (killed from outside, perhaps for want of memory)" if name == "SIGKILL" else "")

    def last_words(self) -> str:
        """The end of what the process wrote to its error stream."""
        self._errors.seek(0)
        return self._errors.read()[-LAST_WORDS_BYTES:].decode(errors="replace").strip()


@contextmanager
def joined(channel: str, memory: str, parent: str) -> Iterator[tuple[Connection, mmap.mmap]]:
    """The child's side: the other end of the pipe and the memory; the process ends when the parent is gone."""
    _end_with(int(parent))
    with Connection(int(channel)) as connection:
        try:
            yield connection, mmap.mmap(int(memory), 0)
        except (EOFError, ConnectionError):
            os._exit(0)  # the parent is done or gone


def confine(memory_megabytes: int) -> None:
    """Allow this process so much memory on top of what is there, no core files, and to be the first to go when memory
    runs out."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            held = int(file.read().split()[0]) * mmap.PAGESIZE
        allowed = held + (memory_megabytes << 20)
        resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")


def _unnamed_file(size: int = 0) -> IO[bytes]:
    """A file in memory, or on disk where the system has no such files, that nobody can find by name."""
    if sys.platform == "linux":
        file: IO[bytes] = os.fdopen(os.memfd_create("elastivid"), "r+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115 the caller closes it
    file.truncate(size)
    return file


def _end_with(parent: int) -> None:
    """Have the system end this process with its parent (Linux); elsewhere it ends when it next hears or tells."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
