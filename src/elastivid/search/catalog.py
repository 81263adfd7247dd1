"""What an index says about its files, in memory: records by number, by content and by path. Does no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from elastivid.search.records import FileRecord, Place


class Catalog:
    """Records of one index. A path shows one content now, and may have shown others before.

    Args:
        records: what to begin with.
    """

    def __init__(self, records: Iterable[FileRecord] = ()) -> None:
        self.records: dict[int, FileRecord] = {}
        self._by_content: dict[str, int] = {}
        self._shown: dict[str, int] = {}  # path -> record that it shows
        self._gone: dict[str, int] = {}  # path -> record that it showed last
        self._sizes: dict[int, int] = {}  # size -> how many contents have it
        for record in records:
            self.put(record)

    def __len__(self) -> int:
        return len(self.records)

    def put(self, record: FileRecord) -> None:
        """Add a record, or replace the one of the same number."""
        self.remove(record.id)
        self.records[record.id] = record
        if record.content:
            self._by_content[record.content] = record.id
            self._sizes[record.size_bytes] = self._sizes.get(record.size_bytes, 0) + 1
        for place in record.places:
            (self._gone if place.missing else self._shown)[place.path] = record.id

    def remove(self, record_id: int) -> None:
        """Forget a record; one that is not there is nothing to do."""
        record = self.records.pop(record_id, None)
        if record is None:
            return
        if record.content:
            self._sizes[record.size_bytes] -= 1
            if self._by_content.get(record.content) == record_id:
                del self._by_content[record.content]
        for place in record.places:
            for paths in (self._shown, self._gone):
                if paths.get(place.path) == record_id:
                    del paths[place.path]

    def at(self, path: str) -> FileRecord | None:
        """The record of the content that a path shows, else of the one it showed last."""
        found = self._shown.get(path, self._gone.get(path))
        return None if found is None else self.records[found]

    def with_content(self, content: str) -> FileRecord | None:
        """The record of a content; None for one that is not known, and for "", which is nobody's."""
        found = self._by_content.get(content)
        return None if found is None else self.records[found]

    def has_size(self, size_bytes: int) -> bool:
        """Whether some content has that size. One that has another cannot be the same."""
        return self._sizes.get(size_bytes, 0) > 0

    def shown_paths(self) -> list[str]:
        """Paths that show something, as far as the index knows."""
        return list(self._shown)

    def show(self, record: FileRecord, *places: Place) -> list[FileRecord]:
        """Records that change when `places` now show the content of `record`; puts them.

        Whatever those paths showed before is marked as missing there.
        """
        changed: dict[int, FileRecord] = {}
        for place in places:
            owner = self.records.get(self._shown.get(place.path, -1))
            if owner is not None and owner.id != record.id:
                changed |= {r.id: r for r in self.leave(place.path)}
        shown = record.shown_at(*places)
        if shown != self.records.get(record.id):
            self.put(shown)
            changed[shown.id] = shown
        return [self.records[number] for number in changed]

    def leave(self, path: str) -> list[FileRecord]:
        """The record that changes when `path` no longer shows anything (or none); puts it."""
        record = self.records.get(self._shown.get(path, -1))
        if record is None:
            return []
        left = tuple(replace(place, missing=True) if place.path == path else place for place in record.places)
        changed = replace(record, places=left)
        self.put(changed)
        return [changed]
