"""An index within a budget: a new one takes the plan's sampling and point, an existing one keeps its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "search"))
from machines import CORES, fake_profile, fake_reading
from worlds import ColourEncoder, render

import elastivid as ev
from elastivid.app.plan import line_of_index_plan
from elastivid.app.text import lines_of_add
from elastivid.core.errors import BudgetError
from elastivid.core.point import OperatingPoint, Sampling
from elastivid.planning.profile import save_profile
from elastivid.planning.reading import save_reading
from elastivid.planning.subject import describe
from elastivid.search.indexing import Pipeline
from elastivid.search.planned import typical_source
from elastivid.search.records import LibraryError


@pytest.fixture
def videos(tmp_path, monkeypatch):
    """A folder with two videos and a broken one, on a machine with made-up times."""
    monkeypatch.setenv("ELASTIVID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("elastivid.search.planned.ENCODER_THREADS", CORES)
    monkeypatch.setattr("elastivid.planning.prepare.checked_now", lambda profile: profile)  # a machine that is not this
    subject = describe("nano")
    save_profile(fake_profile(subject))
    save_reading(fake_reading())
    folder = tmp_path / "videos"
    folder.mkdir()
    render(folder / "a.mp4", ("red", 5), size=(64, 48))
    render(folder / "b.mp4", ("blue", 5), size=(96, 64))
    (folder / "noise.mp4").write_bytes(b"noise" * 99)
    return folder


def test_a_new_index_follows_the_plan_and_says_how_it_went(videos, tmp_path):
    index = ev.Index.open(tmp_path / "library.ev")
    plan = index.plan(videos, "0.5gmacs")
    assert plan.point == OperatingPoint(tokens=120)
    assert "120 tokens, float32, 494 MMACs per window" in line_of_index_plan(plan)
    report = index.add(videos, plan=plan)
    assert report.plan == plan
    assert index.settings.point == plan.point
    assert index.settings.sampling == plan.sampling
    assert index.runs()[-1]["plan"] == plan.fingerprint
    assert index.runs()[-1]["budget"] == "0.5gmacs"
    assert any(line.startswith("budget 0.5gmacs: planned") for line in lines_of_add(report, index))
    assert index.search("red", min_confidence=0)


def test_an_existing_index_keeps_sampling_and_point(videos, tmp_path):
    index = ev.Index.open(tmp_path / "library.ev")
    index.add(videos / "a.mp4")
    assert index.settings.point.tokens == 256
    report = index.add(videos / "b.mp4", budget="200x")
    assert report.indexed == 1
    assert report.plan.point.tokens == 256
    assert report.plan.runtime.precision == "bfloat16"
    with pytest.raises(BudgetError, match=r"no plan for nano keeps 0\.1gmacs; .*only precision is left to choose"):
        index.add(videos, budget="0.1gmacs")
    other = ev.Index.open(tmp_path / "other.ev").plan(videos, "0.5gmacs")
    with pytest.raises(LibraryError, match="leave point out or use another path"):
        index.add(videos, plan=other)


def test_what_was_asked_of_a_new_index_is_kept(videos, tmp_path):
    asked = Sampling(frames=4, decode="keyframes")
    index = ev.Index.open(tmp_path / "library.ev", sampling=asked, point=OperatingPoint(tokens=64))
    plan = index.plan(videos, "20x")
    assert (plan.sampling, plan.point) == (asked, OperatingPoint(tokens=64))
    assert plan.reasons["sampling"] == "as it was given"


def test_refuses_what_cannot_be_planned(videos, tmp_path):
    index = ev.Index.open(tmp_path / "library.ev")
    with pytest.raises(BudgetError, match="windows are embedded 8 at a time, got batch 3"):
        index.plan(videos, "20x, batch 3")
    assert index._engine_of(index.plan(videos, "20x"), Pipeline)  # what the command line passes for engine "local"
    with pytest.raises(LibraryError, match="leave out either the budget or the engine"):
        index.add(videos, budget="20x", engine=object())
    with pytest.raises(BudgetError, match="a budget needs a model that is named"):
        ev.Index.open(tmp_path / "colours.ev", encoder=ColourEncoder()).add(videos, budget="20x")
    assert not (tmp_path / "library.ev").exists()


def test_what_an_existing_index_cannot_keep_is_said_once(videos, tmp_path):
    index = ev.Index.open(tmp_path / "library.ev")
    index.add(videos, budget="0.5gmacs")
    with pytest.raises(BudgetError, match=r"got batch 3; leave it out$"):
        index.plan(videos, "1gmacs, batch 3")
    with pytest.raises(BudgetError, match=r"where 0\.1 are allowed; the index was made with .* allow more"):
        index.plan(videos, "0.1gmacs")


def test_the_typical_source_is_that_of_readable_files(videos, tmp_path):
    source = typical_source([str(videos)])
    assert (source.width, source.height, source.fps, source.files) == (96, 64, 10.0, 3)
    assert 0 < source.kilobits < 100
    (tmp_path / "empty").mkdir()
    assert typical_source([str(tmp_path / "empty")]).width == 1280
