"""An index on disk: what it was made with, its spaces of vectors, and who may write.

Layout of `library.ev/`:

    index.json            settings of the space that is searched: model, sampling, operating point
    tables/               LanceDB, the record of truth: files__<space_id> and vectors__<space_id>
    spaces/<space_id>/    the same rows for numpy (see `snapshot`), and the settings of that space
    runs.jsonl            one line per run of indexing: what it was asked for, what it did
    lock                  held by a process while it writes, a moment per commit
    claims                bytes of it are locked while a process reads a file (see `claims`)

There is one space, and a second one while the index moves to another model (see `reindex`). Replacing index.json
switches between them. Reading needs no lock and changes nothing on disk, except that a snapshot that cannot be read is
made anew.
"""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from elastivid.core.point import OperatingPoint, Sampling
from elastivid.search.printing import printable
from elastivid.search.records import LibraryError
from elastivid.search.snapshot import Snapshot
from elastivid.search.tables import drop_tables, folder_name
from elastivid.search.writer import Writer

FORMAT = 2
SAY_AFTER_SECONDS = 2.0
LOCK_POLL_SECONDS = 0.02


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
        full_hash: files are told apart by all of their bytes instead of samples of them.
    """

    model: str
    space_id: str
    dim: int
    sampling: Sampling
    point: OperatingPoint
    gmacs_per_window: float
    licence: str = "unknown"
    full_hash: bool = False

    def same_as(self, other: Settings) -> bool:
        """Whether vectors made with both compare."""
        mine, others = (
            (s.space_id, s.dim, s.sampling, s.point.tokens, s.point.width, s.point.memory_tokens, s.full_hash)
            for s in (self, other)
        )
        return mine == others

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


class Store:
    """The index in `folder`. Nothing is created before `writer` is called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tables_folder = folder / "tables"
        self._loaded: Snapshot | None = None
        self._stamp: tuple[Any, ...] | None = None
        self._settings: tuple[tuple[int, int, int], Settings] | None = None

    @property
    def exists(self) -> bool:
        """Whether there is an index."""
        return (self.folder / "index.json").exists()

    def settings(self) -> Settings:
        """What the searched space was made with.

        Raises:
            LibraryError: there is no index in the folder, or it has another format.
        """
        path = self.folder / "index.json"
        try:
            status = path.stat()
        except FileNotFoundError:
            raise LibraryError(
                f"there is no index at {printable(self.folder)}; make one with: "
                f"elastivid index FOLDER --index {printable(self.folder)}"
            ) from None
        stamp = status.st_mtime_ns, status.st_ino, status.st_size
        if self._settings is None or self._settings[0] != stamp:  # a search asks several times
            self._settings = stamp, Settings.from_json(path.read_text())
        return self._settings[1]

    @property
    def needs_repair(self) -> bool:
        """Whether a writer died in the middle of a commit, or the snapshot is not there. The next writer repairs it."""
        folder = self.space_folder(self.settings().space_id)
        return (folder / "dirty").exists() or not (folder / "manifest.json").exists()

    def space_folder(self, space_id: str) -> Path:
        """Where the snapshot and the settings of a space are."""
        return self.folder / "spaces" / folder_name(space_id)

    def spaces(self) -> list[Settings]:
        """Settings of all spaces, the searched one first."""
        current = self.settings()
        found = [Settings.from_json(p.read_text()) for p in sorted(self.folder.glob("spaces/*/settings.json"))]
        return [current, *(settings for settings in found if settings.space_id != current.space_id)]

    def note_settings(self, settings: Settings) -> None:
        """Write down what a space is made with. Called under the lock.

        Raises:
            LibraryError: it was begun with something else.
        """
        path = self.space_folder(settings.space_id) / "settings.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".new").write_text(settings.to_json())
            path.with_suffix(".new").replace(path)
            return
        found = Settings.from_json(path.read_text())
        if not found.same_as(settings):
            raise LibraryError(
                f"vectors of {settings.model} were begun with {found}, asked for {settings}; ask for the same, or "
                f"forget them with: elastivid prune --unfinished --index {printable(self.folder)}"
            )

    @property
    def may_begin(self) -> bool:
        """Whether an index may be made in the folder: nothing is there, or what a first writer that died left."""
        names = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        return names <= {"lock", "claims", "index.json.new"}

    def log_run(self, values: dict[str, Any]) -> None:
        """Note what a run of indexing did."""
        with (self.folder / "runs.jsonl").open("a+b") as file:
            if file.tell() > 0:
                file.seek(-1, 2)
                if file.read(1) != b"\n":  # a writer died within its line
                    file.write(b"\n")
            file.write(json.dumps(values).encode() + b"\n")

    def runs(self) -> list[dict[str, Any]]:
        """What runs of indexing did, oldest first. A line that a writer died in is no run."""
        path = self.folder / "runs.jsonl"
        runs = []
        for line in path.read_text().splitlines() if path.exists() else ():
            with suppress(json.JSONDecodeError):
                runs.append(json.loads(line))
        return runs

    def snapshot(self) -> Snapshot:
        """The newest state that was committed. It is made anew from the tables only where it cannot be read.

        Raises:
            LibraryError: there is no index in the folder.
        """
        stamp = self._read_stamp()
        if self._loaded is None or stamp is None or stamp != self._stamp:
            settings = self.settings()
            folder = self.space_folder(settings.space_id)
            loaded = Snapshot.load(folder)
            if loaded is None:
                Writer(self, settings)
                stamp = self._read_stamp()
                loaded = Snapshot.require(folder)
            self._loaded, self._stamp = loaded, stamp  # the stamp of before: what came meanwhile is loaded next time
        return self._loaded

    def _read_stamp(self) -> tuple[Any, ...] | None:
        """Changes whenever the searched state does; None where there is none."""
        try:
            chosen = (self.folder / "index.json").stat()
            manifest = (self.space_folder(self.settings().space_id) / "manifest.json").stat()
        except FileNotFoundError:
            return None
        return chosen.st_mtime_ns, chosen.st_ino, manifest.st_mtime_ns, manifest.st_ino

    def is_unfinished(self, space_id: str) -> bool:
        """Whether a space is one that the index is moving to."""
        return (self.space_folder(space_id) / "unfinished").exists()

    def mark_unfinished(self, space_id: str) -> None:
        """Note that the index is moving to a space."""
        self.space_folder(space_id).mkdir(parents=True, exist_ok=True)
        (self.space_folder(space_id) / "unfinished").touch()

    def mark_finished(self, space_id: str) -> None:
        """Note that a space is complete."""
        (self.space_folder(space_id) / "unfinished").unlink(missing_ok=True)

    def writer(
        self, settings: Settings, notify: Callable[[str], None] | None = None, *, beside: bool = False
    ) -> Writer:
        """A writer of one space. The first one makes the index.

        Args:
            settings: what the space is made with.
            notify: is told when another process has to be waited for.
            beside: the space is not the searched one.

        Raises:
            LibraryError: the index turned out to be made with other settings, or cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.lock(notify):
            if not self.exists:
                self.switch(settings)
        return Writer(self, settings, notify, beside=beside)

    def switch(self, settings: Settings) -> None:
        """Make a space the one that is searched. Called under the lock."""
        temporary = self.folder / "index.json.new"
        temporary.write_text(settings.to_json())
        temporary.replace(self.folder / "index.json")

    def drop(self, space_id: str) -> None:
        """Delete a space that is not the searched one. Called under the lock."""
        shutil.rmtree(self.space_folder(space_id), ignore_errors=True)
        drop_tables(self.tables_folder, space_id)

    @contextmanager
    def lock(self, notify: Callable[[str], None] | None = None) -> Iterator[None]:
        """The right to write. Waits for other processes, which hold it for a moment per commit."""
        try:
            opened = (self.folder / "lock").open("a")
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
            raise LibraryError(
                f"{printable(self.folder)} cannot be written ({error.strerror}): it can be searched, not changed; "
                "copy it elsewhere, or get the right to write"
            ) from error
        with opened as file:
            started, said = time.monotonic(), False
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if notify and not said and time.monotonic() - started > SAY_AFTER_SECONDS:
                        notify(f"waiting: another process is writing to {printable(self.folder)}")
                        said = True
                    time.sleep(LOCK_POLL_SECONDS)
            yield  # closing the file releases the lock
