"""Moments as text for other programs: CSV for tables, SubRip for players, CMX 3600 edit lists for editors.

All functions return text; `write_exports` puts it on disk. Paths that are not valid Unicode are written as `file://`
addresses, as everywhere in an index.
"""

from __future__ import annotations

import csv
import io
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from elastivid.search.moments import Moment
from elastivid.search.printing import printable
from elastivid.search.records import LibraryError, path_to_text

CSV_COLUMNS = ("rank", "path", "start_seconds", "end_seconds", "score", "query")


def to_csv(query: str, moments: Sequence[Moment]) -> str:
    """One row per moment, with a header; columns are `CSV_COLUMNS`, seconds with three decimals."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for rank, m in enumerate(moments, start=1):
        times = (f"{m.start_seconds:.3f}", f"{m.end_seconds:.3f}")
        writer.writerow([rank, path_to_text(m.path), *times, f"{m.score:.6f}", query])
    return out.getvalue()


def to_srt(query: str, moments: Sequence[Moment]) -> str:
    """SubRip subtitles for one video: each moment shows the query and its score while it lasts, in order of time."""
    blocks = []
    ordered = sorted(moments, key=lambda m: (m.start_seconds, m.end_seconds))
    for number, m in enumerate(ordered, start=1):
        span = f"{_srt_time(m.start_seconds)} --> {_srt_time(m.end_seconds)}"
        blocks.append(f"{number}\n{span}\n{' '.join(query.split())} ({m.score:.3f})\n")
    return "\n".join(blocks)


def to_edl(query: str, moments: Sequence[Moment], *, fps: int = 25) -> str:
    """A CMX 3600 edit list that plays all moments one after another, best first.

    Every event names its file in a `FROM CLIP NAME` comment; the reel is AX, as editors expect of files. Times are
    non-drop-frame timecodes, rounded to frames.

    Args:
        query: becomes the title.
        moments: events in this order; at most 999, the most that the format numbers.
        fps: frames per second of the timecodes, that of the editing project.

    Raises:
        ValueError: `fps` is not between 1 and 120, or there are more than 999 moments.
    """
    if not 1 <= fps <= 120:
        raise ValueError(f"fps must be between 1 and 120, got {fps}; use that of your editing project")
    if len(moments) > 999:
        raise ValueError(f"an edit list holds at most 999 events, got {len(moments)} moments; ask for fewer")
    lines = [f"TITLE: {' '.join(query.split())[:70]}", "FCM: NON-DROP FRAME", ""]
    played = 0
    for number, m in enumerate(moments, start=1):
        first, last = round(m.start_seconds * fps), round(m.end_seconds * fps)
        last = max(last, first + 1)
        stamps = [_timecode(n, fps) for n in (first, last, played, played + last - first)]
        lines.append(f"{number:03d}  AX       V     C        {' '.join(stamps)}")
        lines.append(f"* FROM CLIP NAME: {printable(os.path.basename(m.path))}")
        lines.append(f"* SOURCE FILE: {path_to_text(m.path)}")
        lines.append("")
        played += last - first
    return "\n".join(lines)


def write_exports(
    query: str,
    moments: Sequence[Moment],
    *,
    csv_path: Path | None = None,
    srt_folder: Path | None = None,
    edl_path: Path | None = None,
    edl_fps: int = 25,
) -> list[Path]:
    """Write the exports that are asked for; returns the files written.

    Args:
        query: what was searched.
        moments: best first.
        csv_path: table of all moments.
        srt_folder: folder for one `.srt` per video, named like the video; two videos of one name get numbers.
        edl_path: edit list of all moments.
        edl_fps: frames per second of the edit list.

    Raises:
        LibraryError: a file is asked for where a folder is, or the other way round.
        ValueError: see `to_edl`.
    """
    written = []
    if csv_path is not None:
        _write(csv_path, to_csv(query, moments))
        written.append(csv_path)
    if edl_path is not None:
        _write(edl_path, to_edl(query, moments, fps=edl_fps))
        written.append(edl_path)
    if srt_folder is not None:
        if srt_folder.exists() and not srt_folder.is_dir():
            raise LibraryError(f"subtitles go into a folder, but {printable(srt_folder)} is a file; name a folder")
        by_file: dict[str, list[Moment]] = defaultdict(list)
        for moment in moments:
            by_file[moment.path].append(moment)
        taken: set[str] = set()
        for file, group in by_file.items():
            stem = printable(Path(file).stem)
            name, number = f"{stem}.srt", 1
            while name in taken:
                number += 1
                name = f"{stem}-{number}.srt"
            taken.add(name)
            _write(srt_folder / name, to_srt(query, group))
            written.append(srt_folder / name)
    return written


def _write(path: Path, text: str) -> None:
    if path.is_dir():
        raise LibraryError(f"{printable(path)} is a folder; name a file in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _srt_time(seconds: float) -> str:
    """`hh:mm:ss,mmm`."""
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d},{milliseconds % 1000:03d}"


def _timecode(frame: int, fps: int) -> str:
    """`hh:mm:ss:ff` without dropping frames."""
    seconds, frames = divmod(frame, fps)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}:{frames:02d}"
