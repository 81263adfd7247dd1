"""Which contents a process is reading just now, so that another one reads something else meanwhile.

A claim is a lock on one byte of the file `claims`, at an offset that the content gives. The operating system lets go of
it when the process ends, however it ends. A claim saves work and nothing else: what two processes read all the same is
stored once (see `writer`). Within one process a claim excludes nobody.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from contextlib import suppress
from pathlib import Path


class Claims:
    """Claims of this process. A context manager: leaving it lets go of all.

    Args:
        folder: of the index.
        space_id: what the contents are read for; reading one for two models is two things.
    """

    def __init__(self, folder: Path, space_id: str) -> None:
        self._path = folder / "claims"
        self._space_id = space_id
        self._file: int | None = None

    def __enter__(self) -> Claims:
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def take(self, content: str) -> bool:
        """Claim a content; False when another process has it."""
        assert self._file is not None
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._offset(content))
        except (BlockingIOError, PermissionError):
            return False
        except OSError:  # a file system without locks: both read it, one stores it
            return True
        return True

    def release(self, content: str) -> None:
        """Let go of a content."""
        assert self._file is not None
        with suppress(OSError):
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, self._offset(content))

    def _offset(self, content: str) -> int:
        digest = hashlib.blake2b(f"{self._space_id} {content}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 2  # below 2^62, as offsets have to be
