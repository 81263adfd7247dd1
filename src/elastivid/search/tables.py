"""The LanceDB tables of an index: `files`, `windows` and one `vectors__<space_id>` per space of vectors.

A file is in the index when its row is in `files`, and that row is written last: rows of `windows` and `vectors`
whose file id is in no `files` row were left by a writer that died, and `remove_orphans` deletes them.
"""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from elastivid.core.errors import MissingExtraError
from elastivid.search.records import FileRecord
from elastivid.search.snapshot import WINDOW


class Tables:
    """Opens or creates the tables in `folder`.

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
        self._schemas = _schemas(pa, dim)
        self._names = {"files": "files", "windows": "windows", "vectors": vectors_name(space_id)}
        database = lancedb.connect(str(folder))
        self._tables: dict[str, Any] = {
            key: database.create_table(name, schema=self._schemas[key], exist_ok=True)
            for key, name in self._names.items()
        }

    def versions(self) -> dict[str, int]:
        """Version of each table. Equal versions mean equal contents."""
        return {self._names[key]: int(table.version) for key, table in self._tables.items()}

    def put(self, records: list[FileRecord], windows: np.ndarray, vectors: np.ndarray, replaced: list[int]) -> None:
        """Write files with their rows.

        Args:
            records: new or changed records; each replaces the record of the same path.
            windows: WINDOW records (n,) of the new files.
            vectors: float32 (n, D).
            replaced: ids of file versions that `records` supersede; their rows are deleted.
        """
        pa = self._pa
        if len(windows):
            window_columns = {name: pa.array(windows[name]) for name in WINDOW.names or ()}
            self._tables["windows"].add(pa.table(window_columns, schema=self._schemas["windows"]))
            flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).ravel())  # (n, D) -> (n * D,)
            vector_columns = {
                "file_id": pa.array(windows["file_id"]),
                "start_seconds": pa.array(windows["start_seconds"]),
                "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
            }
            self._tables["vectors"].add(pa.table(vector_columns, schema=self._schemas["vectors"]))
        rows = pa.Table.from_pylist([record.to_row() for record in records], schema=self._schemas["files"])
        merge = self._tables["files"].merge_insert("path")
        merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)
        self._delete(replaced)

    def records(self) -> list[FileRecord]:
        """All file records."""
        return [FileRecord.from_row(row) for row in self._tables["files"].to_arrow().to_pylist()]

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """WINDOW records (N,) and float32 vectors (N, D), by file id, then time."""
        windows_table, vectors_table = self._tables["windows"].to_arrow(), self._tables["vectors"].to_arrow()
        windows = np.zeros(windows_table.num_rows, dtype=WINDOW)
        for name in WINDOW.names or ():
            windows[name] = windows_table[name].to_numpy()
        dim = self._schemas["vectors"].field("vector").type.list_size
        column = vectors_table["vector"].combine_chunks()
        vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)  # (N * D,) -> (N, D)
        file_ids, starts = vectors_table["file_id"].to_numpy(), vectors_table["start_seconds"].to_numpy()
        windows = windows[np.lexsort((windows["start_seconds"], windows["file_id"]))]
        return windows, vectors[np.lexsort((starts, file_ids))]

    def remove_orphans(self) -> int:
        """Delete rows that belong to no file record; returns how many file versions that were."""
        known = {record.id for record in self.records()}
        orphans: set[int] = set()
        for key in ("windows", "vectors"):
            ids = self._tables[key].search().select(["file_id"]).to_arrow()["file_id"].to_numpy()
            orphans |= set(np.unique(ids).tolist()) - known
        self._delete(sorted(orphans))
        return len(orphans)

    def compact(self) -> None:
        """Join the small fragments that many commits leave, and drop superseded versions."""
        for table in self._tables.values():
            table.optimize(cleanup_older_than=timedelta(seconds=1))

    def _delete(self, file_ids: list[int]) -> None:
        if file_ids:
            listed = ", ".join(str(int(file_id)) for file_id in file_ids)
            for key in ("windows", "vectors"):
                self._tables[key].delete(f"file_id IN ({listed})")


def vectors_name(space_id: str) -> str:
    """Name of the table that holds the vectors of a space."""
    return "vectors__" + re.sub(r"[^A-Za-z0-9_.-]", "-", space_id)


def _schemas(pa: Any, dim: int) -> dict[str, Any]:
    files = [
        ("id", pa.int64()),
        ("path", pa.string()),
        ("size_bytes", pa.int64()),
        ("modified_ns", pa.int64()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("missing", pa.bool_()),
        ("duration_seconds", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("windows", pa.int32()),
    ]
    times = [("file_id", pa.int64()), ("start_seconds", pa.float64())]
    return {
        "files": pa.schema(files),
        "windows": pa.schema([*times, ("end_seconds", pa.float64())]),
        "vectors": pa.schema([*times, ("vector", pa.list_(pa.float32(), dim))]),
    }
