"""What state an index is in: its files as the index and the disk know them, its spaces, its size, its last runs."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastivid.search.records import FileRecord, path_to_text
from elastivid.search.snapshot import Snapshot
from elastivid.search.tables import table_name
from elastivid.video.address import is_url

if TYPE_CHECKING:
    from elastivid.search.store import Settings, Store

LAST_RUNS = 5


@dataclass(frozen=True)
class SpaceStatus:
    """One space of vectors.

    Args:
        space_id: of the model.
        model: name of the model.
        licence: what its weights state.
        state: "searched"; "unfinished" (the index is moving to it); "old" (it moved away from it).
        files: how many records it has.
        windows: how many vectors take part in searches or would.
        size_bytes: of its tables and its snapshot.
    """

    space_id: str
    model: str
    licence: str
    state: str
    files: int
    windows: int
    size_bytes: int


@dataclass(frozen=True)
class IndexStatus:
    """State of an index.

    Args:
        path: of the index.
        files: number of contents by status; those that are gone from everywhere are "missing", whatever their status.
        copies: paths beyond the first of each content.
        changed: paths whose file was changed since it was read; the next run looks at them.
        unreachable: paths that are not there and were not noted as missing yet: deleted or unmounted since.
        windows: windows that take part in searches.
        video_seconds: duration of the files that take part in searches.
        video_bytes: size of these files.
        size_bytes: size of the index on disk.
        tables_bytes: of it, tables.
        snapshot_bytes: of it, what searches read.
        dead_windows: rows of the snapshot that nobody searches.
        needs_repair: a process died while it was writing; the next one that writes repairs it.
        settings: what the searched space was made with.
        spaces: all spaces, the searched one first.
        runs: the last runs of indexing, oldest first.
    """

    path: str
    files: dict[str, int]
    copies: int
    changed: list[str]
    unreachable: list[str]
    windows: int
    video_seconds: float
    video_bytes: int
    size_bytes: int
    tables_bytes: int
    snapshot_bytes: int
    dead_windows: int
    needs_repair: bool
    settings: Settings
    spaces: list[SpaceStatus]
    runs: list[dict[str, Any]]

    @property
    def megabytes_per_hour(self) -> float:
        """Size of the index for an hour of video."""
        return self.size_bytes / 1e6 / (self.video_seconds / 3600) if self.video_seconds else 0.0

    def to_values(self) -> dict[str, Any]:
        """As values for JSON."""
        values = {name: value for name, value in vars(self).items() if name not in ("settings", "spaces")}
        return {
            **values,
            "path": path_to_text(self.path),
            "changed": [path_to_text(path) for path in self.changed],
            "unreachable": [path_to_text(path) for path in self.unreachable],
            "megabytes_per_hour": round(self.megabytes_per_hour, 3),
            "sampling": asdict(self.settings.sampling),
            "full_hash": self.settings.full_hash,
            "spaces": [asdict(space) for space in self.spaces],
        }


def status_of(store: Store) -> IndexStatus:
    """State of an index. Looks at every file that the index knows, opens none.

    Raises:
        LibraryError: there is no index.
    """
    snapshot = store.snapshot()
    records = list(snapshot.records.values())
    searched = [record for record in records if record.is_searchable]
    changed, unreachable = _differences(records)
    spaces = [_space(store, settings, number == 0) for number, settings in enumerate(store.spaces())]
    size = _size(store.folder)
    tables = _size(store.tables_folder)
    windows = sum(record.windows for record in searched)
    return IndexStatus(
        path=str(store.folder),
        files=dict(sorted(Counter("missing" if r.missing else r.status for r in records).items())),
        copies=sum(max(len(record.paths) - 1, 0) for record in records),
        changed=changed,
        unreachable=unreachable,
        windows=windows,
        video_seconds=sum(record.duration_seconds for record in searched),
        video_bytes=sum(record.size_bytes for record in searched),
        size_bytes=size,
        tables_bytes=tables,
        snapshot_bytes=_size(store.folder / "spaces"),
        dead_windows=len(snapshot.windows) - sum(record.windows for record in records),
        needs_repair=store.needs_repair,
        settings=store.settings(),
        spaces=spaces,
        runs=store.runs()[-LAST_RUNS:],
    )


def _differences(records: list[FileRecord]) -> tuple[list[str], list[str]]:
    """Paths whose file was changed since it was read, and paths that are not there."""
    changed, unreachable = [], []
    for record in records:
        for place in record.places:
            if place.missing or is_url(place.path):
                continue
            try:
                found = os.stat(place.path)
            except OSError:
                if not os.path.lexists(place.path):
                    unreachable.append(place.path)
                continue
            if (found.st_size, found.st_mtime_ns) != (record.size_bytes, place.modified_ns):
                changed.append(place.path)
    return sorted(changed), sorted(unreachable)


def _space(store: Store, settings: Settings, searched: bool) -> SpaceStatus:
    folder = store.space_folder(settings.space_id)
    snapshot = Snapshot.load(folder)
    records = list(snapshot.records.values()) if snapshot else []
    state = "searched" if searched else "unfinished" if store.is_unfinished(settings.space_id) else "old"
    tables = (store.tables_folder / f"{table_name(key, settings.space_id)}.lance" for key in ("files", "vectors"))
    return SpaceStatus(
        space_id=settings.space_id,
        model=settings.model,
        licence=settings.licence,
        state=state,
        files=len(records),
        windows=sum(record.windows for record in records),
        size_bytes=_size(folder) + sum(_size(table) for table in tables),
    )


def _size(folder: Path) -> int:
    """Bytes of the files in a folder. One that goes away meanwhile counts nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return total
