"""Memory-mapped copy of an index that text search reads with numpy alone.

Layout of `<index>/snapshot/` (`<g>` is a generation number; a rebuild writes the next generation beside the old one):

    vectors-<g>.bin   float32 (rows, dim), L2-normalised, only ever appended to
    windows-<g>.bin   WINDOW records, one per row
    files-<g>.jsonl   one line per file record; a later line for the same path replaces the earlier one
    manifest.json     how many rows and bytes of those files count, and the table versions they were taken at
    dirty             exists while tables and snapshot are being changed; left behind by a writer that died

The manifest is replaced atomically after the data is on disk, so a reader sees one consistent state or the one
before it; whatever lies past the counts of the manifest does not exist. Appending costs what is appended.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from elastivid.search.records import FileRecord, LibraryError

FORMAT = 1
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
        files: records by path.
        searchable: bool (N,), whether the row belongs to a file that takes part in searches.
    """

    space_id: str
    vectors: np.ndarray
    windows: np.ndarray
    files: dict[str, FileRecord]
    searchable: np.ndarray

    @cached_property
    def paths(self) -> dict[int, str]:
        """Path of each file id."""
        return {record.id: path for path, record in self.files.items()}

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
        lines = files_path.read_bytes()
        if len(lines) < manifest.files_bytes:
            return None
        files: dict[str, FileRecord] = {}
        for line in lines[: manifest.files_bytes].splitlines():
            record = FileRecord.from_row(json.loads(line))
            files[record.path] = record
        windows = np.fromfile(windows_path, dtype=WINDOW, count=rows)
        vectors = np.zeros((0, dim), dtype=np.float32)  # an empty file cannot be mapped
        if rows:
            vectors = np.asarray(np.memmap(vectors_path, dtype="<f4", mode="r", shape=(rows, dim)))
        alive = np.array([record.id for record in files.values() if record.is_searchable], dtype=np.int64)
        searchable = np.isin(windows["file_id"], alive)
        return cls(manifest.space_id, vectors, windows, files, searchable)


def data_paths(folder: Path, generation: int) -> tuple[Path, Path, Path]:
    """Files of one generation: vectors, windows, file records."""
    return (
        folder / f"vectors-{generation}.bin",
        folder / f"windows-{generation}.bin",
        folder / f"files-{generation}.jsonl",
    )


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
        self._open = []
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

    def append(self, files: list[FileRecord], windows: np.ndarray, vectors: np.ndarray, tables: dict[str, int]) -> None:
        """Add records and rows, then replace the manifest.

        Args:
            files: new or changed records.
            windows: WINDOW records (n,).
            vectors: float32 (n, D).
            tables: versions of the tables that now hold the same.

        Raises:
            LibraryError: the vectors do not have the dimension of the snapshot.
        """
        if vectors.shape != (len(windows), self.manifest.dim):
            raise LibraryError(
                f"{len(windows)} windows need vectors of shape ({len(windows)}, {self.manifest.dim}), "
                f"got {vectors.shape}"
            )
        lines = b"".join(json.dumps(record.to_row()).encode() + b"\n" for record in files)
        blobs = (
            np.ascontiguousarray(vectors, dtype="<f4").tobytes(),
            np.ascontiguousarray(windows, dtype=WINDOW).tobytes(),
            lines,
        )
        for file, blob in zip(self._open, blobs, strict=True):
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        old = self.manifest
        self.manifest = Manifest(
            FORMAT,
            old.generation,
            old.space_id,
            old.dim,
            old.rows + len(windows),
            old.files_bytes + len(lines),
            dict(tables),
        )
        self.manifest.write(self.folder)

    def close(self) -> None:
        """Close the files and remove those of other generations."""
        for file in self._open:
            file.close()
        keep = {path.name for path in data_paths(self.folder, self.manifest.generation)}
        for path in self.folder.iterdir():
            if path.suffix in (".bin", ".jsonl") and path.name not in keep:
                path.unlink(missing_ok=True)
