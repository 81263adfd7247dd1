"""Free text of an index: names of files and folders and subtitles, in SQLite's full-text index beside the tables.

SQLite comes with Python: nothing is imported that a search in words does not load anyway, and opening takes
milliseconds (LanceDB's own full-text index would cost its import of more than a second).

Layout of `words.db`:

    owners    who a text belongs to: "path:..." for names and subtitle files beside a video, with the stamps of these
              files, or "content:..." for lines embedded in the video itself, which follow it wherever it is moved
    texts     the full-text index, one row per name and per line of a subtitle
    rows      what else is known of each row: owner, kind ("name", "folder", "subtitle"), start and end

Words are compared without case and accents and by English stem ("guitars" finds "guitar"). Texts of a file are
written before the file itself becomes part of the index, and a search leaves out texts of files that are not in it: a
file that can be found has its texts, whenever a writer died.

    coverage(text) = sum of idf(w) over words w of the query that it holds / sum of idf(w) over all words of the query
    idf(w)         = log(1 + texts / (1 + texts that hold w))

Names hold for the whole file: a line also counts the words of its file's names. Words such as "the" are left out. Texts
that cover less than half of what the best one covers are no hits.
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
from typing import NamedTuple

from elastivid.search.records import FileRecord, LibraryError, path_to_text, text_to_path
from elastivid.video.subtitles import Line, read_sidecar, sidecars

FORMAT = 1
NAME, FOLDER, SUBTITLE = "name", "folder", "subtitle"
FOLDER_LEVELS = 2  # names of so many folders above a file describe it; those further up are the machine's
MAX_ROWS_PER_WORD = 10_000
ROWS_AT_ONCE = 10_000
SHARE_OF_BEST = 0.5  # texts that cover less than this share of what the best one covers are no hits
MAX_HIT_LINES = 2000  # of subtitles; names are never left out, a folder may name many files
MAX_QUERY_WORDS = 24
_STOP_WORDS = """
    a an and are as at be by for from has have he her his i in into is it its me my of on or our she so some that the
    their them then there they this to us was we were what when where which who with you your
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
_SCHEMA = f"""
PRAGMA user_version = {FORMAT};
CREATE TABLE owners (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, stamps TEXT NOT NULL);
CREATE VIRTUAL TABLE texts USING fts5(text, tokenize = 'porter unicode61 remove_diacritics 2');
CREATE TABLE rows (row INTEGER PRIMARY KEY, owner INTEGER NOT NULL, kind TEXT NOT NULL, start REAL, stop REAL);
CREATE INDEX rows_of_owner ON rows (owner);
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
        rows: rows of the texts that hold them, each with its words; `Words.explain` says so for people.
        start_seconds: start of the subtitle; None for names, which hold for the whole file.
        end_seconds: its end.
    """

    path: str
    place: str
    coverage: float
    words: frozenset[str]
    rows: tuple[tuple[int, frozenset[str]], ...]
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
            (count,) = base.execute("SELECT count(*) FROM rows").fetchone()
            held: dict[int, int] = defaultdict(int)  # of each row, bit n is set when it holds word n
            weights: list[float] = []
            for n, word in enumerate(words):
                matches = base.execute(
                    "SELECT rowid FROM texts WHERE texts MATCH ? LIMIT ?", (f'"{word}"', MAX_ROWS_PER_WORD)
                ).fetchall()
                weights.append(math.log(1 + count / (1 + len(matches))))
                for (row,) in matches:
                    held[row] |= 1 << n
            rows = _rows(base, held, _places_of_owners(records)) if held else []
        hits = _hits(rows, words, weights)
        known = 0
        for row in rows:
            known |= row.held
        return Found(hits, [word for n, word in enumerate(words) if not known >> n & 1])

    def explain(self, hit: TextHit) -> tuple[str, ...]:
        """Which texts of a hit hold which words, for people."""
        reasons = []
        with self._connect() as base:
            for row, words in hit.rows:
                found = base.execute(
                    "SELECT kind, text FROM rows JOIN texts ON texts.rowid = rows.row WHERE rows.row = ?", (row,)
                ).fetchone()
                if found is not None:  # else it was replaced since the hit was found
                    reasons.append(_reason(found[0], found[1], words))
        return tuple(reasons)

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
        base.execute("DELETE FROM texts WHERE rowid IN (SELECT row FROM rows WHERE owner = ?)", found)
        base.execute("DELETE FROM rows WHERE owner = ?", found)
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
    row = base.execute("INSERT INTO texts VALUES (?)", (printable,)).lastrowid
    base.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", (row, owner, kind, start, end))


class _Row(NamedTuple):
    """A row of an owner that takes part: which words it holds, and the path and place of the hit that it makes."""

    number: int
    held: int
    where: tuple[str, str]
    kind: str
    start: float | None
    end: float | None


def _rows(base: sqlite3.Connection, held: dict[int, int], places: dict[str, tuple[str, str]]) -> list[_Row]:
    found = []
    names = dict(base.execute("SELECT id, name FROM owners"))
    numbers = sorted(held)
    for first in range(0, len(numbers), ROWS_AT_ONCE):
        some = numbers[first : first + ROWS_AT_ONCE]
        marks = ",".join("?" * len(some))
        query = f"SELECT row, owner, kind, start, stop FROM rows WHERE row IN ({marks})"
        for number, owner, kind, start, end in base.execute(query, some):
            where = places.get(names[owner])
            if where is not None:
                found.append(_Row(number, held[number], where, kind, start, end))
    return found


def _hits(rows: Sequence[_Row], words: Sequence[str], weights: Sequence[float]) -> list[TextHit]:
    """One hit per place for its names, and one per subtitle line that holds words; weak and surplus ones left out."""
    named: dict[tuple[str, str], list[_Row]] = defaultdict(list)
    for row in rows:
        if row.kind != SUBTITLE:
            named[row.where].append(row)
    in_names = {where: found[0].held | found[-1].held for where, found in named.items()}  # a file and its folders
    groups = [(in_names[where], found[0]) for where, found in named.items()]
    groups += [(row.held | in_names.get(row.where, 0), row) for row in rows if row.kind == SUBTITLE]
    total = sum(weights)
    coverage = {
        held: sum(weight for n, weight in enumerate(weights) if held >> n & 1) / total if total else 0.0
        for held in {held for held, _ in groups}
    }
    least = SHARE_OF_BEST * max(coverage.values(), default=0.0)
    groups = [(held, row) for held, row in groups if coverage[held] >= least]
    groups.sort(key=lambda group: (-coverage[group[0]], group[1].where[1], group[1].start or 0.0))
    in_words = {held: frozenset(w for n, w in enumerate(words) if held >> n & 1) for held in {row.held for row in rows}}
    hits, lines = [], 0
    for held, row in groups:
        lines += row.kind == SUBTITLE
        if row.kind == SUBTITLE and lines > MAX_HIT_LINES:
            continue
        texts = [row] if row.kind == SUBTITLE else []
        mentions = tuple((text.number, in_words[text.held]) for text in (*texts, *named.get(row.where, ())))
        said = frozenset().union(*(some for _, some in mentions))
        hits.append(TextHit(*row.where, coverage[held], said, mentions, row.start, row.end))
    return hits


def _reason(kind: str, text: str, words: frozenset[str]) -> str:
    named = ", ".join(repr(word) for word in sorted(words))
    if kind == SUBTITLE:
        shown = text if len(text) <= 80 else text[:77] + "..."
        return f"subtitle: {shown!r} has {named}"
    return f"{'file' if kind == NAME else 'folder'} name has {named}"
