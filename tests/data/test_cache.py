"""Decoded clips on disk: found again, within the limit, whole or not there, whoever writes and whatever is killed."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from elastivid.data.cache import ClipCache, cache_key
from elastivid.data.listing import Entry


def clip(value: int, frames: int = 4) -> np.ndarray:
    return np.full((frames, 10, 10, 3), value, dtype=np.uint8)


def test_clips_are_found_again_and_mapped(tmp_path):
    cache = ClipCache(tmp_path / "cache", 1 << 20)
    assert cache.get("a") is None
    assert cache.put("a", clip(7))
    for again in (cache, pickle.loads(pickle.dumps(cache)), ClipCache(tmp_path / "cache", 1 << 20)):
        found = again.get("a")
        assert isinstance(found, np.memmap)
        assert not found.flags.writeable
        assert np.array_equal(found, clip(7))
    assert cache.size_bytes == sum(file.stat().st_size for file in (tmp_path / "cache").glob("*.npy"))


def test_keys_tell_files_parts_and_readings_apart(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"1")
    key = cache_key(Entry(path), "8 frames")
    assert key == cache_key(Entry(path, "run"), "8 frames")  # its label does not change its pixels
    others = {cache_key(Entry(path), "16 frames"), cache_key(Entry(path, start_seconds=1.0), "8 frames")}
    path.write_bytes(b"22")
    others.add(cache_key(Entry(path), "8 frames"))
    assert len(others | {key}) == 4
    with pytest.raises(FileNotFoundError):
        cache_key(Entry(tmp_path / "none.mp4"), "8 frames")


def test_the_limit_holds_and_old_clips_make_room(tmp_path):
    room = 3 * (clip(0).nbytes + 200)
    first = ClipCache(tmp_path, room)
    assert [first.put(name, clip(i)) for i, name in enumerate("abcd")] == [True, True, True, False]
    for name, age_seconds in (("a", 100), ("b", 300), ("c", 200)):
        then = time.time() - age_seconds
        os.utime(tmp_path / f"{name}.npy", (then, then))
    later = ClipCache(tmp_path, room)
    assert later.get("b") is not None  # in use again
    assert later.put("d", clip(3))  # instead of c, unused for the longest time
    assert [later.get(name) is None for name in "abcd"] == [False, False, True, False]
    assert not later.put("e", clip(4))  # a, b and d are in use
    assert later.size_bytes <= room
    assert later.put("d", clip(9))  # replacing needs no room
    assert np.array_equal(later.get("d"), clip(9))
    with pytest.raises(ValueError, match="limit_bytes must be >= 1, got 0"):
        ClipCache(tmp_path, 0)


def test_damaged_clips_are_not_believed(tmp_path):
    cache = ClipCache(tmp_path, 1 << 20)
    cache.put("a", clip(1))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:300])
    assert cache.get("a") is None
    (tmp_path / "bytes").write_text("")
    assert cache.put("a", clip(1))
    assert np.array_equal(cache.get("a"), clip(1))


WRITES = """
import sys, itertools, numpy as np
from pathlib import Path
from elastivid.data.cache import ClipCache
cache = ClipCache(Path(sys.argv[1]), int(sys.argv[2]))
for i in range(int(sys.argv[3])) if len(sys.argv) > 3 else itertools.count():
    n = i % 12
    cache.put(str(n), np.full((4, 60, 60, 3), n, dtype=np.uint8))
    if i == 0: print("going", flush=True)
"""


def whole(folder: Path) -> list[str]:
    """Names of the clips, after checking that each holds what its writer wrote."""
    names = sorted(file.stem for file in folder.glob("*.npy"))
    cache = ClipCache(folder, 1 << 30)
    for name in names:
        assert np.array_equal(cache.get(name), np.full((4, 60, 60, 3), int(name), dtype=np.uint8))
    assert cache.size_bytes == sum(file.stat().st_size for file in folder.glob("*.npy"))
    assert not list(folder.glob("*.partial"))
    return names


def test_several_writers_share_a_folder_and_its_limit(tmp_path):
    limit = 8 * (4 * 60 * 60 * 3 + 300)
    running = [subprocess.Popen([sys.executable, "-c", WRITES, str(tmp_path), str(limit), "40"]) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert len(whole(tmp_path)) == 8


def test_a_kill_leaves_whole_clips(tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(4):
        command = [sys.executable, "-c", WRITES, str(tmp_path), str(1 << 30)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
        assert whole(tmp_path)
