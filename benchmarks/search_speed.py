"""How long a search takes and what an index costs: 100,000 and 1,000,000 windows.

    python benchmarks/search_speed.py [--weights FILE]    # about 4 minutes on 2 cores, 2.5 GB of disk

The index is a real one (tables, snapshot and texts) filled with random unit vectors in the space of the model, in files
of 40 windows (82 s). In process, our search is measured side by side with LanceDB's exact scan and with brute force in
numpy, in turns, on the same queries, warm. The command is started as a user would. Memory is that of the process that
searched: its own, and pages of the index that it mapped, which the system may take back. Writes
`docs/benchmarks/search.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elastivid import Index, OperatingPoint, Sampling, __version__
from elastivid.search.records import FileRecord, Place
from elastivid.search.snapshot import WINDOW
from elastivid.search.status import IndexStatus
from elastivid.search.store import Settings, Store
from elastivid.search.text import TextEncoder
from elastivid.search.writer import IndexedFile
from elastivid.weights.load import read_metadata, resolve

SIZES = {100_000: 50, 1_000_000: 15}  # windows and turns
WINDOWS_PER_FILE = 40
FILES_PER_COMMIT = 250
COLD_STARTS = 7
QUERIES = ("a person juggling a ball", "a red circle bounces", "someone dives into the water", "a dog runs on a beach")
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "search.md"


@dataclass(frozen=True)
class Measured:
    """What one size gave: milliseconds, seconds to fill, bytes on disk, bytes of memory."""

    windows: int
    turns: int
    warm: dict[str, np.ndarray]
    cold: dict[str, np.ndarray]
    fill_seconds: float
    status: IndexStatus
    memory: dict[str, int]


def fill(folder: Path, windows: int, weights: str, space_id: str, dim: int) -> float:
    """An index of random unit vectors; returns the seconds it took."""
    rng = np.random.default_rng(0)
    settings = Settings(weights, space_id, dim, Sampling(), OperatingPoint(tokens=256), 0.0)
    started = time.perf_counter()
    writer = Store(folder).writer(settings)
    for first in range(0, windows // WINDOWS_PER_FILE, FILES_PER_COMMIT):
        writer.commit([_random_file(first + k, rng, dim) for k in range(FILES_PER_COMMIT)])
    writer.finish()
    return time.perf_counter() - started


def _random_file(number: int, rng: np.random.Generator, dim: int) -> IndexedFile:
    windows = np.zeros(WINDOWS_PER_FILE, dtype=WINDOW)
    windows["start_seconds"] = 2.0 * np.arange(WINDOWS_PER_FILE)
    windows["end_seconds"] = windows["start_seconds"] + 4.0
    vectors = rng.normal(size=(WINDOWS_PER_FILE, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    place = Place(f"/videos/{number:06d}.mp4", 1)
    record = FileRecord(-1, f"s1-{number}", 1, (place,), "indexed", duration_seconds=82.0, windows=WINDOWS_PER_FILE)
    return IndexedFile(record, windows, vectors)


def in_turns(candidates: dict[str, Callable[[int], object]], turns: int) -> dict[str, np.ndarray]:
    """Milliseconds of every candidate, called in turns; the first call of each is not counted."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(-1, turns):
        for name, call in candidates.items():
            started = time.perf_counter()
            call(turn)
            if turn >= 0:
                times[name].append((time.perf_counter() - started) * 1000)
    return {name: np.array(values) for name, values in times.items()}


def warm(folder: Path, weights: str, space_id: str, turns: int) -> dict[str, np.ndarray]:
    """Searches within this process."""
    import lancedb

    index = Index.open(folder, model=weights)
    text = TextEncoder.from_file(resolve(weights))
    table = lancedb.connect(str(folder / "tables")).open_table(f"vectors__{space_id}")
    vectors = Store(folder).snapshot().vectors
    queries = [text.embed([words])[0] for words in QUERIES]

    def plain(turn: int) -> object:
        scores = np.array(vectors) @ queries[turn % len(queries)]  # a copy: what a user without a matrix would hold
        return np.argsort(-scores)[:10]

    return in_turns(
        {
            "elastivid, words to 10 moments": lambda turn: index.search(QUERIES[turn % len(QUERIES)], top=10),
            "of it, words to vector": lambda turn: text.embed([QUERIES[turn % len(QUERIES)]]),
            "numpy, vector to 10 windows (copy, product, sort)": plain,
            "LanceDB exact scan, vector to 10 windows": lambda turn: (
                table.search(queries[turn % len(queries)]).limit(10).to_list()
            ),
        },
        turns,
    )


def cold(folder: Path) -> dict[str, np.ndarray]:
    """The command as a user starts it, and what an interpreter with numpy costs."""
    command = [sys.executable, "-m", "elastivid", "search", QUERIES[0], "--index", str(folder)]
    runs = {
        "`elastivid search`": command,
        "of it, python that imports numpy": [sys.executable, "-c", "import numpy"],
        "python that imports torch": [sys.executable, "-c", "import torch"],
        "python that imports lancedb": [sys.executable, "-c", "import lancedb"],
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(COLD_STARTS):
        for name, arguments in runs.items():
            started = time.perf_counter()
            subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
            times[name].append((time.perf_counter() - started) * 1000)
    return {name: np.array(values[1:]) for name, values in times.items()}


def memory_of_a_search(folder: Path) -> dict[str, int]:
    """Bytes of memory of a process that searched once: its own, and mapped pages of files."""
    script = (
        "import sys, json; from elastivid import Index; index = Index.open(sys.argv[1]); index.search(sys.argv[2]); "
        "lines = dict(line.split(':', 1) for line in open('/proc/self/status')); "
        "print(json.dumps({name: int(lines[name].split()[0]) * 1024 for name in ('RssAnon', 'RssFile')}))"
    )
    command = [sys.executable, "-c", script, str(folder), QUERIES[0]]
    found: dict[str, int] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def measure(folder: Path, windows: int, turns: int, weights: str) -> Measured:
    """Everything about an index of one size."""
    path = resolve(weights)
    space_id, dim = read_metadata(path)["space_id"], TextEncoder.from_file(path).dim
    fill_seconds = fill(folder, windows, weights, space_id, dim)
    return Measured(
        windows=windows,
        turns=turns,
        warm=warm(folder, weights, space_id, turns),
        cold=cold(folder),
        fill_seconds=fill_seconds,
        status=Index.open(folder).status(),
        memory=memory_of_a_search(folder),
    )


def lines_of(found: Measured) -> list[str]:
    """One size as a section."""
    status = found.status
    lines = [
        f"## {found.windows:,} windows of {found.windows // WINDOWS_PER_FILE:,} files, "
        f"{status.video_seconds / 3600:,.0f} hours",
        "",
        f"| in process, warm ({found.turns} turns side by side) | median | 95 % within |",
        "|---|---:|---:|",
    ]
    for name, times in found.warm.items():
        lines.append(f"| {name} | {np.median(times):.2f} ms | {np.percentile(times, 95):.2f} ms |")
    lines += ["", f"| from the shell, files in the page cache ({COLD_STARTS - 1} starts) | median | slowest |"]
    lines.append("|---|---:|---:|")
    for name, times in found.cold.items():
        lines.append(f"| {name} | {np.median(times):.0f} ms | {times.max():.0f} ms |")
    own, mapped = found.memory["RssAnon"] / 1e6, found.memory["RssFile"] / 1e6
    lines += [
        "",
        "| cost | |",
        "|---|---:|",
        f"| index on disk | {status.size_bytes / 1e6:,.0f} MB |",
        f"| of it tables, search matrix | {status.tables_bytes / 1e6:,.0f} MB, {status.snapshot_bytes / 1e6:,.0f} MB |",
        f"| per hour of video (goal <= 5 MB) | {status.megabytes_per_hour:.2f} MB |",
        f"| memory of `search`, its own | {own:,.0f} MB |",
        f"| memory of `search`, mapped pages | {mapped:,.0f} MB |",
        f"| writing it, {found.windows // WINDOWS_PER_FILE // FILES_PER_COMMIT} commits | {found.fill_seconds:.0f} s |",
        "",
    ]
    return lines


def document(sections: list[Measured], dim: int) -> str:
    """The results as a page."""
    import lancedb

    from elastivid.core.cost import hardware_key

    lines = [
        "# Searching",
        "",
        f"`python benchmarks/search_speed.py`: {dim} numbers per window, a window every 2 s. "
        f"{hardware_key().split(' | ')[0]}, {os.cpu_count()} cores; elastivid {__version__}, "
        f"numpy {np.__version__}, lancedb {lancedb.__version__}, Python {platform.python_version()}. Goals: 10 ms in "
        "process and 1500 ms from the shell at 100,000 windows.",
        "",
    ]
    return "\n".join(lines + [line for found in sections for line in lines_of(found)])


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="nano")
    weights = parser.parse_args().weights
    sections = []
    for windows, turns in SIZES.items():
        with tempfile.TemporaryDirectory() as temporary:
            sections.append(measure(Path(temporary) / "library.ev", windows, turns, weights))
    page = document(sections, TextEncoder.from_file(resolve(weights)).dim)
    print(page)
    DOCUMENT.parent.mkdir(parents=True, exist_ok=True)
    DOCUMENT.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
