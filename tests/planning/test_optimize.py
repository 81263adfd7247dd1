"""Token Optimization: the surface, the climb, what is kept on disk, and that choosing does not flatter the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from elastivid.app.cli import app
from elastivid.app.optimize import numbers_of
from elastivid.core.errors import PlanError, PointError
from elastivid.evaluate.scoring import require_tokens
from elastivid.planning.optimize import GridPoint, Kept, Space, climbed, first_half, optimize

SPACE = Space((2, 4, 8, 16), (28, 56, 84, 112))


class Made:
    """A scorer whose accuracy is a function of the point; patches of 14 pixels."""

    def __init__(self, accuracy, count=400, key="made", sources=None):
        self.accuracy, self.key, self.asked = accuracy, key, []
        self.sources = list(range(count)) if sources is None else sources

    def available(self, frames, size):
        return frames * (size // 14) ** 2

    def gmacs(self, point):
        return point.tokens / 1000

    def hits(self, point):
        self.asked.append(point)
        rng = np.random.default_rng((point.frames, point.size, point.tokens, point.width))
        return rng.random(len(self.sources)) < self.accuracy(point)


def peak(point):
    """One top, at 8 frames of 84 pixels."""
    return 0.9 - 0.1 * abs(np.log2(point.frames) - 3) - 0.1 * abs(point.size / 28 - 3)


def test_points_hold_the_tokens_and_the_unmasked_ones_hold_no_more(tmp_path):
    scorer = Made(peak)
    points = SPACE.points(32, scorer)
    assert all(scorer.available(p.frames, p.size) >= 32 for p in points)
    assert GridPoint(2, 28, 32) not in points
    assert SPACE.unmasked(32, scorer) == [GridPoint(2, 56, 32), GridPoint(8, 28, 32)]
    assert SPACE.unmasked(30, scorer) == [GridPoint(2, 56, 30), GridPoint(8, 28, 30)]  # none has 30; the fewest above
    with pytest.raises(PlanError, match="has 5000 tokens, the largest has 1024"):
        SPACE.points(5000, scorer)


def test_the_best_point_is_found_and_beats_the_unmasked_grid(tmp_path):
    found = optimize(Kept(Made(peak), tmp_path), SPACE, 32)
    assert (found.best.frames, found.best.size) == (8, 84)
    assert found.base == GridPoint(8, 28, 32)
    assert found.gain.low > 0
    assert found.gain.difference == pytest.approx(0.2, abs=0.1)
    assert found.chosen_on + found.reported_on == 400
    assert [row.accuracy for row in found.rows] == sorted((row.accuracy for row in found.rows), reverse=True)


def test_climbing_finds_the_top_with_fewer_points(tmp_path):
    everything, few = Made(peak, key="a"), Made(peak, key="b")
    whole = optimize(Kept(everything, tmp_path), SPACE, 32)
    quick = optimize(Kept(few, tmp_path), SPACE, 32, search="climb")
    assert quick.best == whole.best
    assert len(few.asked) < len(everything.asked)
    way = climbed(GridPoint(2, 56, 32), SPACE, set(SPACE.points(32, few)), peak)
    assert way[0] == GridPoint(2, 56, 32)
    assert max(way, key=peak) == GridPoint(8, 84, 32)


def test_what_was_measured_is_kept_and_a_cut_line_is_measured_again(tmp_path):
    first = Kept(Made(peak), tmp_path)
    before = optimize(first, SPACE, 32)
    lines = first.file.read_text().splitlines()
    first.file.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:40])  # killed while writing
    scorer = Made(peak)
    again = Kept(scorer, tmp_path)
    assert optimize(again, SPACE, 32) == before
    assert len(scorer.asked) == again.measured == 1
    third = Made(peak)
    assert optimize(Kept(third, tmp_path), SPACE, 32) == before
    assert third.asked == []
    other = Made(peak, key="other weights")
    optimize(Kept(other, tmp_path), SPACE, 32)
    assert len(other.asked) == len(before.rows)


def test_choosing_among_equal_points_gains_nothing_where_it_is_reported(tmp_path):
    """All points are equally good: the chosen half flatters the best of them, the reported half does not."""
    gains, flattered = [], []
    for seed in range(8):
        scorer = Made(lambda point: 0.5, count=200, key=str(seed), sources=[f"{seed}-{n}" for n in range(200)])
        rng = np.random.default_rng(seed)
        scorer.hits = lambda point, rng=rng: rng.random(200) < 0.5
        kept = Kept(scorer, tmp_path)
        found = optimize(kept, SPACE, 32)
        chooses = first_half(scorer.sources)
        flattered.append(kept.hits(found.best)[chooses].mean() - kept.hits(found.base)[chooses].mean())
        gains.append(found.gain.difference)
    assert np.mean(flattered) > 0.05
    assert abs(np.mean(gains)) < 0.04


def test_sources_are_never_torn_apart():
    sources = [f"film {n // 7}" for n in range(70)]
    half = first_half(sources)
    assert 0.3 < half.mean() < 0.7
    assert all(len({bool(h) for h, s in zip(half, sources, strict=True) if s == source}) == 1 for source in sources)
    with pytest.raises(PlanError, match="at least two sources, got 1"):
        first_half(["one"] * 5)


def test_wrong_wishes_are_refused(tmp_path):
    assert numbers_of("4:12:4", "frames") == (4, 8, 12)
    assert numbers_of("8,4", "frames") == (8, 4)
    with pytest.raises(PlanError, match="frames must be numbers such as 4,8,12"):
        numbers_of("4:8", "frames")
    with pytest.raises(PlanError, match="sizes must be numbers of at least 1"):
        Space((4,), (0, 28))
    with pytest.raises(PlanError, match="search must be one of exhaustive, climb"):
        optimize(Kept(Made(peak), tmp_path), SPACE, 32, search="guess")
    with pytest.raises(PointError, match="has no axis tokens"):
        require_tokens(object(), frozenset({"width"}))


def test_the_command_searches_resumes_and_draws(tmp_path, monkeypatch):
    monkeypatch.setenv("ELASTIVID_CACHE", str(tmp_path / "cache"))
    arguments = ["optimize", "nano", "world", "--tokens", "16", "--frames", "4,8", "--sizes", "28,56", "--scenes", "2"]
    plot = tmp_path / "surface.png"
    done = CliRunner().invoke(app, [*arguments, "--search", "exhaustive", "--plot", str(plot)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "best      " in done.stdout
    assert "gain      " in done.stdout
    assert "4 looked at, 4 measured now" in done.stdout
    assert plot.stat().st_size > 1000
    again = CliRunner().invoke(app, [*arguments, "--search", "exhaustive", "--json"], catch_exceptions=False)
    assert len(json.loads(again.stdout)["rows"]) == 4
    assert len(list((Path(tmp_path) / "cache" / "optimize").iterdir())) == 1


def test_labelled_clips_of_a_folder(tmp_path, monkeypatch):
    from elastivid.recipes._labelled import smoke_data

    monkeypatch.setenv("ELASTIVID_CACHE", str(tmp_path / "cache"))
    folder = smoke_data(tmp_path / "actions")
    arguments = ["optimize", "nano", str(folder), "--tokens", "16", "--frames", "4", "--sizes", "28,56"]
    done = CliRunner().invoke(app, [*arguments, "--limit", "6"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "others chose" in done.stdout
