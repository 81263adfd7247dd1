"""Folders to moments on real files, with an encoder that knows colours."""

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import reads
from worlds import COLOURS, ColourEncoder, render

from elastivid.app.text import lines_of_add
from elastivid.core.errors import WeightsError
from elastivid.core.point import OperatingPoint, Sampling
from elastivid.search import indexing, reading, workers
from elastivid.search.index import Index
from elastivid.search.library import find_videos
from elastivid.search.records import LibraryError, QueryError, path_to_text, text_to_path
from elastivid.search.workers import Workers
from elastivid.weights.load import resolve


@pytest.fixture
def videos(tmp_path) -> Path:
    """Three good videos, one of them with a name to trip over, and two bad ones."""
    folder = tmp_path / "my videos"
    (folder / "été").mkdir(parents=True)
    render(folder / "a.mp4", ("red", 6), ("blue", 6))
    render(folder / "été" / "日本 #1?.mp4", ("green", 5))
    render(folder / "short.mp4", ("blue", 1))
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 20)
    (folder / "empty.mov").write_bytes(b"")
    (folder / "notes.txt").write_text("not a video, not looked at")
    return folder


@pytest.fixture
def index(tmp_path) -> Index:
    return Index.open(tmp_path / "library.ev", encoder=ColourEncoder())


def test_index_then_search(index, videos):
    report = index.add(videos)
    assert (report.indexed, report.unchanged, report.missing) == (3, 0, [])
    assert [Path(record.path).name for record in report.bad] == ["empty.mov", "noise.mp4"]
    assert all(record.status == "failed" and record.reason for record in report.bad)
    assert report.video_seconds == pytest.approx(18.0, abs=0.3)
    assert report.windows == len(index) == 5 + 2 + 1

    (moment,) = index.search("green", top=1)
    assert moment.path == str(videos / "été" / "日本 #1?.mp4")
    assert (moment.start_seconds, moment.windows) == (0.0, 2)
    assert moment.end_seconds == pytest.approx(5.0, abs=0.1)
    red = index.search("red", top=1)[0]
    assert (Path(red.path).name, red.start_seconds, red.end_seconds) == ("a.mp4", 0.0, 6.0)
    assert {Path(m.path).name for m in index.search("blue", top=2)} == {"a.mp4", "short.mp4"}
    assert len(index.search("red", top=100)) >= 4


def test_the_settings_that_were_used_are_recorded(index, videos):
    index.add(videos / "a.mp4")
    settings = Index.open(index.path).settings
    assert (settings.model, settings.space_id, settings.dim) == ("colour-encoder", "colours", 3)
    assert settings.sampling == Sampling()
    assert settings.point == OperatingPoint(tokens=256)
    assert settings.gmacs_per_window == pytest.approx(8 * 168 * 168 / 1e9)
    (run,) = index.runs()
    assert run["windows"] == 5
    assert run["x_realtime"] > 0


def test_the_second_run_reads_only_what_changed(tmp_path, videos):
    Index.open(tmp_path / "l.ev", encoder=ColourEncoder()).add(videos)
    encoder = ColourEncoder()
    index = Index.open(tmp_path / "l.ev", encoder=encoder)
    report = index.add(videos)
    assert (report.indexed, report.unchanged, report.windows, report.bad) == (0, 5, 0, [])
    assert [Path(record.path).name for record in report.still_bad] == ["empty.mov", "noise.mp4"]
    assert encoder.windows_seen == 0

    render(videos / "a.mp4", ("green", 8))
    render(videos / "new.mp4", ("red", 2))
    render(videos / "noise.mp4", ("grey", 2))
    report = index.add(videos)
    assert (report.indexed, report.unchanged) == (3, 3)
    assert encoder.windows_seen == report.windows == 3 + 1 + 1
    assert [Path(m.path).name for m in index.search("red", top=1)] == ["new.mp4"]
    assert {Path(m.path).name for m in index.search("green", top=2)} == {"a.mp4", "日本 #1?.mp4"}


def test_a_good_file_that_turns_bad_is_no_longer_found(index, videos):
    index.add(videos)
    (videos / "a.mp4").write_bytes(b"overwritten")
    report = index.add(videos)
    assert [Path(record.path).name for record in report.bad] == ["a.mp4"]
    assert all(Path(m.path).name != "a.mp4" for m in index.search("red", top=50))


def test_bad_files_are_tried_again_only_when_asked(index, videos):
    index.add(videos)
    assert len(index.add(videos).bad) == 0
    assert len(index.add(videos, retry_failed=True).bad) == 2


def test_a_file_that_breaks_the_decoder_does_not_stop_the_others(index, videos, monkeypatch):
    monkeypatch.setattr(indexing, "Workers", partial(Workers, read=reads.read_surprised))
    report = index.add(videos)
    assert report.indexed == 2
    (crashed,) = [record for record in report.bad if record.status == "crashed"]
    assert crashed.reason == f"unexpected ZeroDivisionError: {crashed.path}"
    monkeypatch.undo()
    assert index.add(videos).indexed == 0, "not tried again before it changes"
    assert index.add(videos, retry_failed=True).indexed == 1
    assert len(index) == 5 + 2 + 1


def test_a_truncated_file_is_indexed_as_far_as_it_goes(tmp_path, index):
    whole = render(tmp_path / "whole.mkv", ("red", 10), ("blue", 10))
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    report = index.add(cut)
    (record,) = index.files()
    assert (report.indexed, record.status) == (0, "partial")
    assert re.fullmatch(r"frames end at about 1\d\.\d s of 20\.0 s", record.reason)
    assert index.search("red", top=1)[0].score > 0.99
    with pytest.raises(QueryError, match=r"cut\.mkv shows nothing at 18\.0 s: .*; take an earlier time"):
        index.search(like=f"{cut}@18")


def test_keyframes_of_a_file_without_an_index_are_no_reason_to_lose_its_rest(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    with av.open(str(folder / "one-keyframe.gif"), "w") as container:
        stream = container.add_stream("gif", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb8"
        for number in range(80):
            picture = np.empty((48, 64, 3), np.uint8)
            picture[:] = COLOURS["red" if number < 40 else "blue"]
            picture[5:15, number % 50 : number % 50 + 9] = 0
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="rgb8")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    index = Index.open(tmp_path / "l.ev", encoder=ColourEncoder(), sampling=Sampling(decode="keyframes"))
    report = index.add(folder)
    assert not report.bad
    assert report.windows == 3
    (moment,) = index.search("blue", top=1)
    assert 4.0 <= moment.start_seconds <= 5.0
    (moment,) = index.search(like=f"{folder / 'one-keyframe.gif'}@6s", top=1)
    assert 4.0 <= moment.start_seconds <= 5.0


def test_a_folder_that_cannot_be_listed_is_reported(index, videos, monkeypatch):
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("été"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    report = index.add(videos)
    assert report.indexed == 2
    (reason,) = report.unlisted
    assert "Permission denied" in reason
    assert f"trouble: folder left out: {reason}" in lines_of_add(report, index)


def test_files_that_are_gone_are_kept_but_not_found(index, videos):
    index.add(videos)
    aside = videos.parent / "aside.mp4"
    shutil.move(videos / "a.mp4", aside)
    report = index.add(videos)
    assert [Path(record.path).name for record in report.missing] == ["a.mp4"]
    assert "a.mp4" not in {Path(m.path).name for m in index.search("red", top=50)}
    assert len(index.files()) == 5
    assert index.add(videos).missing == [], "reported once"

    shutil.move(aside, videos / "a.mp4")
    report = index.add(videos)
    assert (report.indexed, report.windows) == (0, 0), "it is back without being read again"
    assert Path(index.search("red", top=1)[0].path).name == "a.mp4"


def test_an_unmounted_folder_changes_nothing(index, videos):
    index.add(videos)
    videos.rename(videos.parent / "elsewhere")
    with pytest.raises(LibraryError, match="no such file or folder"):
        index.add(videos)
    (videos.parent / "other").mkdir()
    assert index.add(videos.parent / "other").missing == []
    videos.mkdir()  # the folder is there again, its subfolder is not
    assert sorted(Path(record.path).name for record in index.add(videos).missing) == [
        *("a.mp4", "empty.mov", "noise.mp4", "short.mp4")
    ]


def test_windows_are_batched_across_files(tmp_path):
    for number in range(20):
        path = tmp_path / "v" / f"{number:02d}.mp4"
        render(path, ("red", 2 + number / 10)) if number else path.parent.mkdir()
    render(tmp_path / "v" / "long.mp4", ("red", 30), ("green", 4))
    encoder = ColourEncoder()
    Index.open(tmp_path / "l.ev", encoder=encoder).add(tmp_path / "v")
    assert sorted(encoder.batches) == [3, 8, 8, 8, 8]


def test_frames_are_read_once_however_many_windows_show_them(tmp_path, monkeypatch):
    path = render(tmp_path / "long.mp4", ("red", 30), ("green", 4))
    asked: list[int] = []
    original = reading.VideoReader.iterate_played_at

    def counted(self, seconds, **kwargs):
        asked.append(len(seconds))
        return original(self, seconds, **kwargs)

    monkeypatch.setattr(reading.VideoReader, "iterate_played_at", counted)
    with reading.VideoReader(path, size=16) as reader:
        windows = list(reading.read_windows(reader, Sampling(size=16)))
    assert [(start, end) for start, end, _, _ in windows] == [(2.0 * n, 2.0 * n + 4.0) for n in range(16)]
    assert asked == [34 * 2], "8 frames per 4 s, shared by overlapping windows"


def test_interrupted_indexing_goes_on_where_it_stopped(tmp_path, monkeypatch):
    folder = tmp_path / "v"
    folder.mkdir()
    for number in range(6):
        render(folder / f"{number}.mp4", ("red", 34 + number / 10))
    monkeypatch.setattr(workers, "COUNT", 1)
    encoder = ColourEncoder()

    def interrupt(progress):
        if progress.files_done >= 2:
            raise KeyboardInterrupt

    index = Index.open(tmp_path / "l.ev", encoder=encoder)
    with pytest.raises(KeyboardInterrupt):
        index.add(folder, progress=interrupt)
    kept = len(index.files())
    assert 2 <= kept < 6
    report = Index.open(tmp_path / "l.ev", encoder=encoder).add(folder)
    assert (report.unchanged, report.indexed) == (kept, 6 - kept)
    fresh = Index.open(tmp_path / "fresh.ev", encoder=encoder)
    fresh.add(folder)
    assert fresh.search("green", top=20) == index.search("green", top=20)


def test_progress_reaches_the_end(index, videos):
    seen = []
    index.add(videos, progress=seen.append)
    last = seen[-1]
    assert (last.files_done, last.files_total, last.windows_done) == (5, 5, 8)
    assert last.bytes_done == last.bytes_total
    assert last.eta_seconds == 0
    assert [p.files_done for p in seen] == sorted(p.files_done for p in seen)


def test_search_by_example(index, videos):
    index.add(videos)
    like = f"{videos / 'a.mp4'}@0:10.0s"
    (moment,) = index.search(like=like, top=1)
    assert moment.score > 0.99
    assert {Path(m.path).name for m in index.search(like=like, top=2)} == {"a.mp4", "short.mp4"}
    with pytest.raises(QueryError, match=r"lasts 12\.0 s"):
        index.search(like=f"{videos / 'a.mp4'}@99s")


def test_searching_in_words_loads_neither_torch_nor_lancedb(index, videos):
    index.add(videos)
    script = """
import sys
sys.path.insert(0, sys.argv[2])
from worlds_text import WordsOnly
from elastivid import Index
with Index.open(sys.argv[1], encoder=WordsOnly()) as index:
    assert index.search("red", top=1)[0].path.endswith("a.mp4")
    assert len(index.files()) == 5
heavy = {"torch", "lancedb", "pyarrow", "av", "PIL", "rich"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(index.path), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_an_index_of_another_model_is_refused(index, videos):
    index.add(videos / "a.mp4")
    other = Index.open(index.path, encoder=ColourEncoder("other space"))
    for use in (lambda: other.search("red"), lambda: other.add(videos), lambda: other.search(like=f"{videos}/a.mp4@1")):
        with pytest.raises(LibraryError, match=r"model 'colour-encoder' \(space colours\).*other space.*delete"):
            use()
    other._wanted.encoder.name = "another"
    with pytest.raises(LibraryError, match="use --model colour-encoder, index into another path, or move this index"):
        other.search("red")


def test_wrong_use_says_what_to_do(tmp_path, index, videos):
    with pytest.raises(LibraryError, match=r"no index at .*library\.ev; make one with: elastivid index FOLDER"):
        index.search("red")
    assert not index.path.exists(), "asking must not make an index"
    index.add(videos / "a.mp4")
    for query in ("", "  \n"):
        with pytest.raises(QueryError, match="the query is empty"):
            index.search(query)
    with pytest.raises(QueryError, match="say what to look for"):
        index.search()
    with pytest.raises(QueryError, match="no such file"):
        index.search("red", like="a@1")
    with pytest.raises(QueryError, match="top must be at least 1"):
        index.search("red", top=0)
    with pytest.raises(LibraryError, match="no such file or folder"):
        index.add(tmp_path / "nope")
    with pytest.raises(LibraryError, match="is a file"):
        Index.open(videos / "a.mp4")
    with pytest.raises(LibraryError, match="is a folder that is not an index"):
        Index.open(videos)
    with pytest.raises(LibraryError, match="scores of different windows do not compare"):
        Index.open(index.path, sampling=Sampling(window_seconds=9))


def test_what_counts_as_a_video(tmp_path):
    for name in ("a.MP4", "b.mkv", ".hidden.mp4", "c.jpg", ".cache/d.mp4", "x.ev/e.mp4", "sub/f.webm"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"12345")
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nowhere")
    names = [os.path.relpath(file.path, tmp_path) for file in find_videos([tmp_path, tmp_path / "sub"])[0]]
    assert names == ["a.MP4", "b.mkv", "dangling.mp4", "sub/f.webm"]
    assert [Path(file.path).name for file in find_videos([tmp_path / "c.jpg"])[0]] == ["c.jpg"], "named files are taken"


def test_paths_that_are_not_unicode_survive():
    for path in ("/a/b.mp4", "/é/日本.mp4", os.fsdecode(b"/bad\xff\xfe.mp4")):
        assert text_to_path(path_to_text(path)) == path
        path_to_text(path).encode("utf-8")


def test_a_file_name_that_is_not_unicode_is_found(tmp_path, index):
    folder = tmp_path / "v"
    folder.mkdir()
    good = render(tmp_path / "good.mp4", ("red", 2))
    os.rename(os.fsencode(good), os.fsencode(folder) + b"/bad\xff.mp4")
    report = index.add(folder)
    assert report.indexed == 1, report.bad
    assert os.fsencode(index.search("red", top=1)[0].path).endswith(b"/bad\xff.mp4")
    assert index.add(folder).unchanged == 1


def test_an_error_that_names_such_a_file_is_stored(tmp_path, index, monkeypatch):
    monkeypatch.setattr(indexing, "Workers", partial(Workers, read=reads.read_surprised))
    (tmp_path / "v").mkdir()
    os.rename(os.fsencode(render(tmp_path / "good.mp4", ("red", 2))), os.fsencode(tmp_path / "v") + b"/bad\xff.mp4")
    (record,) = index.add(tmp_path / "v").bad
    assert record.reason.endswith("bad?.mp4")
    assert [found.reason for found in index.files()] == [record.reason]


def test_a_weights_file_is_remembered_by_its_whole_path(tmp_path, videos, monkeypatch):
    encoder = ColourEncoder()
    encoder.name = "mine.safetensors"
    monkeypatch.chdir(tmp_path)
    index = Index.open("l.ev", encoder=encoder)
    index.add(videos / "short.mp4")
    assert index.settings.model == str(tmp_path / "mine.safetensors")


def test_two_searches_do_not_disturb_each_other(index, videos):
    index.add(videos)
    first = index.search("red", top=3)
    index.search("blue", top=1)
    assert index.search("red", top=3) == first
    assert np.all(np.diff([m.score for m in first]) <= 0)


def test_the_shipped_model_end_to_end(tmp_path):
    try:
        resolve("nano")
    except WeightsError:
        pytest.skip("the package holds no trained nano yet")
    folder = tmp_path / "v"
    folder.mkdir()
    render(folder / "a.mp4", ("red", 5))
    with Index.open(tmp_path / "l.ev") as index:
        report = index.add(folder)
        assert (report.indexed, report.windows) == (1, 2)
        assert index.settings.model == "nano"
        assert index.settings.gmacs_per_window > 0.1
        assert index.search(like=f"{folder}/a.mp4@2.0", top=1)[0].score == pytest.approx(1.0, abs=1e-3)
    script = """
import sys
from elastivid.app.cli import main
sys.argv = ["elastivid", "search", "something red", "--json", "--index", sys.argv[1]]
try:
    main()
finally:
    heavy = {"torch", "lancedb", "pyarrow", "av", "PIL", "rich"} & set(sys.modules)
    assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "l.ev")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert '"windows": 2' in done.stdout
