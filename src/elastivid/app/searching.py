"""What `elastivid search` prints, and how its options become filters."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from elastivid.app.text import short_path
from elastivid.search.examples import parse_seconds
from elastivid.search.filters import Filters
from elastivid.search.printing import clock, printable, span
from elastivid.search.records import QueryError, path_to_text
from elastivid.video.address import is_url

if TYPE_CHECKING:
    from elastivid.search.index import Index, SearchResult


def shown(result: SearchResult, everything: bool) -> SearchResult:
    """What is shown, written and exported: no moments when nothing was found, unless the best guesses are wanted."""
    return result if result.found or everything else replace(result, moments=[])


def lines_of_search(result: SearchResult, quiet: bool) -> list[str]:
    """One line per moment: number, score, confidence, place, times. Then notes, and what was searched.

    Args:
        result: what is shown (see `shown`).
        quiet: lines of moments only.
    """
    paths = [short_path(moment.path) for moment in result.moments]
    width = min(max((len(path) for path in paths), default=0), 80)
    lines = []
    for number, (moment, path) in enumerate(zip(result.moments, paths, strict=True), start=1):
        gone = "" if is_url(moment.path) or os.path.exists(moment.path) else "   (file is gone)"
        times = f"{clock(moment.start_seconds)} - {clock(moment.end_seconds)}"
        sure = "" if moment.confidence is None else f"  {_percent(moment.confidence):>6}"
        lines.append(f"{number:3d}  {moment.score:6.3f}{sure}  {path:<{width}}  {times}{gone}")
        texts = [printable(reason) for reason in moment.text_reasons]
        lines += [f"             {'; '.join(texts)}"] if texts else []
    if quiet:
        return lines
    if not result.found:
        lines.insert(0, _nothing(result))
    lines += [f"note: {note}" for note in result.notes]
    if result.unknown:
        words = ", ".join(repr(word) for word in result.unknown)
        lines.append(f"unknown: {words}: no name or subtitle holds it, and the model only spells it from pieces")
    took = f"{(result.embed_seconds + result.scan_seconds) * 1000:.1f} ms"
    refined = f", starts and ends refined in {span(result.refine_seconds)}" if result.refine_seconds else ""
    lines.append(f"{result.windows:,} windows of {result.files:,} files searched in {took}{refined}")
    return lines


def _nothing(result: SearchResult) -> str:
    if not result.windows:
        return "nothing found: no searchable windows"
    assert result.confidence is not None
    best = f"confidence of the best moment {_percent(result.confidence)}, wanted {_percent(result.min_confidence)}"
    if result.moments:
        return f"nothing found ({best}); the best guesses are:"
    return f"nothing found: {best} (--all shows the best guesses)"


def _percent(share: float) -> str:
    """Rounded down, so that 100 % is never printed for what is below."""
    return f"{int(share * 1000 + 1e-6) / 10:.1f} %"


def values_of_search(result: SearchResult, index: Index) -> dict[str, Any]:
    """A search result as values for JSON. `moments` is empty when nothing was found and guesses were not asked for."""
    return {
        "query": result.query,
        "index": path_to_text(str(index.path)),
        "found": result.found,
        "confidence": result.confidence,
        "min_confidence": result.min_confidence,
        "files": result.files,
        "windows": result.windows,
        "milliseconds": round((result.embed_seconds + result.scan_seconds) * 1000, 3),
        "refine_milliseconds": round(result.refine_seconds * 1000, 3),
        "notes": list(result.notes),
        "unknown_words": list(result.unknown),
        "moments": [{**asdict(moment), "path": path_to_text(moment.path)} for moment in result.moments],
    }


def filters_of_options(
    *,
    path: Sequence[str],
    after: str | None,
    before: str | None,
    min_duration: str | None,
    max_duration: str | None,
    min_height: int | None,
    max_height: int | None,
) -> Filters:
    """Filters from the options of the command; durations are written like times: `90`, `90s`, `1:30`.

    Raises:
        QueryError: a value cannot be read.
    """
    return Filters(
        path=tuple(path),
        after=after,
        before=before,
        min_duration_seconds=_duration("--min-duration", min_duration),
        max_duration_seconds=_duration("--max-duration", max_duration),
        min_height=min_height,
        max_height=max_height,
    )


def _duration(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    seconds = parse_seconds(text)
    if seconds is None:
        raise QueryError(f"cannot read {option} {text!r}; write seconds (90 or 90s), 1:30 or 1:02:30")
    return seconds
