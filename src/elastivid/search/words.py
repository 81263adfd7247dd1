"""Free text of an index: names of files and folders and subtitles, in SQLite's full-text index beside the tables.

SQLite comes with Python: nothing is imported that a search in words does not load anyway, and opening takes
milliseconds (LanceDB's own full-text index would cost its import of more than a second).

Layout of `words.db`:

    owners    who a text belongs to: "path:..." for names and subtitle files beside a video, with the stamps of these
              files, or "content:..." for lines embedded in the video itself, which follow it wherever it is moved
    texts     one row per name and per line of a subtitle: text, kind ("name", "folder", "subtitle"), start and end
    rows_of   rows of an owner

Words are compared without case and accents and by English stem ("guitars" finds "guitar"). Texts of a file are
written before the file itself becomes part of the index, and a search leaves out texts of files that are not in it: a
file that can be found has its texts, whenever a writer died.

    coverage(text) = sum of idf(w) over words w of the query that it holds / sum of idf(w) over all words of the query
    idf(w)         = log(1 + texts / (1 + texts that hold w))

Names hold for the whole file: a line also counts the words of its file's names. Words such as "the" are left out.
"""

from __future__ import annotations

import json
import math
import os
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from elastivid.search.records import FileRecord, LibraryError, path_to_text, text_to_path
from elastivid.video.subtitles import Line, read_sidecar, sidecars

FORMAT = 1
NAME, FOLDER, SUBTITLE = "name", "folder", "subtitle"
FOLDER_LEVELS = 2  # names of so many folders above a file describe it; those further up are the machine's
MAX_ROWS_PER_WORD = 10_000
ROWS_AT_ONCE = 500
MAX_QUERY_WORDS = 24
_STOP_WORDS = """
    a an and are as at be by for from has have he her his i in into is it its me my of on or our she so some that the
    their them then there they this to us was we were what when where which who with you your
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
_SCHEMA = f"""
PRAGMA user_version = {FORMAT};
CREATE TABLE owners (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, stamps TEXT NOT NULL);
CREATE VIRTUAL TABLE texts USING fts5(
    text, kind UNINDEXED, owner UNINDEXED, start_seconds UNINDEXED, end_seconds UNINDEXED,
    tokenize = 'porter unicode61 remove_diacritics 2');
CREATE TABLE rows_of (owner INTEGER NOT NULL, row INTEGER NOT NULL);
CREATE INDEX rows_of_owner ON rows_of (owner);
CREATE TABLE troubles (owner INTEGER NOT NULL, path TEXT NOT NULL, reason TEXT NOT NULL);
"""


@dataclass(frozen=True)
class TextHit:
    """A text that holds words of a query.

    Args:
        path: the video, as searches name it.
        place: where the text is from: `path`, or a copy of the video that it names or lies beside.
        coverage: share of the query's words it holds, weighted by how rare they are, 0 to 1.
        words: the words of the query that it holds.
        reasons: which text holds what, for people.
        start_seconds: start of the subtitle; None for names, which hold for the whole file.
        end_seconds: its end.
    """

    path: str
    place: str
    coverage: float
    words: frozenset[str]
    reasons: tuple[str, ...]
    start_seconds: float | None = None
    end_seconds: float | None = None


@dataclass(frozen=True)
class Found:
    """Hits in order of coverage, and the words of the query that no text holds."""

    hits: list[TextHit] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


class Words:
    """The texts of the index in a folder. Nothing is created before something is put.

    Args:
        folder: the index.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "words.db"

    # writing

    def put(self, records: Iterable[FileRecord], lines: Mapping[str, Sequence[Line]]) -> None:
        """Texts of files that become part of the index, or are seen in another place.

        Args:
            records: new and changed records.
            lines: embedded lines of those that were read, by content.
        """
        found = [record for record in records if record.is_searchable]
        if not found:
            return
        listed = _Folders()
        with self._connect(write=True) as base:
            for record in found:
                if record.content in lines:
                    _insert(base, _renew(base, _content_owner(record.content), ""), lines[record.content])
                for path in record.paths:
                    known = base.execute("SELECT stamps FROM owners WHERE name = ?", (_path_owner(path),)).fetchone()
                    if known is None or known[0] != listed.stamps(path):
                        _put_path(base, path, listed)

    def refresh(self, paths: Iterable[str]) -> int:
        """Read subtitle files again that came, changed or went beside the videos at `paths`. No video is opened.

        Returns:
            How many videos have other texts now.
        """
        listed, known = _Folders(), {}
        if self.path.exists():
            with self._connect() as base:
                known = dict(base.execute("SELECT name, stamps FROM owners"))
        changed = [path for path in paths if known.get(_path_owner(path)) != listed.stamps(path)]
        if changed:
            with self._connect(write=True) as base:
                for path in changed:
                    _put_path(base, path, listed)
        return len(changed)

    def remove(self, contents: Iterable[str], paths: Iterable[str] = ()) -> None:
        """Forget texts: lines embedded in these contents, names of these paths and subtitle files beside them."""
        owners = [*map(_content_owner, contents), *map(_path_owner, paths)]
        if owners and self.path.exists():
            with self._connect(write=True) as base:
                for owner in owners:
                    _delete(base, owner)

    def troubles(self) -> list[str]:
        """Subtitle files that could not be read, each with the reason."""
        if not self.path.exists():
            return []
        with self._connect() as base:
            rows = base.execute("SELECT path, reason FROM troubles ORDER BY path").fetchall()
        return [f"{text_to_path(path)}: subtitles left out: {reason}" for path, reason in rows]

    # searching

    def find(self, query: str, records: Iterable[FileRecord]) -> Found:
        """Texts that hold words of `query`, by coverage, then path and time.

        Args:
            query: words.
            records: files that take part.

        Raises:
            LibraryError: words.db is damaged or was written by a version of elastivid that this one cannot read.
        """
        words = query_words(query)
        if not words or not self.path.exists():
            return Found(unknown=words)
        with self._connect() as base:
            (count,) = base.execute("SELECT count(*) FROM rows_of").fetchone()
            rows: dict[int, set[str]] = defaultdict(set)
            weights: dict[str, float] = {}
            for word in words:
                matches = base.execute(
                    "SELECT rowid FROM texts WHERE texts MATCH ? LIMIT ?", (f'"{word}"', MAX_ROWS_PER_WORD)
                ).fetchall()
                weights[word] = math.log(1 + count / (1 + len(matches)))
                for (row,) in matches:
                    rows[row].add(word)
            texts = list(_texts(base, sorted(rows))) if rows else []
        hits = _hits(texts, rows, weights, _places_of_owners(records) if texts else {})
        held = {word for hit in hits for word in hit.words}
        return Found(hits, [word for word in words if word not in held])

    # the file

    @contextmanager
    def _connect(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection in one transaction."""
        if write:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(self.path, os.W_OK)  # what a writer that died left unfinished is rolled back when reading
        mode = "rwc" if write else "rw" if writable else "ro"
        address = f"{self.path.absolute().as_uri()}?mode={mode}"
        try:
            base = sqlite3.connect(address, uri=True, timeout=60.0, isolation_level=None)
            try:
                base.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                (version,) = base.execute("PRAGMA user_version").fetchone()
                if version == 0 and write:
                    for statement in _SCHEMA.split(";\n"):
                        base.execute(statement)
                elif version != FORMAT:
                    raise LibraryError(f"{self.path} has format {version}, this elastivid reads {FORMAT}; index anew")
                yield base
                base.execute("COMMIT")
            finally:
                base.close()  # rolls back what was not committed
        except sqlite3.DatabaseError as error:
            raise LibraryError(
                f"cannot {'write' if write else 'read'} {self.path}: {error}; "
                "delete that file and index again to rebuild it: no video is lost"
            ) from error


def query_words(query: str) -> list[str]:
    """Words of a query in lower case, each once, without stop words."""
    found = dict.fromkeys(re.findall(r"\w+", query.lower().replace("_", " ")))
    return [word for word in found if word not in STOP_WORDS][:MAX_QUERY_WORDS]


def words_in_name(name: str) -> str:
    """A file or folder name as words: `IMG_2041-redCar` becomes `IMG 2041 red Car`."""
    name = re.sub(r"[\W_]+", " ", name)
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return re.sub(r"(?<=[^\W\d])(?=\d)|(?<=\d)(?=[^\W\d])", " ", name).strip()


class _Folders:
    """Subtitle files by folder, each folder listed once."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def sidecars(self, path: str) -> list[str]:
        """Paths of the subtitle files beside the video at `path`."""
        folder = os.path.dirname(path)
        if folder not in self._names:
            try:
                names = os.listdir(folder)
            except OSError:
                names = []  # the video itself is reported as gone by whoever lists the folders
            self._names[folder] = [name for name in names if name.lower().endswith((".srt", ".vtt"))]
        return [os.path.join(folder, name) for name in sidecars(path, self._names[folder])]

    def stamps(self, path: str) -> str:
        """Changes when a subtitle file of the video comes, changes or goes."""
        found = []
        for sidecar in self.sidecars(path):
            try:
                status = os.stat(sidecar)
            except OSError:
                continue  # gone since the folder was listed
            found.append([path_to_text(os.path.basename(sidecar)), status.st_size, status.st_mtime_ns])
        return json.dumps(found)


def _path_owner(path: str) -> str:
    return f"path:{path_to_text(path)}"


def _content_owner(content: str) -> str:
    return f"content:{content}"


def _places_of_owners(records: Iterable[FileRecord]) -> dict[str, tuple[str, str]]:
    """Where the text of each owner shows up: the path under which searches name the file, and the place of the text."""
    found: dict[str, tuple[str, str]] = {}
    for record in records:
        if record.is_searchable:
            found[_content_owner(record.content)] = record.path, record.path
            found |= {_path_owner(place): (record.path, place) for place in record.paths}
    return found


def _renew(base: sqlite3.Connection, owner: str, stamps: str) -> int:
    """Number of an owner without texts."""
    _delete(base, owner)
    return int(base.execute("INSERT INTO owners (name, stamps) VALUES (?, ?)", (owner, stamps)).lastrowid or 0)


def _delete(base: sqlite3.Connection, owner: str) -> None:
    found = base.execute("SELECT id FROM owners WHERE name = ?", (owner,)).fetchone()
    if found is not None:
        base.execute("DELETE FROM texts WHERE rowid IN (SELECT row FROM rows_of WHERE owner = ?)", found)
        base.execute("DELETE FROM rows_of WHERE owner = ?", found)
        base.execute("DELETE FROM troubles WHERE owner = ?", found)
        base.execute("DELETE FROM owners WHERE id = ?", found)


def _put_path(base: sqlite3.Connection, path: str, listed: _Folders) -> None:
    """Names of a video and the subtitles beside it. A subtitle file that cannot be read is a row that says so."""
    owner = _renew(base, _path_owner(path), listed.stamps(path))
    stem, parents = os.path.splitext(os.path.basename(path))[0], Path(os.path.dirname(path)).parts[1:]
    folders = " ".join(words_in_name(part) for part in parents[-FOLDER_LEVELS:])
    for kind, text in ((NAME, words_in_name(stem)), (FOLDER, folders)):
        _insert_row(base, owner, kind, text)
    for sidecar in listed.sidecars(path):
        try:
            _insert(base, owner, read_sidecar(sidecar))
        except (OSError, ValueError) as error:
            base.execute("INSERT INTO troubles VALUES (?, ?, ?)", (owner, path_to_text(sidecar), str(error)))


def _insert(base: sqlite3.Connection, owner: int, lines: Sequence[Line]) -> None:
    for line in lines:
        _insert_row(base, owner, SUBTITLE, line.text, line.start_seconds, line.end_seconds)


def _insert_row(
    base: sqlite3.Connection, owner: int, kind: str, text: str, start: float | None = None, end: float | None = None
) -> None:
    printable = text.encode("utf-8", "replace").decode("utf-8")
    row = base.execute("INSERT INTO texts VALUES (?, ?, ?, ?, ?)", (printable, kind, owner, start, end)).lastrowid
    base.execute("INSERT INTO rows_of VALUES (?, ?)", (owner, row))


@dataclass(frozen=True)
class _Text:
    row: int
    owner: str
    kind: str
    text: str
    start_seconds: float | None
    end_seconds: float | None


def _texts(base: sqlite3.Connection, rows: Sequence[int]) -> Iterator[_Text]:
    for first in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[first : first + ROWS_AT_ONCE]
        marks = ",".join("?" * len(some))
        for values in base.execute(
            "SELECT texts.rowid, owners.name, kind, text, start_seconds, end_seconds FROM texts "
            f"JOIN owners ON owners.id = texts.owner WHERE texts.rowid IN ({marks})",
            some,
        ):
            yield _Text(*values)


def _hits(
    texts: Sequence[_Text], rows: dict[int, set[str]], weights: dict[str, float], places: dict[str, tuple[str, str]]
) -> list[TextHit]:
    """One hit per place for its names, and one per subtitle line that holds words."""
    total = sum(weights.values())
    named: dict[tuple[str, str], list[_Text]] = defaultdict(list)
    said: list[tuple[tuple[str, str], _Text]] = []
    for text in texts:
        where = places.get(text.owner)
        if where is not None and text.kind == SUBTITLE:
            said.append((where, text))
        elif where is not None:
            named[where].append(text)
    nothing: frozenset[str] = frozenset()
    by_name = {where: nothing.union(*(rows[text.row] for text in found)) for where, found in named.items()}

    def coverage(words: Iterable[str]) -> float:
        return sum(weights[word] for word in words) / total if total else 0.0

    hits = []
    for where, found in named.items():
        reasons = tuple(_reason(text, rows[text.row]) for text in found)
        hits.append(TextHit(*where, coverage(by_name[where]), by_name[where], reasons))
    for where, text in said:
        words = frozenset(rows[text.row]) | by_name.get(where, nothing)
        reasons = (_reason(text, rows[text.row]), *(_reason(name, rows[name.row]) for name in named.get(where, ())))
        hits.append(TextHit(*where, coverage(words), words, reasons, text.start_seconds, text.end_seconds))
    return sorted(hits, key=lambda hit: (-hit.coverage, hit.place, hit.start_seconds or 0.0))


def _reason(text: _Text, words: set[str]) -> str:
    named = ", ".join(repr(word) for word in sorted(words))
    if text.kind == SUBTITLE:
        shown = text.text if len(text.text) <= 80 else text.text[:77] + "..."
        return f"subtitle: {shown!r} has {named}"
    return f"{'file' if text.kind == NAME else 'folder'} name has {named}"
