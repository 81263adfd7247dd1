"""Keeping an index: files that move, get copied, come back; forgetting; the state; moving to another model."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from worlds import ColourEncoder, a_record, render

from elastivid.app.prune import lines_of_prunable
from elastivid.app.status import lines_of_status
from elastivid.core.point import OperatingPoint
from elastivid.search import claims
from elastivid.search import index as index_module
from elastivid.search import reindex as reindex_module
from elastivid.search.catalog import Catalog
from elastivid.search.identity import SAMPLE_BYTES, content_of
from elastivid.search.index import Index
from elastivid.search.records import LibraryError, Place


@pytest.fixture
def videos(tmp_path) -> Path:
    folder = tmp_path / "videos"
    (folder / "sub").mkdir(parents=True)
    render(folder / "a.mp4", ("red", 6))
    render(folder / "b.mp4", ("green", 5))
    render(folder / "sub" / "c.mp4", ("blue", 4))
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 20)
    return folder


@pytest.fixture
def encoder() -> ColourEncoder:
    return ColourEncoder()


@pytest.fixture
def index(tmp_path, videos, encoder) -> Index:
    index = Index.open(tmp_path / "l.ev", encoder=encoder)
    index.add(videos)
    encoder.windows_seen = 0
    return index


def found(index: Index, colour: str) -> set[str]:
    return {os.path.basename(moment.path) for moment in index.search(colour, top=50) if moment.score > 0.9}


# identity


def test_content_is_size_and_samples_or_everything(tmp_path):
    first, other = tmp_path / "a", tmp_path / "b"
    blob = bytearray(range(256)) * 4096
    first.write_bytes(blob)
    blob[3 * SAMPLE_BYTES] ^= 1  # between the samples
    other.write_bytes(blob)
    assert content_of(str(first)) == content_of(str(other))
    assert content_of(str(first), full_hash=True) != content_of(str(other), full_hash=True)
    for place in (0, len(blob) // 2, len(blob) - 1):
        changed = bytearray(blob)
        changed[place] ^= 1
        other.write_bytes(changed)
        assert content_of(str(first)) != content_of(str(other))
    other.write_bytes(first.read_bytes() + b"x")
    assert content_of(str(first)) != content_of(str(other))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        content_of(str(tmp_path / "pipe"))


def test_catalog_knows_who_shows_what():
    catalog = Catalog([a_record(0, "/a"), a_record(1, "/b")])
    changed = catalog.show(catalog.records[1], Place("/a", 7))
    assert {record.id for record in changed} == {0, 1}
    assert catalog.at("/a").id == 1
    assert catalog.records[0].missing
    assert catalog.records[1].paths == ("/b", "/a")
    assert catalog.show(catalog.records[1], Place("/a", 7)) == [], "nothing new"
    (left,) = catalog.leave("/a")
    assert left.paths == ("/b",)
    assert catalog.at("/a") is not None, "what was there last is remembered"
    catalog.remove(1)
    assert catalog.with_content("/b") is None
    assert catalog.has_size(10)
    catalog.remove(0)
    assert not catalog.has_size(10)


# files that move


def test_a_moved_folder_a_copy_and_a_touched_file_are_not_read(index, videos, encoder):
    shutil.move(videos / "sub", videos / "renamed")
    shutil.copy(videos / "a.mp4", videos / "copy.mp4")
    os.utime(videos / "b.mp4", ns=(5, 5))
    report = index.add(videos)
    assert (report.indexed, report.recognised, report.unchanged, report.windows) == (0, 3, 2, 0)
    assert report.missing == []
    assert encoder.windows_seen == 0
    assert found(index, "blue") == {"c.mp4"}
    assert index.search("blue", top=1)[0].path == str(videos / "renamed" / "c.mp4")
    assert found(index, "red") == {"a.mp4"}, "copies are one result"
    (record,) = [record for record in index.files() if len(record.paths) == 2]
    assert [os.path.basename(path) for path in record.paths] == ["a.mp4", "copy.mp4"]
    (videos / "a.mp4").unlink()
    index.add(videos)
    assert found(index, "red") == {"copy.mp4"}
    assert index.add(videos).recognised == 0


def test_files_that_trade_names_are_not_read(index, videos, encoder):
    for old, new in (("a", "x"), ("b", "a"), ("x", "b")):
        (videos / f"{old}.mp4").rename(videos / f"{new}.mp4")
    assert index.add(videos).recognised == 2
    assert encoder.windows_seen == 0
    assert (found(index, "red"), found(index, "green")) == ({"b.mp4"}, {"a.mp4"})


def test_copies_that_come_together_are_read_once(tmp_path, videos, encoder):
    for number in range(5):
        shutil.copy(videos / "a.mp4", videos / f"copy {number}.mp4")
        shutil.copy(videos / "noise.mp4", videos / f"noise {number}.mp4")
    report = Index.open(tmp_path / "l.ev", encoder=encoder).add(videos)
    assert (report.indexed, report.recognised, report.windows) == (3, 10, 2 + 2 + 1)
    assert len(report.bad) == 6, "every bad file is named"
    assert len({record.path for record in report.bad}) == 6


def test_a_bad_file_is_known_wherever_it_goes_and_tried_when_it_changes(index, videos):
    shutil.move(videos / "noise.mp4", videos / "moved.mp4")
    report = index.add(videos)
    assert [os.path.basename(record.path) for record in report.bad] == ["moved.mp4"]
    assert report.windows == 0
    os.utime(videos / "moved.mp4", ns=(5, 5))
    assert index.add(videos).recognised == 0, "written to: it is tried again"
    assert index.add(videos).bad == []


def test_an_overwritten_file_comes_back_from_a_backup(index, videos, encoder):
    backup = (videos / "a.mp4").read_bytes()
    render(videos / "a.mp4", ("grey", 5))
    assert index.add(videos).indexed == 1
    assert found(index, "red") == set()
    (videos / "a.mp4").write_bytes(backup)
    seen = encoder.windows_seen
    assert index.add(videos).recognised == 1
    assert encoder.windows_seen == seen
    assert found(index, "red") == {"a.mp4"}


def test_a_file_that_cannot_be_opened_is_tried_by_every_run(index, videos):
    (videos / "dangling.mp4").symlink_to(videos / "later.mov")
    assert [os.path.basename(record.path) for record in index.add(videos).bad] == ["dangling.mp4"]
    assert len(index.add(videos).bad) == 1
    render(videos.parent / "x.mov", ("grey", 4)).rename(videos / "later.mov")
    report = index.add(videos)
    assert report.bad == []
    assert len([record for record in index.files() if record.status == "failed"]) == 1, "the noise"


def test_all_bytes_count_where_asked(tmp_path, videos, encoder):
    index = Index.open(tmp_path / "full.ev", encoder=encoder, full_hash=True)
    index.add(videos)
    assert all(record.content.startswith("f") for record in index.files())
    assert Index.open(tmp_path / "full.ev", encoder=encoder).settings.full_hash
    Index.open(tmp_path / "samples.ev", encoder=encoder).add(videos)
    with pytest.raises(LibraryError, match="tells files apart by samples"):
        Index.open(tmp_path / "samples.ev", full_hash=True)


def test_a_run_with_nothing_to_do_loads_no_model_and_no_database(index, videos, monkeypatch):
    def no(*args, **kwargs):
        raise AssertionError("loaded")

    monkeypatch.setattr(index_module.Index, "_encoder", property(no))
    monkeypatch.setattr("elastivid.search.tables.Tables.__init__", no)
    report = Index.open(index.path).add(videos)
    assert (report.unchanged, report.indexed) == (4, 0)


def test_points_are_not_mixed(index):
    with pytest.raises(LibraryError, match=r"made with .*tokens=256.*asked for .*tokens=64.*leave point out"):
        Index.open(index.path, encoder=ColourEncoder(), point=OperatingPoint(tokens=64))
    Index.open(index.path, encoder=ColourEncoder(), point=OperatingPoint(tokens=256))


def test_a_read_only_index_is_searched(index, videos):
    nothing_new = {path: path.stat().st_mtime_ns for path in sorted(index.path.rglob("*"))}
    for path in (index.path, *index.path.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        again = Index.open(index.path, encoder=ColourEncoder())
        assert found(again, "red") == {"a.mp4"}
        assert again.status().windows == 5
        assert again.add(videos).unchanged == 4
        assert {path: path.stat().st_mtime_ns for path in nothing_new} == nothing_new
    finally:
        for path in (index.path, *index.path.rglob("*")):
            path.chmod(0o755)


# forgetting


def test_prune_forgets_what_is_gone_and_only_that(index, videos):
    assert index.prunable().is_empty
    (videos / "a.mp4").unlink()
    shutil.copy(videos / "b.mp4", videos / "copy.mp4")
    index.add(videos)
    (videos / "copy.mp4").unlink()  # not noticed by any run
    prunable = index.prunable()
    assert [os.path.basename(record.path) for record in prunable.gone] == ["a.mp4"]
    assert [os.path.basename(path) for path, _ in prunable.left] == ["copy.mp4"]
    assert lines_of_prunable(prunable)[0] == "1 files that are nowhere any more, 2 windows:"
    assert index.prunable([videos / "sub"]).is_empty
    index.prune(prunable)
    assert len(index.files()) == 3
    assert index.prunable().is_empty
    assert len(index._store.snapshot().windows) == 3, "no dead rows are left"
    assert found(index, "red") == set()
    assert found(index, "green") == {"b.mp4"}


def test_a_file_after_a_prune_is_compared_with_its_own_null_scores(index, videos, tmp_path, encoder):
    """Numbers of forgotten files are given again: nothing kept under such a number may outlive them."""
    index.search_with_cost("red")
    last = max((r for r in index.files() if r.windows), key=lambda r: r.id)
    os.unlink(last.path)
    index.add(videos)
    index.prune(index.prunable(), force=True)
    render(videos / "new.mp4", ("red", 3), ("blue", 4))
    index.add(videos)
    with Index.open(tmp_path / "fresh.ev", encoder=encoder) as fresh:
        fresh.add(videos)
        wanted, got = fresh.search_with_cost("red"), index.search_with_cost("red")
    assert got.confidence == wanted.confidence
    snapshot, fresh_snapshot = index._store.snapshot(), fresh._store.snapshot()
    ours, theirs = index._null_scores(), fresh._null_scores()
    by_path = {snapshot.paths[i]: row for i, row in zip(ours.file_ids.tolist(), ours.maxima, strict=True)}
    for number, row in zip(theirs.file_ids.tolist(), theirs.maxima, strict=True):
        assert np.allclose(by_path[fresh_snapshot.paths[number]], row, atol=1e-6)


def test_what_came_back_before_the_answer_is_kept(index, videos):
    aside = videos.parent / "aside.mp4"
    shutil.move(videos / "a.mp4", aside)
    prunable = index.prunable()
    shutil.move(aside, videos / "a.mp4")
    index.prune(prunable)
    assert found(index, "red") == {"a.mp4"}


def test_prune_forgets_a_content_that_was_overwritten(index, videos):
    render(videos / "a.mp4", ("grey", 5))
    index.add(videos)
    index.prune(index.prunable())
    assert [record.missing for record in index.files()] == [False] * 4
    assert found(index, "grey") == {"a.mp4"}


@pytest.mark.parametrize("what", ["root gone", "root empty", "all lost", "subfolder empty"])
def test_an_unmounted_disk_is_not_a_mass_deletion(index, videos, what):
    if what == "subfolder empty":
        (videos / "sub" / "c.mp4").unlink()
    else:
        shutil.rmtree(videos)
    if what in ("root empty", "all lost"):
        videos.mkdir()
    if what == "all lost":
        (videos / "lost+found").mkdir()
    prunable = index.prunable()
    assert len(prunable.gone) == (1 if what == "subfolder empty" else 4)
    with pytest.raises(
        LibraryError, match=r"nothing was forgotten: .* as if a disk were not mounted; mount it, or say"
    ):
        index.prune(prunable)
    assert len(index.files()) == 4
    index.prune(prunable, force=True)
    assert len(index.files()) == 4 - len(prunable.gone)


def test_an_unmounted_disk_may_have_a_dot_in_its_name(index, videos):
    disk, other = videos.parent / "mnt" / "disk.1", videos.parent / "mnt" / "other.mp4"
    disk.parent.mkdir()
    shutil.copytree(videos, disk)
    render(disk / "red.mp4", ("red", 3), ("blue", 6))
    render(other, ("green", 3), ("grey", 4))
    shutil.rmtree(videos)
    index.add([disk, other])
    shutil.rmtree(disk)  # what lies beside it is still there
    with pytest.raises(LibraryError, match=r"disk\.1 .* as if a disk were not mounted"):
        index.prune(index.prunable())


def test_deleting_a_subfolder_is_no_unmounted_disk(index, videos):
    shutil.rmtree(videos / "sub")
    prunable = index.prunable()
    assert (len(prunable.gone), prunable.vanished) == (1, {})
    index.prune(prunable)
    assert len(index.files()) == 3


# state


def test_status_counts_and_says_what_to_do(index, videos):
    (videos / "a.mp4").unlink()
    index.add(videos)
    shutil.rmtree(videos / "sub")
    os.utime(videos / "b.mp4", ns=(5, 5))
    (index._store.space_folder("colours") / "dirty").touch()
    status = index.status()
    assert status.files == {"failed": 1, "indexed": 2, "missing": 1}
    assert [os.path.basename(path) for path in status.unreachable] == ["c.mp4"]
    assert [os.path.basename(path) for path in status.changed] == ["b.mp4"]
    assert status.windows == 3
    assert status.size_bytes >= status.tables_bytes + status.snapshot_bytes > 0
    assert [run["ended"] for run in status.runs] == ["done", "done"]
    text = "\n".join(lines_of_status(status))
    for words in ("4: 1 failed, 2 indexed, 1 missing", "a process died while writing", "1 files changed", "c.mp4"):
        assert words in text
    values = json.loads(json.dumps(status.to_values()))
    assert values["spaces"][0]["state"] == "searched"
    assert values["megabytes_per_hour"] > 0


# another model


class GreyEncoder(ColourEncoder):
    """Another space: colours with one more number."""

    dim = 4

    def __init__(self) -> None:
        super().__init__("greys")
        self.name = "grey-encoder"

    def embed_clips(self, video, *, point=None):
        import torch

        mean = video.mean(dim=(1, 3, 4))
        self.windows_seen += len(video)
        return torch.nn.functional.normalize(torch.cat([mean, torch.full((len(mean), 1), 0.1)], 1), dim=-1)

    def embed_texts(self, texts):
        import numpy as np

        rows = np.pad(super().embed_texts(texts), ((0, 0), (0, 1)))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_reindex_switches_when_all_is_there(index, videos, tmp_path, encoder):
    other = Index.open(index.path, encoder=GreyEncoder())
    with pytest.raises(LibraryError, match="elastivid reindex --model grey-encoder"):
        other.search("red")
    (videos / "a.mp4").rename(videos / "away")  # a disk that is not mounted just now
    (record,) = [record for record in index.files() if record.path.endswith("b.mp4")]
    report = other.reindex()
    assert (report.read, report.kept, report.pending, report.bad) == (2, 1, 1, [])
    assert [record.id] == [r.id for r in other.files() if r.path.endswith("b.mp4")], "files keep their numbers"
    assert other.settings.space_id == "greys"
    assert found(other, "green") == {"b.mp4"}
    assert found(other, "red") == set()
    (videos / "away").rename(videos / "a.mp4")
    report = other.add(videos)
    assert (report.indexed, report.unchanged) == (1, 3)
    assert found(other, "red") == {"a.mp4"}
    with pytest.raises(LibraryError, match=r"was made with model 'grey-encoder'"):
        index.search("red")
    with pytest.raises(LibraryError, match="is made with grey-encoder already"):
        other.reindex()
    states = [(space.model, space.state) for space in other.status().spaces]
    assert states == [("grey-encoder", "searched"), ("colour-encoder", "old")]
    prunable = other.prunable()
    assert [settings.model for settings in prunable.spaces] == ["colour-encoder"]
    other.prune(prunable)
    assert len(other.status().spaces) == 1
    assert not list((index.path / "tables").glob("*colours*"))
    assert found(other, "red") == {"a.mp4"}


def test_an_interrupted_reindex_goes_on_and_is_not_seen_before_it_ends(index, videos, monkeypatch):
    embed, count = GreyEncoder.embed_clips, []

    def die_later(self, video, *, point=None):
        count.append(len(video))
        if len(count) == 2:
            raise KeyboardInterrupt
        return embed(self, video, point=point)

    monkeypatch.setattr("elastivid.search.indexing.BATCH_WINDOWS", 1)
    monkeypatch.setattr("elastivid.search.indexing.ENCODER_THREADS", 1)
    monkeypatch.setattr(GreyEncoder, "embed_clips", die_later)
    with pytest.raises(KeyboardInterrupt):
        Index.open(index.path, encoder=GreyEncoder()).reindex()
    assert found(index, "red") == {"a.mp4"}
    (unfinished,) = index.status().spaces[1:]
    assert unfinished.state == "unfinished"
    assert index.prunable().is_empty, "prune leaves what somebody may go on with"
    monkeypatch.setattr(GreyEncoder, "embed_clips", embed)
    shutil.move(videos / "b.mp4", videos / "moved.mp4")
    render(videos / "new.mp4", ("grey", 4))
    index.add(videos)  # the old space goes on being kept
    other = Index.open(index.path, encoder=GreyEncoder())
    other.reindex(drop_old=True)
    assert found(other, "green") == {"moved.mp4"}
    assert len(other) == 6
    assert [space.state for space in other.status().spaces] == ["searched"]
    assert not (index.path / "spaces" / "colours").exists()


def test_an_unfinished_reindex_can_be_given_up(index, monkeypatch):
    def die(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reindex_module.Reindexing, "_embed_rest", die)
        with pytest.raises(KeyboardInterrupt):
            Index.open(index.path, encoder=GreyEncoder()).reindex()
    index.prune(index.prunable(unfinished=True))
    assert [space.state for space in index.status().spaces] == ["searched"]
    assert found(index, "red") == {"a.mp4"}


def test_who_adds_while_the_index_moves_is_told(index, videos, monkeypatch):
    writer = index._store.writer(index.settings)
    Index.open(index.path, encoder=GreyEncoder()).reindex()
    with pytest.raises(LibraryError, match="moved it to another model; run the same command again"):
        writer.commit(gone=[str(videos / "a.mp4")])


def test_claims_of_two_spaces_do_not_meet(tmp_path):
    assert claims.Claims(tmp_path, "a")._offset("c") != claims.Claims(tmp_path, "b")._offset("c")
    assert 0 <= claims.Claims(tmp_path, "a")._offset("c") < 2**62
