"""What a worker does with a file, in place of reading it: functions that fail in every way a decoder may fail.

Workers import them by name, so they live in a module of their own. The file's name says what happens.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from elastivid.search.reading import Ending, Job, Put, Reading, Window, read_file


def read_as_named(job: Job, reading: Reading, put: Put) -> Ending:
    """Read the file, then do what its name says, after as many windows as its first digit."""
    name = Path(job.path).stem
    windows = int(name[0]) if name[0].isdigit() else 0
    for number in range(windows):
        put(Window(2.0 * number, 2.0 * number + 4.0, 2.0, 0.1), [np.full(reading.window_shape[1:], 7, np.uint8)] * 8)
    if "segfault" in name:
        ctypes.string_at(0)
    if "killed" in name:
        os.kill(os.getpid(), signal.SIGKILL)
    if "exit" in name:
        os._exit(3)
    if "hang" in name:
        time.sleep(1000)
    if "memory" in name:
        hog = [np.ones(1 << 24, dtype=np.uint8) for _ in range(200)]
        raise AssertionError(f"{len(hog)} blocks of 16 MB were given")
    if "nonsense" in name:
        os.write(int(sys.argv[1]), b"\0\0\0\2{{")
        time.sleep(1000)
    return read_file(job, reading, put) if os.path.getsize(job.path) else Ending("indexed", windows)


def read_surprised(job: Job, reading: Reading, put: Put) -> Ending:
    """`read_file`, where opening short.mp4 or a name that is not Unicode raises what nobody expects."""
    import elastivid.search.reading as module

    original = module.VideoReader

    def fragile(path, **settings):
        if "short" in path or "\udcff" in path:
            raise ZeroDivisionError(path)
        return original(path, **settings)

    module.VideoReader = fragile
    try:
        return read_file(job, reading, put)
    finally:
        module.VideoReader = original
