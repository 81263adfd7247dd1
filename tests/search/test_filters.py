"""Filters against brute force, and values that make no sense."""

import os
from datetime import date, datetime

import numpy as np
import pytest
from worlds import ColourEncoder, a_record, render

from elastivid import Filters
from elastivid.search.index import Index
from elastivid.search.records import Place, QueryError


def record(path: str = "/v/a.mp4", *, modified: str = "2024-06-15T12:00", seconds: float = 60.0, height: int = 240):
    stamp = int(datetime.fromisoformat(modified).timestamp() * 1e9)
    return a_record(1, path, 1, places=(Place(path, stamp),), duration_seconds=seconds, width=320, height=height)


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("*.mkv", "/v/holiday/a.mkv", True),
        ("*.mkv", "/v/holiday/a.mp4", False),
        ("holiday/*", "/v/holiday/a.mp4", True),
        ("holiday/*", "/v/holiday/2024/a.mp4", True),
        ("holiday/*", "/v/myholiday/a.mp4", False),
        ("a.mp4", "/v/a.mp4", True),
        ("a.mp4", "/v/ba.mp4", False),
        ("clip_0[12].*", "/v/clip_02.mov", True),
        ("clip_0[12].*", "/v/clip_03.mov", False),
        ("/v/*", "/v/x/y.mp4", True),
        ("?.mp4", "/v/ab.mp4", False),
        ("*.MKV", "/v/a.mkv", False),
    ],
)
def test_patterns_fit_the_end_of_a_path(pattern, path, fits):
    assert Filters(path=pattern).accept(record(path)) is fits
    assert Filters(path=("nothing", pattern)).accept(record(path)) is fits


@pytest.mark.parametrize(
    ("conditions", "fits"),
    [
        ({"after": "2024"}, True),
        ({"after": "2024-06-15"}, True),
        ({"after": "2024-06-15T12:00"}, True),
        ({"after": "2024-06-15 12:01"}, False),
        ({"before": "2024-06-15T12:00"}, False),
        ({"before": "2024-06-15T12:00:01"}, True),
        ({"after": date(2024, 6, 16)}, False),
        ({"before": date(2024, 6, 16)}, True),
        ({"after": datetime(2024, 6, 15, 11), "before": datetime(2024, 6, 15, 13)}, True),
        ({"min_duration_seconds": 60, "max_duration_seconds": 60}, True),
        ({"min_duration_seconds": 60.1}, False),
        ({"max_height": 239}, False),
        ({"min_height": 240, "min_width": 320}, True),
        ({"max_width": 319}, False),
    ],
)
def test_ranges(conditions, fits):
    assert Filters(**conditions).accept(record()) is fits


def test_one_copy_must_fit_all_conditions_and_is_named(tmp_path):
    old, new = Place("/v/a/x.mp4", 10**18), Place("/v/b/x.mp4", 2 * 10**18)
    both = a_record(1, "x", 1, places=(old, new))
    assert Filters(path="b/*").fitting_path(both) == new.path
    assert Filters(after=datetime.fromtimestamp(1.5e9)).fitting_path(both) == new.path
    assert Filters(path="a/*", after=datetime.fromtimestamp(1.5e9)).fitting_path(both) is None
    gone = a_record(1, "x", 1, places=(old, Place("/v/b/x.mp4", 2 * 10**18, missing=True)))
    assert Filters(path="b/*").fitting_path(gone) is None

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    render(tmp_path / "a" / "x.mp4", ("red", 5))
    (tmp_path / "b" / "x.mp4").write_bytes((tmp_path / "a" / "x.mp4").read_bytes())
    index = Index.open(tmp_path / "l.ev", encoder=ColourEncoder())
    index.add([tmp_path / "a", tmp_path / "b"])
    for name in ("a", "b"):
        (moment,) = index.search("red", filters=Filters(path=f"{name}/*"))
        assert moment.path == str(tmp_path / name / "x.mp4")


def test_what_is_unknown_lies_in_no_range():
    unknown = record(seconds=0.0, height=0)
    assert Filters().accept(unknown)
    assert not Filters(max_height=10_000).accept(unknown)
    assert not Filters(min_duration_seconds=0).accept(unknown)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"after": "soon"}, "cannot read the date 'soon' of 'after'; write 2024, 2024-06"),
        ({"before": "2024-13"}, "cannot read the date '2024-13'"),
        ({"after": "2025", "before": "2024"}, "nothing lies after .* exchange the two"),
        ({"min_height": -1}, "min_height must be a number from 0 on, got -1"),
        ({"max_duration_seconds": float("nan")}, "max_duration_seconds must be a number"),
        ({"min_height": 720, "max_height": 480}, "min_height 720 is above max_height 480; exchange the two"),
        ({"path": ""}, 'a path pattern must be text such as "holiday/\\*"'),
        ({"path": (3,)}, "a path pattern must be text"),
    ],
)
def test_conditions_that_make_no_sense_are_explained(conditions, message):
    if conditions == {"path": ""}:
        conditions = {"path": ("",)}
    with pytest.raises(QueryError, match=message):
        Filters(**conditions)


def test_filters_say_what_they_are():
    assert not Filters()
    assert Filters(min_height=0)
    assert str(Filters(path=["*.mkv", "b"], min_height=720)) == "path *.mkv or b, min_height 720"


def test_filtered_searches_equal_brute_force(tmp_path):
    """The best moments of the chosen files: the same as an index that holds nothing else."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "v"
    for number in range(12):
        place = folder / ("left" if number % 2 else "right") / f"{number}.mp4"
        place.parent.mkdir(parents=True, exist_ok=True)
        colours = [str(c) for c in rng.choice(["red", "green", "blue", "grey"], 3)]
        render(place, *((c, float(rng.integers(1, 5))) for c in colours), size=(64, 48) if number % 3 else (96, 72))
        os.utime(place, (1.7e9 + 86_400 * number,) * 2)
    whole = Index.open(tmp_path / "all.ev", encoder=ColourEncoder())
    whole.add(folder)
    choices = [
        Filters(path="left/*"),
        Filters(path=("1.mp4", "right/4*")),
        Filters(after=datetime.fromtimestamp(1.7e9 + 86_400 * 6)),
        Filters(before=datetime.fromtimestamp(1.7e9 + 86_400 * 6), min_height=60),
        Filters(min_duration_seconds=7, max_duration_seconds=9),
        Filters(max_height=50, path="right/*"),
    ]
    for number, filters in enumerate(choices):
        chosen = [r.path for r in whole.files() if filters.accept(r)]
        assert 0 < len(chosen) < 12
        alone = Index.open(tmp_path / f"{number}.ev", encoder=ColourEncoder())
        alone.add(chosen)
        for query in ("red", "green", "blue"):
            ours = whole.search_with_cost(query, top=5, filters=filters)
            theirs = alone.search_with_cost(query, top=5)
            assert ours.moments == theirs.moments
            assert (ours.files, ours.windows, ours.found) == (len(chosen), theirs.windows, theirs.found)


def test_filters_that_leave_no_file_say_so(tmp_path):
    render(tmp_path / "a.mp4", ("red", 5))
    index = Index.open(tmp_path / "l.ev", encoder=ColourEncoder())
    index.add(tmp_path / "a.mp4")
    result = index.search_with_cost("red", filters=Filters(path="*.mkv", min_height=9000))
    assert (result.found, result.moments, result.windows, result.files) == (False, [], 0, 0)
    assert result.notes == ("no file of the index fulfils: path *.mkv, min_height 9000",)
    assert index.search("red", filters=Filters(path="*.mkv")) == []
    assert len(index.search("red", filters=Filters(path="*.mp4"))) == 1
