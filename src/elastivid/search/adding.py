"""One run of `Index.add`: what changed on disk, what of it has to be read, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from elastivid import __version__
from elastivid.search.catalog import Catalog
from elastivid.search.claims import Claims
from elastivid.search.examples import transform_of
from elastivid.search.indexing import Engine, Pipeline, Progress, Spent
from elastivid.search.intake import Intake
from elastivid.search.library import Changes, FoundFile, compare, find_videos
from elastivid.search.printing import printable
from elastivid.search.reading import Job, Reading
from elastivid.search.records import FileRecord, Place, path_to_text
from elastivid.search.words import Words
from elastivid.search.writer import Seen, Writer
from elastivid.video.source import Limits

if TYPE_CHECKING:
    from elastivid.core.plan import Plan
    from elastivid.search.index import AddReport, Index
    from elastivid.search.store import Settings


@dataclass(frozen=True)
class Means:
    """By what means files are read.

    Args:
        limits: what reading one of them may cost.
        allow_url: whether http and https addresses are read.
        engine: what turns files into vectors.
        plan: the plan that is carried out, for the report.
    """

    limits: Limits = field(default_factory=Limits)
    allow_url: bool = False
    engine: Engine = Pipeline
    plan: Plan | None = None


class Adding:
    """Brings an index up to date. The model is loaded when there is something to read.

    Args:
        index: what files are added to.
        progress: called about once per batch.
        notify: is told when another process has to be waited for.
        means: how files are read.
    """

    def __init__(
        self,
        index: Index,
        progress: Callable[[Progress], None] | None,
        notify: Callable[[str], None] | None,
        means: Means,
    ) -> None:
        self._means = means
        self._index, self._progress, self._notify = index, progress, notify
        self._started = time.perf_counter()
        self._pipeline: Pipeline | None = None
        self._recognised: list[str] = []
        self._catalog = Catalog()
        self._load_seconds = 0.0

    def run(self, roots: list[str], retry_failed: bool) -> AddReport:
        """See `Index.add`."""
        found, unlisted = find_videos(roots, allow_url=self._means.allow_url)
        index, store = self._index, self._index._store
        before = time.perf_counter()
        settings = index._settings_for_writing()  # loads the model of a new index
        self._load_seconds = time.perf_counter() - before
        if index._asks_for_a_model:
            index._encoder_for_writing(settings)
        writer = None
        if not store.exists or store.needs_repair:
            writer = store.writer(settings, self._notify)
            self._catalog = writer.catalog
        else:
            self._catalog = Catalog(store.snapshot().records.values())
        changes = compare(found, self._catalog, roots, retry_failed=retry_failed, full_hash=settings.full_hash)
        unlisted_words = [printable(str(error)) for error in unlisted]
        Words(index.path).refresh(path for path, record in changes.unchanged if record.is_searchable)
        if not (changes.read or changes.recognised or changes.gone):
            return self._report(changes, unlisted_words)
        writer = writer or store.writer(settings, self._notify)
        try:
            self._apply(writer, settings, changes)
        except BaseException:
            self._catalog = writer.catalog
            with suppress(OSError):  # a full disk has no room for this line either; the first error is the one to tell
                self._log(roots, self._report(changes, unlisted_words), "stopped")
            raise
        self._catalog = writer.catalog
        report = self._report(changes, unlisted_words)
        self._log(roots, report, "done")
        return report

    def _log(self, roots: list[str], report: AddReport, ended: str) -> None:
        self._index._store.log_run({**report.to_values(), **_circumstances(roots, ended)})

    def _apply(self, writer: Writer, settings: Settings, changes: Changes) -> None:
        seen = [Seen(file.content, Place(file.path, file.modified_ns)) for file in changes.recognised]
        writer.commit((), seen, changes.gone)
        self._recognised = [file.path for file in changes.recognised]
        if changes.read:
            self._read(writer, settings, changes.read)
        writer.finish()

    def _read(self, writer: Writer, settings: Settings, files: list[FoundFile]) -> None:
        before = time.perf_counter()
        encoder = self._index._encoder_for_writing(settings)
        self._load_seconds += time.perf_counter() - before
        point = self._index._wanted.point or settings.point  # the caller's may have a selector, which is not recorded
        with Claims(self._index.path, settings.space_id) as claims:
            intake = Intake(writer, claims, self._notify)
            reading = Reading(
                settings.sampling, self._means.limits, self._means.allow_url, transform=transform_of(encoder)
            )
            self._pipeline = self._means.engine(encoder, reading, point, intake.commit, self._progress)
            jobs = [
                Job(number, file.path, file.size_bytes, file.modified_ns, file.content, file.replaces)
                for number, file in enumerate(files)
            ]
            try:
                while jobs:
                    self._pipeline.run(jobs, intake.take)
                    jobs = intake.waiting()
                intake.commit(())
            finally:
                self._recognised += intake.recognised

    def _report(self, changes: Changes, unlisted: list[str]) -> AddReport:
        from elastivid.search.index import AddReport

        read = self._pipeline.records if self._pipeline else []
        spent = self._pipeline.spent if self._pipeline else Spent()
        spent.load_seconds = self._load_seconds
        bad = [record for record in read if record.status != "indexed"]
        bad += _bad(self._records_at(self._recognised))
        return AddReport(
            indexed=sum(record.status == "indexed" for record in read),
            unchanged=len(changes.unchanged),
            recognised=len(self._recognised),
            bad=sorted(bad, key=lambda record: record.path),
            still_bad=_bad(changes.unchanged),
            missing=[
                record.only_at(path) for path, record in self._records_at(sorted(set(changes.gone))) if record.missing
            ],
            unlisted=unlisted,
            windows=self._pipeline.windows_done if self._pipeline else 0,
            video_seconds=self._pipeline.video_seconds if self._pipeline else 0.0,
            elapsed_seconds=time.perf_counter() - self._started,
            spent=spent,
            plan=self._means.plan,
        )

    def _records_at(self, paths: list[str]) -> list[tuple[str, FileRecord]]:
        return [(path, record) for path in paths if (record := self._catalog.at(path)) is not None]


def _bad(records: list[tuple[str, FileRecord]]) -> list[FileRecord]:
    """Those that are not indexed, each as the file at its path."""
    return [record.only_at(path) for path, record in records if record.status != "indexed"]


def _circumstances(roots: list[str], ended: str) -> dict[str, Any]:
    """When a run was, what it was asked for, and whether it came to its end."""
    return {
        "sources": [path_to_text(root) for root in roots],
        "ended": ended,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "elastivid": __version__,
    }
