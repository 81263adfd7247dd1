"""What an index can forget: files that are nowhere any more, places they left, vectors of models that nobody searches.

Indexing never forgets. `find_prunable` looks at the disk and says what could go; `prune` looks again and removes it. A
disk that is not mounted looks like a disk whose files were all deleted, so both refuse when

- the nearest folder above a lost file that still exists is empty, as mount points are, or lies above everything that
  was ever indexed, or
- of several files that lie in one indexed folder not a single one is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from elastivid.search.catalog import Catalog
from elastivid.search.library import is_there, lies_in, roots_of
from elastivid.search.printing import printable
from elastivid.search.records import FileRecord, LibraryError, Place, text_to_path

if TYPE_CHECKING:
    from elastivid.search.store import Settings, Store
    from elastivid.search.writer import Writer

SHOWN_FOLDERS = 3


@dataclass(frozen=True)
class Prunable:
    """What an index can forget.

    Args:
        gone: records of contents that are nowhere on disk.
        left: paths that a content left which is elsewhere, with its record.
        spaces: vectors of models that the index moved away from.
        unfinished: vectors of a move to another model that has not ended; only where they were asked for.
        vanished: folders that may be unmounted disks, with how many lost files each has.
    """

    gone: list[FileRecord]
    left: list[tuple[str, FileRecord]]
    spaces: list[Settings]
    unfinished: list[Settings]
    vanished: dict[str, int]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to forget."""
        return not (self.gone or self.left or self.spaces or self.unfinished)

    @property
    def windows(self) -> int:
        """Windows that would go."""
        return sum(record.windows for record in self.gone)


def find_prunable(store: Store, folders: Iterable[str | Path] = (), *, unfinished: bool = False) -> Prunable:
    """What could be forgotten.

    Args:
        store: the index.
        folders: look only at files in them; all files when there is none.
        unfinished: also give up a move to another model that has not ended.
    """
    catalog = Catalog(store.snapshot().records.values())
    wanted = roots_of(folders)
    gone, left = [], []
    for record in catalog.records.values():
        lost = [place.path for place in record.places if _is_lost(place, record, catalog)]
        if wanted and not all(any(lies_in(path, root) for root in wanted) for path in lost):
            continue
        if len(lost) == len(record.places):
            gone.append(record)
        else:
            left += [(path, record) for path in lost]
    others = store.spaces()[1:]
    begun = [settings for settings in others if store.is_unfinished(settings.space_id)]
    return Prunable(
        gone=sorted(gone, key=lambda record: record.path),
        left=left,
        spaces=[settings for settings in others if settings not in begun],
        unfinished=begun if unfinished else [],
        vanished=_vanished(gone, catalog, _roots_ever(store, catalog)),
    )


def prune(store: Store, writer: Writer, prunable: Prunable, *, force: bool = False) -> None:
    """Forget it, and make the index as small as it can be.

    What came back since `prunable` was made is kept.

    Args:
        store: the index.
        writer: of its searched space.
        prunable: from `find_prunable`.
        force: also when folders may be unmounted.

    Raises:
        LibraryError: folders may be unmounted.
    """
    if prunable.vanished and not force:
        raise LibraryError(refusal(prunable))
    with writer.turn():
        removed: list[int] = []
        changed: dict[int, FileRecord] = {}
        for record in [*prunable.gone, *(record for _, record in prunable.left)]:
            current = writer.catalog.records.get(record.id)
            if current is None:
                continue
            kept = tuple(place for place in current.places if not _is_lost(place, current, writer.catalog))
            if not kept:
                removed.append(current.id)
            elif kept != current.places:
                changed[current.id] = replace(current, places=kept)
        writer.remove(sorted(set(removed)), list(changed.values()))
        for scores in store.folder.glob("nulls-*.safetensors"):  # by number of file, and numbers may be given again
            scores.unlink(missing_ok=True)
        writer.compact()
        for settings in (*prunable.spaces, *prunable.unfinished):
            store.drop(settings.space_id)


def refusal(prunable: Prunable) -> str:
    """Why `prune` refuses."""
    folders = list(prunable.vanished.items())
    named = ", ".join(f"{printable(folder)} ({count} files)" for folder, count in folders[:SHOWN_FOLDERS])
    more = f" and {len(folders) - SHOWN_FOLDERS} more" if len(folders) > SHOWN_FOLDERS else ""
    return (
        f"nothing was forgotten: everything that was indexed in {named}{more} is gone, as if a disk were not mounted; "
        "mount it, or say --force if they are really deleted (folders can be named: then only files in them go)"
    )


def _is_lost(place: Place, record: FileRecord, catalog: Catalog) -> bool:
    """Whether a content is no longer at one of its places: nothing is there, or by now another content."""
    return not is_there(place.path) or (place.missing and catalog.at(place.path) is not record)


def _roots_ever(store: Store, catalog: Catalog) -> list[str]:
    """Folders that were ever indexed, the innermost first; for a file that was named, its folder."""
    roots = {text_to_path(text) for run in store.runs() for text in run.get("sources", ())}
    files = {place.path for record in catalog.records.values() for place in record.places}
    folders = {os.path.dirname(root) if root in files else root for root in roots}
    return sorted(folders, key=len, reverse=True)


def _vanished(gone: list[FileRecord], catalog: Catalog, roots: list[str]) -> dict[str, int]:
    """Folders that look unmounted, with how many lost files each has."""
    vanished: dict[str, int] = {}
    lost_in: dict[str, list[str]] = {}
    for record in gone:
        if is_there(record.path):
            continue  # overwritten: the disk is there
        root = next((root for root in roots if lies_in(record.path, root)), os.path.dirname(record.path))
        lost_in.setdefault(root, []).append(record.path)
    known = catalog.shown_paths()
    for root, paths in lost_in.items():
        several = sum(lies_in(path, root) for path in known) > 1
        if several and not any(lies_in(path, root) and is_there(path) for path in known):
            vanished[root] = len(paths)
            continue
        for path in paths:
            folder = os.path.dirname(path)
            while not os.path.isdir(folder):
                folder = os.path.dirname(folder)
            if not lies_in(folder, root):
                vanished[root] = vanished.get(root, 0) + 1
            elif not os.listdir(folder):
                vanished[folder] = vanished.get(folder, 0) + 1
    return vanished
