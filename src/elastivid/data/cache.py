"""Decoded clips on disk: each is decoded once, kept as bytes, and mapped into memory from then on.

    cache = ClipCache(folder, limit_bytes=20 << 30)
    frames = cache.get(key)                     # (T, H, W, 3) uint8, mapped; None: not there
    cache.put(key, frames)

One `.npy` a clip, named by a hash of the file (path, size, time of change) and of what was taken from it. A file
appears under its name when it is whole; writing and counting happen under one lock, so several processes share a
folder, and a kill at any moment leaves nothing but a partial file that the next opening removes.

When the limit is reached, clips that nobody asked for since this cache was opened make room, the longest unused first;
clips in use stay, and new ones are not kept. A cache too small for a data set so serves a part of every epoch, where
dropping the longest unused would serve none.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from elastivid.data.listing import Entry

PARTIAL = ".partial"


def cache_key(entry: Entry, taken: str) -> str:
    """Name of what is taken from a clip: 40 hexadecimal digits.

    Args:
        entry: the clip; its file must exist.
        taken: everything that decides about the frames (how many, which, their size).

    Raises:
        OSError: there is no such file.
    """
    status = entry.path.stat()
    parts = (entry.path.absolute(), status.st_size, status.st_mtime_ns, entry.start_seconds, entry.end_seconds, taken)
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogateescape")).hexdigest()[:40]


class ClipCache:
    """A folder of decoded clips. Safe to use from several processes, and to pickle.

    Args:
        folder: where the clips lie; made when it is missing.
        limit_bytes: what the clips may take together.

    Raises:
        ValueError: the limit is below 1.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        if limit_bytes < 1:
            raise ValueError(f"limit_bytes must be >= 1, got {limit_bytes}")
        self.folder, self.limit_bytes = folder, limit_bytes
        self.opened_seconds = time.time()
        self._asked: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            for partial in folder.glob(f"*{PARTIAL}"):
                partial.unlink()
            self._note(sum(file.stat().st_size for file in self._files()))

    @property
    def size_bytes(self) -> int:
        """What the clips take together."""
        with self._locked():
            return self._noted()

    def get(self, key: str) -> np.ndarray | None:
        """The clip of this name, read-only and mapped into memory; `None` when it is not there or damaged."""
        file = self._file(key)
        try:
            frames: np.ndarray = np.load(file, mmap_mode="r")
        except (OSError, ValueError):  # not there, or cut off by a power failure: decoded anew
            return None
        if key not in self._asked:
            self._asked.add(key)
            os.utime(file)
        return frames

    def put(self, key: str, frames: np.ndarray) -> bool:
        """Keep a clip.

        Args:
            key: see `cache_key`.
            frames: uint8 (T, H, W, 3).

        Returns:
            whether it is kept: false when the cache is full.
        """
        file, need = self._file(key), frames.nbytes + 256
        with self._locked():
            before = file.stat().st_size if file.exists() else 0
            total = self._noted() - before
            if total + need > self.limit_bytes:
                total -= self._make_room(total + need - self.limit_bytes, file)
            if total + need > self.limit_bytes:
                return False
            self._note(total + need)  # first: after a kill between the two it says too much, not too little
            partial = file.with_suffix(PARTIAL)
            try:
                with partial.open("wb") as target:
                    np.save(target, frames)
                partial.replace(file)
            finally:
                partial.unlink(missing_ok=True)  # a full disk
            self._note(total + file.stat().st_size)
        self._asked.add(key)
        return True

    def _make_room(self, wanted_bytes: int, keep: Path) -> int:
        """Remove clips not asked for since the cache was opened; returns the bytes that were freed."""
        old = [(s.st_mtime, s.st_size, f) for f in self._files() if f != keep for s in (f.stat(),)]
        freed = 0
        for used_seconds, size, file in sorted(old):
            if freed >= wanted_bytes or used_seconds >= self.opened_seconds:
                break
            file.unlink()
            freed += size
        return freed

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.npy"

    def _files(self) -> Iterator[Path]:
        return self.folder.glob("*.npy")

    def _noted(self) -> int:
        try:
            return int((self.folder / "bytes").read_text())
        except ValueError:  # cut off while it was written
            return sum(file.stat().st_size for file in self._files())

    def _note(self, size: int) -> None:
        (self.folder / "bytes").write_text(f"{size}\n")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder alone; the system lets go of it when this process ends."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
