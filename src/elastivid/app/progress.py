"""Progress of indexing: a live bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from elastivid.app.text import short_path
from elastivid.search.printing import pace, span

if TYPE_CHECKING:
    from elastivid.search.indexing import Progress

LINE_EVERY_SECONDS = 10.0


@contextmanager
def show_progress() -> Iterator[Callable[[Progress], None]]:
    """A callback for `Index.add` that shows files, share done, videos/s, x realtime and time left."""
    if not sys.stderr.isatty():
        yield Lines(_line_of_indexing)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.fields[files]}"),
        BarColumn(None),
        TaskProgressColumn(),
        TextColumn("{task.fields[rest]}"),
    )
    with Bar(*columns, console=console, transient=True, expand=True) as bar:
        task = bar.add_task("indexing", total=1.0, files="reading folders", rest="")

        def show(progress: Progress) -> None:
            share = progress.bytes_done / progress.bytes_total if progress.bytes_total else 0.0
            files = f"{progress.files_done}/{progress.files_total} videos"
            bar.update(task, completed=share, files=files, rest=escape(rates(progress)))

        yield show


@contextmanager
def show_measuring() -> Iterator[Callable[[float, float, str], None]]:
    """A callback that shows how far measuring this machine is; the bar appears with its first call."""
    if not sys.stderr.isatty():
        yield Lines(_line_of_measuring, at_once=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("measuring this machine"),
        BarColumn(30),
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}"),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("measuring", total=1.0, what="", visible=False)

        def show(done: float, total: float, what: str) -> None:
            bar.update(task, completed=done / total, what=what, visible=True)

        yield show


class Lines:
    """A callback that prints a line every ten seconds, for logs.

    Args:
        say: the line for what the callback is told.
        at_once: whether the first call prints one.
    """

    def __init__(self, say: Callable[..., str], *, at_once: bool = False) -> None:
        self._say = say
        self._last = -math.inf if at_once else time.monotonic()

    def __call__(self, *told: Any) -> None:
        if time.monotonic() - self._last >= LINE_EVERY_SECONDS:
            self._last = time.monotonic()
            print(self._say(*told), file=sys.stderr, flush=True)


def _line_of_measuring(done: float, total: float, what: str) -> str:
    return f"measuring this machine, {done / total:.0%}: {what}"


def _line_of_indexing(progress: Progress) -> str:
    files = f"{progress.files_done}/{progress.files_total} videos"
    place = f", at {short_path(progress.current)}" if progress.current else ""
    return f"{files}, {rates(progress)}{place}"


def rates(progress: Progress) -> str:
    """Videos per second, x realtime and time left."""
    eta = f", {span(progress.eta_seconds)} left" if progress.eta_seconds is not None else ""
    per_second = progress.files_done / progress.elapsed_seconds if progress.elapsed_seconds else 0.0
    return f"{per_second:.1f} videos/s, {pace(progress.x_realtime)} realtime{eta}"


@contextmanager
def count_files(what: str) -> Iterator[Callable[[int, int], None]]:
    """A callback that takes files done and files in all, for work on files that is not indexing."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
