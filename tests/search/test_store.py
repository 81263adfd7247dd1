"""What is on disk: commits, crashes between tables and snapshot, replaced and missing files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from elastivid.core.point import OperatingPoint, Sampling
from elastivid.search.records import FileRecord, LibraryError
from elastivid.search.snapshot import WINDOW, Manifest, Snapshot, SnapshotWriter
from elastivid.search.store import IndexedFile, Settings, Store
from elastivid.search.tables import Tables

SETTINGS = Settings("m", "space", 4, Sampling(), OperatingPoint(tokens=256), 0.5)


def a_file(file_id: int, path: str, windows: int = 3, **changes) -> IndexedFile:
    rows = np.array([(file_id, 2.0 * k, 2.0 * k + 4) for k in range(windows)], dtype=WINDOW)
    vectors = np.full((windows, 4), file_id, np.float32)
    record = FileRecord(file_id, path, 10, 20, **{"status": "indexed", "windows": windows, **changes})
    return IndexedFile(record, rows, vectors)


def contents(store: Store) -> dict[str, list[float]]:
    """First coordinate of every searchable vector, by path."""
    snapshot = store.snapshot()
    found: dict[str, list[float]] = {}
    for row in np.flatnonzero(snapshot.searchable):
        path = snapshot.paths[int(snapshot.windows["file_id"][row])]
        found.setdefault(path, []).append(float(snapshot.vectors[row, 0]))
    return found


def test_settings_survive_json():
    settings = Settings("m", "s", 8, Sampling(decode="keyframes"), OperatingPoint(tokens=9, width=(4, 8)), 1.5)
    assert Settings.from_json(settings.to_json()) == settings
    with pytest.raises(LibraryError, match="format 99"):
        Settings.from_json(json.dumps({**json.loads(settings.to_json()), "format": 99}))


def test_commits_are_seen_by_readers_at_once(tmp_path):
    store, reader = Store(tmp_path / "l.ev"), Store(tmp_path / "l.ev")
    with store.writing(SETTINGS) as writer:
        writer.commit([a_file(writer.new_id(), "/a")])
        assert contents(reader) == {"/a": [0.0] * 3}
        writer.commit([a_file(writer.new_id(), "/b", 1), a_file(writer.new_id(), "/é \udcff", 2)])
        assert contents(reader) == {"/a": [0.0] * 3, "/b": [1.0], "/é \udcff": [2.0] * 2}
    with Store(tmp_path / "l.ev").writing(SETTINGS) as writer:
        assert writer.new_id() == 3
        assert set(writer.files) == {"/a", "/b", "/é \udcff"}


def test_a_changed_file_replaces_its_rows_and_dead_rows_are_dropped(tmp_path):
    store = Store(tmp_path / "l.ev")
    with store.writing(SETTINGS) as writer:
        writer.commit([a_file(writer.new_id(), "/a", 5), a_file(writer.new_id(), "/b", 1)])
        writer.commit([a_file(writer.new_id(), "/a", 2)])
        assert contents(store) == {"/a": [2.0] * 2, "/b": [1.0]}
        assert len(store.snapshot().vectors) == 8
        writer.finish(SETTINGS)
    assert len(store.snapshot().vectors) == 3
    assert contents(store) == {"/a": [2.0] * 2, "/b": [1.0]}
    assert len(list((tmp_path / "l.ev" / "snapshot").glob("vectors-*.bin"))) == 1


def test_appending_does_not_rewrite(tmp_path):
    store = Store(tmp_path / "l.ev")
    with store.writing(SETTINGS) as writer:
        writer.commit([a_file(writer.new_id(), "/a", 50)])
        path = next((tmp_path / "l.ev" / "snapshot").glob("vectors-*.bin"))
        inode, head = path.stat().st_ino, path.read_bytes()
        writer.commit([a_file(writer.new_id(), "/b", 1)])
        assert path.stat().st_ino == inode
        assert path.read_bytes()[: len(head)] == head


def test_many_commits_are_compacted_and_stay_readable(tmp_path):
    store = Store(tmp_path / "l.ev")
    with store.writing(SETTINGS) as writer:
        for number in range(40):
            writer.commit([a_file(writer.new_id(), f"/{number:02d}", 1)])
        writer.finish(SETTINGS)
    assert contents(store) == {f"/{number:02d}": [float(number)] for number in range(40)}
    manifest = Manifest.require(tmp_path / "l.ev" / "snapshot")
    assert manifest.tables == Tables(tmp_path / "l.ev" / "tables", "space", 4).versions()


def commit_and_die(store: Store, monkeypatch, owner: type, name: str) -> None:
    """Store `/b`, but die when `owner.name` is called, where a kill or a power cut could come."""

    def die(*args, **kwargs):
        raise KeyboardInterrupt(name)

    with monkeypatch.context() as patch, store.writing(SETTINGS) as writer:
        patch.setattr(owner, name, die)
        writer.commit([a_file(writer.new_id(), "/b", 2)])


@pytest.mark.parametrize(
    ("owner", "name"), [(SnapshotWriter, "append"), (Manifest, "write")], ids=["before-snapshot", "before-manifest"]
)
def test_killed_between_tables_and_snapshot(tmp_path, monkeypatch, owner, name):
    store = Store(tmp_path / "l.ev")
    with store.writing(SETTINGS) as writer:
        writer.commit([a_file(writer.new_id(), "/a")])
    with pytest.raises(KeyboardInterrupt):
        commit_and_die(store, monkeypatch, owner, name)
    assert (tmp_path / "l.ev" / "snapshot" / "dirty").exists()
    assert contents(Store(tmp_path / "l.ev")) == {"/a": [0.0] * 3, "/b": [1.0] * 2}
    assert not (tmp_path / "l.ev" / "snapshot" / "dirty").exists()


def test_killed_before_old_rows_are_deleted(tmp_path, monkeypatch):
    store = Store(tmp_path / "l.ev")
    with store.writing(SETTINGS) as writer:
        writer.commit([a_file(writer.new_id(), "/b", 3)])
    with pytest.raises(KeyboardInterrupt):
        commit_and_die(store, monkeypatch, Tables, "_delete")
    assert contents(Store(tmp_path / "l.ev")) == {"/b": [1.0] * 2}
    windows, _ = Tables(tmp_path / "l.ev" / "tables", "space", 4).rows()
    assert windows["file_id"].tolist() == [1, 1]


def test_killed_before_the_file_row_leaves_no_trace(tmp_path, monkeypatch):
    store = Store(tmp_path / "l.ev")
    with store.writing(SETTINGS) as writer:
        writer.commit([a_file(writer.new_id(), "/a")])
    with pytest.raises(KeyboardInterrupt):
        commit_and_die(store, monkeypatch, FileRecord, "to_row")
    assert contents(Store(tmp_path / "l.ev")) == {"/a": [0.0] * 3}
    with store.writing(SETTINGS) as writer:  # the id is used again: nothing of the lost file may come back
        writer.commit([a_file(writer.new_id(), "/c", 1)])
    windows, vectors = Tables(tmp_path / "l.ev" / "tables", "space", 4).rows()
    assert windows["file_id"].tolist() == [0, 0, 0, 1]
    assert vectors[:, 0].tolist() == [0, 0, 0, 1]


def test_a_process_killed_for_real_is_repaired(tmp_path):
    script = """
import os, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_store import SETTINGS, Store, SnapshotWriter, a_file
store = Store(Path(sys.argv[1]))
with store.writing(SETTINGS) as writer:
    writer.commit([a_file(writer.new_id(), "/a")])
    SnapshotWriter.append = lambda *args: os._exit(9)
    writer.commit([a_file(writer.new_id(), "/b", 2)])
"""
    folder = tmp_path / "l.ev"
    done = subprocess.run([sys.executable, "-c", script, str(folder), str(Path(__file__).parent)], check=False)
    assert done.returncode == 9
    assert (folder / "snapshot" / "dirty").exists()
    assert contents(Store(folder)) == {"/a": [0.0] * 3, "/b": [1.0] * 2}


@pytest.mark.parametrize("damage", ["manifest", "vectors", "files", "garbage"])
def test_a_damaged_snapshot_is_rebuilt(tmp_path, damage):
    store = Store(tmp_path / "l.ev")
    with store.writing(SETTINGS) as writer:
        writer.commit([a_file(writer.new_id(), "/a"), a_file(writer.new_id(), "/b", 2)])
    snapshot = tmp_path / "l.ev" / "snapshot"
    if damage == "manifest":
        (snapshot / "manifest.json").unlink()
    elif damage == "garbage":
        (snapshot / "manifest.json").write_text("{")
    else:
        path = next(snapshot.glob(f"{damage}-*"))
        path.write_bytes(path.read_bytes()[:-1])
    assert contents(Store(tmp_path / "l.ev")) == {"/a": [0.0] * 3, "/b": [1.0] * 2}


def test_a_snapshot_older_than_the_tables_is_rebuilt_before_writing(tmp_path):
    store = Store(tmp_path / "l.ev")
    with store.writing(SETTINGS) as writer:
        writer.commit([a_file(writer.new_id(), "/a")])
    lost = a_file(1, "/b", 2)
    Tables(tmp_path / "l.ev" / "tables", "space", 4).put([lost.record], lost.windows, lost.vectors, [])
    with store.writing(SETTINGS) as writer:
        assert set(writer.files) == {"/a", "/b"}
    assert contents(store) == {"/a": [0.0] * 3, "/b": [1.0] * 2}


def test_bytes_past_the_manifest_do_not_exist(tmp_path):
    store = Store(tmp_path / "l.ev")
    with store.writing(SETTINGS) as writer:
        writer.commit([a_file(writer.new_id(), "/a")])
    for path in (tmp_path / "l.ev" / "snapshot").glob("*-*"):
        path.write_bytes(path.read_bytes() + b"half a write")
    assert contents(Store(tmp_path / "l.ev")) == {"/a": [0.0] * 3}
    with store.writing(SETTINGS) as writer:
        writer.commit([a_file(writer.new_id(), "/b", 1)])
    assert contents(Store(tmp_path / "l.ev")) == {"/a": [0.0] * 3, "/b": [1.0]}


def test_one_writer_at_a_time_while_readers_go_on(tmp_path):
    store, other = Store(tmp_path / "l.ev"), Store(tmp_path / "l.ev")
    with store.writing(SETTINGS) as writer:
        writer.commit([a_file(writer.new_id(), "/a")])
        with pytest.raises(LibraryError, match="written by another process"), other.writing(SETTINGS):
            pass
        with store.changing():
            assert contents(other) == {"/a": [0.0] * 3}


@pytest.mark.parametrize("missed", ["windows", "vectors"])
def test_rows_of_a_dead_writer_are_dropped_although_its_mark_is_gone(tmp_path, missed):
    """The whole snapshot was lost with the mark in it; the id of the lost file is given out again."""
    store, folder = Store(tmp_path / "l.ev"), tmp_path / "l.ev"
    with store.writing(SETTINGS) as writer:
        writer.commit([a_file(writer.new_id(), "/a")])
    lost = a_file(1, "/b", 2)
    tables = Tables(folder / "tables", "space", 4)
    tables.put([lost.record], lost.windows, lost.vectors, [])
    tables._tables["files"].delete("path = '/b'")
    tables._tables[missed].delete("file_id = 1")
    shutil.rmtree(folder / "snapshot")
    with store.writing(SETTINGS) as writer:
        writer.commit([a_file(writer.new_id(), "/c", 1)])
    assert contents(Store(folder)) == {"/a": [0.0] * 3, "/c": [1.0]}


def test_what_is_written_while_a_reader_loads_is_seen_by_its_next_search(tmp_path, monkeypatch):
    store, reader = Store(tmp_path / "l.ev"), Store(tmp_path / "l.ev")
    load = Snapshot.load
    with store.writing(SETTINGS) as writer:
        writer.commit([a_file(writer.new_id(), "/a")])

        def load_late(folder):
            found = load(folder)
            monkeypatch.undo()
            writer.commit([a_file(writer.new_id(), "/b", 1)])
            return found

        monkeypatch.setattr(Snapshot, "load", load_late)
        assert contents(reader) == {"/a": [0.0] * 3}
    assert contents(reader) == {"/a": [0.0] * 3, "/b": [1.0]}


def test_commits_go_on_after_finishing(tmp_path):
    store = Store(tmp_path / "l.ev")
    with store.writing(SETTINGS) as writer:
        writer.commit([a_file(writer.new_id(), "/a", 5)])
        writer.commit([a_file(writer.new_id(), "/a", 2)])
        writer.finish(SETTINGS)
        writer.commit([a_file(writer.new_id(), "/b", 1)])
        assert Snapshot.load(tmp_path / "l.ev" / "snapshot") is not None, "without a repair from the tables"
    assert contents(Store(tmp_path / "l.ev")) == {"/a": [1.0] * 2, "/b": [2.0]}


def test_torn_files_of_a_dead_writer(tmp_path):
    store = Store(tmp_path / "l.ev")
    store.folder.mkdir()
    for name in ("lock", "index.json.new"):
        (store.folder / name).touch()
    assert store.may_begin, "what a first writer leaves that died before index.json"
    (store.folder / "holiday.mp4").touch()
    assert not store.may_begin
    store.log_run({"files": 1})
    with (store.folder / "runs.jsonl").open("a") as file:
        file.write('{"files": ')
    assert store.runs() == [{"files": 1}]
    for damage in ("", "{", "[]", '{"format": 1}'):
        (store.folder / "index.json").write_text(damage)
        with pytest.raises(LibraryError, match=r"index\.json is damaged"):
            store.settings()


def test_vectors_of_another_length_are_refused(tmp_path):
    writer = SnapshotWriter.create(tmp_path / "s", "space", 4, 0)
    with pytest.raises(LibraryError, match=r"need vectors of shape \(1, 4\), got \(1, 5\)"):
        writer.append([], np.zeros(1, WINDOW), np.zeros((1, 5), np.float32), {})


def test_no_snapshot_is_none(tmp_path):
    assert Snapshot.load(tmp_path) is None
