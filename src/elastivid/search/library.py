"""Folders to video files: what counts as a video, and what changed since the index was made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from elastivid.search.catalog import Catalog
from elastivid.search.identity import content_of
from elastivid.search.printing import printable
from elastivid.search.records import PENDING, FileRecord, LibraryError
from elastivid.video.address import is_url

_SUFFIXES = """
    3gp asf avi divx dv f4v flv gif h264 h265 hevc ivf m1v m2ts m2v m4v mjpeg mkv mov mp4 mpeg mpg mts mxf nut obu
    ogg ogm ogv rm rmvb ts vob webm wmv y4m
"""
VIDEO_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())


@dataclass(frozen=True)
class FoundFile:
    """A file on disk.

    Args:
        path: absolute path.
        size_bytes: its size.
        modified_ns: its modification time in nanoseconds.
        content: identity of its bytes, where it had to be found out; "" where it is found out when the file is read.
        replaces: id of the record that reading it again would supersede.
    """

    path: str
    size_bytes: int
    modified_ns: int
    content: str = ""
    replaces: int | None = None


@dataclass(frozen=True)
class Changes:
    """What has to be done to bring an index up to date.

    Args:
        read: files that are new or changed, or that deserve another try.
        unchanged: records that stay as they are, as `(path, record)`.
        recognised: files whose content is in the index: moved, renamed, copied, touched, or back again.
        gone: paths that no longer show anything although their folder is there.
    """

    read: list[FoundFile]
    unchanged: list[tuple[str, FileRecord]]
    recognised: list[FoundFile]
    gone: list[str]


def find_videos(sources: Iterable[str | Path], *, allow_url: bool = False) -> tuple[list[FoundFile], list[OSError]]:
    """Video files in folders (by suffix, subfolders included, hidden ones left out) and files named one by one.

    An address is taken as it is where that is allowed: one that was read once does not change.

    Returns:
        The files by path, and why folders could not be listed.

    Raises:
        LibraryError: a source does not exist, or is an address that may not be read.
    """
    found: dict[str, FoundFile] = {}
    unlisted: list[OSError] = []
    for path in roots_of(sources):
        if is_url(path) and not allow_url:
            raise LibraryError(
                f"{printable(path)} is an address, and nothing is fetched unasked: allow it (--allow-url, "
                "allow_url=True) or download it first"
            )
        if is_url(path):
            names = []
            found[path] = FoundFile(path, 0, 0)
        elif os.path.isdir(path):
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
    found: list[FoundFile],
    catalog: Catalog,
    sources: Iterable[str | Path],
    *,
    retry_failed: bool = False,
    full_hash: bool = False,
) -> Changes:
    """What differs between the disk and an index.

    A file is unchanged when path, size and modification time are. Other files are looked into only when their size is
    that of a known content: nothing is read of a new folder, and little of a moved one.
    """
    changes = Changes([], [], [], [])
    for file in found:
        record = catalog.at(file.path)
        place = record.place(file.path) if record else None
        same = record and place and (record.size_bytes, place.modified_ns) == (file.size_bytes, file.modified_ns)
        if record and place and same:
            again = record.status != "indexed" and (retry_failed or not record.content or record.status == PENDING)
            if again:
                changes.read.append(replace(file, content=record.content, replaces=record.id))
            elif place.missing:
                changes.recognised.append(replace(file, content=record.content))
            else:
                changes.unchanged.append((file.path, record))
            continue
        content = _content_when_known(file, catalog, full_hash)
        known = catalog.with_content(content)
        if known is None:
            changes.read.append(replace(file, content=content))
        elif known.status != "indexed" and (retry_failed or known is record or known.status == PENDING):
            # it was written to since, or was never read: try again
            changes.read.append(replace(file, content=content, replaces=known.id))
        else:
            changes.recognised.append(replace(file, content=content))
    changes.gone.extend(_gone(found, catalog, sources))
    changes.gone.extend(_left(changes.recognised, catalog))
    return changes


def roots_of(sources: Iterable[str | Path]) -> list[str]:
    """Absolute paths of sources; addresses as they are."""
    return [
        source if isinstance(source, str) and is_url(source) else os.path.abspath(os.path.expanduser(source))
        for source in sources
    ]


def lies_in(path: str, root: str) -> bool:
    """Whether a path is a root or lies in it."""
    return path == root or path.startswith(os.path.join(root, ""))


def is_there(path: str) -> bool:
    """Whether something is at a path, readable or not. What is at an address is not asked."""
    return is_url(path) or os.path.lexists(path)


def _content_when_known(file: FoundFile, catalog: Catalog, full_hash: bool) -> str:
    """Identity of a file that may be known; "" for one of a new size, and for one that cannot be opened."""
    if not catalog.has_size(file.size_bytes):
        return ""
    try:
        return content_of(file.path, full_hash=full_hash)
    except OSError:
        return ""  # reading it says why


def _left(recognised: list[FoundFile], catalog: Catalog) -> Iterator[str]:
    """Paths that recognised files moved away from, wherever those are: the content itself is elsewhere now."""
    for file in recognised:
        record = catalog.with_content(file.content)
        for path in record.paths if record else ():
            if path != file.path and not is_there(path):
                yield path


def _gone(found: list[FoundFile], catalog: Catalog, sources: Iterable[str | Path]) -> Iterator[str]:
    """Paths in the sources that show nothing any more. Those of a folder that is not there may be unmounted: kept."""
    present = {file.path for file in found}
    roots = roots_of(sources)
    for path in catalog.shown_paths():
        if path in present or not any(lies_in(path, root) for root in roots):
            continue
        if os.path.isdir(os.path.dirname(path)) and not is_there(path):
            yield path


def _walk(folder: str, on_error: Callable[[OSError], None]) -> Iterator[str]:
    for parent, folders, names in os.walk(folder, onerror=on_error):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not name.endswith(".ev"))
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES:
                yield os.path.join(parent, name)
