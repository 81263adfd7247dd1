"""What an index says about one file, and the errors of `elastivid.search`. Plain values, no third-party imports."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from elastivid.core.errors import ElastividError

PENDING = "pending"
STATUSES = ("indexed", "partial", "failed", "crashed", PENDING)


class LibraryError(ElastividError, ValueError):
    """An index is missing, was made by another model, is in use, or cannot be read."""


class QueryError(ElastividError, ValueError):
    """A query is empty or cannot be understood."""


@dataclass(frozen=True)
class Place:
    """A path that shows a content.

    Args:
        path: absolute path.
        modified_ns: modification time in nanoseconds when it was last looked at.
        missing: the content was no longer there when its folder was last indexed.
    """

    path: str
    modified_ns: int
    missing: bool = False


@dataclass(frozen=True)
class FileRecord:
    """What is known about one content: a file and its copies. One row of a `files` table.

    Args:
        id: number of this reading of the content; reading it again gives a new one. -1 before it is stored.
        content: identity of the bytes (see `identity`); "" when the file could not even be opened.
        size_bytes: size of the file.
        places: the paths that show it or showed it. At least one.
        status: "indexed"; "partial" (what could be read is indexed); "failed" (nothing could be read); "crashed" (an
            error nobody expected). Bad files are not tried again until they change or somebody asks. "pending": known
            from another model, not read by this one yet; read as soon as it is there.
        reason: why the status is not "indexed"; empty otherwise.
        duration_seconds: duration as indexed.
        width: pixels of the stored picture, 0 where unknown.
        height: pixels of the stored picture, 0 where unknown.
        windows: number of windows in the index.
    """

    id: int
    content: str
    size_bytes: int
    places: tuple[Place, ...]
    status: str
    reason: str = ""
    duration_seconds: float = 0.0
    width: int = 0
    height: int = 0
    windows: int = 0

    @property
    def path(self) -> str:
        """Where the content is: the first path that is not missing, the first of all when they all are."""
        return next((place.path for place in self.places if not place.missing), self.places[0].path)

    @property
    def paths(self) -> tuple[str, ...]:
        """All paths of the content that are not missing: more than one where a file was copied."""
        return tuple(place.path for place in self.places if not place.missing)

    @property
    def missing(self) -> bool:
        """Whether the content is gone from everywhere it was. Such a record is kept, and left out of results."""
        return all(place.missing for place in self.places)

    @property
    def is_searchable(self) -> bool:
        """Whether its windows take part in searches."""
        return self.windows > 0 and not self.missing

    def place(self, path: str) -> Place | None:
        """What is known about one of its paths."""
        return next((place for place in self.places if place.path == path), None)

    def only_at(self, path: str) -> FileRecord:
        """The record as if `path` were its only place: what a report says about one file of several copies."""
        return replace(self, places=tuple(place for place in self.places if place.path == path))

    def shown_at(self, *places: Place) -> FileRecord:
        """The record with places added, each in the stead of the one of the same path."""
        changed = {place.path: place for place in self.places} | {place.path: place for place in places}
        return replace(self, places=tuple(changed.values()))

    def to_row(self) -> dict[str, Any]:
        """The record with paths that every table and JSON file can hold."""
        places = [
            {"path": path_to_text(place.path), "modified_ns": place.modified_ns, "missing": place.missing}
            for place in self.places
        ]
        return {**{name: getattr(self, name) for name in FIELD_NAMES}, "places": places}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> FileRecord:
        """Inverse of `to_row`."""
        places = tuple(
            Place(text_to_path(place["path"]), place["modified_ns"], place["missing"]) for place in row["places"]
        )
        return cls(**{**{name: row[name] for name in FIELD_NAMES}, "places": places})


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
