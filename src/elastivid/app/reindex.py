"""What `elastivid reindex` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from elastivid.app.text import short_path
from elastivid.search.printing import printable, span

if TYPE_CHECKING:
    from elastivid.search.reindex import ReindexReport

SHOWN_BAD_FILES = 20


def lines_of_reindex(report: ReindexReport) -> list[str]:
    """What was done, what is searched now, and what to do with the old vectors."""
    lines = [
        f"{report.read:,} files read, {report.windows:,} windows in {span(report.elapsed_seconds)}; "
        f"{report.kept:,} were done before or needed nothing",
        f"searches use {report.after.model} now (space {report.after.space_id})",
    ]
    for record in report.bad[:SHOWN_BAD_FILES]:
        lines.append(f"trouble: {short_path(record.path)}: {record.status}: {printable(record.reason)}")
    if len(report.bad) > SHOWN_BAD_FILES:
        lines.append(f"trouble: and {len(report.bad) - SHOWN_BAD_FILES:,} more, listed by: elastivid info")
    if report.pending:
        lines.append(
            f"{report.pending:,} files are not there or changed: left out until their folders are indexed again"
        )
    if not report.dropped:
        lines.append(f"the vectors of {report.before.model} are kept: elastivid prune forgets them")
    return lines
