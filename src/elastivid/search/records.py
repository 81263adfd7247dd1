"""What an index says about one file, and the errors of `elastivid.search`. Plain values, no third-party imports."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from elastivid.core.errors import ElastividError

STATUSES = ("indexed", "partial", "failed", "crashed")


class LibraryError(ElastividError, ValueError):
    """An index is missing, was made by another model, is in use, or cannot be read."""


class QueryError(ElastividError, ValueError):
    """A query is empty or cannot be understood."""


@dataclass(frozen=True)
class FileRecord:
    """One row of the `files` table.

    Args:
        id: number of this version of the file; a changed file gets a new one.
        path: absolute path.
        size_bytes: size when it was read.
        modified_ns: modification time in nanoseconds when it was read.
        status: "indexed"; "partial" (what could be read is indexed); "failed" (nothing could be read, not tried
            again until the file changes); "crashed" (an error nobody expected, tried again on the next run).
        reason: why the status is not "indexed"; empty otherwise.
        missing: the file was gone the last time its folder was indexed. Kept, and left out of results.
        duration_seconds: duration as indexed.
        width: pixels of the stored picture, 0 where unknown.
        height: pixels of the stored picture, 0 where unknown.
        windows: number of windows in the index.
    """

    id: int
    path: str
    size_bytes: int
    modified_ns: int
    status: str
    reason: str = ""
    missing: bool = False
    duration_seconds: float = 0.0
    width: int = 0
    height: int = 0
    windows: int = 0

    @property
    def is_searchable(self) -> bool:
        """Whether its windows take part in searches."""
        return self.windows > 0 and not self.missing

    def to_row(self) -> dict[str, Any]:
        """The record with a path that every table and JSON file can hold."""
        return {**asdict(self), "path": path_to_text(self.path)}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> FileRecord:
        """Inverse of `to_row`."""
        values = {name: row[name] for name in FIELD_NAMES}
        return cls(**{**values, "path": text_to_path(values["path"])})


FIELD_NAMES = tuple(field.name for field in fields(FileRecord))


def path_to_text(path: str) -> str:
    """A path as valid Unicode: file names that are not UTF-8 are written as a percent-encoded `file://` address."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "file://" + quote_from_bytes(os.fsencode(path))
    return path


def text_to_path(text: str) -> str:
    """Inverse of `path_to_text`."""
    if text.startswith("file://"):
        return os.fsdecode(unquote_to_bytes(text.removeprefix("file://")))
    return text
