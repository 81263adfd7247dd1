"""What `elastivid duplicates` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from elastivid.app.text import SHOWN_BAD_FILES, short_path
from elastivid.search.printing import clock, printable
from elastivid.search.records import path_to_text

if TYPE_CHECKING:
    from elastivid.search.prints import Duplicates, Member


def lines_of_duplicates(found: Duplicates) -> list[str]:
    """One block per group, its largest and longest file first."""
    lines = []
    for number, members in enumerate(found.groups, start=1):
        lines.append(f"group {number}")
        for place, member in enumerate(members):
            about = f"{member.width}x{member.height}, {clock(member.duration_seconds)}"
            same = "" if place == 0 else f", {_relation(members[0], member)}"
            lines.append(f"  {short_path(member.paths[0])}  ({about}{same})")
            lines += [f"  {short_path(path)}  (the same bytes)" for path in member.paths[1:]]
    for path, reason in list(found.problems.items())[:SHOWN_BAD_FILES]:
        lines.append(f"trouble: {short_path(path)}: {printable(reason)}")
    if len(found.problems) > SHOWN_BAD_FILES:
        lines.append(f"trouble: and {len(found.problems) - SHOWN_BAD_FILES} more")
    files = sum(len(member.paths) for members in found.groups for member in members)
    lines.append(
        f"{files} files in {len(found.groups)} groups; {found.files} videos compared, {found.read} read for it"
    )
    return lines


def values_of_duplicates(found: Duplicates) -> dict[str, Any]:
    """The same as values for JSON."""
    return {
        "groups": [[_values(member) for member in members] for members in found.groups],
        "problems": [{"path": path_to_text(path), "reason": reason} for path, reason in found.problems.items()],
        "files": found.files,
        "read": found.read,
    }


def _values(member: Member) -> dict[str, Any]:
    return {
        "paths": [path_to_text(path) for path in member.paths],
        "width": member.width,
        "height": member.height,
        "duration_seconds": round(member.duration_seconds, 3),
        "score": round(member.score, 4),
        "shift_seconds": round(member.shift_seconds, 3),
        "share": round(member.share, 3),
    }


def _relation(best: Member, member: Member) -> str:
    """How a member relates to the best one of its group, in words."""
    apart = member.duration_seconds - best.duration_seconds
    score = f"alike {member.score:.2f}"
    if abs(apart) < 0.5 and abs(member.shift_seconds) < 0.5:
        return f"the same, {score}"
    if member.shift_seconds < 0:
        return f"starts at {clock(-member.shift_seconds)} of it, {score}"
    return f"it starts at {clock(member.shift_seconds)} of this, {score}"
