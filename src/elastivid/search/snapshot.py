"""Memory-mapped copy of an index that text search reads with numpy alone.

Layout of `<index>/spaces/<space_id>/` (`<g>` is a generation number; a rebuild writes the next one
beside the old one):

    vectors-<g>.bin   float32 (rows, dim), L2-normalised, only ever appended to
    windows-<g>.bin   WINDOW records, one per row
    files-<g>.jsonl   one line per file record; a later line of the same id replaces the earlier one, a line that
                      holds only an id takes that record out
    manifest.json     how many rows and bytes of those files count, and the table versions they were taken at
    settings.json     what the space was made with (see `store`)
    dirty             exists while tables and snapshot are being changed; left behind by a writer that died

The manifest is replaced atomically after the data is on disk, so a reader sees one consistent state or the one
before it; whatever lies past the counts of the manifest does not exist. Appending costs what is appended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np

from elastivid.search.records import FileRecord, LibraryError

FORMAT = 2
SORT_ROWS = 8192
WINDOW = np.dtype([("file_id", "<i8"), ("start_seconds", "<f8"), ("end_seconds", "<f8")])


@dataclass(frozen=True)
class Manifest:
    """What of the snapshot's files counts. `tables` holds the LanceDB version of each table it was taken at."""

    format: int
    generation: int
    space_id: str
    dim: int
    rows: int
    files_bytes: int
    tables: dict[str, int]

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest in `folder`, or None when there is none that this version can read."""
        try:
            values = json.loads((folder / "manifest.json").read_bytes())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        if values.get("format") != FORMAT:
            return None
        return cls(**values)

    @classmethod
    def require(cls, folder: Path) -> Manifest:
        """The manifest in `folder`, where there must be one."""
        found = cls.read(folder)
        if found is None:
            raise LibraryError(f"{folder} has no readable manifest although it was just written; is the disk full?")
        return found

    def write(self, folder: Path) -> None:
        """Replace the manifest atomically."""
        temporary = folder / "manifest.json.new"
        with temporary.open("w") as file:
            json.dump(asdict(self), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / "manifest.json")


@dataclass(frozen=True)
class Snapshot:
    """One consistent state of an index.

    Args:
        space_id: space of the vectors.
        vectors: float32 (N, D), memory-mapped.
        windows: WINDOW records (N,), rows of one file adjacent and in order of time.
        records: records by id.
        searchable: bool (N,), whether the row belongs to a file that takes part in searches.
    """

    space_id: str
    vectors: np.ndarray
    windows: np.ndarray
    records: dict[int, FileRecord]
    searchable: np.ndarray

    @cached_property
    def first_rows(self) -> np.ndarray:
        """Number of the first row of each file, ascending: int64 (F,)."""
        return np.flatnonzero(np.diff(self.windows["file_id"], prepend=-1))

    def files_of(self, rows: np.ndarray) -> np.ndarray:
        """Ids of the files whose rows are chosen, bool (N,), files being chosen whole: int64, by row."""
        out: np.ndarray = self.windows["file_id"][self.first_rows[rows[self.first_rows]]]
        return out

    @cached_property
    def paths(self) -> dict[int, str]:
        """Path of each file id; of a file with copies, the first that is there."""
        return {record.id: record.path for record in self.records.values()}

    @classmethod
    def load(cls, folder: Path) -> Snapshot | None:
        """The state that the manifest in `folder` describes; None when it is absent or its files are incomplete."""
        for _ in range(3):
            manifest = Manifest.read(folder)
            if manifest is None:
                return None
            try:
                return cls._load(folder, manifest)
            except FileNotFoundError:
                continue  # a rebuild removed this generation after its manifest was read: read the new one
        return None

    @classmethod
    def require(cls, folder: Path) -> Snapshot:
        """The state in `folder`, where there must be one."""
        found = cls.load(folder)
        if found is None:
            raise LibraryError(f"{folder} is incomplete although it was just written; is the disk full?")
        return found

    @classmethod
    def _load(cls, folder: Path, manifest: Manifest) -> Snapshot | None:
        vectors_path, windows_path, files_path = data_paths(folder, manifest.generation)
        rows, dim = manifest.rows, manifest.dim
        if vectors_path.stat().st_size < rows * dim * 4 or windows_path.stat().st_size < rows * WINDOW.itemsize:
            return None
        lines = read_lines(files_path, 0, manifest.files_bytes)
        if lines is None:
            return None
        records: dict[int, FileRecord] = {}
        for record_id, record in records_in(lines):
            if record is None:
                records.pop(record_id, None)
            else:
                records[record_id] = record
        windows = np.fromfile(windows_path, dtype=WINDOW, count=rows)
        vectors = np.zeros((0, dim), dtype=np.float32)  # an empty file cannot be mapped
        if rows:
            vectors = np.asarray(np.memmap(vectors_path, dtype="<f4", mode="r", shape=(rows, dim)))
        alive = np.array([record.id for record in records.values() if record.is_searchable], dtype=np.int64)
        searchable = np.isin(windows["file_id"], alive)
        return cls(manifest.space_id, vectors, windows, records, searchable)


def data_paths(folder: Path, generation: int) -> tuple[Path, Path, Path]:
    """Files of one generation: vectors, windows, file records."""
    return (
        folder / f"vectors-{generation}.bin",
        folder / f"windows-{generation}.bin",
        folder / f"files-{generation}.jsonl",
    )


def read_lines(path: Path, start: int, end: int) -> bytes | None:
    """Bytes `start` to `end` of the lines of file records; None when the file is shorter."""
    with path.open("rb") as file:
        file.seek(start)
        lines = file.read(end - start)
    return lines if len(lines) == end - start else None


def records_in(lines: bytes) -> Iterator[tuple[int, FileRecord | None]]:
    """Id and record of each line; no record where the line takes one out."""
    for line in lines.decode("ascii").splitlines():  # json.dumps escapes everything else
        row = json.loads(line)
        yield row["id"], FileRecord.from_row(row) if len(row) > 1 else None


class SnapshotWriter:
    """Appends to a snapshot. Holds three open files; `append` makes what it was given visible to readers.

    Args:
        folder: the snapshot's folder.
        manifest: the state to continue from. Bytes past its counts are cut off.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        sizes = (manifest.rows * manifest.dim * 4, manifest.rows * WINDOW.itemsize, manifest.files_bytes)
        self._open: list[IO[bytes]] = []
        for path, size in zip(data_paths(folder, manifest.generation), sizes, strict=True):
            file = path.open("r+b" if path.exists() else "w+b")
            file.truncate(size)
            file.seek(size)
            self._open.append(file)

    @classmethod
    def create(cls, folder: Path, space_id: str, dim: int, generation: int) -> SnapshotWriter:
        """An empty snapshot of a new generation. Readers do not see it before the first `append`."""
        folder.mkdir(parents=True, exist_ok=True)
        for path in data_paths(folder, generation):
            path.unlink(missing_ok=True)
        return cls(folder, Manifest(FORMAT, generation, space_id, dim, 0, 0, {}))

    def add_rows(self, windows: np.ndarray, vectors: np.ndarray) -> None:
        """Add rows that nobody sees before the next `append`: WINDOW records (n,), float32 vectors (n, D).

        Raises:
            LibraryError: the vectors do not have the dimension of the snapshot.
        """
        old = self.manifest
        if vectors.shape != (len(windows), old.dim):
            raise LibraryError(
                f"{len(windows)} windows need vectors of shape ({len(windows)}, {old.dim}), got {vectors.shape}"
            )
        self._open[0].write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
        self._open[1].write(np.ascontiguousarray(windows, dtype=WINDOW).tobytes())
        self.manifest = replace(old, rows=old.rows + len(windows))

    def sort_rows(self) -> None:
        """Make the rows of a file adjacent and in order of time. Tables give them so; it is not what they promise."""
        paths = data_paths(self.folder, self.manifest.generation)
        for file in self._open:
            file.flush()
        windows = np.fromfile(paths[1], dtype=WINDOW, count=self.manifest.rows)
        order = np.lexsort((windows["start_seconds"], windows["file_id"]))
        if len(windows) == 0 or np.array_equal(order, np.arange(len(windows))):
            return
        vectors = np.memmap(paths[0], dtype="<f4", mode="r", shape=(len(windows), self.manifest.dim))
        sorted_path = paths[0].with_suffix(".sorted")
        with sorted_path.open("wb") as file:
            for first in range(0, len(order), SORT_ROWS):
                file.write(vectors[order[first : first + SORT_ROWS]].tobytes())
        self._open[0].close()
        sorted_path.replace(paths[0])
        self._open[0] = paths[0].open("r+b")
        self._open[0].seek(0, os.SEEK_END)
        self._open[1].seek(0)
        self._open[1].write(windows[order].tobytes())

    def append(
        self,
        records: list[FileRecord],
        windows: np.ndarray,
        vectors: np.ndarray,
        tables: dict[str, int],
        removed: Sequence[int] = (),
    ) -> None:
        """Add records and rows, then replace the manifest.

        Args:
            records: new or changed records.
            windows: WINDOW records (n,).
            vectors: float32 (n, D).
            tables: versions of the tables that now hold the same.
            removed: ids of records that are gone.

        Raises:
            LibraryError: the vectors do not have the dimension of the snapshot.
        """
        self.add_rows(windows, vectors)
        rows = [*({"id": number} for number in removed), *(record.to_row() for record in records)]
        lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        self._open[2].write(lines)
        for file in self._open:
            file.flush()
            os.fsync(file.fileno())
        self.manifest = replace(self.manifest, files_bytes=self.manifest.files_bytes + len(lines), tables=dict(tables))
        self.manifest.write(self.folder)

    def close(self) -> None:
        """Close the files."""
        for file in self._open:
            file.close()

    def remove_others(self) -> None:
        """Delete the files of other generations."""
        keep = {path.name for path in data_paths(self.folder, self.manifest.generation)}
        for path in self.folder.iterdir():
            if path.suffix in (".bin", ".jsonl") and path.name not in keep:
                path.unlink(missing_ok=True)
