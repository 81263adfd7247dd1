"""Workers: whatever happens to one, its file is a row with a reason, and the others are read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import reads
from worlds import ColourEncoder, render

from elastivid.core.point import Sampling
from elastivid.search import indexing, workers
from elastivid.search.index import Index
from elastivid.search.reading import Ending, Job, Reading, Window
from elastivid.search.workers import WorkerError, Workers
from elastivid.video import child
from elastivid.video.source import Limits

READING = Reading(Sampling(size=16), Limits(stall_seconds=3, memory_megabytes=300))


def endings(jobs: list[Job], reading: Reading = READING, **settings) -> tuple[dict[str, Ending], dict[str, int]]:
    """How every file ended, and the windows that came of it."""
    ended: dict[str, Ending] = {}
    windows = dict.fromkeys((Path(job.path).name for job in jobs), 0)
    frames = np.empty(reading.window_shape, np.uint8)
    with Workers(jobs, reading, read=reads.read_as_named, **settings) as running:
        while len(ended) < len(jobs):
            arrival = running.get()
            name = Path(arrival.job.path).name
            if isinstance(arrival.what, Window):
                arrival.take_frames(frames)
                assert np.all(frames == 7)
                windows[name] += 1
            else:
                ended[name] = arrival.what
    return ended, windows


def jobs_named(folder: Path, *names: str) -> list[Job]:
    """Empty files of these names."""
    for name in names:
        (folder / name).touch()
    return [Job(number, str(folder / name), 0, 0) for number, name in enumerate(names)]


def children() -> set[int]:
    """Processes below this one, those that ended and were not waited for included."""
    me = str(os.getpid())
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[1] == me:
            found.add(int(stat.parent.name))
    return found


def test_a_worker_that_dies_is_a_row_and_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "GRACE_SECONDS", 1.0)
    names = ("2segfault", "a", "killed", "b", "1exit", "3hang", "c", "hang", "memory", "d", "nonsense", "4e")
    before = children()
    ended, windows = endings(jobs_named(tmp_path, *names))
    rows = {name: (ending.status, ending.reason) for name, ending in ended.items()}
    for good in ("a", "b", "c", "d", "4e"):
        assert rows[good] == ("indexed", "")
    assert rows["2segfault"] == ("crashed", "the process that read it died of SIGSEGV")
    assert rows["killed"][0] == "crashed"
    assert rows["killed"][1].startswith("the process that read it died of SIGKILL (killed from outside")
    assert rows["1exit"] == ("crashed", "the process that read it ended with exit code 3")
    assert rows["3hang"] == ("partial", "stopped: gave nothing for 3 s")
    assert rows["hang"] == ("failed", "stopped: gave nothing for 3 s")
    assert rows["nonsense"] == ("failed", "stopped: sent what it should not (JSONDecodeError)")
    assert rows["memory"] == ("crashed", "the process that read it ended with exit code 1"), (
        "a MemoryError nobody caught"
    )
    assert {name: ending.windows for name, ending in ended.items()} == windows
    assert windows == dict.fromkeys(names, 0) | {"2segfault": 2, "1exit": 1, "3hang": 3, "4e": 4}
    assert children() == before, "no process is left, not even a dead one"


def test_waiting_for_the_encoder_is_no_hanging(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(workers, "TICK_SECONDS", 0.1)
    monkeypatch.setattr(workers, "QUEUED_WINDOWS", 2)
    reading = Reading(READING.sampling, Limits(stall_seconds=0.2))
    frames = np.empty(reading.window_shape, np.uint8)
    with Workers(jobs_named(tmp_path, "9windows"), reading, read=reads.read_as_named) as running:
        time.sleep(1.0)
        for _ in range(9):
            running.get().take_frames(frames)
        assert running.get().what == Ending("indexed", 9)


def test_workers_that_cannot_start_blame_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(child, "START", "import sys; sys.exit('no such library')")
    with pytest.raises(WorkerError, match="cannot be started: ended with exit code 1; no such library"):
        endings(jobs_named(tmp_path, "a", "b"))


def test_leaving_early_ends_the_workers(tmp_path):
    before = children()
    with Workers(jobs_named(tmp_path, "9windows", "hang"), READING, read=reads.read_as_named) as running:
        running.get()
    assert children() == before


def test_a_worker_loads_no_torch(tmp_path):
    script = "import sys, elastivid.search.workers; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "lancedb", "pyarrow", "rich", "typer"} & set(loaded)


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    shared = set(os.listdir("/dev/shm"))
    jobs = jobs_named(tmp_path, "hang", "1hang")
    script = (
        f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import reads, test_workers
from elastivid.search.workers import Workers
jobs = {jobs!r}
""".replace("Job(", "test_workers.Job(")
        + """
with Workers(jobs, test_workers.Reading(test_workers.Sampling(size=16)), read=reads.read_as_named) as running:
    running.get()
    print(*test_workers.children(), flush=True)
    running.get()
"""
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        left = [int(number) for number in parent.stdout.readline().split()]
        assert len(left) == 2
        parent.kill()
    for _ in range(100):
        if not any(os.path.exists(f"/proc/{number}") for number in left):
            break
        time.sleep(0.1)
    assert not [number for number in left if os.path.exists(f"/proc/{number}")]
    assert set(os.listdir("/dev/shm")) <= shared


def test_a_crash_keeps_its_windows_and_is_tried_again_when_asked(tmp_path, monkeypatch):
    folder = tmp_path / "v"
    folder.mkdir()
    (folder / "2killed.mp4").touch()
    render(folder / "good.mp4", ("red", 3))
    index = Index.open(tmp_path / "l.ev", encoder=ColourEncoder())
    monkeypatch.setattr(indexing, "Workers", partial(Workers, read=reads.read_as_named))
    report = index.add(folder)
    (record,) = report.bad
    assert (report.indexed, record.status, record.windows) == (1, "crashed", 2)
    assert len(index) == 3
    monkeypatch.undo()
    (record,) = index.add(folder, retry_failed=True).bad
    assert (record.status, record.windows) == ("failed", 0)
    assert "the file is empty" in record.reason


def test_threads_of_torch_are_as_before(tmp_path):
    import threading

    import torch

    def seen() -> int:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return found[0]

    before = torch.get_num_threads(), seen()
    render(tmp_path / "a.mp4", ("red", 3))
    Index.open(tmp_path / "l.ev", encoder=ColourEncoder()).add(tmp_path / "a.mp4")
    assert (torch.get_num_threads(), seen()) == before


def interrupted(folder: Path, number: int) -> subprocess.CompletedProcess:
    """`elastivid index` on `folder`, which gets a signal once two files are stored."""
    script = f"""
import os, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start what runs in the background without it
sys.path.insert(0, {str(Path(__file__).parent)!r})
from worlds import ColourEncoder
from elastivid.app import cli
from elastivid.search import index, workers
workers.COUNT = 1
original = index.Index.open.__func__
index.Index.open = classmethod(lambda cls, path, **settings: original(cls, path, **settings | {{"encoder": Slow()}}))

class Slow(ColourEncoder):
    def embed_clips(self, video, *, point=None):
        if self.windows_seen >= 80:  # of 136; at most 32 are on their way to their files
            print("now", flush=True)
            threading.Event().wait(0.5)
        return super().embed_clips(video, point=point)

sys.argv = ["elastivid", "index", {str(folder)!r}, "--index", {str(folder / "l.ev")!r}]
cli.main()
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("now")
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        return subprocess.CompletedProcess(command, process.returncode, "", errors)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_keeps_what_is_finished(tmp_path, number, code):
    for name in range(8):
        render(tmp_path / f"{name}.mp4", ("red", 34 + name / 10))
    done = interrupted(tmp_path, number)
    assert done.returncode == code, done.stderr
    assert "interrupted; finished files are kept" in done.stderr
    assert "Traceback" not in done.stderr
    index = Index.open(tmp_path / "l.ev", encoder=ColourEncoder())
    kept = len(index.files())
    assert 2 <= kept < 8
    assert {record.status for record in index.files()} == {"indexed"}
    assert index.add(tmp_path).indexed == 8 - kept
