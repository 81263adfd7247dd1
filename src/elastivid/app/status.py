"""What `elastivid status` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from elastivid.app.text import short_path
from elastivid.search.printing import printable, span

if TYPE_CHECKING:
    from elastivid.search.status import IndexStatus, SpaceStatus

SHOWN_PATHS = 5
ENOUGH_SECONDS = 3600.0


def lines_of_status(status: IndexStatus) -> list[str]:
    """One fact per line; what needs attention at the end, with what to do about it."""
    counted = ", ".join(f"{count:,} {state}" for state, count in status.files.items())
    sampling = status.settings.sampling
    lines = [
        f"index      {printable(status.path)}",
        f"files      {sum(status.files.values()):,}: {counted or 'none'}" + _copies(status.copies),
        f"video      {span(status.video_seconds)}, {_bytes(status.video_bytes)}, {status.windows:,} windows",
        f"window     {sampling.window_seconds:g} s every {sampling.stride_seconds:g} s, {sampling.frames} frames of "
        f"{sampling.size} px, {sampling.decode} decoding; {status.settings.point.tokens or 'all'} tokens",
        f"size       {_bytes(status.size_bytes)}{_per_hour(status)}: tables {_bytes(status.tables_bytes)}, "
        f"search matrix {_bytes(status.snapshot_bytes)}",
    ]
    lines += [_space(space) for space in status.spaces]
    lines += [_run(run) for run in status.runs]
    lines += _attention(status)
    return lines


def _per_hour(status: IndexStatus) -> str:
    """Size for an hour of video, once there is enough of it: below that it is the size of an empty index."""
    enough = status.video_seconds >= ENOUGH_SECONDS
    return f" ({status.megabytes_per_hour:.1f} MB per hour of video)" if enough else ""


def _copies(count: int) -> str:
    return f"; {count:,} more copies of them" if count else ""


def _space(space: SpaceStatus) -> str:
    return (
        f"vectors    {space.model} (space {space.space_id}, licence {space.licence}), {space.state}: "
        f"{space.files:,} files, {space.windows:,} windows, {_bytes(space.size_bytes)}"
    )


def _run(run: dict[str, Any]) -> str:
    ended = "" if run.get("ended", "done") == "done" else f", {run['ended']}"
    recognised = f", {run['recognised']} recognised" if run.get("recognised") else ""
    return (
        f"run        {run.get('at', 'earlier')}: {run['files']} files, {run['bad_files']} with trouble{recognised}; "
        f"{span(run['video_seconds'])} of video in {span(run['elapsed_seconds'])}{ended}"
    )


def _attention(status: IndexStatus) -> list[str]:
    lines = []
    if status.needs_repair:
        lines.append("attention  a process died while writing: the next `elastivid index` repairs it; searching works")
    if status.changed:
        lines.append(
            f"attention  {len(status.changed):,} files changed since they were read; index their folders again"
        )
        lines += _paths(status.changed)
    if status.unreachable:
        lines.append(
            f"attention  {len(status.unreachable):,} files are not there: on a disk that is not mounted, or deleted "
            "(elastivid prune forgets those)"
        )
        lines += _paths(status.unreachable)
    for state, what in (("failed", "could not be read"), ("crashed", "broke the reader"), ("partial", "in part")):
        if state in status.files:
            lines.append(f"attention  {status.files[state]:,} {state}: {what}; elastivid info names them and says why")
    if "pending" in status.files:
        lines.append(f"attention  {status.files['pending']:,} pending: read when they are there; index their folders")
    for space in status.spaces[1:]:
        command = "elastivid prune forgets them"
        if space.state == "unfinished":
            command = f"elastivid reindex --model {space.model} goes on, elastivid prune --unfinished gives it up"
        lines.append(f"attention  vectors of {space.model} are {space.state}: {command}")
    return lines


def _paths(paths: list[str]) -> list[str]:
    lines = [f"           {short_path(path)}" for path in paths[:SHOWN_PATHS]]
    return lines + ([f"           and {len(paths) - SHOWN_PATHS:,} more"] if len(paths) > SHOWN_PATHS else [])


def _bytes(count: int) -> str:
    """A number of bytes in the unit that suits it."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
