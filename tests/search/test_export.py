"""Moments as tables, subtitles and edit lists."""

from __future__ import annotations

import csv
import io

import pytest

from elastivid.search.export import to_csv, to_edl, to_srt, write_exports
from elastivid.search.moments import Moment
from elastivid.search.records import LibraryError

MOMENTS = [
    Moment("/v/b,ig.mp4", 3661.5, 3664.04, 0.5, 3662.0),
    Moment("/v/a.mp4", 0.0, 2.0, 0.25, 1.0),
    Moment("/w/a.mp4", 8.0, 9.0, 0.125, 8.5),
]


def test_a_table_reads_back():
    rows = list(csv.DictReader(io.StringIO(to_csv('a "quoted", word', MOMENTS))))
    assert [row["path"] for row in rows] == [m.path for m in MOMENTS]
    assert [float(row["end_seconds"]) for row in rows] == [m.end_seconds for m in MOMENTS]
    assert rows[0]["query"] == 'a "quoted", word'
    assert [row["rank"] for row in rows] == ["1", "2", "3"]


def test_a_path_that_is_no_unicode_is_written_as_an_address():
    assert "file:///v/%FF.mp4" in to_csv("x", [Moment("/v/\udcff.mp4", 0, 1, 0.1, 0.5)])


def test_subtitles_are_in_order_of_time():
    text = to_srt("two\nlines", MOMENTS[:2])
    assert text.startswith("1\n00:00:00,000 --> 00:00:02,000\ntwo lines (0.250)\n")
    assert "\n2\n01:01:01,500 --> 01:01:04,040\n" in text


def test_an_edit_list_plays_the_moments_one_after_another():
    lines = to_edl("query", MOMENTS, fps=25).splitlines()
    events = [line for line in lines if line[:3].isdigit()]
    assert events[0].split()[4:] == ["01:01:01:13", "01:01:04:01", "00:00:00:00", "00:00:02:13"]
    assert events[1].split()[4:] == ["00:00:00:00", "00:00:02:00", "00:00:02:13", "00:00:04:13"]
    assert "* FROM CLIP NAME: a.mp4" in lines
    with pytest.raises(ValueError, match="fps must be between 1 and 120, got 0"):
        to_edl("query", MOMENTS, fps=0)
    with pytest.raises(ValueError, match="at most 999 events, got 1000 moments"):
        to_edl("query", MOMENTS[:1] * 1000)


def test_exports_are_written_and_videos_of_one_name_kept_apart(tmp_path):
    written = write_exports(
        "query", MOMENTS, csv_path=tmp_path / "t.csv", srt_folder=tmp_path / "s", edl_path=tmp_path / "e.edl"
    )
    assert sorted(p.name for p in written) == ["a-2.srt", "a.srt", "b,ig.srt", "e.edl", "t.csv"]
    assert all(p.read_text() for p in written)
    with pytest.raises(LibraryError, match="is a folder; name a file in it"):
        write_exports("query", MOMENTS, csv_path=tmp_path / "s")
    with pytest.raises(LibraryError, match="subtitles go into a folder"):
        write_exports("query", MOMENTS, srt_folder=tmp_path / "t.csv")
