"""A process that reads clips and does what a file is called: hang, die, or be read."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from elastivid.data import decoding
from elastivid.video import reader


class NamedReader(reader.VideoReader):
    """Reads a file unless its name says otherwise."""

    def __init__(self, path: str, **settings: Any) -> None:
        name = Path(path).name
        if "hangs" in name:
            time.sleep(600)
        if "dies" in name:
            os.kill(os.getpid(), signal.SIGSEGV)
        super().__init__(path, **settings)


def work(channel: str, memory: str, parent: str) -> None:
    """As `decoding.work`, with `NamedReader`."""
    reader.VideoReader = NamedReader  # type: ignore[misc]
    decoding.work(channel, memory, parent)
