"""How long a search takes: 100,000 windows in process, and the command from a cold start.

    python benchmarks/search_speed.py [--weights FILE]    # about 1 minute on 2 cores

The index is a real one (tables and snapshot) filled with random unit vectors in the space of the model. In process, our
search is measured side by side with LanceDB's exact scan and with brute force in numpy, in turns, on the same queries,
warm. The command is started as a user would. Writes `docs/benchmarks/search.md`.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from elastivid import Index, OperatingPoint, Sampling, __version__
from elastivid.search.records import FileRecord, Place
from elastivid.search.snapshot import WINDOW
from elastivid.search.store import Settings, Store
from elastivid.search.text import TextEncoder
from elastivid.search.writer import IndexedFile
from elastivid.weights.load import read_metadata, resolve

WINDOWS = 100_000
WINDOWS_PER_FILE = 40
TURNS = 50
COLD_STARTS = 7
QUERIES = ("a person juggling a ball", "a red circle bounces", "someone dives into the water", "a dog runs on a beach")
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "search.md"


def fill(folder: Path, weights: str, space_id: str, dim: int) -> float:
    """An index of random unit vectors; returns the seconds it took."""
    rng = np.random.default_rng(0)
    settings = Settings(weights, space_id, dim, Sampling(), OperatingPoint(tokens=256), 0.0)
    started = time.perf_counter()
    writer = Store(folder).writer(settings)
    for first in range(0, WINDOWS // WINDOWS_PER_FILE, 100):
        writer.commit([_random_file(first + k, rng, dim) for k in range(100)])
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


def in_turns(candidates: dict[str, Callable[[int], object]]) -> dict[str, np.ndarray]:
    """Milliseconds of every candidate, called in turns; the first call of each is not counted."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(-1, TURNS):
        for name, call in candidates.items():
            started = time.perf_counter()
            call(turn)
            if turn >= 0:
                times[name].append((time.perf_counter() - started) * 1000)
    return {name: np.array(values) for name, values in times.items()}


def warm(folder: Path, weights: str, space_id: str) -> dict[str, np.ndarray]:
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
        }
    )


def cold(folder: Path) -> dict[str, np.ndarray]:
    """The command as a user starts it, and what an interpreter with numpy costs."""
    command = [sys.executable, "-m", "elastivid", "search", QUERIES[0], "--index", str(folder)]
    runs = {
        "`elastivid search`, 100,000 windows": command,
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


def document(in_process: dict[str, np.ndarray], started: dict[str, np.ndarray], fill_seconds: float, dim: int) -> str:
    """The results as a page."""
    import lancedb

    from elastivid.core.cost import hardware_key

    lines = [
        "# Searching",
        "",
        f"`python benchmarks/search_speed.py`: {WINDOWS:,} windows of {WINDOWS // WINDOWS_PER_FILE:,} files, {dim} "
        f"numbers each. {hardware_key().split(' | ')[0]}, {os.cpu_count()} cores; elastivid {__version__}, "
        f"numpy {np.__version__}, lancedb {lancedb.__version__}, Python {platform.python_version()}.",
        "",
        f"## In process, warm ({TURNS} turns side by side; goal < 10 ms)",
        "",
        "| what | median | 95 % within |",
        "|---|---:|---:|",
    ]
    for name, times in in_process.items():
        lines.append(f"| {name} | {np.median(times):.2f} ms | {np.percentile(times, 95):.2f} ms |")
    lines += [
        "",
        f"## From the shell, files in the page cache ({COLD_STARTS - 1} starts; goal < 1500 ms)",
        "",
        "| what | median | slowest |",
        "|---|---:|---:|",
    ]
    for name, times in started.items():
        lines.append(f"| {name} | {np.median(times):.0f} ms | {times.max():.0f} ms |")
    lines += ["", f"Writing the index (tables and snapshot, 25 commits) took {fill_seconds:.1f} s.", ""]
    return "\n".join(lines)


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="nano")
    weights = parser.parse_args().weights
    path = resolve(weights)
    space_id, dim = read_metadata(path)["space_id"], TextEncoder.from_file(path).dim
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "library.ev"
        fill_seconds = fill(folder, weights, space_id, dim)
        page = document(warm(folder, weights, space_id), cold(folder), fill_seconds, dim)
    print(page)
    DOCUMENT.parent.mkdir(parents=True, exist_ok=True)
    DOCUMENT.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
