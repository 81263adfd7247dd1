"""Whether an index can be trusted: kills, two writers, a full disk, moved files, a move to another model.

    python benchmarks/index_trust.py [--weights FILE] [--trials 20]    # about 10 minutes on 2 cores, Linux

Videos are rendered here (seeded) and indexed once undisturbed. Then the same folder is indexed while things go wrong,
in processes of their own, as the command does it. What the index holds at the end is compared with the undisturbed
one: the same contents at the same paths, the same windows, and the largest difference between vectors. After every
kill, and before anything is repaired, the index is opened and searched: each file must be in it wholly or not at all.

The full disk is a small tmpfs that this script mounts and grows; where it may not mount, the row says so. Writes
`docs/benchmarks/index-trust.md`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from tables import machine, table, write_page

FILES = 32
SIZE = (128, 96)
FPS = 10
COMMIT_EVERY_SECONDS = 0.1  # instead of 1: more commits for a kill to hit
WRITER_FILES = 400
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Contents:
    """What an index holds: by content, its paths, status, windows (n, 2) and vectors (n, D)."""

    files: dict[str, tuple[tuple[str, ...], str, np.ndarray, np.ndarray]]

    @property
    def windows(self) -> int:
        """Number of windows."""
        return sum(len(windows) for _, _, windows, _ in self.files.values())


def contents_of(index: Path, root: Path) -> Contents:
    """Read an index through its snapshot; paths are relative to `root`."""
    from elastivid.search.store import Store

    snapshot = Store(index).snapshot()
    files = {}
    for record in snapshot.records.values():
        rows = snapshot.windows["file_id"] == record.id
        windows = np.stack([snapshot.windows[name][rows] for name in ("start_seconds", "end_seconds")], axis=1)
        paths = tuple(sorted(os.path.relpath(path, root) for path in record.paths))
        assert record.content not in files, "a content is there twice"
        assert len(windows) == record.windows, "a file is there in part"
        files[record.content] = (paths, record.status, windows, np.array(snapshot.vectors[rows]))
    return Contents(files)


def rows_in_tables(index: Path) -> tuple[int, int]:
    """Rows of the tables of files and of vectors."""
    from elastivid.search.store import Store
    from elastivid.search.tables import Tables

    settings = Store(index).settings()
    tables = Tables(index / "tables", settings.space_id, settings.dim)
    return len(tables.records()), sum(len(windows) for windows, _ in tables.batches())


def difference(found: Contents, wanted: Contents, *, paths: bool = True) -> float:
    """Largest difference between vectors.

    Raises:
        SystemExit: files, paths, states or windows differ.
    """
    if found.files.keys() != wanted.files.keys():
        raise SystemExit(f"{len(found.files.keys() ^ wanted.files.keys())} contents differ")
    largest = 0.0
    for content, (places, status, windows, vectors) in wanted.files.items():
        other = found.files[content]
        if (paths and other[0] != places) or other[1] != status or not np.array_equal(other[2], windows):
            raise SystemExit(f"{places} differs: {other[:2]} instead of {(places, status)}")
        largest = max(largest, float(np.abs(other[3] - vectors).max(initial=0.0)))
    return largest


def make_videos(folder: Path, seed: int = 0) -> None:
    """Videos of 4 to 9 seconds: textures that move."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(FILES):
        texture = rng.integers(0, 255, (SIZE[1] // 8, SIZE[0] // 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        with av.open(str(folder / f"{number:02d}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=FPS)
            stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
            speed = int(rng.integers(1, 4))
            for frame in range(int(rng.integers(4 * FPS, 9 * FPS))):
                shift = frame * speed % SIZE[0]
                picture = np.ascontiguousarray(texture[:, shift : shift + SIZE[0]])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))


# processes


def child(*arguments: str | Path) -> subprocess.Popen:
    """This script again, doing one thing. It says "begun" before it reads the first file."""
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until_begun(process: subprocess.Popen) -> None:
    """Wait for the word; what comes later is read so that nobody blocks."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "begun":
            return


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Wait for a process: exit code and what it complained about."""
    _, errors = process.communicate()
    return process.returncode, errors


def run(*arguments: str | Path) -> None:
    """Run to the end, which must be a good one."""
    code, errors = finish(child(*arguments))
    if code:
        raise SystemExit(f"{arguments}: exit code {code}: {errors}")


def work(what: str, arguments: list[str]) -> None:
    """In the child."""
    from elastivid.search import indexing
    from elastivid.search.index import Index

    indexing.COMMIT_EVERY_SECONDS = COMMIT_EVERY_SECONDS
    original = indexing.Pipeline.run

    def announced(self: indexing.Pipeline, *values: object) -> None:
        print("begun", flush=True)
        original(self, *values)  # type: ignore[arg-type]

    indexing.Pipeline.run = announced  # type: ignore[method-assign]
    if what == "add":
        folder, index, weights = arguments
        report = Index.open(index, model=weights).add(folder, notify=lambda text: print(text, file=sys.stderr))
        print(report.indexed, report.recognised)
    elif what == "reindex":
        index, weights = arguments
        Index.open(index, model=weights).reindex()
    elif what == "write":
        write_files(Path(arguments[0]))


def write_files(index: Path) -> None:
    """Commit made-up files, one per commit: a writer that does nothing but write."""
    from elastivid.core.point import OperatingPoint, Sampling
    from elastivid.search.records import FileRecord, Place
    from elastivid.search.snapshot import WINDOW
    from elastivid.search.store import Settings, Store
    from elastivid.search.writer import IndexedFile

    writer = Store(index).writer(Settings("none", "none", 256, Sampling(), OperatingPoint(tokens=1), 0.0))
    print("begun", flush=True)
    for number in range(WRITER_FILES):
        rng = np.random.default_rng(number)
        windows = np.zeros(1 + number % 30, dtype=WINDOW)
        windows["start_seconds"] = 2.0 * np.arange(len(windows))
        windows["end_seconds"] = windows["start_seconds"] + 4
        vectors = rng.normal(size=(len(windows), 256)).astype(np.float32)
        record = FileRecord(-1, f"s{number}", 1, (Place(f"/v/{number}", 1),), "indexed", windows=len(windows))
        if writer.catalog.with_content(record.content) is None:
            writer.commit([IndexedFile(record, windows, vectors)])
        if number % 40 == 39:
            writer.finish()


# cases: each returns a row


def kills_while_indexing(base: Path, weights: str, wanted: Contents, seconds: float, trials: int) -> list[str]:
    """Fresh index, kill at a random moment, look, run again, compare."""
    rng = np.random.default_rng(1)
    worst, kept, dirty = 0.0, [], 0
    for trial in range(trials):
        index = base / f"kill-{trial}.ev"
        while True:
            process = child("add", base / "v", index, weights)
            wait_until_begun(process)
            time.sleep(rng.uniform(0, seconds))
            running = process.poll() is None
            process.send_signal(signal.SIGKILL)
            code, errors = finish(process)
            if running:
                break
            if code:
                raise SystemExit(f"a run that nobody killed failed with exit code {code}: {errors}")
            shutil.rmtree(index)  # it had ended: too late to be killed, draw another moment
            seconds *= 0.9
        after = contents_of(index, base / "v")
        kept.append(len(after.files))
        dirty += bool(list(index.glob("spaces/*/dirty")))
        worst = max(worst, difference(after, Contents({k: wanted.files[k] for k in after.files})))
        run("add", base / "v", index, weights)
        worst = max(worst, difference(contents_of(index, base / "v"), wanted))
        if rows_in_tables(index) != (len(wanted.files), wanted.windows):
            raise SystemExit("the tables hold other rows than the snapshot")
        shutil.rmtree(index)
        print(f"kill {trial}: {len(after.files)} files were kept", flush=True)
    how = f"kill -9 while indexing, {trials} random moments; {dirty} of them within a commit"
    return [
        how,
        f"{min(kept)} to {max(kept)}, median {np.median(kept):.0f}",
        str(len(wanted.files)),
        str(wanted.windows),
        f"{worst:.1e}",
    ]


def kills_while_writing(base: Path, trials: int) -> list[str]:
    """One index, killed again and again while it does nothing but commit, until it is complete."""
    rng = np.random.default_rng(2)
    undisturbed, index = base / "written.ev", base / "killed.ev"
    started = time.perf_counter()
    run("write", undisturbed)
    share = (time.perf_counter() - started) / trials
    dirty = 0
    for trial in range(trials):
        process = child("write", index)
        wait_until_begun(process)
        time.sleep(rng.uniform(0.5, 1.5) * share)
        process.send_signal(signal.SIGKILL)
        finish(process)
        dirty += bool(list(index.glob("spaces/*/dirty")))
        print(f"kill {trial}: {len(contents_of(index, Path('/v')).files)} files", flush=True)
    run("write", index)
    wanted, found = contents_of(undisturbed, Path("/v")), contents_of(index, Path("/v"))
    worst = difference(found, wanted)
    if rows_in_tables(index) != rows_in_tables(undisturbed):
        raise SystemExit("the tables hold other rows")
    how = f"kill -9 of a process that only commits, {trials} times in a row; {dirty} of them within a commit"
    return [how, "all", str(len(found.files)), str(found.windows), f"{worst:.1e}"]


def two_writers(base: Path, weights: str, wanted: Contents) -> list[str]:
    """Two processes on one folder at the same time."""
    index = base / "two.ev"
    processes = [child("add", base / "v", index, weights) for _ in range(2)]
    ended = []
    threads = [threading.Thread(target=lambda p=process: ended.append((p.communicate(), p))) for process in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    read = []
    for (output, errors), process in ended:
        if process.returncode:
            raise SystemExit(f"a writer failed: {errors}")
        read.append(int(output.split()[-2]))
    found = contents_of(index, base / "v")
    worst = difference(found, wanted)
    if rows_in_tables(index) != (len(wanted.files), wanted.windows):
        raise SystemExit("the tables hold rows twice")
    how = f"two processes at once: they read {read[0]} and {read[1]} files"
    return [how, "all", str(len(found.files)), str(found.windows), f"{worst:.1e}"]


def full_disk(base: Path, weights: str, wanted: Contents) -> list[str]:
    """A disk that fills up, then grows."""
    disk = base / "disk"
    disk.mkdir()
    size = 200_000 + int(sum(v.nbytes for _, _, _, v in wanted.files.values()))  # half of what will be needed
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=False).returncode:
        return ["full disk: not measured, this user may not mount", "", "", "", ""]
    try:
        code, errors = finish(child("add", base / "v", disk / "l.ev", weights))
        line = errors.strip().splitlines()[-1] if errors.strip() else ""
        if code != 1 or "is full; what was finished before is kept" not in line:
            raise SystemExit(f"a full disk ended in exit code {code}: {errors}")
        after = contents_of(disk / "l.ev", base / "v")
        worst = difference(after, Contents({k: wanted.files[k] for k in after.files}))
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        run("add", base / "v", disk / "l.ev", weights)
        found = contents_of(disk / "l.ev", base / "v")
        worst = max(worst, difference(found, wanted))
        if rows_in_tables(disk / "l.ev") != (len(wanted.files), wanted.windows):
            raise SystemExit("the tables hold other rows than the snapshot")
    finally:
        subprocess.run(["umount", str(disk)], check=False)
    how = f"full disk (tmpfs of {size / 1e6:.2f} MB), then room: exit code 1 and a sentence, then done"
    return [how, f"{len(after.files)} of {FILES}", str(len(found.files)), str(found.windows), f"{worst:.1e}"]


def moved_files(base: Path, weights: str, wanted: Contents) -> list[list[str]]:
    """Everything moved, renamed, copied; nothing may be read."""
    from elastivid.search.index import Index

    index = base / "undisturbed.ev"
    rows = []
    for what in ("folder renamed", "every file renamed", "every file copied", "every file touched"):
        folder = base / "v"
        if what == "folder renamed":
            folder.rename(base / "w")
            folder.mkdir()
            (base / "w").rename(folder / "inner")
        for path in sorted((folder / "inner").iterdir()):
            if what == "every file renamed":
                path.rename(path.with_name(f"renamed {path.name}"))
            elif what == "every file copied":
                shutil.copy(path, folder / path.name)
            elif what == "every file touched":
                os.utime(path, ns=(1, 1))
        library = Index.open(index, model=weights)
        report = library.add(folder)
        if report.windows or report.indexed or "_encoder" in vars(library):
            raise SystemExit(f"{what}: {report.windows} windows were read")
        worst = difference(contents_of(index, folder), wanted, paths=False)
        found = contents_of(index, folder)
        how = f"{what}: {report.recognised} recognised, 0 frames decoded, no model loaded"
        rows.append([how, "all", str(len(found.files)), str(found.windows), f"{worst:.1e}"])
    return rows


def reindexing(base: Path, weights: str, trials: int) -> list[str]:
    """Kills while the index moves to another model; then compared with an index made with that model."""
    import torch

    from elastivid.search.index import Index
    from elastivid.weights.load import load, save

    other = base / "other.safetensors"
    model = load(weights)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(0)) * 0.01 * value.abs().mean())
    save(model, other, address="dual/nano@shaken", licence="Apache-2.0", card={})
    folder = base / "v"
    Index.open(base / "fresh.ev", model=str(other)).add(folder)
    wanted = contents_of(base / "fresh.ev", folder)
    index, rng = base / "undisturbed.ev", np.random.default_rng(3)
    before = Index.open(index).settings.space_id
    old = contents_of(index, folder)
    for trial in range(trials):
        process = child("reindex", index, other)
        wait_until_begun(process)
        time.sleep(rng.uniform(0.2, 1.5))
        process.send_signal(signal.SIGKILL)
        finish(process)
        if Index.open(index).settings.space_id == before:
            difference(contents_of(index, folder), old)
        print(f"reindex, kill {trial}", flush=True)
    if Index.open(index).settings.space_id == before:
        run("reindex", index, other)
    found = contents_of(index, folder)
    worst = difference(found, wanted)
    how = f"moved to another model, kill -9 {trials} times on the way; the old one is searched till the end"
    return [how, "all of the old", str(len(found.files)), str(found.windows), f"{worst:.1e}"]


def main() -> None:
    """Run all cases and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="nano")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        try:
            work(arguments.child[0], arguments.child[1:])
        except Exception as error:  # as the command does: one line, exit code 1
            print(f"elastivid: {error}", file=sys.stderr)
            sys.exit(1)
        return
    weights = arguments.weights
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        make_videos(base / "v")
        process = child("add", base / "v", base / "undisturbed.ev", weights)
        wait_until_begun(process)
        started = time.perf_counter()
        code, errors = finish(process)
        seconds = time.perf_counter() - started
        if code:
            raise SystemExit(errors)
        wanted = contents_of(base / "undisturbed.ev", base / "v")
        rows = [["undisturbed", "", str(len(wanted.files)), str(wanted.windows), "0"]]
        rows.append(kills_while_indexing(base, weights, wanted, seconds, arguments.trials))
        rows.append(kills_while_writing(base, arguments.trials))
        rows.append(two_writers(base, weights, wanted))
        rows.append(full_disk(base, weights, wanted))
        rows += moved_files(base, weights, wanted)
        rows.append(reindexing(base, weights, min(5, arguments.trials)))
    head = ["what happens", "files in the index before it goes on", "files at the end", "windows", "largest difference"]
    write_page(
        "index-trust",
        "# Trusting an index",
        f"`python benchmarks/index_trust.py`: {FILES} rendered videos, model `{Path(weights).name}`, a commit every "
        f"{COMMIT_EVERY_SECONDS} s. {machine('lancedb')}",
        table(head, rows),
        "Each row ended with the same contents at the same paths, the same windows and the same numbers of rows in "
        "tables and snapshot as the undisturbed run, or the script would have stopped. The difference is the largest "
        f"between two vectors (goal: below {TOLERANCE:.0e}): a run that goes on puts other windows together in a "
        "batch, and sums then round differently. After every kill and before any repair the index was opened: every "
        "file was in it wholly or not at all.",
    )


if __name__ == "__main__":
    main()
