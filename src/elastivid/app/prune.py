"""What `elastivid prune` shows before it forgets anything, and its question."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from elastivid.app.text import short_path
from elastivid.core.errors import ElastividError
from elastivid.search.prune import refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from elastivid.search.index import Index
    from elastivid.search.prune import Prunable

SHOWN_FOLDERS = 20


def lines_of_prunable(prunable: Prunable) -> list[str]:
    """What would go, by folder."""
    lines = []
    if prunable.gone:
        lines.append(f"{len(prunable.gone):,} files that are nowhere any more, {prunable.windows:,} windows:")
        folders = Counter(os.path.dirname(record.path) for record in prunable.gone)
        lines += [f"    {short_path(folder)}: {count:,}" for folder, count in folders.most_common(SHOWN_FOLDERS)]
        if len(folders) > SHOWN_FOLDERS:
            lines.append(f"    and {len(folders) - SHOWN_FOLDERS:,} more folders")
    if prunable.left:
        lines.append(f"{len(prunable.left):,} paths that files left which are elsewhere now (nothing else is lost)")
    for settings in prunable.spaces:
        lines.append(f"the vectors of {settings.model}, which nobody searches any more (space {settings.space_id})")
    for settings in prunable.unfinished:
        lines.append(f"the unfinished vectors of {settings.model} (space {settings.space_id})")
    return lines


def run_prune(
    index: Index, folders: list[Path], *, unfinished: bool, force: bool, yes: bool, notify: Callable[[str], None]
) -> int:
    """Show, ask, forget; returns the exit code."""
    prunable = index.prunable(folders, unfinished=unfinished)
    if prunable.is_empty:
        print("nothing to forget: every file of the index is where it was")
        return 0
    print("\n".join(lines_of_prunable(prunable)))
    if prunable.vanished and not force:
        raise ElastividError(refusal(prunable))
    if not yes and not _agreed():
        print("nothing was forgotten" + ("" if sys.stdin.isatty() else "; say --yes to forget without being asked"))
        return 1
    index.prune(prunable, force=force, notify=notify)
    print("forgotten")
    return 0


def _agreed() -> bool:
    if not sys.stdin.isatty():
        return False
    return input("forget them? [y/N] ").strip().lower() in ("y", "yes")
