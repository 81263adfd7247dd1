"""Folders to video files: what counts as a video, and what changed since the index was made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from elastivid.search.printing import printable
from elastivid.search.records import FileRecord, LibraryError

_SUFFIXES = """
    3gp asf avi divx dv f4v flv gif h264 h265 hevc ivf m1v m2ts m2v m4v mjpeg mkv mov mp4 mpeg mpg mts mxf nut obu
    ogg ogm ogv rm rmvb ts vob webm wmv y4m
"""
VIDEO_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())


@dataclass(frozen=True)
class FoundFile:
    """A file on disk."""

    path: str
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class Changes:
    """What has to be done to bring an index up to date.

    Args:
        read: files that are new or changed, or that deserve another try.
        unchanged: records that stay as they are.
        returned: records that were missing and are back, unchanged.
        missing: records whose file is gone although its folder is there.
    """

    read: list[FoundFile]
    unchanged: list[FileRecord]
    returned: list[FileRecord]
    missing: list[FileRecord]


def find_videos(sources: Iterable[str | Path]) -> tuple[list[FoundFile], list[OSError]]:
    """Video files in folders (by suffix, subfolders included, hidden ones left out) and files named one by one.

    Returns:
        The files by path, and why folders could not be listed.

    Raises:
        LibraryError: a source does not exist.
    """
    found: dict[str, FoundFile] = {}
    unlisted: list[OSError] = []
    for source in sources:
        path = os.path.abspath(os.path.expanduser(source))
        if os.path.isdir(path):
            names = list(_walk(path, unlisted.append))
        elif os.path.exists(path):
            names = [path]
        else:
            raise LibraryError(f"no such file or folder: {printable(path)}; check the spelling or mount the drive")
        for name in names:
            try:
                status = os.stat(name)
            except OSError:
                status = None  # a dangling link or a file that vanished meanwhile: reading it reports why
            found[name] = FoundFile(name, status.st_size if status else 0, status.st_mtime_ns if status else 0)
    return sorted(found.values(), key=lambda file: file.path), unlisted


def compare(
    found: list[FoundFile], known: dict[str, FileRecord], sources: Iterable[str | Path], retry_failed: bool
) -> Changes:
    """What differs between the disk and an index. A file is unchanged when path, size and modification time are."""
    read: list[FoundFile] = []
    unchanged: list[FileRecord] = []
    returned: list[FileRecord] = []
    for file in found:
        record = known.get(file.path)
        same = record and (record.size_bytes, record.modified_ns) == (file.size_bytes, file.modified_ns)
        if record is None or not same or record.status == "crashed" or (retry_failed and record.status != "indexed"):
            read.append(file)
        else:
            (returned if record.missing else unchanged).append(record)
    present = {file.path for file in found}
    roots = [os.path.join(os.path.abspath(os.path.expanduser(source)), "") for source in sources]
    missing = [
        record
        for path, record in known.items()
        if path not in present
        and not record.missing
        and any(path.startswith(root) for root in roots)
        and os.path.isdir(os.path.dirname(path))
        and not os.path.lexists(path)
    ]
    return Changes(read, unchanged, returned, missing)


def _walk(folder: str, on_error: Callable[[OSError], None]) -> Iterator[str]:
    for parent, folders, names in os.walk(folder, onerror=on_error):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not name.endswith(".ev"))
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES:
                yield os.path.join(parent, name)
