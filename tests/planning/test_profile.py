"""Profiles: a design that covers the axes in bounded time, resists disturbance, and survives being stored."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from machines import CORES, FakeMeter, fake_profile, fake_reading

from elastivid.core.budget import Budget
from elastivid.core.errors import BudgetError, PlanError, UnknownNameError, WeightsError
from elastivid.core.point import OperatingPoint, Runtime, Sampling
from elastivid.planning import prepare
from elastivid.planning import profile as profiles
from elastivid.planning.meter import RealMeter
from elastivid.planning.plan import Planner
from elastivid.planning.prepare import read_now
from elastivid.planning.profile import (
    Profile,
    as_it_is_now,
    grid_points,
    load_profile,
    measure,
    profile_path,
    profiled_widths,
    save_profile,
    ways_of_running,
)
from elastivid.planning.reading import Reading, ReadingRow, Source, load_reading, measure_reading, save_reading
from elastivid.planning.subject import describe
from elastivid.weights.load import load, read_metadata, resolve
from elastivid.weights.measured import add_front


@pytest.fixture(scope="module")
def nano():
    return describe("nano")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ELASTIVID_CACHE", str(tmp_path / "cache"))


def test_points_cover_every_axis(nano):
    points = grid_points(replace(nano, trained_widths=(64, 128, 192)))
    assert {size for _, size, _ in points} > {168}
    assert len({frames for frames, _, _ in points}) >= 3
    assert {point.width for *_, point in points} == {64, 128, None}
    counts = [point.tokens for frames, size, point in points if (frames, size, point.width) == (8, 168, None)]
    assert counts[:3] == [1152, 576, 288]
    assert len(points) == len(set(points))


def test_points_of_small_and_of_tubelet_models_exist():
    small = describe("fluxvit/tiny")
    small = replace(small, config=replace(small.config, num_frames=1, image_size=42))
    points = grid_points(small)
    assert max(point.tokens for *_, point in points) == 9
    assert len(points) == len(set(points))  # half and a quarter of one frame are that frame
    pairs = describe("videomae/tiny")
    assert pairs.available_tokens(8, 70) == 100
    assert {frames % 2 for frames, _, _ in grid_points(pairs)} == {0}
    milliseconds, _ = RealMeter(pairs)(8, 70, OperatingPoint(tokens=100), Runtime(threads=1))
    assert milliseconds > 0


def test_costs_are_not_shared_between_sizes(nano):
    nano.cost(8, 168, OperatingPoint())
    wider = replace(nano, config=replace(nano.config, embed_dim=384, num_heads=6))
    assert wider.cost(8, 168, OperatingPoint()).macs > 2 * nano.cost(8, 168, OperatingPoint()).macs


def test_untrained_widths_are_measured_but_thirds_of_the_heads():
    subject = describe("fluxvit/small")
    assert profiled_widths(subject) == (128, 256, 384)
    assert subject.trained_widths == (384,)


def test_finds_the_formula_although_every_third_call_is_disturbed(nano):
    profile = fake_profile(nano)
    meter = FakeMeter(nano)
    for runtime in profile.runtimes:
        for tokens in (100, 333, 900):
            point = OperatingPoint(tokens=tokens)
            true = meter.true(8, 168, point, runtime)
            assert profile.predict(8, 168, point, runtime) == pytest.approx(true, rel=0.05)
    assert float(np.median(np.abs(profile.errors))) < 0.02


def test_the_margin_holds_what_the_profile_misses_and_what_calls_differ_by(nano):
    profile = fake_profile(nano)
    steady = replace(profile, rows=tuple(replace(row, spread=0.0) for row in profile.rows))
    assert steady.margin == pytest.approx(max(0.0, np.quantile(steady.errors, 0.95)))
    shaken = replace(profile, rows=tuple(replace(row, spread=0.04) for row in profile.rows))
    assert 1 + shaken.margin == pytest.approx((1 + steady.margin) * 1.04)
    assert replace(profile, rows=()).margin == 0.1


def test_batches_of_a_dear_model_are_measured_beyond_the_cheapest_points():
    subject = describe("fluxvit/small")
    profile = measure(subject, FakeMeter(subject), runtimes=ways_of_running(CORES), seconds=200.0)
    batched = [row for row in profile.rows if row.runtime.batch > 1 and row.runtime.precision == "float32"]
    cheap = sorted(subject.cost(*point).macs for point in grid_points(subject))[2]
    dear = [row for row in batched if subject.cost(row.frames, row.size, row.point).macs > cheap]
    assert {row.runtime for row in dear} == {row.runtime for row in batched}
    seconds = [row.milliseconds * row.runtime.batch * row.runtime.workers / 1000 for row in dear]
    assert max(seconds) < 2 * profiles.MOST_DEAR_SECONDS


def test_a_slower_hour_makes_times_longer_and_a_faster_one_changes_nothing(nano):
    profile = measure(nano, FakeMeter(nano), runtimes=ways_of_running(CORES), seconds=60.0)
    single, alone = Runtime(threads=CORES), Runtime(threads=1)

    def meter(frames, size, point, runtime):
        found = next(
            r for r in profile.rows if (r.frames, r.size, r.point, r.runtime) == (frames, size, point, runtime)
        )
        return found.milliseconds * (1.5 if runtime.threads == CORES else 0.5), 0.1

    now, point = as_it_is_now(profile, meter), OperatingPoint(tokens=300)
    assert now.slowed == pytest.approx(1.5)
    assert now.predict(8, 168, point, single) == pytest.approx(1.5 * profile.predict(8, 168, point, single), rel=0.01)
    assert now.predict(8, 168, point, alone) == pytest.approx(profile.predict(8, 168, point, alone), rel=0.15)
    budget = Budget.parse("20ms, batch 1")
    before, after = (Planner(nano, profile=known).plan(budget) for known in (profile, now))
    assert after.point.tokens < before.point.tokens or after.runtime != before.runtime
    assert "1.5x slower at the moment" in after.reasons["now"]
    assert "now" not in before.reasons


def test_a_kept_profile_is_looked_at_where_times_are_limited(nano, monkeypatch):
    save_profile(fake_profile(nano))
    seen = []
    monkeypatch.setattr(prepare, "checked_now", lambda profile: seen.append(profile) or replace(profile, slowed=2.0))
    assert prepare.planner_for(nano, Budget.parse("30ms")).profile.slowed == 2.0
    assert prepare.planner_for(nano, Budget.parse("1gmacs")).profile.slowed == 1.0
    assert len(seen) == 1


def test_measuring_ends_when_its_time_is_up(nano):
    seen = []
    meter = FakeMeter(nano)
    profile = measure(
        nano, meter, runtimes=ways_of_running(CORES), seconds=40.0, progress=lambda *what: seen.append(what)
    )
    longest = max(profiles.MOST_DEAR_SECONDS, profiles.MOST_CALL_SECONDS)
    assert profile.seconds <= 40.0 + longest
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert "threads" in seen[0][2] or "thread" in seen[0][2]


def test_batches_between_the_measured_ones_lie_between(nano):
    profile = fake_profile(nano, disturbed=False)
    point = OperatingPoint(tokens=256)
    times = [profile.predict(8, 168, point, Runtime(threads=2, batch=batch)) for batch in (1, 2, 4, 8, 64)]
    assert times[:4] == sorted(times[:4], reverse=True)
    assert times[3] == times[4]
    with pytest.raises(PlanError, match="nothing was measured with"):
        profile.predict(8, 168, point, Runtime(threads=7))


def test_a_stored_profile_reads_back(nano):
    assert load_profile(nano) is None
    profile = fake_profile(nano)
    path = save_profile(profile)
    assert path == profile_path(nano)
    assert list(path.parent.iterdir()) == [path]
    assert load_profile(nano) == profile
    assert load_profile(describe("fluxvit/small")) is None


def test_a_damaged_or_foreign_profile_is_measured_again(nano):
    profile = fake_profile(nano)
    path = save_profile(profile)
    path.write_text(path.read_text()[:1000])
    assert load_profile(nano) is None
    path.write_bytes(b"\xff\xfe\x00")
    assert load_profile(nano) is None
    for text in ("[]", "{}", json.dumps(json.loads(profile.to_json()) | {"model": "other"})):
        with pytest.raises(PlanError, match="measure again"):
            Profile.from_json(text, nano)


def test_the_place_depends_on_machine_model_and_code(nano, monkeypatch):
    places = {profile_path(nano), profile_path(describe("fluxvit/small"))}
    monkeypatch.setattr(profiles, "machine_key", lambda: "another")
    places.add(profile_path(nano))
    monkeypatch.setattr(profiles, "code_key", lambda: "another")
    places.add(profile_path(nano))
    assert len(places) == 4


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    assert profiles.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("ELASTIVID_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(profiles.sys, "platform", "linux")
    assert profiles.cache_folder() == tmp_path / "xdg" / "elastivid"


def test_a_real_profile_of_a_tiny_model():
    """No times are asserted, only that real measuring gives a profile that can plan."""
    subject = describe("fluxvit/tiny")
    ways = [Runtime(threads=1), Runtime(threads=1, batch=2, workers=2, precision="bfloat16")]
    profile = measure(subject, RealMeter(subject), runtimes=ways, seconds=2.0)
    assert set(profile.runtimes) == set(ways)
    assert all(row.milliseconds > 0 and row.calls >= 1 for row in profile.rows)
    assert profile.predict(8, 70, OperatingPoint(tokens=50), ways[1]) > 0


# models


def test_metadata_names_widths_tokens_and_fronts(nano, monkeypatch):
    metadata = read_metadata(resolve("nano"))
    front = {"weights": metadata["weights_id"], "data": "world@1", "metric": "hit@1", "points": [
        {"frames": 8, "size": 168, "tokens": 256, "width": 192, "accuracy": 0.5}]}  # fmt: skip
    other = front | {"weights": "0" * 16}
    extra = {"trained_widths": [64, 128, 192], "trained_tokens": [64, 512], "fronts": [front, other]}
    monkeypatch.setattr("elastivid.weights.load.read_metadata", lambda path: metadata | extra)
    subject = describe("nano")
    assert subject.trained_widths == (64, 128, 192)
    assert subject.fewest_tokens == 64
    assert [front.data for front in subject.fronts] == ["world@1"]
    for bad in ({"trained_widths": [64, 999]}, {"trained_widths": ["wide"]}, {"fronts": [{"data": "x"}]},
                {"fronts": [front | {"points": []}]}):  # fmt: skip
        monkeypatch.setattr("elastivid.weights.load.read_metadata", lambda path, bad=bad: metadata | bad)
        with pytest.raises(WeightsError, match="nano"):
            describe("nano")


def test_fronts_are_written_into_files(tmp_path):
    path = tmp_path / "copy.safetensors"
    path.write_bytes(resolve("nano").read_bytes())
    point = {"frames": 8, "size": 168, "tokens": 256, "width": 192, "accuracy": 0.5}
    add_front(path, data="world@1", metric="hit@1", points=[point])
    add_front(path, data="world@1", metric="hit@1", points=[point | {"accuracy": 0.6}])
    add_front(path, data="other@1", metric="hit@1", points=[point])
    found = {front.data: front.points[0]["accuracy"] for front in describe(str(path)).fronts}
    assert found == {"world@1": 0.6, "other@1": 0.5} | {
        f.data: f.points[0]["accuracy"] for f in describe("nano").fronts
    }
    assert load(str(path)).space_id == load("nano").space_id
    for points in ([], [{"frames": 8}]):
        with pytest.raises(WeightsError, match="a front needs points, each with accuracy, frames"):
            add_front(path, data="x", metric="y", points=points)


def test_a_model_cut_to_some_channels_has_no_more():
    subject = describe("fluxvit/tiny")
    cut = replace(subject, config=replace(subject.config, widths=(24, 24, 12)), trained_widths=(24,))
    assert cut.full_width == 24
    assert profiled_widths(cut) == (24,)
    assert all(point.width is None for *_, point in grid_points(cut))
    assert cut.cost(8, 70, OperatingPoint()).macs < subject.cost(8, 70, OperatingPoint()).macs


def test_a_model_that_answers_cannot_be_planned_and_says_why():
    with pytest.raises(WeightsError, match=r"^a tiny_vlm answers questions and embeds nothing"):
        describe("nano-ask")


@pytest.mark.parametrize("address", ["nanoo", "fluxvit", "fluxvit/huge", "nosuch/tiny"])
def test_unknown_models_are_named(address):
    with pytest.raises(UnknownNameError, match="unknown"):
        describe(address)


# reading


def test_reading_needs_what_frames_and_pixels_need():
    reading, exact = fake_reading(), Sampling()

    def decode(source, sampling=exact):
        return reading.processor_seconds(source, sampling)[0]

    # 30 frames decoded, 2 looked at, 4 transformed
    assert reading.processor_seconds(Source(320, 240), exact) == pytest.approx(
        ((30 * 0.1 + 2 * 0.2) / 1e3, 4 * 0.05 / 1e3)
    )
    keyframes = replace(exact, decode="keyframes")
    assert decode(Source(320, 240), keyframes) == pytest.approx(0.5 * 1.0 / 1e3)
    sizes = [(320, 240), (1280, 720), (1920, 1080), (3840, 2160)]
    assert sorted(sizes, key=lambda size: decode(Source(*size))) == sizes
    assert decode(Source(320, 240, seconds=10.0)) - decode(Source(320, 240)) == pytest.approx(5.0 / 10 / 1e3)
    odd = replace(exact, stride_seconds=1.9)  # windows share no times: each looks at all its frames
    assert decode(Source(320, 240), odd) > decode(Source(320, 240))


def test_more_bits_take_longer_to_decode():
    reading, exact = fake_reading(), Sampling()
    found = [reading.processor_seconds(Source(320, 240, kilobits=k), exact)[0] for k in (None, 8.0, 18.0, 7.0, 0.0)]
    assert found[0] == pytest.approx(found[1])
    assert found[2] - found[1] == pytest.approx(30 * 10 * 0.01 / 1e3)
    assert found[1] - found[3] == pytest.approx(30 * 1 * 0.01 / 1e3)
    assert found[4] == pytest.approx((30 * 0.03 + 2 * 0.2) / 1e3)  # never below a part of the typical cost


def test_realtime_shares_work_but_one_small_file_is_decoded_by_one_core():
    reading, exact = fake_reading(), Sampling()
    decode, transform = reading.processor_seconds(Source(320, 240), exact)
    assert reading.realtime_factor(Source(320, 240), exact, 40.0) == pytest.approx(
        1 / ((decode + transform) / CORES + 0.04 / 2)
    )
    many, one = (reading.realtime_factor(Source(320, 240, files=files), exact, 0.0) for files in (9, 1))
    assert many == pytest.approx(CORES / (decode + transform))
    assert one == pytest.approx(1 / decode)
    large = [reading.realtime_factor(Source(1920, 1080, files=files), exact, 0.0) for files in (9, 1)]
    assert large[0] == large[1]  # its decoder uses all cores


def test_sources_are_read_and_refused():
    assert Source.parse("1920x1080") == Source(1920, 1080, 30.0)
    assert Source.parse("640X360@23.976") == Source(640, 360, 23.976)
    assert Source.typical([]) == Source(files=0)
    videos = [Source(1920, 1080, 25.0, 200.0, 60.0), Source(320, 240, 30.0), Source(640, 360, 50.0, 20.0, 10.0)]
    assert Source.typical(videos) == Source(640, 360, 30.0, 110.0, 35.0, 3)
    assert str(Source(640, 360, 25.0, 20.0)) == "640x360 at 25 frames/s, 500 kbit/s"
    for text in ("", "1080p", "0x4", "640x360@0", "640x360@nan", "axb"):
        with pytest.raises(BudgetError, match="cannot read the video"):
            Source.parse(text)


def test_reading_is_measured_for_real_and_kept(monkeypatch):
    monkeypatch.setattr("elastivid.planning.reading.SIZES", ((96, 64),))
    reading = measure_reading()
    (row,) = reading.rows
    assert isinstance(row, ReadingRow)
    assert min(row.decode, row.keyframe, row.convert) >= 0
    assert row.keyframe > 0
    assert load_reading() is None
    save_reading(reading)
    assert load_reading() == reading
    assert isinstance(load_reading(), Reading)


def test_what_cannot_be_kept_is_still_used(monkeypatch):
    def fail(reading):
        raise PermissionError("the disk is read-only")

    monkeypatch.setattr("elastivid.planning.prepare.measure_reading", lambda progress: fake_reading())
    monkeypatch.setattr("elastivid.planning.prepare.save_reading", fail)
    with pytest.warns(UserWarning, match=r"could not be kept \(the disk is read-only\).*ELASTIVID_CACHE"):
        assert read_now() == fake_reading()
