"""Moving an index to another model: new vectors beside the old ones, and a switch when they are all there.

    old space   is searched, and may be added to, until the new one is complete
    new space   gets every file of the old one under the same id, read again and embedded by the new model
    switch      under the lock, when no file is left: records get the places they have by then, index.json is replaced

A kill at any moment leaves the old space as it is and the new one with the files that were finished; the same command
goes on. Files that nobody could read are taken over as they are. Files that are not there now are taken over as
"pending": their vectors would not compare, and they are read when they come back.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from elastivid.search.catalog import Catalog
from elastivid.search.claims import Claims
from elastivid.search.index import Encoder
from elastivid.search.indexing import Pipeline, Progress
from elastivid.search.intake import Intake
from elastivid.search.reading import Job, Reading
from elastivid.search.records import PENDING, FileRecord, LibraryError, Place
from elastivid.search.snapshot import Snapshot
from elastivid.search.store import Settings, Store
from elastivid.search.writer import IndexedFile, Writer


@dataclass(frozen=True)
class ReindexReport:
    """What a move to another model did.

    Args:
        before: what the index was made with.
        after: what it is made with now.
        read: files read and embedded by this run.
        kept: files that an earlier run of the same move had done, or that were taken over without reading.
        pending: files that were not there; they are read when they come back.
        bad: records of files that could be read before and cannot be now.
        windows: windows embedded by this run.
        video_seconds: duration of what was read.
        elapsed_seconds: wall time.
        dropped: whether the old vectors were deleted.
    """

    before: Settings
    after: Settings
    read: int
    kept: int
    pending: int
    bad: list[FileRecord]
    windows: int
    video_seconds: float
    elapsed_seconds: float
    dropped: bool


class Reindexing:
    """Moves an index to the space of another model.

    Args:
        store: the index.
        encoder: the new model.
        settings: what the new space is made with.
        reading: how files are read for it.
        progress: called about once per batch.
        notify: is told when another process has to be waited for.
    """

    def __init__(
        self,
        store: Store,
        encoder: Encoder,
        settings: Settings,
        reading: Reading,
        progress: Callable[[Progress], None] | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        self._store, self._encoder, self._settings, self._reading = store, encoder, settings, reading
        self._progress, self._notify = progress, notify
        self._old = Catalog()
        self._pipeline: Pipeline | None = None

    def run(self, drop_old: bool = False) -> ReindexReport:
        """Read what is left, then switch.

        Raises:
            LibraryError: the index is made with that model already, or an unfinished move has other settings.
        """
        started = time.perf_counter()
        before = self._store.settings()
        if before.space_id == self._settings.space_id:
            raise LibraryError(
                f"the index is made with {before.model} already (space {before.space_id}); name another model"
            )
        self._store.mark_unfinished(self._settings.space_id)
        writer = self._store.writer(self._settings, self._notify, beside=True)
        with Claims(self._store.folder, self._settings.space_id) as claims:
            intake = Intake(writer, claims, self._notify)
            self._pipeline = Pipeline(
                self._encoder,
                self._reading,
                self._settings.point,
                lambda files: intake.commit([self._as_in_old(file) for file in files]),
                self._progress,
            )
            while not self._try_to_switch(writer, before):
                self._embed_rest(writer, intake)
        if drop_old:
            with self._store.lock(self._notify):
                self._store.drop(before.space_id)
        records = writer.catalog.records.values()
        return ReindexReport(
            before=before,
            after=self._settings,
            read=len(self._pipeline.records),
            kept=len(records) - len(self._pipeline.records) - sum(record.status == PENDING for record in records),
            pending=sum(record.status == PENDING for record in records),
            bad=[record for record in self._pipeline.records if record.status != "indexed"],
            windows=self._pipeline.windows_done,
            video_seconds=self._pipeline.video_seconds,
            elapsed_seconds=time.perf_counter() - started,
            dropped=drop_old,
        )

    def _left(self, writer: Writer) -> list[FileRecord]:
        """Records of the old space that the new one does not have."""
        old = Snapshot.require(self._store.space_folder(self._store.settings().space_id))
        self._old = Catalog(old.records.values())
        return [record for number, record in self._old.records.items() if number not in writer.catalog.records]

    def _embed_rest(self, writer: Writer, intake: Intake) -> None:
        assert self._pipeline is not None
        writer.refresh()
        taken_over: list[IndexedFile] = []
        jobs: list[Job] = []
        for record in self._left(writer):
            earlier = writer.catalog.with_content(record.content)  # the old space has a newer reading of it by now
            replaces = earlier.id if earlier else None
            place = next((place for place in record.places if _shows(record, place)), None)
            if record.status in ("failed", "crashed", PENDING) and not record.windows:
                taken_over.append(writer.without_windows(record, replaces))
            elif place is None or not record.content:
                reason = f"not there, or changed, when the index moved to {self._settings.model}"
                pending = replace(record, status=PENDING, reason=reason, windows=0)
                taken_over.append(writer.without_windows(pending, replaces))
            else:
                size, modified, content = record.size_bytes, place.modified_ns, record.content
                jobs.append(Job(record.id, place.path, size, modified, content, replaces))
        writer.commit(taken_over)
        while jobs:
            self._pipeline.run(jobs, intake.take)
            jobs = intake.waiting()
        intake.commit(())

    def _as_in_old(self, file: IndexedFile) -> IndexedFile:
        """The file under the id and with the places that its content has in the old space."""
        old = self._old.with_content(file.record.content)
        if old is None:
            return file
        return replace(file, record=replace(file.record, id=old.id, places=old.places))

    def _try_to_switch(self, writer: Writer, before: Settings) -> bool:
        """Switch when every file of the old space is in the new one."""
        with writer.turn():
            if self._store.settings().space_id != before.space_id:
                raise LibraryError("another process moved the index to another model meanwhile; look at it again")
            if self._left(writer):
                return False
            changed = [
                replace(record, places=old.places)
                for number, record in writer.catalog.records.items()
                if (old := self._old.records.get(number)) is not None and record.places != old.places
            ]
            forgotten = [number for number in writer.catalog.records if number not in self._old.records]
            writer.remove(forgotten, changed)
            writer.compact()
            self._store.switch(self._settings)
            self._store.mark_finished(self._settings.space_id)
            return True


def _shows(record: FileRecord, place: Place) -> bool:
    """Whether a path still shows the content that was read there, as far as size and time tell."""
    try:
        status = os.stat(place.path)
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (record.size_bytes, place.modified_ns)
