"""What a user brings: a list of clips (CSV, TSV, JSON lines, or "path label" lines) or a folder of classes.

    read_list("train.csv")      one clip a line
    read_folder("actions")      actions/CLASS/clip.mp4, or actions/CLASS/SOURCE/clip.mp4
    read_entries(either)        a folder that holds labels.csv is read through it

Nothing is decoded and no file has to exist: a missing one becomes a row of the quarantine when it is needed.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elastivid.core.errors import ElastividError

LABELS_FILE = "labels.csv"
VIDEO_SUFFIXES = frozenset(
    [
        ".3gp",
        ".asf",
        ".avi",
        ".flv",
        ".gif",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".ogv",
        ".ts",
        ".webm",
        ".wmv",
    ]
)
# what a column may be called; the first name is ours
COLUMNS = {
    "path": ("path", "file", "video", "filename", "filepath", "file_path", "video_path", "clip"),
    "label": ("label", "class", "action", "category", "class_name", "label_id"),
    "text": ("text", "caption", "sentence", "description"),
    "start_seconds": ("start_seconds", "start", "time_start", "begin", "start_time"),
    "end_seconds": ("end_seconds", "end", "time_end", "stop", "end_time"),
    "source": ("source", "film", "group", "video_id"),
}
_FIELD_OF = {name: field for field, names in COLUMNS.items() for name in names}
ALLOWED = "columns: path, label or text, and optionally start_seconds, end_seconds, source"


class ListError(ElastividError, ValueError):
    """A list or folder of clips cannot be read; the message names the line."""


@dataclass(frozen=True)
class Entry:
    """One clip of a data set.

    Args:
        path: the file.
        label: name or number of its class; "" where there is none.
        text: what the clip shows in words; "" where nobody wrote it.
        start_seconds: where the clip starts in the file; `None` means with the file.
        end_seconds: where it ends; `None` means with the file.
        source: what it was cut from: clips of one source look alike and belong on one side of every split. "" makes
            the file its own source.
    """

    path: Path
    label: str = ""
    text: str = ""
    start_seconds: float | None = None
    end_seconds: float | None = None
    source: str = ""

    @property
    def name(self) -> str:
        """Path, and the part of the file as a media fragment: "talk.mp4#t=3,8"."""
        if self.start_seconds is None and self.end_seconds is None:
            return str(self.path)
        return f"{self.path}#t={self.start_seconds or 0:g}" + (
            "" if self.end_seconds is None else f",{self.end_seconds:g}"
        )

    @property
    def origin(self) -> str:
        """`source`, or the path where nobody named one."""
        return self.source or str(self.path)


def classes_of(entries: Iterable[Entry]) -> tuple[str, ...]:
    """Labels that occur, in alphabetical order; in order of number where all of them are whole numbers."""
    labels = {entry.label for entry in entries} - {""}
    numbered = all(label.isascii() and label.isdigit() for label in labels)
    return tuple(sorted(labels, key=(lambda label: (int(label), label)) if numbered else None))


def read_entries(path: Path) -> list[Entry]:
    """Entries of a list, of a folder with `labels.csv`, or of a folder with a folder for each class.

    Raises:
        ListError: see `read_list` and `read_folder`.
    """
    if path.is_dir():
        table = path / LABELS_FILE
        return read_list(table) if table.is_file() else read_folder(path)
    return read_list(path)


def read_folder(folder: Path) -> list[Entry]:
    """Entries of `folder/CLASS/**/clip.mp4`, by class and name; the folder below the class, if any, is the source.

    Raises:
        ListError: there is no such folder, no clip in it, or one that lies beside the class folders.
    """
    if not folder.is_dir():
        raise ListError(f"{folder} is no folder; expected one that holds a folder of clips for each class")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and not p.name.startswith("."))
    entries = []
    for path in files:
        parts = path.relative_to(folder).parts
        if len(parts) == 1:
            raise ListError(f"{path} lies in no class folder; move it to {folder}/CLASS/{path.name}, or use a list")
        entries.append(Entry(path, parts[0], source="/".join(parts[:-1]) if len(parts) > 2 else ""))
    if not entries:
        raise ListError(f"no clips in {folder}; expected {folder}/CLASS/clip.mp4 or a {LABELS_FILE} ({ALLOWED})")
    return entries


def read_list(file: Path, root: Path | None = None) -> list[Entry]:
    """Entries of a list, in its order.

    `.jsonl` holds an object a line. Otherwise fields are parted by tabs, commas, or, where a line has neither, by the
    last space (as public lists of Kinetics and Something-Something do). The first line may name the columns; without
    names it is path and label, nothing else. Columns with other names are passed over, and so are empty lines and,
    without names, lines that start with #.

    Args:
        file: the list.
        root: folder that relative paths start from; `None` takes the folder of the list.

    Raises:
        ListError: the list is missing, empty or no text, or a line of it cannot be understood: it is named.
    """
    root = file.parent if root is None else root
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise ListError(f"no list and no folder at {file}; check the spelling or mount the drive") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ListError(f"cannot read the list {file}: {error}; expected UTF-8 text, {ALLOWED}") from error
    rows = _objects(lines, file) if file.suffix.lower() in (".jsonl", ".ndjson") else _table(lines, file)
    entries = [_entry(row, root, f"{file}, line {number}") for number, row in rows]
    if not entries:
        raise ListError(f"{file} lists no clips; {ALLOWED}")
    return entries


def count_labels(entries: Sequence[Entry]) -> Counter[str]:
    """How many entries each label has."""
    return Counter(entry.label for entry in entries)


def _objects(lines: Sequence[str], file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ListError(f"{file}, line {number}: no JSON ({error})") from error
            if not isinstance(row, dict):
                raise ListError(f"{file}, line {number}: expected a JSON object, got {type(row).__name__}")
            yield number, {_FIELD_OF[key]: value for key, value in row.items() if key in _FIELD_OF}


def _table(lines: Sequence[str], file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    filled = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    names: list[str | None] | None = None
    for place, (number, line) in enumerate(filled):
        fields = _fields(line)
        if place == 0 and any(_FIELD_OF.get(field.lower()) == "path" for field in fields):
            names = [_FIELD_OF.get(field.lower()) for field in fields]
            continue
        if names is None:
            if line.startswith("#"):
                continue
            if len(fields) != 2:
                raise ListError(
                    f"{file}, line {number}: {len(fields)} fields, but without a first line that names a path column "
                    f"a line is path and label; {ALLOWED}"
                )
            yield number, dict(zip(("path", "label"), fields, strict=True))
        elif len(fields) != len(names):
            raise ListError(f"{file}, line {number}: {len(fields)} fields, the first line names {len(names)} columns")
        else:
            yield number, {name: field for name, field in zip(names, fields, strict=True) if name}


def _fields(line: str) -> list[str]:
    if "\t" in line:
        return [field.strip() for field in line.split("\t")]
    if "," in line:
        return [field.strip() for field in next(csv.reader([line]))]
    return line.strip().rsplit(maxsplit=1)


def _entry(row: dict[str, Any], root: Path, place: str) -> Entry:
    path, label, text = (str(row[name]).strip() if row.get(name) is not None else "" for name in _NAMES)
    if not path:
        raise ListError(f"{place}: no path; {ALLOWED}")
    if not label and not text:
        raise ListError(f"{place}: neither a label nor a text; {ALLOWED}")
    start, end = (_seconds(row.get(name), name, place) for name in ("start_seconds", "end_seconds"))
    if end is not None and end <= (start or 0.0):
        raise ListError(f"{place}: end_seconds must lie after start_seconds, got {start} to {end}")
    source = "" if row.get("source") is None else str(row["source"]).strip()
    return Entry(root / Path(path).expanduser(), label, text, start, end, source)


_NAMES = ("path", "label", "text")


def _seconds(value: Any, name: str, place: str) -> float | None:
    if value is None or str(value).strip() == "":
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ListError(f"{place}: {name} must be seconds, a number of at least 0, got {value!r}")
    return seconds
