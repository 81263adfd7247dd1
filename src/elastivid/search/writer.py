"""Commits of files to an index. Several processes may write at once: each commit takes the lock and looks first.

A commit is what was read since the last one, about a second's worth of files. It goes to the tables, vectors first and
the rows of files last, then to the snapshot, whose manifest is replaced last: searches see all of it or nothing. A file
`dirty` marks the time in between. Whoever commits next after a writer died there makes tables and snapshot agree: files
whose row was written are in the index, the others never were.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from elastivid.search.catalog import Catalog
from elastivid.search.printing import printable
from elastivid.search.records import FileRecord, LibraryError, Place
from elastivid.search.snapshot import WINDOW, Manifest, Snapshot, SnapshotWriter, data_paths, read_lines, records_in
from elastivid.search.tables import Tables
from elastivid.search.words import Words
from elastivid.video.subtitles import Line

if TYPE_CHECKING:
    from elastivid.search.store import Settings, Store

COMPACT_AT_PIECES = 64
REBUILD_AT_DEAD_FRACTION = 0.25
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_ROOM_WORDS = ("no space left", "os error 28", "quota exceeded", "file too large", "database or disk is full")


@dataclass(frozen=True)
class IndexedFile:
    """A file ready to be stored.

    Args:
        record: what is known about it; its id is given by the commit.
        windows: WINDOW records (n,); their file ids are given by the commit.
        vectors: float32 (n, D).
        replaces: id of the earlier reading that this one supersedes; None for a content that is new.
        lines: subtitles embedded in the file.
    """

    record: FileRecord
    windows: np.ndarray
    vectors: np.ndarray
    replaces: int | None = None
    lines: tuple[Line, ...] = ()


@dataclass(frozen=True)
class Seen:
    """A place where a content that is in the index was recognised."""

    content: str
    place: Place


class Writer:
    """Writes to one space of an index. Made by `Store.writer`.

    Args:
        store: the index.
        settings: what the space is made with.
        notify: is told when another process has to be waited for.
        beside: the space is not the searched one.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        notify: Callable[[str], None] | None = None,
        *,
        beside: bool = False,
    ) -> None:
        self.settings = settings
        self.folder = store.space_folder(settings.space_id)
        self.catalog = Catalog()
        self._store = store
        self._words = Words(store.folder)
        self._notify = notify
        self._beside = beside
        self._tables: Tables | None = None
        self._manifest: Manifest | None = None  # the state that the catalog holds
        self._reading = threading.Lock()
        with self.turn():
            pass

    def without_windows(self, record: FileRecord, replaces: int | None = None) -> IndexedFile:
        """A file of which there is nothing but its record."""
        return IndexedFile(record, *_no_rows(self.settings.dim), replaces)

    def refresh(self) -> None:
        """Bring the catalog up to date with what other processes committed. Needs no lock, costs one small read."""
        with self._reading:
            for _ in range(3):
                manifest = Manifest.read(self.folder)
                if manifest is None or manifest == self._manifest:
                    return
                old, start = self._manifest, 0
                if old is not None and old.generation == manifest.generation:
                    start = old.files_bytes
                try:
                    lines = read_lines(data_paths(self.folder, manifest.generation)[2], start, manifest.files_bytes)
                except FileNotFoundError:
                    continue  # a rebuild removed this generation after its manifest was read: read the new one
                if lines is None:
                    return
                if start == 0:
                    self.catalog = Catalog()
                for record_id, record in records_in(lines):
                    if record is None:
                        self.catalog.remove(record_id)
                    else:
                        self.catalog.put(record)
                self._manifest = manifest
                return

    def commit(
        self, files: Sequence[IndexedFile] = (), seen: Sequence[Seen] = (), gone: Sequence[str] = ()
    ) -> list[FileRecord]:
        """Store what was found out. After return it survives a crash, and searches see it.

        What another process stored since is not stored again: the file then is one more place of that content.

        Args:
            files: files that were read.
            seen: places of contents that are in the index.
            gone: paths that no longer show anything.

        Returns:
            The records of `files`, as they are in the index.

        Raises:
            LibraryError: the disk is full or cannot be written. Everything committed before is kept.
        """
        if not (files or seen or gone):
            return []
        with self.turn():
            with self._reading:
                changes = _Changes(self.catalog)
                before = dict(self.catalog.records)
                stored = [changes.add(file) for file in files]
                for sighting in seen:
                    changes.see(sighting)
                for path in gone:
                    changes.leave(path)
            self._words.put(changes.records, changes.lines)  # first: what can be found has its texts
            self._write(changes)
            self._forget_words([before[number] for number in changes.removed if number in before])
            return [self.catalog.records[number] for number in stored]

    def remove(self, record_ids: Sequence[int], changed: Sequence[FileRecord] = ()) -> None:
        """Take records out of the index for good, and replace others. Under `turn`."""
        with self._reading:
            changes = _Changes(self.catalog)
            before = [
                self.catalog.records[n] for n in (*record_ids, *(r.id for r in changed)) if n in self.catalog.records
            ]
            for record in changed:
                self.catalog.put(record)
            changes.put(changed)
            for number in record_ids:
                changes.take_out(number)
        self._write(changes)
        self._forget_words(before)

    def _forget_words(self, before: Sequence[FileRecord]) -> None:
        """Forget texts of contents and places that these records had and no record has any more."""
        if before:
            records = self.catalog.records.values()
            contents = {record.content for record in before} - {record.content for record in records}
            places = {place.path for record in before for place in record.places}
            self._words.remove(contents, places - {place.path for record in records for place in record.places})

    def finish(self) -> None:
        """Tidy up after many commits, of this run or of many short ones."""
        assert self._tables is not None
        if self._tables.pieces() >= COMPACT_AT_PIECES or self._has_dead_rows(REBUILD_AT_DEAD_FRACTION):
            with self.turn():
                self.compact(REBUILD_AT_DEAD_FRACTION)

    def compact(self, dead_fraction: float = 0.0) -> None:
        """Join the pieces that commits leave in the tables. Under `turn`.

        Args:
            dead_fraction: write the snapshot anew when more of its rows than this are dead; else it costs nothing.
        """
        assert self._tables is not None
        with self._changing():
            self._tables.compact()
            if self._has_dead_rows(dead_fraction):
                self._rebuild(list(self.catalog.records.values()))
                return
            snapshot = SnapshotWriter(self.folder, Manifest.require(self.folder))
            snapshot.append([], *_no_rows(self.settings.dim), self._tables.versions())
            snapshot.close()
        self.refresh()

    def _has_dead_rows(self, fraction: float) -> bool:
        living = sum(record.windows for record in self.catalog.records.values())
        rows = self._manifest.rows if self._manifest else 0
        return rows - living > fraction * rows

    @contextmanager
    def turn(self) -> Iterator[None]:
        """This process alone may write, and knows the newest state."""
        with self._errors_explained(), self._store.lock(self._notify):
            self._prepare()
            yield

    def _prepare(self) -> None:
        first = self._tables is None
        if not self._beside and not self._store.settings().same_as(self.settings):
            raise LibraryError(
                f"{printable(self._store.folder)} is made with {self._store.settings()} by now, not with "
                f"{self.settings}: another process made it or moved it to another model; run the same command again"
            )
        self._store.note_settings(self.settings)
        if self._tables is None:
            self._tables = Tables(self._store.tables_folder, self.settings.space_id, self.settings.dim)
        manifest = Manifest.read(self.folder)
        others = manifest is None or manifest != self._manifest
        if others:
            self._tables.refresh()
        whole = (
            manifest is not None
            and not self._dirty.exists()
            and (not others or manifest.tables == self._tables.versions())
            and not (first and Snapshot.load(self.folder) is None)
        )
        if not whole:
            self._recover()
        self.refresh()

    def _recover(self) -> None:
        """Make tables and snapshot agree after a writer died. Under the lock."""
        assert self._tables is not None
        self._tables.refresh()
        with self._changing():
            self._rebuild(self._tables.mend())

    def _rebuild(self, records: list[FileRecord]) -> None:
        """Write a new generation of the snapshot from the tables. Under the lock, within `_changing`."""
        assert self._tables is not None
        manifest = Manifest.read(self.folder)
        generation = manifest.generation + 1 if manifest else 0
        snapshot = SnapshotWriter.create(self.folder, self.settings.space_id, self.settings.dim, generation)
        for windows, vectors in self._tables.batches():
            snapshot.add_rows(windows, vectors)
        snapshot.sort_rows()
        snapshot.append(records, *_no_rows(self.settings.dim), self._tables.versions())
        snapshot.close()
        snapshot.remove_others()
        self.refresh()

    def _write(self, changes: _Changes) -> None:
        """Put changes into tables and snapshot. Under the lock."""
        assert self._tables is not None
        windows, vectors = changes.rows(self.settings.dim)
        try:
            with self._changing():
                self._tables.put(changes.records, windows, vectors, changes.removed)
                snapshot = SnapshotWriter(self.folder, Manifest.require(self.folder))
                try:
                    snapshot.append(changes.records, windows, vectors, self._tables.versions(), changes.removed)
                finally:
                    snapshot.close()
        except BaseException:
            self._manifest = None  # the catalog says more than the disk: it is read again
            raise
        self.refresh()

    @property
    def _dirty(self) -> Path:
        return self.folder / "dirty"

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Marks the space as mid-change; the mark stays behind when the block does not end normally."""
        self._dirty.touch()
        yield
        self._dirty.unlink(missing_ok=True)

    @contextmanager
    def _errors_explained(self) -> Iterator[None]:
        """A full disk becomes one sentence, whoever met it."""
        try:
            yield
        except Exception as error:  # LanceDB raises RuntimeError, OSError and others for the same trouble
            words = str(error)
            full = getattr(error, "errno", None) in NO_ROOM or any(w in words.lower() for w in NO_ROOM_WORDS)
            if not full:
                raise
            raise LibraryError(
                f"the disk of {printable(self._store.folder)} is full; what was finished before is kept and can be "
                "searched: free some space and run the same command again"
            ) from error


class _Changes:
    """Applies what a commit brings to a catalog, and keeps what has to be written."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._next_id = 1 + max(catalog.records, default=-1)
        self._files: list[IndexedFile] = []
        self._changed: dict[int, FileRecord] = {}
        self.removed: list[int] = []

    @property
    def records(self) -> list[FileRecord]:
        """New and changed records."""
        return [record for number, record in self._changed.items() if number not in self.removed]

    @property
    def lines(self) -> dict[str, tuple[Line, ...]]:
        """Embedded subtitles of the new files, by content."""
        return {file.record.content: file.lines for file in self._files}

    def rows(self, dim: int) -> tuple[np.ndarray, np.ndarray]:
        """WINDOW records (n,) and float32 vectors (n, D) of the new files."""
        if not self._files:
            return _no_rows(dim)
        parts = []
        for file in self._files:
            windows = file.windows.copy()
            windows["file_id"] = file.record.id
            parts.append(windows)
        return np.concatenate(parts), np.concatenate([file.vectors for file in self._files])

    def add(self, file: IndexedFile) -> int:
        """A file that was read; returns the id under which it is in the index."""
        record = file.record
        known = self._catalog.with_content(record.content)
        if known is not None and known.id != file.replaces:  # another process, or another copy, was faster
            self.put(self._catalog.show(known, *record.places))
            return known.id
        places = record.places
        if record.id < 0:
            record = replace(record, id=self._next_id)
        self._next_id = max(self._next_id, record.id + 1)
        for earlier in self._superseded(file):
            if earlier.content == record.content:
                record = replace(record, places=earlier.shown_at(*record.places).places)
            self.take_out(earlier.id)
        self.put(self._catalog.show(record, *places))
        self._files.append(replace(file, record=record))
        return record.id

    def _superseded(self, file: IndexedFile) -> list[FileRecord]:
        """The earlier reading of this content, and records of its paths that could not even be opened then."""
        at_its_paths = [self._catalog.at(place.path) for place in file.record.places]
        found = {record.id: record for record in at_its_paths if record is not None and not record.content}
        if file.replaces is not None and file.replaces in self._catalog.records:
            found[file.replaces] = self._catalog.records[file.replaces]
        return list(found.values())

    def see(self, seen: Seen) -> None:
        """A content recognised at a place. One that was taken out of the index meanwhile is left for the next run."""
        known = self._catalog.with_content(seen.content)
        if known is not None:
            self.put(self._catalog.show(known, seen.place))

    def leave(self, path: str) -> None:
        """A path that no longer shows anything."""
        self.put(self._catalog.leave(path))

    def put(self, records: Sequence[FileRecord]) -> None:
        """Records that changed in the catalog."""
        self._changed |= {record.id: record for record in records}

    def take_out(self, record_id: int) -> None:
        """A record that is deleted with its rows."""
        self._catalog.remove(record_id)
        self.removed.append(record_id)


def _no_rows(dim: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(0, dtype=WINDOW), np.zeros((0, dim), dtype=np.float32)
