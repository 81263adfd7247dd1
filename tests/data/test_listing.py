"""Lists and folders of clips: what is read, and which line is named when it cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from elastivid.data.listing import Entry, ListError, classes_of, read_entries, read_folder, read_list


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "path,label\nx/a b.mp4,run\ny.mp4,sit\n"),
        ("a.csv", "x/a b.mp4,run\n\ny.mp4,sit\n"),
        ("a.csv", "x/a b.mp4 run\ny.mp4 sit\n"),  # Kinetics as VideoMAE lists it: spaces in a .csv
        ("a.txt", "# clips\nx/a b.mp4 run\ny.mp4 sit"),
        ("a.tsv", "Label\tFile\tframes\nrun\tx/a b.mp4\t3\nsit\ty.mp4\t4\n"),
        ("a.csv", '\ufefffile,label\n"x/a b.mp4",run\ny.mp4,sit\n'),
        ("a.jsonl", '{"path": "x/a b.mp4", "label": "run"}\n\n{"video": "y.mp4", "action": "sit", "frames": 4}\n'),
    ],
)
def test_all_kinds_of_lists_say_the_same(tmp_path, name, text):
    assert read_list(written(tmp_path, name, text)) == [
        Entry(tmp_path / "x/a b.mp4", "run"),
        Entry(tmp_path / "y.mp4", "sit"),
    ]


def test_all_columns_are_read_and_paths_start_at_the_root(tmp_path):
    row = {"path": "a.mp4", "text": "a dog", "start": 1.5, "end_seconds": "3", "source": 7}
    (entry,) = read_list(written(tmp_path, "a.jsonl", json.dumps(row)), root=Path("/videos"))
    assert entry == Entry(Path("/videos/a.mp4"), "", "a dog", 1.5, 3.0, "7")
    (entry,) = read_list(written(tmp_path, "a.csv", "path,label,start,end,source\n/v/a.mp4,run,,,\n"))
    assert entry == Entry(Path("/v/a.mp4"), "run")
    assert entry.origin == "/v/a.mp4"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "path,label\na.mp4,run\nb.mp4\n", r"line 3: 1 fields, the first line names 2 columns"),
        ("a.csv", "a.mp4 run\n\nb.mp4\n", r"line 3: 1 fields, but without a first line that names a path column"),
        ("a.csv", "label,youtube_id,time_start,time_end,split\n", r"line 1: 5 fields, but without a first line"),
        ("a.csv", "path,label\n,run\n", r"line 2: no path"),
        ("a.csv", "path,frames\na.mp4,3\n", r"line 2: neither a label nor a text; columns: path, label or text"),
        ("a.csv", "path,label,start\na.mp4,run,x\n", r"line 2: start_seconds must be seconds, .* got 'x'"),
        ("a.csv", "path,label,end\na.mp4,run,nan\n", r"line 2: end_seconds must be seconds, .* got 'nan'"),
        ("a.csv", "path,label,start,end\na.mp4,run,4,3\n", r"line 2: end_seconds must lie after start_seconds"),
        ("a.jsonl", '{"path": "a.mp4", "label": "run"}\n{"path"\n', r"line 2: no JSON"),
        ("a.jsonl", "[1]\n", r"line 1: expected a JSON object, got list"),
        ("a.csv", "path,label\n", r"lists no clips"),
    ],
)
def test_what_cannot_be_understood_is_named(tmp_path, name, text, message):
    with pytest.raises(ListError, match=message):
        read_list(written(tmp_path, name, text))


def test_a_list_that_is_no_text_or_absent_is_named(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ListError, match=r"cannot read the list .*a\.csv.*expected UTF-8 text"):
        read_list(tmp_path / "a.csv")
    with pytest.raises(ListError, match=r"no list and no folder at .*none\.csv; check the spelling"):
        read_list(tmp_path / "none.csv")


def test_a_folder_of_classes_gives_labels_and_sources(tmp_path):
    for name in ("sit/b.mp4", "run/film/a.MKV", "run/z.webm", "run/notes.txt", "run/.hidden.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert read_folder(tmp_path) == [
        Entry(tmp_path / "run/film/a.MKV", "run", source="run/film"),
        Entry(tmp_path / "run/z.webm", "run"),
        Entry(tmp_path / "sit/b.mp4", "sit"),
    ]
    assert read_entries(tmp_path) == read_folder(tmp_path)
    written(tmp_path, "labels.csv", "path,label\na.mp4,fly\n")
    assert read_entries(tmp_path) == [Entry(tmp_path / "a.mp4", "fly")]
    assert read_entries(tmp_path / "labels.csv") == read_entries(tmp_path)


def test_a_folder_without_classes_is_refused(tmp_path):
    with pytest.raises(ListError, match=r"no clips in .*expected .*CLASS/clip.mp4 or a labels.csv"):
        read_folder(tmp_path)
    (tmp_path / "a.mp4").touch()
    with pytest.raises(ListError, match=r"a.mp4 lies in no class folder; move it to .*CLASS/a.mp4"):
        read_folder(tmp_path)
    with pytest.raises(ListError, match="is no folder"):
        read_folder(tmp_path / "none")


def test_classes_are_ordered_as_people_expect():
    assert classes_of([Entry(Path("a"), label) for label in ("sit", "run", "sit", "")]) == ("run", "sit")
    assert classes_of([Entry(Path("a"), label) for label in ("10", "9", "2")]) == ("2", "9", "10")
    assert classes_of([Entry(Path("a"), label) for label in ("10", "9", "x")]) == ("10", "9", "x")
