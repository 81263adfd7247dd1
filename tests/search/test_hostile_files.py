"""Hostile and broken files: each ends as a row that says why; none stops the run, reads or fetches anything else."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import hostile
import numpy as np
import pytest
from worlds import ColourEncoder, render

from elastivid.core.point import Sampling
from elastivid.search.index import Index
from elastivid.search.reading import Ending, Job, Reading, read_file
from elastivid.search.records import FileRecord, LibraryError
from elastivid.video import NotAVideoError, VideoNotFoundError, VideoReader
from elastivid.video.source import Limits

TABLE = Path(__file__).parent.parent / "video" / "broken_files.csv"
# Rows of the table that end otherwise in an index, which reads the time that the header claims and nothing beyond.
DIFFERENT = {
    "exiftool+exiftool__Flash.flv": ("partial", "frames end at about 1.0 s of 3.1 s"),
    "pygif/robert-ancell+pygif__max-height.gif": ("failed", "a frame of 1x65535 pixels cannot be turned into RGB"),
    "pygif/robert-ancell+pygif__max-width.gif": ("failed", "a frame of 65535x1 pixels cannot be turned into RGB"),
    "strongcourage+fuzzing-corpus__chained-video.ogv": ("indexed", ""),
}


def status_of(result: str) -> str:
    """Status in an index of a file of the table."""
    return {"ok": "indexed", "partial": "partial"}.get(result, "failed")


def rows_of(index: Index) -> dict[str, FileRecord]:
    """Records by the last part of their paths."""
    return {os.path.basename(path): record for record in index.files() for path in record.paths}


def read_here(path: Path, limits: Limits | None = None, put=lambda window, frames: None, **settings) -> Ending:
    """Read a file in this process."""
    status = os.stat(path)
    job = Job(0, str(path), status.st_size, status.st_mtime_ns)
    return read_file(job, Reading(Sampling(size=16), limits or Limits(), **settings), put)


@pytest.fixture
def index(tmp_path) -> Index:
    return Index.open(tmp_path / "library.ev", encoder=ColourEncoder())


def test_every_broken_file_is_the_row_it_should_be(index, shared_data):
    with TABLE.open(newline="") as file:
        expected = {row["file"]: row["result"] for row in csv.DictReader(file)}
    broken = shared_data / "broken"
    report = index.add([broken / name for name in expected])
    rows = {path: record for record in index.files() for path in record.paths}
    wrong = {}
    for name, result in expected.items():
        record = rows[str(broken / name)]
        status, reason = DIFFERENT.get(name, (status_of(result), None))
        if (
            record.status != status
            or bool(record.reason) != (status != "indexed")
            or (reason or "") not in record.reason
        ):
            wrong[name] = (result, record.status, record.reason)
        assert record.reason.count("\n") == 0
        assert name not in record.reason, "the path stands beside it already"
    assert not wrong
    counts = Counter(rows[str(broken / name)].status for name in expected)
    assert counts == {"indexed": 63, "partial": 7, "failed": 77}
    assert report.indexed + len(report.bad) == len(expected) == 147
    assert len(index.search("red", top=1)) == 1


def test_bombs_and_false_claims_end_as_rows(tmp_path, index):
    folder = tmp_path / "v"
    folder.mkdir()
    good = render(folder / "good.mp4", ("red", 3))
    hostile.apng(folder / "16k.apng.gif", 16384, 16384)
    hostile.gif_of_size(folder / "65535.gif", 65535, 65535)
    hostile.y4m(folder / "16k.y4m", 16384, 16384, cut=True)
    hostile.y4m(folder / "zero_fps.y4m", 16, 16, rate="0:0", frames=9)
    hostile.y4m(folder / "million_fps.y4m", 16, 16, rate="1000000:1", frames=9)
    hostile.y4m(folder / "year_per_frame.y4m", 16, 16, rate="1:31536000", frames=3)
    hostile.claim_duration(hostile.still_frames(folder / "claims_100_years.mkv", [0, 1, 2, 3]), 3.2e9)
    hostile.claim_duration(hostile.still_frames(folder / "claims_nothing.mkv", [0, 1, 2, 4]), 0.0)
    hostile.claim_duration(hostile.still_frames(folder / "claims_less_than_nothing.mkv", [0, 1, 2, 5]), -9.0)
    hostile.claim_duration(hostile.still_frames(folder / "claims_nan.mkv", [0, 1, 2, 6]), float("nan"))
    hostile.still_frames(folder / "lasts_100_years.mkv", [0, 3.2e9])
    os.mkfifo(folder / "pipe.mp4")
    os.symlink("/dev/zero", folder / "device.mp4")
    os.symlink("loop.mp4", folder / "loop.mp4")
    (folder / "folder.mp4").mkdir()
    report = index.add(folder, limits=Limits(stall_seconds=20))
    rows = rows_of(index)
    statuses = {name: record.status for name, record in rows.items()}
    assert statuses.pop(good.name) == "indexed"
    assert "crashed" not in statuses.values(), report.bad
    assert {name for name, status in statuses.items() if status == "failed"} >= {
        *("16k.apng.gif", "65535.gif", "16k.y4m", "year_per_frame.y4m", "lasts_100_years.mkv"),
        *("pipe.mp4", "device.mp4", "loop.mp4"),
    }
    assert "not a regular file" in rows["pipe.mp4"].reason
    assert "not a regular file" in rows["device.mp4"].reason
    assert "hours; at most" in rows["lasts_100_years.mkv"].reason
    assert statuses["claims_100_years.mkv"] == "partial"
    assert rows["claims_100_years.mkv"].reason == "frames end at about 2.9 s of 3200000000.0 s"
    for name in ("zero_fps.y4m", "claims_nothing.mkv", "claims_less_than_nothing.mkv", "claims_nan.mkv"):
        assert statuses[name] == "indexed", rows[name].reason
    assert rows["claims_less_than_nothing.mkv"].windows == 2
    assert "folder.mp4" not in rows


def test_limits_of_one_file(tmp_path):
    many = hostile.still_frames(tmp_path / "many.mkv", list(np.arange(3000) / 100))
    ending = read_here(many, Limits(frames=2000))
    assert (ending.status, ending.reason) == ("partial", "more than Limits.frames=2000 frames")
    slow = render(tmp_path / "slow.mp4", ("red", 30))
    ending = read_here(slow, Limits(seconds=1e-9))
    assert (ending.status, ending.windows) == ("partial", 1)
    assert ending.reason == "reading took longer than Limits.seconds=1e-09, up to 4.0 s of the video"
    large = hostile.still_frames(tmp_path / "large.mkv", [0, 1], size=(64, 48))
    ending = read_here(large, Limits(pixels=3000))
    assert (ending.status, ending.reason) == ("failed", "frames of 64x48 pixels exceed Limits.pixels=3000")
    assert read_here(large, Limits(pixels=64 * 48)).status == "indexed"


def test_memory_of_a_worker_is_limited(tmp_path, index):
    hostile.apng(tmp_path / "bomb.gif", 6000, 6000)
    report = index.add(tmp_path / "bomb.gif", limits=Limits(memory_megabytes=64))
    (record,) = report.bad
    assert (record.status, record.reason) == ("failed", "reading needs more memory than Limits.memory_megabytes=64")
    assert index.add(tmp_path / "bomb.gif", retry_failed=True).indexed == 1


def test_a_file_that_changes_while_it_is_read_is_partial(tmp_path):
    growing = render(tmp_path / "growing.mkv", ("red", 30))

    def grow(window, frames):
        if window.start_seconds == 0:
            with growing.open("ab") as file:
                file.write(b"more")

    ending = read_here(growing, put=grow)
    assert (ending.status, ending.windows) == ("partial", 14)
    assert ending.reason == "the file changed while it was read; index again when it is complete"
    replaced = render(tmp_path / "replaced.mkv", ("red", 30))
    other = render(tmp_path / "other.mkv", ("blue", 4))
    ending = read_here(replaced, put=lambda window, frames: other.exists() and os.replace(other, replaced))
    assert ending.status == "partial"
    gone = render(tmp_path / "gone.mkv", ("red", 30))
    ending = read_here(gone, put=lambda window, frames: gone.unlink(missing_ok=True))
    assert ending.status == "partial"
    assert "No such file" in ending.reason


class _Handler(SimpleHTTPRequestHandler):
    """Serves a folder and remembers what was asked for."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/moved.mp4":
            self.send_response(302)
            self.send_header("Location", f"file://{self.directory}/good.mkv")
            self.end_headers()
            return
        super().do_GET()

    def log_message(self, *words) -> None:
        pass


@pytest.fixture
def server(tmp_path):
    """Address of a server of tmp_path/www, and the list of what it was asked for."""
    folder = tmp_path / "www"
    folder.mkdir()
    handler = type("Handler", (_Handler,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", handler.asked
        running.shutdown()
        thread.join()


def test_lists_read_neither_other_files_nor_the_network(tmp_path, index, server):
    address, asked = server
    secret = render(tmp_path / "secret.mp4", ("red", 5))
    render(tmp_path / "www" / "good.mkv", ("red", 5))
    folder = tmp_path / "v"
    for place, target in {"file": str(secret), "address": f"file://{secret}", "web": f"{address}/good.mkv"}.items():
        (folder / place).mkdir(parents=True)
        hostile.playlists(folder / place, target)
    named = [path for path in folder.rglob("*") if path.is_file()]
    report = index.add(named)
    assert report.indexed == 0
    assert report.windows == 0
    assert asked == []
    assert {record.status for record in index.files()} == {"failed"}
    for name in ("concat:a.mp4|b.mp4", "subfile,,start,0,end,0,,:x.mp4", "img%03d.mp4", "-i.mp4", "data:x.mp4"):
        render(tmp_path / "v" / name, ("blue", 1 + len(name) / 10))
        assert index.add(tmp_path / "v" / name).indexed == 1, "it is a name like any other"
    for address_like in (
        f"concat:{secret}",
        f"subfile,,start,0,end,0,,:{secret}",
        f"file:{secret}",
        "rtsp://127.0.0.1/",
    ):
        with pytest.raises(VideoNotFoundError):
            VideoReader(address_like)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir() or not os.access("/usr/bin/strace", os.X_OK), reason="no strace")
def test_the_kernel_sees_no_other_file_opened(tmp_path):
    secret = render(tmp_path / "secret.mp4", ("red", 5))
    lists = hostile.playlists(tmp_path, str(secret))
    script = """
import sys
from elastivid.video import VideoError, VideoReader
for name in sys.argv[1:]:
    try:
        VideoReader(name)
    except VideoError:
        pass
"""
    log = tmp_path / "log"
    command = ["/usr/bin/strace", "-f", "-e", "trace=openat,open,connect", "-o", str(log), sys.executable, "-c", script]
    subprocess.run([*command, *map(str, lists.values())], check=True, env=os.environ)
    assert "secret.mp4" not in log.read_text()


def test_addresses_are_read_only_where_that_is_allowed(tmp_path, index, server):
    address, asked = server
    render(tmp_path / "www" / "good.mkv", ("red", 5))
    with pytest.raises(LibraryError, match="is an address, and nothing is fetched unasked: allow it"):
        index.add(f"{address}/good.mkv")
    with pytest.raises(VideoNotFoundError, match="--allow-url"):
        VideoReader(f"{address}/good.mkv")
    assert asked == []
    report = index.add(f"{address}/good.mkv", allow_url=True)
    assert (report.indexed, report.bad) == (1, [])
    assert set(asked) == {"/good.mkv"}
    (moment,) = index.search("red", top=1)
    assert moment.path == f"{address}/good.mkv"
    report = index.add([f"{address}/good.mkv", tmp_path / "www"], allow_url=True)
    assert (report.indexed, report.unchanged, report.missing) == (1, 1, [])


def test_lists_on_the_web_are_not_followed(tmp_path, index, server):
    address, asked = server
    render(tmp_path / "www" / "good.mkv", ("red", 5))
    lists = hostile.playlists(tmp_path / "www", f"{address}/good.mkv")
    names = [*lists, "moved.mp4", "absent.mp4"]
    report = index.add([f"{address}/{name}" for name in names], allow_url=True)
    assert report.indexed == 0
    assert {os.path.basename(record.path): record.status for record in report.bad} == dict.fromkeys(names, "failed")
    assert "/good.mkv" not in asked
    assert "Not Found" in rows_of(index)["absent.mp4"].reason or "404" in rows_of(index)["absent.mp4"].reason
    with pytest.raises(NotAVideoError, match="cannot be opened"):
        VideoReader(f"{address}/list.m3u8", allow_url=True)
