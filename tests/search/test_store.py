"""What is on disk: commits, crashes between tables and snapshot, several writers, replaced and missing files."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from worlds import a_record

from elastivid.core.point import OperatingPoint, Sampling
from elastivid.search import tables as tables_module
from elastivid.search.records import FileRecord, LibraryError, Place
from elastivid.search.snapshot import WINDOW, Manifest, Snapshot, SnapshotWriter
from elastivid.search.store import Settings, Store
from elastivid.search.tables import Tables
from elastivid.search.writer import IndexedFile, Seen

SETTINGS = Settings("m", "space", 4, Sampling(), OperatingPoint(tokens=256), 0.5)


def a_file(path: str, windows: int = 3, value: float = 0.0, replaces: int | None = None, **changes) -> IndexedFile:
    rows = np.array([(0, 2.0 * k, 2.0 * k + 4) for k in range(windows)], dtype=WINDOW)
    vectors = np.full((windows, 4), value, np.float32)
    return IndexedFile(a_record(-1, path, windows=windows, **changes), rows, vectors, replaces)


def store_in(tmp_path: Path) -> Store:
    return Store(tmp_path / "l.ev")


def space_of(store: Store) -> Path:
    return store.space_folder("space")


def contents(store: Store) -> dict[str, list[float]]:
    """First coordinate of every searchable vector, by path."""
    snapshot = store.snapshot()
    found: dict[str, list[float]] = {}
    for row in np.flatnonzero(snapshot.searchable):
        path = snapshot.paths[int(snapshot.windows["file_id"][row])]
        found.setdefault(path, []).append(float(snapshot.vectors[row, 0]))
    return found


def table_rows(store: Store) -> tuple[list[int], list[float]]:
    """File ids and first coordinates in the table of vectors."""
    batches = list(Tables(store.tables_folder, "space", 4).batches())
    ids = [int(i) for windows, _ in batches for i in windows["file_id"]]
    return ids, [float(v) for _, vectors in batches for v in vectors[:, 0]]


def test_settings_survive_json():
    settings = Settings("m", "s", 8, Sampling(decode="keyframes"), OperatingPoint(tokens=9, width=(4, 8)), 1.5, True)
    assert Settings.from_json(settings.to_json()) == settings
    with pytest.raises(LibraryError, match="format 99"):
        Settings.from_json(json.dumps({**json.loads(settings.to_json()), "format": 99}))


def test_commits_are_seen_by_readers_at_once(tmp_path):
    store, reader = store_in(tmp_path), store_in(tmp_path)
    writer = store.writer(SETTINGS)
    (record,) = writer.commit([a_file("/a")])
    assert record.id == 0
    assert contents(reader) == {"/a": [0.0] * 3}
    stored = writer.commit([a_file("/b", 1, 1.0), a_file("/é \udcff", 2, 2.0, content="c")])
    assert [record.id for record in stored] == [1, 2]
    assert contents(reader) == {"/a": [0.0] * 3, "/b": [1.0], "/é \udcff": [2.0] * 2}
    later = store_in(tmp_path).writer(SETTINGS)
    assert {record.path for record in later.catalog.records.values()} == {"/a", "/b", "/é \udcff"}


def test_a_path_that_shows_another_content_keeps_the_old_one_as_missing(tmp_path):
    store = store_in(tmp_path)
    writer = store.writer(SETTINGS)
    writer.commit([a_file("/a", 2), a_file("/b", 1, 1.0)])
    writer.commit([a_file("/a", 3, 2.0, content="new")])
    assert contents(store) == {"/a": [2.0] * 3, "/b": [1.0]}
    old = writer.catalog.with_content("/a")
    assert old.missing
    writer.commit(seen=[Seen("/a", Place("/moved", 30))])
    assert contents(store) == {"/a": [2.0] * 3, "/b": [1.0], "/moved": [0.0] * 2}
    assert old.place("/a").missing


def test_a_content_read_again_replaces_its_rows_and_dead_rows_are_dropped(tmp_path):
    store = store_in(tmp_path)
    writer = store.writer(SETTINGS)
    writer.commit([a_file("/a", 5, status="partial"), a_file("/b", 1, 1.0)])
    writer.commit(seen=[Seen("/a", Place("/copy", 5))])
    writer.commit([a_file("/a", 2, 2.0, replaces=0)])
    assert contents(store) == {"/a": [2.0] * 2, "/b": [1.0]}
    assert writer.catalog.with_content("/a").paths == ("/a", "/copy"), "copies stay known"
    assert len(store.snapshot().vectors) == 8
    writer.finish()
    assert len(store.snapshot().vectors) == 3
    assert contents(store) == {"/a": [2.0] * 2, "/b": [1.0]}
    assert len(list(space_of(store).glob("vectors-*.bin"))) == 1
    writer.commit([a_file("/c", 1, 3.0)])
    assert Snapshot.load(space_of(store)) is not None, "without a repair from the tables"
    assert contents(store_in(tmp_path)) == {"/a": [2.0] * 2, "/b": [1.0], "/c": [3.0]}


def test_a_file_that_could_not_be_opened_leaves_nothing_behind_when_it_can(tmp_path):
    writer = store_in(tmp_path).writer(SETTINGS)
    writer.commit([a_file("/a", 0, content="", status="failed", reason="Permission denied")])
    writer.commit([a_file("/a", 1, content="c")])
    assert [record.content for record in writer.catalog.records.values()] == ["c"]
    assert len(store_in(tmp_path).snapshot().records) == 1


def test_appending_does_not_rewrite(tmp_path):
    store = store_in(tmp_path)
    writer = store.writer(SETTINGS)
    writer.commit([a_file("/a", 50)])
    path = next(space_of(store).glob("vectors-*.bin"))
    inode, head = path.stat().st_ino, path.read_bytes()
    writer.commit([a_file("/b", 1)])
    assert path.stat().st_ino == inode
    assert path.read_bytes()[: len(head)] == head


def test_many_commits_are_compacted_and_stay_readable(tmp_path):
    store = store_in(tmp_path)
    writer = store.writer(SETTINGS)
    for number in range(40):
        writer.commit([a_file(f"/{number:02d}", 1, number)])
    writer.finish()
    assert contents(store) == {f"/{number:02d}": [float(number)] for number in range(40)}
    assert Manifest.require(space_of(store)).tables == Tables(store.tables_folder, "space", 4).versions()
    assert len(list((store.tables_folder / "vectors__space.lance" / "data").iterdir())) == 1


def test_nothing_is_left_of_pieces_that_were_joined_however_fast_the_disk_is(tmp_path, recwarn):
    """Joining writes two versions; in memory they are less than a millisecond apart, and the first needs the pieces."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        for number in range(4):
            store = Store(Path(folder) / f"{number}.ev")
            writer = store.writer(SETTINGS)
            for name in "abc":
                writer.commit([a_file(f"/{name}", 1, number)])
            with writer.turn():
                writer.compact()
            for table in ("files", "vectors"):
                assert len(os.listdir(store.tables_folder / f"{table}__space.lance" / "data")) == 1
            assert len(contents(store)) == 3
    assert not [warning for warning in recwarn if "cleanup_older_than" in str(warning.message)]


def test_rows_that_the_tables_give_in_another_order_are_sorted(tmp_path, monkeypatch):
    store = store_in(tmp_path)
    writer = store.writer(SETTINGS)
    writer.commit([a_file("/a", 3, 1.0), a_file("/b", 2, 2.0)])
    batches = list(Tables(store.tables_folder, "space", 4).batches())
    shuffled = [(windows[[4, 0, 2, 3, 1]], vectors[[4, 0, 2, 3, 1]]) for windows, vectors in batches]
    monkeypatch.setattr(Tables, "batches", lambda self: iter(shuffled))
    with writer.turn():
        writer.compact(dead_fraction=-1.0)
    snapshot = store.snapshot()
    assert snapshot.windows["file_id"].tolist() == [0, 0, 0, 1, 1]
    assert snapshot.windows["start_seconds"].tolist() == [0, 2, 4, 0, 2]
    assert snapshot.vectors[:, 0].tolist() == [1, 1, 1, 2, 2]


# crashes


def commit_and_die(store: Store, monkeypatch, owner: type, name: str, file: IndexedFile) -> None:
    """Store a file, but die when `owner.name` is called, where a kill or a power cut could come."""

    def die(*args, **kwargs):
        raise KeyboardInterrupt(name)

    writer = store.writer(SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, die)
        with pytest.raises(KeyboardInterrupt):
            writer.commit([file])


@pytest.mark.parametrize(
    ("owner", "name"), [(SnapshotWriter, "append"), (Manifest, "write")], ids=["before-snapshot", "before-manifest"]
)
def test_killed_between_tables_and_snapshot(tmp_path, monkeypatch, owner, name):
    store = store_in(tmp_path)
    store.writer(SETTINGS).commit([a_file("/a")])
    commit_and_die(store, monkeypatch, owner, name, a_file("/b", 2, 1.0))
    assert (space_of(store) / "dirty").exists()
    assert contents(store_in(tmp_path)) == {"/a": [0.0] * 3}, "readers see the last commit that was finished"
    store_in(tmp_path).writer(SETTINGS)
    assert contents(store_in(tmp_path)) == {"/a": [0.0] * 3, "/b": [1.0] * 2}
    assert not (space_of(store) / "dirty").exists()


def test_killed_before_old_rows_are_deleted(tmp_path, monkeypatch):
    store = store_in(tmp_path)
    store.writer(SETTINGS).commit([a_file("/b", 3, status="partial")])
    commit_and_die(store, monkeypatch, Tables, "delete", a_file("/b", 2, 1.0, replaces=0))
    store_in(tmp_path).writer(SETTINGS)
    assert contents(store) == {"/b": [1.0] * 2}
    assert table_rows(store) == ([1, 1], [1.0, 1.0])


def test_killed_before_the_file_row_leaves_no_trace(tmp_path, monkeypatch):
    store = store_in(tmp_path)
    store.writer(SETTINGS).commit([a_file("/a")])
    commit_and_die(store, monkeypatch, FileRecord, "to_row", a_file("/b", 2, 1.0))
    assert contents(store_in(tmp_path)) == {"/a": [0.0] * 3}
    # the id is used again: nothing of the lost file may come back
    store_in(tmp_path).writer(SETTINGS).commit([a_file("/c", 1, 5.0)])
    assert table_rows(store) == ([0, 0, 0, 1], [0, 0, 0, 5.0])


def test_a_commit_that_failed_leaves_the_writer_usable(tmp_path, monkeypatch):
    store = store_in(tmp_path)
    writer = store.writer(SETTINGS)
    writer.commit([a_file("/a")])

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(SnapshotWriter, "append", full)
        with pytest.raises(LibraryError, match=r"disk of .*l\.ev is full; what was finished"):
            writer.commit([a_file("/b", 2, 1.0)])
    writer.commit([a_file("/b", 2, 1.0), a_file("/c", 1, 2.0)])
    assert contents(store) == {"/a": [0.0] * 3, "/b": [1.0] * 2, "/c": [2.0]}
    assert table_rows(store)[0] == [0, 0, 0, 1, 1, 2]


def test_a_process_killed_for_real_is_repaired(tmp_path):
    script = """
import os, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_store import SETTINGS, Store, SnapshotWriter, a_file
writer = Store(Path(sys.argv[1])).writer(SETTINGS)
writer.commit([a_file("/a")])
SnapshotWriter.append = lambda *args: os._exit(9)
writer.commit([a_file("/b", 2, 1.0)])
"""
    folder = tmp_path / "l.ev"
    done = subprocess.run([sys.executable, "-c", script, str(folder), str(Path(__file__).parent)], check=False)
    assert done.returncode == 9
    assert (space_of(Store(folder)) / "dirty").exists()
    Store(folder).writer(SETTINGS)
    assert contents(Store(folder)) == {"/a": [0.0] * 3, "/b": [1.0] * 2}


def test_a_record_that_lost_vectors_to_a_power_cut_is_dropped_to_be_read_again(tmp_path):
    store = store_in(tmp_path)
    store.writer(SETTINGS).commit([a_file("/a", 3), a_file("/b", 2, 1.0)])
    tables = Tables(store.tables_folder, "space", 4)
    tables._tables["vectors"].delete("file_id = 0 AND start_seconds > 1")
    writer = store_in(tmp_path).writer(SETTINGS)
    assert contents(store) == {"/b": [1.0] * 2}
    assert writer.catalog.at("/a") is None
    assert table_rows(store)[0] == [1, 1]


@pytest.mark.parametrize("damage", ["manifest", "vectors", "files", "garbage"])
def test_a_damaged_snapshot_is_rebuilt(tmp_path, damage):
    store = store_in(tmp_path)
    store.writer(SETTINGS).commit([a_file("/a"), a_file("/b", 2, 1.0)])
    folder = space_of(store)
    if damage == "manifest":
        (folder / "manifest.json").unlink()
    elif damage == "garbage":
        (folder / "manifest.json").write_text("{")
    else:
        path = next(folder.glob(f"{damage}-*"))
        path.write_bytes(path.read_bytes()[:-1])
    assert contents(store_in(tmp_path)) == {"/a": [0.0] * 3, "/b": [1.0] * 2}


def test_a_snapshot_older_than_the_tables_is_rebuilt_before_writing(tmp_path):
    store = store_in(tmp_path)
    store.writer(SETTINGS).commit([a_file("/a")])
    lost, rows = a_record(1, "/b", windows=2), np.array([(1, 0, 4), (1, 2, 6)], dtype=WINDOW)
    Tables(store.tables_folder, "space", 4).put([lost], rows, np.ones((2, 4), np.float32), [])
    assert len(store_in(tmp_path).writer(SETTINGS).catalog) == 2
    assert contents(store) == {"/a": [0.0] * 3, "/b": [1.0] * 2}


def test_bytes_past_the_manifest_do_not_exist(tmp_path):
    store = store_in(tmp_path)
    store.writer(SETTINGS).commit([a_file("/a")])
    for path in space_of(store).glob("*-*"):
        path.write_bytes(path.read_bytes() + b"half a write")
    assert contents(store_in(tmp_path)) == {"/a": [0.0] * 3}
    store.writer(SETTINGS).commit([a_file("/b", 1, 1.0)])
    assert contents(store_in(tmp_path)) == {"/a": [0.0] * 3, "/b": [1.0]}


@pytest.mark.parametrize("missed", ["record", "vectors"])
def test_rows_of_a_dead_writer_are_dropped_although_its_mark_is_gone(tmp_path, missed):
    """The whole snapshot was lost with the mark in it; the id of the lost file is given out again."""
    store = store_in(tmp_path)
    store.writer(SETTINGS).commit([a_file("/a")])
    rows = np.array([(1, 0, 4)], dtype=WINDOW)
    tables = Tables(store.tables_folder, "space", 4)
    tables.put([a_record(1, "/b", windows=1)], rows, np.ones((1, 4), np.float32), [])
    key, rows = ("vectors", "file_id = 1") if missed == "vectors" else ("files", "id = 1")
    tables._tables[key].delete(rows)
    shutil.rmtree(space_of(store))
    store.writer(SETTINGS).commit([a_file("/c", 1, 2.0)])
    assert contents(store_in(tmp_path)) == {"/a": [0.0] * 3, "/c": [2.0]}


# several processes


def test_two_writers_take_turns(tmp_path):
    one, other = store_in(tmp_path).writer(SETTINGS), store_in(tmp_path).writer(SETTINGS)
    one.commit([a_file("/a", 1, 1.0)])
    other.commit([a_file("/b", 1, 2.0)])
    one.commit([a_file("/c", 1, 3.0), a_file("/b", 1, 9.0)])
    assert contents(store_in(tmp_path)) == {"/a": [1.0], "/b": [2.0], "/c": [3.0]}, "what the other stored stays"
    assert table_rows(store_in(tmp_path)) == ([0, 1, 2], [1.0, 2.0, 3.0])
    other.refresh()
    assert other.catalog.at("/c").id == 2
    with one.turn():
        one.compact()
    other.commit([a_file("/d", 1, 4.0)])
    assert contents(store_in(tmp_path)) == {"/a": [1.0], "/b": [2.0], "/c": [3.0], "/d": [4.0]}
    assert Snapshot.load(space_of(store_in(tmp_path))) is not None


def test_who_commits_after_a_writer_died_mends_what_it_left(tmp_path, monkeypatch):
    alive, store = store_in(tmp_path).writer(SETTINGS), store_in(tmp_path)
    alive.commit([a_file("/a", 1)])
    commit_and_die(store, monkeypatch, SnapshotWriter, "append", a_file("/b", 2, 1.0))
    alive.commit([a_file("/c", 1, 2.0)])
    assert contents(store) == {"/a": [0.0], "/b": [1.0] * 2, "/c": [2.0]}


def test_a_writer_waits_and_says_so(tmp_path, monkeypatch):
    from elastivid.search import store as store_module

    monkeypatch.setattr(store_module, "SAY_AFTER_SECONDS", 0.0)
    store, said = store_in(tmp_path), []
    store.writer(SETTINGS)

    def let_go(text: str) -> None:
        said.append(text)
        lock.__exit__(None, None, None)

    lock = store.lock()
    lock.__enter__()
    store_in(tmp_path).writer(SETTINGS, let_go).commit([a_file("/a")])
    assert said == [f"waiting: another process is writing to {tmp_path / 'l.ev'}"]


def test_what_is_written_while_a_reader_loads_is_seen_by_its_next_search(tmp_path, monkeypatch):
    store, reader = store_in(tmp_path), store_in(tmp_path)
    load = Snapshot.load
    writer = store.writer(SETTINGS)
    writer.commit([a_file("/a")])

    def load_late(folder):
        found = load(folder)
        monkeypatch.undo()
        writer.commit([a_file("/b", 1, 1.0)])
        return found

    monkeypatch.setattr(Snapshot, "load", load_late)
    assert contents(reader) == {"/a": [0.0] * 3}
    assert contents(reader) == {"/a": [0.0] * 3, "/b": [1.0]}


def test_an_index_that_another_process_made_differently_meanwhile_is_refused(tmp_path):
    store_in(tmp_path).writer(SETTINGS)
    other = Settings("m", "space", 4, Sampling(frames=4), OperatingPoint(tokens=256), 0.5)
    with pytest.raises(LibraryError, match=r"is made with .*frames=8.* by now, not with .*frames=4"):
        store_in(tmp_path).writer(other)


# small things


def test_new_files_of_a_commit_are_flushed(tmp_path, monkeypatch):
    store = store_in(tmp_path)
    writer = store.writer(SETTINGS)
    flushed: list[str] = []
    open_ = tables_module.os.open
    monkeypatch.setattr(tables_module.os, "open", lambda path, *rest: flushed.append(str(path)) or open_(path, *rest))
    writer.commit([a_file("/a")])
    assert {Path(path).suffix for path in flushed} >= {".lance", ".manifest"}
    assert str(store.tables_folder / "vectors__space.lance" / "data") in flushed


def test_torn_files_of_a_dead_writer(tmp_path):
    store = store_in(tmp_path)
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
    store.log_run({"files": 2})
    assert store.runs() == [{"files": 1}, {"files": 2}]
    for damage in ("", "{", "[]", '{"format": 2}'):
        (store.folder / "index.json").write_text(damage)
        with pytest.raises(LibraryError, match=r"index\.json is damaged"):
            store.settings()


def test_vectors_of_another_length_are_refused(tmp_path):
    writer = SnapshotWriter.create(tmp_path / "s", "space", 4, 0)
    with pytest.raises(LibraryError, match=r"need vectors of shape \(1, 4\), got \(1, 5\)"):
        writer.append([], np.zeros(1, WINDOW), np.zeros((1, 5), np.float32), {})


def test_no_snapshot_is_none(tmp_path):
    assert Snapshot.load(tmp_path) is None
