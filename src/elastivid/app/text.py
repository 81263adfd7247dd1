"""What the commands print: plain lines that fit a terminal and a log file alike."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from elastivid.search.printing import clock, printable, span
from elastivid.search.records import FileRecord, path_to_text
from elastivid.search.words import Words
from elastivid.video.address import is_url

if TYPE_CHECKING:
    from elastivid.search.index import AddReport, Index, SearchResult

SHOWN_BAD_FILES = 20


def short_path(path: str) -> str:
    """A path relative to the current folder when it lies inside, else as it is; printable."""
    inside = path.startswith(os.path.join(os.getcwd(), ""))
    return printable(os.path.relpath(path) if inside else path)


def lines_of_moments(result: SearchResult) -> list[str]:
    """One line per moment: score, place, times."""
    if not result.moments:
        return ["nothing found: the index holds no searchable windows"]
    paths = [short_path(moment.path) for moment in result.moments]
    width = min(max(len(path) for path in paths), 80)
    lines = []
    for number, (moment, path) in enumerate(zip(result.moments, paths, strict=True), start=1):
        gone = "" if is_url(moment.path) or os.path.exists(moment.path) else "   (file is gone)"
        times = f"{clock(moment.start_seconds)} - {clock(moment.end_seconds)}"
        lines.append(f"{number:3d}  {moment.score:6.3f}  {path:<{width}}  {times}{gone}")
        texts = [printable(reason) for reason in moment.reasons if not reason.startswith("picture ")]
        lines += [f"             {'; '.join(texts)}"] if texts else []
    milliseconds = (result.embed_seconds + result.scan_seconds) * 1000
    lines.append(f"{result.windows:,} windows searched in {milliseconds:.1f} ms")
    if result.unknown:
        words = ", ".join(repr(word) for word in result.unknown)
        lines.append(f"unknown: {words}: no name or subtitle holds it, and the model only spells it from pieces")
    return lines


def addresses(result: SearchResult, index: Index) -> dict[str, Any]:
    """A search result as values for JSON."""
    return {
        "query": result.query,
        "index": path_to_text(str(index.path)),
        "windows": result.windows,
        "milliseconds": round((result.embed_seconds + result.scan_seconds) * 1000, 3),
        "unknown_words": result.unknown,
        "moments": [{**asdict(moment), "path": path_to_text(moment.path)} for moment in result.moments],
    }


def lines_of_add(report: AddReport, index: Index) -> list[str]:
    """Summary of an indexing run: what was done, how fast, where the time went, which files are bad."""
    read = report.indexed + len(report.bad)
    lines = [
        f"{read} files read, {report.unchanged} unchanged, {len(report.bad)} with trouble -> {printable(index.path)}"
    ]
    if report.recognised:
        lines.append(
            f"{report.recognised} files recognised by their content (moved, renamed, copied, touched or back again): "
            "not read again"
        )
    if not (read or report.unchanged or report.recognised or report.missing):
        lines.append(
            "no videos found: folders are searched for files such as .mp4, .mkv, .mov; hidden ones are left out"
        )
    if report.windows:
        lines.append(
            f"{span(report.video_seconds)} of video, {report.windows} windows in {span(report.elapsed_seconds)}: "
            f"{report.x_realtime:.0f}x realtime"
        )
        spent = report.spent
        lines.append(
            f"time: loading the model {span(spent.load_seconds)}, storing {span(spent.store_seconds)}; side by side, "
            f"summed over threads: decoding {span(spent.decode_seconds)}, encoding {span(spent.encode_seconds)}"
        )
    lines += [f"trouble: folder left out: {reason}" for reason in report.unlisted[:SHOWN_BAD_FILES]]
    if len(report.unlisted) > SHOWN_BAD_FILES:
        lines.append(f"trouble: and {len(report.unlisted) - SHOWN_BAD_FILES} more folders")
    lines += [f"trouble: {printable(reason)}" for reason in Words(index.path).troubles()[:SHOWN_BAD_FILES]]
    lines += _bad_lines("trouble", report.bad, index)
    if report.still_bad:
        lines.append(f"{len(report.still_bad)} unchanged files could not be read before (--retry-failed tries again)")
    if report.missing:
        lines.append(
            f"{len(report.missing)} files are gone: kept in the index, left out of results "
            "(elastivid prune forgets them)"
        )
    return lines


def _bad_lines(label: str, records: list[FileRecord], index: Index) -> list[str]:
    lines = [f"{label}: {short_path(r.path)}: {r.status}: {printable(r.reason)}" for r in records[:SHOWN_BAD_FILES]]
    if len(records) > SHOWN_BAD_FILES:
        more = len(records) - SHOWN_BAD_FILES
        lines.append(f"{label}: and {more} more, listed by: elastivid info {short_path(str(index.path))}")
    return lines
