"""What `elastivid classify` prints: a line per file with its likeliest classes, troubles, and what it cost."""

from __future__ import annotations

from typing import Any

from elastivid.app.text import short_path
from elastivid.core.cost import format_macs
from elastivid.search.classify import Classification, Labelled
from elastivid.search.printing import pace, printable, span
from elastivid.search.records import path_to_text

MOST_WIDE = 60


def lines_of_classes(found: Classification, top: int) -> list[str]:
    """Files with their classes, then what was spent."""
    shown = [file for file in found.files if len(file.probabilities)]
    wide = min(max((len(short_path(file.path)) for file in shown), default=0), MOST_WIDE)
    lines = [f"{short_path(file.path):<{wide}}  {_classes(file, top)}" for file in shown]
    bad = [file for file in found.files if file.reason]
    lines += [f"trouble: {short_path(file.path)}: {file.status}: {printable(file.reason)}" for file in bad]
    lines += [f"trouble: folder left out: {reason}" for reason in found.unlisted]
    if not found.files:
        return [*lines, "no videos found: folders are searched for files such as .mp4, .mkv, .mov"]
    without = len(found.files) - len(shown)
    lines.append(f"{len(shown)} files classified" + (f", {without} could not be read" if without else ""))
    if found.windows:
        lines.append(_cost(found))
    return lines


def _classes(file: Labelled, top: int) -> str:
    return "   ".join(f"{100 * share:.1f} % {printable(name)}" for name, share in file.top(top))


def _cost(found: Classification) -> str:
    """Windows, GMACs and time in one line."""
    sampling, per_window = found.sampling, 1e9 * found.gmacs_per_window
    seen = f"{found.windows} windows of {sampling.frames} frames of {sampling.size} px"
    spent = f"{format_macs(per_window)} each, {format_macs(per_window * found.windows)} in all"
    line = (
        f"{span(found.video_seconds)} of video, {seen}: {spent}; {span(found.elapsed_seconds)}, of it "
        f"{span(found.load_seconds)} loading {printable(found.model)}: {pace(found.x_realtime)} realtime without that"
    )
    if found.plan is not None and found.plan.realtime_factor is not None:
        line += f", {pace(found.plan.realtime_factor)} planned within {found.plan.budget}"
    return line


def values_of_classes(found: Classification, top: int) -> dict[str, Any]:
    """The same as JSON values."""
    return {
        "model": found.model,
        "weights_id": found.weights_id,
        "files": [
            {
                "path": path_to_text(file.path),
                "status": file.status,
                "reason": file.reason,
                "classes": [{"name": name, "probability": share} for name, share in file.top(top)],
                "windows": file.windows,
                "duration_seconds": file.duration_seconds,
            }
            for file in found.files
        ],
        "unlisted": list(found.unlisted),
        "cost": {
            "frames": found.sampling.frames,
            "size": found.sampling.size,
            "tokens": found.point.tokens,
            "width": found.point.width,
            "gmacs_per_window": found.gmacs_per_window,
            "windows": found.windows,
            "video_seconds": found.video_seconds,
            "elapsed_seconds": found.elapsed_seconds,
            "load_seconds": found.load_seconds,
            "budget": found.plan.budget if found.plan else None,
        },
    }
