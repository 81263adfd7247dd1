"""Writing search results for other programs, and saying what was written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from elastivid.search.printing import clock, printable

if TYPE_CHECKING:
    from elastivid.search.cut import Cut
    from elastivid.search.index import SearchResult


def write_wanted(
    result: SearchResult, *, csv: Path | None, srt: Path | None, edl: Path | None, edl_fps: int, cut: Path | None
) -> tuple[list[Path], list[Cut]]:
    """Write the files that were asked for; returns tables, subtitles and edit lists, and cuts."""
    from elastivid.search.export import write_exports

    written = write_exports(result.query, result.moments, csv_path=csv, srt_folder=srt, edl_path=edl, edl_fps=edl_fps)
    if cut is None:
        return written, []
    from elastivid.search.cut import cut_moments  # loads av

    return written, cut_moments(result.moments, cut)


def lines_of_exports(written: list[Path], cuts: list[Cut]) -> list[str]:
    """One line per file, cuts with how they were made or why they were not."""
    lines = [f"written: {printable(path)}" for path in written]
    for made in cuts:
        if made.problem:
            lines.append(f"trouble: {printable(made.source)} at {clock(made.start_seconds)} not cut: {made.problem}")
        else:
            how = f"copied from the keyframe at {clock(made.start_seconds)}" if made.copied else "re-encoded"
            lines.append(f"cut: {printable(made.path)} ({how})")
    return lines
