"""What the commands print: plain lines that fit a terminal and a log file alike."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from elastivid.search.printing import pace, printable, span
from elastivid.search.records import FileRecord
from elastivid.search.words import Words

if TYPE_CHECKING:
    from elastivid.search.index import AddReport, Index

SHOWN_BAD_FILES = 20
SHORT_RUN_SECONDS = 20.0


def short_path(path: str) -> str:
    """A path relative to the current folder when it lies inside, else as it is; printable."""
    inside = path.startswith(os.path.join(os.getcwd(), ""))
    return printable(os.path.relpath(path) if inside else path)


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
            f"{pace(report.x_realtime)} realtime"
        )
        spent = report.spent
        lines.append(
            f"time: loading the model {span(spent.load_seconds)}, storing {span(spent.store_seconds)}; side by side, "
            f"summed over threads: decoding {span(spent.decode_seconds)}, encoding {span(spent.encode_seconds)}"
        )
        if report.plan is not None and report.plan.realtime_factor is not None:
            without_loading = report.video_seconds / max(report.elapsed_seconds - spent.load_seconds, 1e-9)
            lines.append(
                f"budget {report.plan.budget}: planned {pace(report.plan.realtime_factor)}, "
                f"took {pace(without_loading)} realtime without loading the model"
                + (" (short runs are mostly starting up)" if report.elapsed_seconds < SHORT_RUN_SECONDS else "")
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
