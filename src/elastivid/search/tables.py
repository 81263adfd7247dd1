"""The LanceDB tables of one space: `files__<space_id>` and `vectors__<space_id>`, the record of truth.

A file is in the index when its row is in `files`, and that row is written after its vectors: rows of `vectors` whose
file id is in no `files` row were left by a writer that died. A row of `files` with fewer vectors than it says was left
by a power cut. `mend` deletes both, so that what they came from is read again.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from elastivid.core.errors import MissingExtraError
from elastivid.search.records import FileRecord
from elastivid.search.snapshot import WINDOW

BATCH_ROWS = 8192


class Tables:
    """Opens or creates the tables of a space in `folder`.

    Args:
        folder: where LanceDB keeps its tables.
        space_id: space of the vectors.
        dim: length of a vector.

    Raises:
        MissingExtraError: lancedb is not installed.
    """

    def __init__(self, folder: Path, space_id: str, dim: int) -> None:
        try:
            import lancedb
            import pyarrow as pa
        except ImportError as error:
            raise MissingExtraError("lancedb", "search") from error
        self._pa = pa
        self._folder = folder
        self._dim = dim
        self._schemas = _schemas(pa, dim)
        self._names = {key: table_name(key, space_id) for key in self._schemas}
        database = lancedb.connect(str(folder))
        self._tables: dict[str, Any] = {
            key: database.create_table(name, schema=self._schemas[key], exist_ok=True)
            for key, name in self._names.items()
        }

    def versions(self) -> dict[str, int]:
        """Version of each table. Equal versions mean equal contents."""
        return {self._names[key]: int(table.version) for key, table in self._tables.items()}

    def refresh(self) -> None:
        """See what other processes wrote."""
        for table in self._tables.values():
            table.checkout_latest()

    def put(self, records: list[FileRecord], windows: np.ndarray, vectors: np.ndarray, replaced: list[int]) -> None:
        """Write files with their rows, and have them on disk before returning.

        Args:
            records: new or changed records; each replaces the record of the same id.
            windows: WINDOW records (n,) of the new files.
            vectors: float32 (n, D).
            replaced: ids of records that `records` supersede; they are deleted with their rows.
        """
        pa, before = self._pa, self._listing()
        if len(windows):
            flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).ravel())  # (n, D) -> (n * D,)
            columns = {name: pa.array(windows[name]) for name in WINDOW.names or ()}
            columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
            self._tables["vectors"].add(pa.table(columns, schema=self._schemas["vectors"]))
        if records:
            rows = pa.Table.from_pylist([record.to_row() for record in records], schema=self._schemas["files"])
            merge = self._tables["files"].merge_insert("id")
            merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)
        self.delete(replaced)
        self._flush(before)

    def records(self) -> list[FileRecord]:
        """All file records."""
        return [FileRecord.from_row(row) for row in self._tables["files"].to_arrow().to_pylist()]

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """WINDOW records (n,) and float32 vectors (n, D), a few thousand at a time, in the order they were written."""
        for batch in self._tables["vectors"].search().to_batches(BATCH_ROWS):
            yield _windows_of(batch), batch["vector"].flatten().to_numpy().reshape(-1, self._dim)  # (n * D,) -> (n, D)

    def mend(self) -> list[FileRecord]:
        """Delete what a writer that died left half done; returns the records that are whole.

        That are vectors without a record, records without all their vectors, and older readings of a content that was
        read again.
        """
        columns = self._tables["vectors"].search().select(["file_id"]).to_arrow()
        found, counts = np.unique(columns["file_id"].to_numpy(), return_counts=True)
        stored = dict(zip(found.tolist(), counts.tolist(), strict=True))
        whole: dict[int, FileRecord] = {}
        newest: dict[str, int] = {}
        for record in sorted(self.records(), key=lambda record: record.id):
            if record.windows != stored.get(record.id, 0):
                continue
            whole[record.id] = record
            if record.content:
                whole.pop(newest.get(record.content, -1), None)
                newest[record.content] = record.id
        known = {record.id for record in self.records()}
        self.delete(sorted((set(stored) | known) - set(whole)))
        return list(whole.values())

    def delete(self, file_ids: list[int]) -> None:
        """Delete records and their vectors."""
        for first in range(0, len(file_ids), 1000):
            listed = ", ".join(str(int(file_id)) for file_id in file_ids[first : first + 1000])
            self._tables["files"].delete(f"id IN ({listed})")
            self._tables["vectors"].delete(f"file_id IN ({listed})")

    def pieces(self) -> int:
        """Number of data files of the tables. Each commit adds one or two."""
        return sum(path.endswith(".lance") for path in self._listing())

    def compact(self) -> None:
        """Join the small fragments that many commits leave, and drop every version but the last. Under the lock.

        Joining writes two versions, and the first still points at the old fragments: whatever age but none spared it
        where both were written within that age. LanceDB warns that older versions may be in use; nobody reads them
        without the lock.
        """
        before = self._listing()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "optimize.cleanup_older_than=0", UserWarning)
            for table in self._tables.values():
                table.optimize(cleanup_older_than=timedelta(0))
        self._flush(before)

    def _listing(self) -> set[str]:
        """Every file of the tables."""
        found: set[str] = set()
        for name in self._names.values():
            for parent, _, names in os.walk(self._folder / f"{name}.lance"):
                found.update(os.path.join(parent, name) for name in names)
        return found

    def _flush(self, before: set[str]) -> None:
        """Have the files that were not there before on disk: LanceDB leaves that to the operating system."""
        new = self._listing() - before
        for path in sorted(new | {os.path.dirname(path) for path in new}):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def drop_tables(folder: Path, space_id: str) -> None:
    """Delete the tables of a space."""
    import lancedb

    database = lancedb.connect(str(folder))
    there = database.list_tables(limit=1000).tables
    for name in (table_name(key, space_id) for key in ("files", "vectors")):
        if name in there:
            database.drop_table(name)


def table_name(kind: str, space_id: str) -> str:
    """Name of a table of a space."""
    return f"{kind}__{folder_name(space_id)}"


def folder_name(space_id: str) -> str:
    """A space id with only what names of tables and folders may hold."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", space_id)


def _windows_of(batch: Any) -> np.ndarray:
    windows = np.zeros(batch.num_rows, dtype=WINDOW)
    for name in WINDOW.names or ():
        windows[name] = batch[name].to_numpy()
    return windows


def _schemas(pa: Any, dim: int) -> dict[str, Any]:
    place = pa.struct([("path", pa.string()), ("modified_ns", pa.int64()), ("missing", pa.bool_())])
    files = [
        ("id", pa.int64()),
        ("content", pa.string()),
        ("size_bytes", pa.int64()),
        ("places", pa.list_(place)),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("duration_seconds", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("windows", pa.int32()),
    ]
    vectors = [
        ("file_id", pa.int64()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("vector", pa.list_(pa.float32(), dim)),
    ]
    return {"files": pa.schema(files), "vectors": pa.schema(vectors)}
