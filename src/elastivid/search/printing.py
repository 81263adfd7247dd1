"""Times and paths as people read them."""

from __future__ import annotations

from pathlib import Path


def clock(seconds: float) -> str:
    """Seconds as `m:ss.s`, from an hour on as `h:mm:ss.s`."""
    tenths = round(seconds * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    tail = f"{tenths // 10:02d}.{tenths % 10}"
    return f"{hours}:{minutes:02d}:{tail}" if hours else f"{minutes}:{tail}"


def span(seconds: float) -> str:
    """A duration in words that suit its size."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def pace(factor: float) -> str:
    """Seconds of video per second, "12x"; two digits below ten, so that slow is not nothing."""
    return f"{factor:.0f}x" if factor >= 9.95 else f"{factor:.2g}x"


def printable(path: str | Path) -> str:
    """A path that can be printed on any terminal: bytes that are not UTF-8 become question marks."""
    return str(path).encode("utf-8", "replace").decode("utf-8")
