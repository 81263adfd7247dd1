"""From "this file looks new" to "read it": decided file by file, just before it would be decoded.

    take     called before a file is decoded, by whichever thread is about to: finds out what the file is. A content
             that is in the index, or that this run or another process is reading already, is not read.
    commit   called with files that were read: stores them with every place where their content was seen.
    waiting  after the last file: those that another process had claimed, one by one as it lets go of them.

So moved and copied files cost three small reads, the copies within one run are decoded once, and two processes on the
same folder share the work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from elastivid.search.claims import Claims
from elastivid.search.identity import content_of
from elastivid.search.printing import printable
from elastivid.search.reading import Job
from elastivid.search.records import Place
from elastivid.search.writer import IndexedFile, Seen, Writer

POLL_SECONDS = 0.2


class Intake:
    """Decides which files are read, and commits them.

    Args:
        writer: where they are stored.
        claims: what this process is reading.
        notify: is told when another process has to be waited for.
    """

    def __init__(self, writer: Writer, claims: Claims, notify: Callable[[str], None] | None = None) -> None:
        self.recognised: list[str] = []  # paths whose content was known, or was read by another process or from a copy
        self._writer, self._claims, self._notify = writer, claims, notify
        self._mutex = threading.Lock()
        self._under_way: dict[str, list[Place]] = {}  # contents that this run reads, and their other places
        self._seen: list[Seen] = []
        self._deferred: list[Job] = []

    def take(self, job: Job) -> Job | None:
        """The job with the identity of its content, or None when it need not be read now. For any thread."""
        content = job.content
        if not content:
            try:
                content = content_of(job.path, full_hash=self._writer.settings.full_hash)
            except OSError:
                return job  # reading it says why, and it is tried again by the next run
        job = replace(job, content=content)
        with self._mutex:
            if content in self._under_way:
                self._under_way[content].append(Place(job.path, job.modified_ns))
                self.recognised.append(job.path)
                return None
            if not self._claims.take(content):
                self._deferred.append(job)
                return None
            self._writer.refresh()  # after the claim: whoever held it before has committed
            known = self._writer.catalog.with_content(content)
            if known is not None and known.id != job.replaces:
                self._claims.release(content)
                self._recognise(job)
                return None
            self._under_way[content] = []
            return job

    def commit(self, files: Sequence[IndexedFile]) -> None:
        """Store files that were read, and places of known contents."""
        with self._mutex:
            seen, self._seen = self._seen, []
            contents = [file.record.content for file in files if file.record.content]
            with_copies = [
                replace(file, record=file.record.shown_at(*self._under_way.get(file.record.content, ())))
                for file in files
            ]
            self._writer.commit(with_copies, seen)
            for content in contents:
                self._under_way.pop(content, None)
                self._claims.release(content)

    def waiting(self) -> list[Job]:
        """Files that another process had claimed and that have to be read after all; [] when none is left.

        Waits until the other process stored them or let go of them.
        """
        said = False
        while True:
            with self._mutex:
                jobs, self._deferred = self._deferred, []
            if not jobs:
                return []
            free = [taken for job in jobs if (taken := self.take(job)) is not None]
            if free:
                with self._mutex:  # they are claimed: hand them over as they are, `take` lets them through again
                    for job in free:
                        self._under_way.pop(job.content, None)
                return free
            if self._deferred:
                if self._notify and not said:
                    self._notify(
                        f"waiting: another process is reading {printable(self._deferred[0].path)}"
                        + (f" and {len(self._deferred) - 1} more" if len(self._deferred) > 1 else "")
                    )
                    said = True
                time.sleep(POLL_SECONDS)

    def _recognise(self, job: Job) -> None:
        self._seen.append(Seen(job.content, Place(job.path, job.modified_ns)))
        self.recognised.append(job.path)
