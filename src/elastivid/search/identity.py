"""What makes two files the same: their size and a hash of their bytes, whatever they are called and wherever they lie.

A video is large and a hash of all its bytes costs as much reading as decoding it, so the hash covers the first, the
middle and the last 64 KiB; container headers and indexes lie at either end, and they hold sizes and times of every
frame. Files that are edited in place without changing any of that need the hash of everything, which an index can be
made with (`full_hash=True`). The two kinds of identity differ in their first letter and never compare equal.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat

SAMPLE_BYTES = 64 * 1024
BLOCK_BYTES = 1024 * 1024


def content_of(path: str, *, full_hash: bool = False) -> str:
    """Identity of a file's bytes: `s<size>-<hash>` of samples, or `f<size>-<hash>` of everything.

    Args:
        path: the file.
        full_hash: read the whole file.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", path)  # opening a pipe would wait for somebody to write
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if full_hash:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
            return f"f{size}-{digest.hexdigest()}"
        for start in sorted({0, max(0, (size - SAMPLE_BYTES) // 2), max(0, size - SAMPLE_BYTES)}):
            file.seek(start)
            digest.update(file.read(SAMPLE_BYTES))
    return f"s{size}-{digest.hexdigest()}"
