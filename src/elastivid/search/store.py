"""An index on disk: settings, LanceDB tables, and the snapshot that searches read.

Layout of `library.ev/`:

    index.json   what the index was made with: model, space, sampling, operating point
    tables/      LanceDB: the record of truth
    snapshot/    the same rows for numpy (see `snapshot`); rebuilt from the tables when it is stale or incomplete
    runs.jsonl   one line per run of indexing that read something: how much, how fast
    lock         held by the one process that writes
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from elastivid.core.point import OperatingPoint, Sampling
from elastivid.search.printing import printable
from elastivid.search.records import FileRecord, LibraryError
from elastivid.search.snapshot import WINDOW, Manifest, Snapshot, SnapshotWriter
from elastivid.search.tables import Tables

FORMAT = 1
COMPACT_AFTER_COMMITS = 32
REBUILD_AT_DEAD_FRACTION = 0.25


@dataclass(frozen=True)
class Settings:
    """What an index was made with. All its windows share them, so that their scores are comparable.

    Args:
        model: name or file of the model.
        space_id: space of the vectors.
        dim: length of a vector.
        sampling: windows, and frames of each.
        point: what the model spends on a window.
        gmacs_per_window: billions of multiply-accumulates of one window at that point.
        licence: what the weights state; "unknown" in an index from before that was noted.
    """

    model: str
    space_id: str
    dim: int
    sampling: Sampling
    point: OperatingPoint
    gmacs_per_window: float
    licence: str = "unknown"

    def to_json(self) -> str:
        """The settings as JSON text. Selectors are the model's own: a custom one is not recorded."""
        point = {name: getattr(self.point, name) for name in ("tokens", "width", "memory_tokens")}
        values = {"format": FORMAT, **asdict(self), "point": point, "sampling": asdict(self.sampling)}
        return json.dumps(values, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Inverse of `to_json`.

        Raises:
            LibraryError: the text is damaged or was written by a version of elastivid that this one cannot read.
        """
        try:
            values = json.loads(text)
            found = values.pop("format", None)
            if found != FORMAT:
                raise LibraryError(f"the index has format {found}, this elastivid reads {FORMAT}; index anew")
            point = values.pop("point")
            if isinstance(point["width"], list):
                point["width"] = tuple(point["width"])
            return cls(**{**values, "sampling": Sampling(**values["sampling"]), "point": OperatingPoint(**point)})
        except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise LibraryError(
                f"index.json is damaged ({type(error).__name__}: {error}); delete the index and index the folder anew"
            ) from error


@dataclass(frozen=True)
class IndexedFile:
    """A file ready to be stored: its record, WINDOW records (n,) and float32 vectors (n, D)."""

    record: FileRecord
    windows: np.ndarray
    vectors: np.ndarray


class Store:
    """Reads and writes the index in `folder`. Nothing is created before `writing` is entered."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.snapshot_folder = folder / "snapshot"
        self._loaded: Snapshot | None = None
        self._stamp: tuple[int, int] | None = None

    @property
    def exists(self) -> bool:
        """Whether there is an index."""
        return (self.folder / "index.json").exists()

    def settings(self) -> Settings:
        """What the index was made with.

        Raises:
            LibraryError: there is no index in the folder, or it has another format.
        """
        if not self.exists:
            raise LibraryError(
                f"there is no index at {printable(self.folder)}; make one with: "
                f"elastivid index FOLDER --index {printable(self.folder)}"
            )
        return Settings.from_json((self.folder / "index.json").read_text())

    @property
    def may_begin(self) -> bool:
        """Whether an index may be made in the folder: nothing is there, or what a first writer that died left."""
        names = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        return names <= {"lock", "index.json.new"}

    def log_run(self, values: dict[str, Any]) -> None:
        """Note what a run of indexing did."""
        with (self.folder / "runs.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")

    def runs(self) -> list[dict[str, Any]]:
        """What runs of indexing did, oldest first. A line that a writer died in is no run."""
        path = self.folder / "runs.jsonl"
        runs = []
        for line in path.read_text().splitlines() if path.exists() else ():
            with suppress(json.JSONDecodeError):
                runs.append(json.loads(line))
        return runs

    def snapshot(self) -> Snapshot:
        """The newest consistent state. Left-overs of a writer that died are repaired from the tables first.

        Raises:
            LibraryError: there is no index in the folder.
        """
        settings = self.settings()
        if self._dirty.exists() or self._read_stamp() is None:
            with self._lock() as free:
                if free:
                    self._recover(settings)
        stamp = self._read_stamp()
        if self._loaded is None or stamp != self._stamp:
            loaded = Snapshot.load(self.snapshot_folder)
            if loaded is None:
                with self._lock() as free:
                    if not free:
                        raise LibraryError(f"{printable(self.folder)} is being written for the first time; try again")
                    self._recover(settings, rebuild=True)
                stamp = self._read_stamp()
                loaded = Snapshot.require(self.snapshot_folder)
            self._loaded, self._stamp = loaded, stamp  # the stamp of before: what came meanwhile is loaded next time
        return self._loaded

    @contextmanager
    def writing(self, settings: Settings) -> Iterator[Writer]:
        """The writer of this index, one at a time.

        Raises:
            LibraryError: another process is writing.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock() as free:
            if not free:
                raise LibraryError(f"{printable(self.folder)} is being written by another process; wait until it ends")
            if not self.exists:
                temporary = self.folder / "index.json.new"
                temporary.write_text(settings.to_json())
                temporary.replace(self.folder / "index.json")
            tables = self._recover(settings, rebuild=not (self.snapshot_folder / "manifest.json").exists())
            manifest = Manifest.require(self.snapshot_folder)
            writer = Writer(self, tables, SnapshotWriter(self.snapshot_folder, manifest))
            try:
                yield writer
            finally:
                writer.close()

    @property
    def _dirty(self) -> Path:
        return self.snapshot_folder / "dirty"

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Marks the index as mid-change; the mark stays behind when the block does not end normally."""
        self._dirty.touch()
        yield
        self._dirty.unlink(missing_ok=True)

    def _read_stamp(self) -> tuple[int, int] | None:
        try:
            status = (self.snapshot_folder / "manifest.json").stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_ino

    @contextmanager
    def _lock(self) -> Iterator[bool]:
        """Yields whether this process got the writer's lock."""
        with (self.folder / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True  # closing the file releases the lock

    def _recover(self, settings: Settings, rebuild: bool = False) -> Tables:
        """Make tables and snapshot agree. Called under the lock."""
        tables = Tables(self.folder / "tables", settings.space_id, settings.dim)
        manifest = Manifest.read(self.snapshot_folder)
        if rebuild or self._dirty.exists() or manifest is None or manifest.tables != tables.versions():
            tables.remove_orphans()
        stale = manifest is None or manifest.tables != tables.versions()
        if rebuild or stale or Snapshot.load(self.snapshot_folder) is None:
            self.rebuild(tables, settings)
        self._dirty.unlink(missing_ok=True)
        return tables

    def rebuild(self, tables: Tables, settings: Settings) -> None:
        """Write a new generation of the snapshot from the tables. Called under the lock."""
        manifest = Manifest.read(self.snapshot_folder)
        generation = manifest.generation + 1 if manifest else 0
        snapshot = SnapshotWriter.create(self.snapshot_folder, settings.space_id, settings.dim, generation)
        windows, vectors = tables.rows()
        snapshot.append(tables.records(), windows, vectors, tables.versions())
        snapshot.close()


class Writer:
    """Commits files to tables and snapshot. Made by `Store.writing`."""

    def __init__(self, store: Store, tables: Tables, snapshot: SnapshotWriter) -> None:
        self.dim = snapshot.manifest.dim
        self._store = store
        self._tables = tables
        self._snapshot = snapshot
        self._commits = 0
        self.files: dict[str, FileRecord] = dict(Snapshot.require(store.snapshot_folder).files)
        self._next_id = 1 + max((record.id for record in self.files.values()), default=-1)

    def new_id(self) -> int:
        """A file id that was never used in this index."""
        self._next_id += 1
        return self._next_id - 1

    def commit(self, files: list[IndexedFile]) -> None:
        """Store files. After return they survive a crash, and searches see them."""
        if not files:
            return
        records = [file.record for file in files]
        windows = np.concatenate([file.windows for file in files])
        vectors = np.concatenate([file.vectors for file in files])
        earlier = [self.files.get(record.path) for record in records]
        replaced = [old.id for old, new in zip(earlier, records, strict=True) if old and old.id != new.id]
        with self._store.changing():
            self._tables.put(records, windows, vectors, replaced)
            self._snapshot.append(records, windows, vectors, self._tables.versions())
        self._commits += 1
        self.files.update((record.path, record) for record in records)

    def finish(self, settings: Settings) -> None:
        """Tidy up after many commits: compact the tables, drop dead rows from the snapshot."""
        manifest = self._snapshot.manifest
        living = sum(record.windows for record in self.files.values())
        many = self._commits >= COMPACT_AFTER_COMMITS
        with self._store.changing():
            if many:
                self._tables.compact()
            if manifest.rows - living > REBUILD_AT_DEAD_FRACTION * manifest.rows:
                self._store.rebuild(self._tables, settings)
                rebuilt = Manifest.require(self._store.snapshot_folder)
                self._snapshot.manifest = rebuilt  # its files are closed, those of the new generation stay
                self._snapshot.close()
                self._snapshot = SnapshotWriter(self._store.snapshot_folder, rebuilt)
            elif many:
                empty = np.zeros(0, dtype=WINDOW)
                self._snapshot.append([], empty, np.zeros((0, manifest.dim), np.float32), self._tables.versions())

    def close(self) -> None:
        """Close the snapshot's files."""
        self._snapshot.close()
