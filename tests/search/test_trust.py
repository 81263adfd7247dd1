"""Kills, two writers and a full disk, in processes of their own. All of it, measured: benchmarks/index_trust.py."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_store import contents, table_rows
from worlds import COLOURS, ColourEncoder, render

from elastivid.search.index import Index
from elastivid.search.records import LibraryError
from elastivid.search.store import Store

HERE = str(Path(__file__).parent)
WRITE = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_store import SETTINGS, Store, a_file
writer = Store(Path(sys.argv[1])).writer(SETTINGS)
print("begun", flush=True)
for number in range(30):
    if writer.catalog.with_content(f"/{number:02d}") is None:
        writer.commit([a_file(f"/{number:02d}", 1 + number % 7, number)])
    if number % 10 == 9:
        writer.finish()
"""
ADD = """
import sys
sys.path.insert(0, sys.argv[3])
from worlds import ColourEncoder
from elastivid.app.cli import main
from elastivid.search import index, indexing
indexing.COMMIT_EVERY_SECONDS = 0.0
index.Index._encoder = property(lambda self, encoder=ColourEncoder(): encoder)
index.Index._model_name = property(lambda self: "colour-encoder")
sys.argv = ["elastivid", "index", sys.argv[1], "--index", sys.argv[2]]
main()
"""


def start(script: str, *arguments: str | Path) -> subprocess.Popen:
    command = [sys.executable, "-c", script, *map(str, arguments), HERE]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def videos(tmp_path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(12):
        colour = list(COLOURS)[number % len(COLOURS)]
        render(folder / f"{number:02d}.mp4", (colour, 4 + number / 10))
    return folder


@pytest.fixture
def undisturbed(tmp_path, videos) -> dict:
    with Index.open(tmp_path / "undisturbed.ev", encoder=ColourEncoder()) as index:
        index.add(videos)
    return holdings(tmp_path / "undisturbed.ev")


def holdings(index: Path) -> dict[str, tuple]:
    """By content: paths, windows and vectors, rounded to what the order of sums may change."""
    snapshot = Store(index).snapshot()
    found = {}
    for record in snapshot.records.values():
        rows = snapshot.windows["file_id"] == record.id
        assert np.count_nonzero(rows) == record.windows, "wholly or not at all"
        assert record.content not in found
        starts = snapshot.windows["start_seconds"][rows].tolist()
        found[record.content] = record.paths, starts, np.round(snapshot.vectors[rows], 6).tolist()
    return found


def test_kill_9_of_a_process_that_writes(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "l.ev"
    for _ in range(3):
        process = start(WRITE, folder)
        assert process.stdout.readline() == "begun\n"
        time.sleep(rng.uniform(0.02, 0.4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        found = contents(Store(folder))
        assert all(values == [float(path[1:])] * (1 + int(path[1:]) % 7) for path, values in found.items())
    process = start(WRITE, folder)
    assert process.wait() == 0, process.stderr.read()
    process.communicate()
    wanted = {f"/{number:02d}": [float(number)] * (1 + number % 7) for number in range(30)}
    assert contents(Store(folder)) == wanted
    assert len(table_rows_of(folder)) == sum(map(len, wanted.values()))


def table_rows_of(folder: Path) -> list[int]:
    return table_rows(Store(folder))[0]


def test_kill_9_while_indexing_and_then_two_processes_go_on(tmp_path, videos, undisturbed):
    index = tmp_path / "l.ev"
    process = start(ADD, videos, index)
    while not Store(index).exists or not Store(index)._read_stamp():
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = holdings(index)
    assert kept.items() <= undisturbed.items()
    both = [start(ADD, videos, index) for _ in range(2)]
    for process in both:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert holdings(index) == undisturbed
    settings = Store(index).settings()
    writer = Store(index).writer(settings)
    assert len(writer._tables.records()) == len(undisturbed), "no row is there twice"
    assert sum(len(w) for w, _ in writer._tables.batches()) == sum(len(starts) for _, starts, _ in undisturbed.values())


def test_a_full_disk(tmp_path, videos, undisturbed):
    """One file is committed with room to spare, then the disk shrinks to little more than what lies on it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        process = start(ADD, videos / "00.mp4", disk / "l.ev")
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        lies = os.statvfs(disk)
        kilobytes = (lies.f_blocks - lies.f_bfree) * lies.f_frsize // 1024 + 16
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(disk)], check=True)
        process = start(ADD, videos, disk / "l.ev")
        _, errors = process.communicate()
        assert process.returncode == 1, errors
        assert errors.splitlines()[-1] == (
            f"elastivid: the disk of {disk / 'l.ev'} is full; what was finished before is kept and can be searched: "
            "free some space and run the same command again"
        )
        kept = holdings(disk / "l.ev")
        assert 0 < len(kept) < 12
        assert kept.items() <= undisturbed.items()
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        process = start(ADD, videos, disk / "l.ev")
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        assert holdings(disk / "l.ev") == undisturbed
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_file_that_another_process_reads_is_waited_for(tmp_path, videos):
    """The other process dies: its file is read after all. It stores the file: nothing is read twice."""
    from elastivid.search.identity import content_of

    index = Index.open(tmp_path / "l.ev", encoder=ColourEncoder())
    index.add(videos / "00.mp4")
    hold = (
        "import sys, time; from pathlib import Path; from elastivid.search.claims import Claims\n"
        "with Claims(Path(sys.argv[1]), 'colours') as claims:\n"
        "    print(claims.take(sys.argv[2]), flush=True); time.sleep(60)"
    )
    process = start(hold, index.path, content_of(str(videos / "01.mp4")))
    assert process.stdout.readline() == "True\n"
    said: list[str] = []

    def let_go(text: str) -> None:
        said.append(text)
        process.kill()
        process.communicate()

    report = index.add(videos, notify=let_go)
    assert (report.indexed, report.unchanged) == (11, 1)
    assert said == [f"waiting: another process is reading {videos / '01.mp4'}"]


def test_a_read_only_place(tmp_path, videos, undisturbed):
    index, place = tmp_path / "undisturbed.ev", tmp_path / "read only"
    place.mkdir()
    mount = ["mount", "--bind", str(index), str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(place)], check=True)
        assert holdings(place) == undisturbed
        with Index.open(place, encoder=ColourEncoder()) as library:
            assert library.search("red", top=1)[0].score > 0.9
            assert library.add(videos).unchanged == 12
            (videos / "00.mp4").unlink()
            with pytest.raises(LibraryError, match=r"cannot be written \(Read-only.*it can be searched, not changed"):
                library.add(videos)
            assert len(library.status().unreachable) == 1
    finally:
        subprocess.run(["umount", str(place)], check=True)
