"""`Planner`: what is predicted keeps the budget, what is chosen follows the stated order, what cannot be is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from machines import FakeMeter, fake_profile, fake_reading

from elastivid.core.budget import Budget
from elastivid.core.errors import BudgetError, PointError
from elastivid.core.plan import Plan
from elastivid.core.point import OperatingPoint, Runtime, Sampling
from elastivid.planning.plan import Fixed, Planner
from elastivid.planning.prepare import plan
from elastivid.planning.reading import Source
from elastivid.planning.subject import Front, describe

WIDTHS = (64, 128, 192)


@pytest.fixture(scope="module")
def nano():
    """nano as if it had been trained at full width and at a sixteenth of its tokens or more, and never measured."""
    return replace(describe("nano"), trained_widths=(192,), fewest_tokens=72, fronts=())


@pytest.fixture(scope="module")
def elastic(nano):
    """nano trained at several widths."""
    return replace(nano, trained_widths=WIDTHS)


@pytest.fixture(scope="module")
def planner(nano):
    return Planner(nano, profile=fake_profile(nano), reading=fake_reading(), source=Source(320, 240))


@pytest.fixture(scope="module")
def elastic_planner(elastic):
    return Planner(elastic, profile=fake_profile(elastic), reading=fake_reading(), source=Source(320, 240))


def find(planner: Planner, text: str) -> Plan:
    return planner.plan(Budget.parse(text))


@pytest.mark.parametrize(
    "text", ["30ms", "12ms", "5ms", "2gmacs", "0.4gmacs", "20x", "100x", "300x", "6MB", "total 20MB", "200tokens",
             "20ms, 2gmacs, 8MB", "8ms, batch 8", "100x, batch 16", "60ms, batch 3"]
)  # fmt: skip
@pytest.mark.parametrize("which", ["planner", "elastic_planner"])
def test_predictions_keep_the_budget_and_times_a_margin(which, text, request):
    planner = request.getfixturevalue(which)
    made, budget = find(planner, text), Budget.parse(text)
    assert made.model == "nano"
    assert Budget.parse(made.budget) == budget
    limits = budget.limits()
    if "milliseconds_per_clip" in limits:
        assert made.cost.milliseconds * (1 + planner.margin) <= limits["milliseconds_per_clip"]
        assert made.runtime.batch == (budget.batch or 1)
        assert made.runtime.workers == 1
    if "realtime_factor" in limits:
        assert made.realtime_factor >= limits["realtime_factor"]
    assert made.cost.gmacs <= limits.get("gmacs_per_clip", 1e9)
    assert made.cost.activation_bytes / 1e6 <= limits.get("state_megabytes", 1e9)
    assert made.cost.total_bytes / 1e6 <= limits.get("total_megabytes", 1e9)
    assert made.point.tokens <= limits.get("tokens_per_clip", 1e9)
    assert Plan.from_json(made.to_json()) == made


@pytest.mark.parametrize("text", ["20ms", "12ms", "2gmacs", "100x"])
def test_the_next_count_would_break_the_budget(planner, text):
    made = find(planner, text)
    more = planner.estimate(made.sampling, made.point.tokens + 8, 192, made.runtime)
    assert more.broken(Budget.parse(text), planner.margin)


def test_more_budget_never_gives_less(elastic_planner):
    order = {w: n for n, w in enumerate(WIDTHS)}
    best = None
    for limit in (0.7, 0.9, 1.2, 1.6, 2.5, 4, 6, 8, 12, 18, 27, 40, 60, 90, 135, 200):
        made = find(elastic_planner, f"{limit}ms")
        rank = (
            made.sampling.frames * made.sampling.size**2,
            order[made.point.width or 192],
            made.point.tokens,
            made.runtime.precision == "float32",
        )
        assert best is None or rank >= best, limit
        best = rank
    assert best == (8 * 168**2, 2, 1152, True)


def test_tokens_are_given_up_before_width_and_width_before_frames(elastic_planner, planner):
    roomy, tight = find(elastic_planner, "12ms"), find(elastic_planner, "1.3ms")
    assert roomy.point.width is None
    assert roomy.point.tokens < 1152
    assert "clamped to" in roomy.reasons["tokens"]
    assert tight.point.width in (64, 128)
    assert (tight.sampling.frames, tight.sampling.size) == (8, 168)
    assert "of 192" in tight.reasons["width"]
    reduced = find(planner, "1.3ms")
    assert reduced.point.width is None
    assert reduced.sampling.frames * reduced.sampling.size**2 < 8 * 168**2
    assert reduced.reasons["sampling"].startswith("reduced: 8 frames of 168 px with exact decoding would")


def test_widths_are_used_only_where_the_weights_say_they_were_trained(planner, elastic_planner):
    texts = [f"{limit}ms" for limit in (0.8, 1, 1.5, 6, 20)]
    assert all(find(planner, text).point.width is None for text in texts)
    assert any(find(elastic_planner, text).point.width for text in texts)
    assert "name no other width" in find(planner, "20ms").reasons["width"] or planner.subject.axes == {
        "tokens",
        "selector",
    }


def test_bfloat16_only_where_it_buys_something(planner):
    assert find(planner, "1000ms").runtime.precision == "float32"
    assert find(planner, "5gmacs").runtime.precision == "float32"
    tight = find(planner, "20ms")
    assert tight.runtime.precision == "bfloat16"
    assert "3.0x as fast as float32 here" in tight.reasons["runtime"]


def test_realtime_counts_decoding(planner, nano):
    small, large = find(planner, "60x"), None
    large = Planner(nano, profile=planner.profile, reading=fake_reading(), source=Source(1920, 1080))
    assert small.sampling.decode == "exact"
    fast = find(large, "60x")
    assert fast.sampling.decode == "keyframes"
    assert "reduced" in fast.reasons["sampling"]
    slower = find(large, "15x")
    assert slower.sampling.decode == "exact"
    assert slower.point.tokens < find(planner, "15x").point.tokens or slower.point.tokens == 1152


def test_a_fixed_sampling_stays(planner, nano):
    sampling = Sampling(frames=4, size=112)
    fixed = Planner(
        nano, profile=planner.profile, reading=fake_reading(), sampling=sampling, fixed=Fixed(sampling=True)
    )
    made = find(fixed, "6ms")
    assert made.sampling == sampling
    with pytest.raises(BudgetError, match=r"72 tokens of 4 frames of 112 px, exact decoding"):
        find(fixed, "1ms")


def test_a_fixed_point_leaves_precision_only(planner, nano):
    way = Runtime(threads=1, workers=2, batch=8)
    fixed = Fixed(sampling=True, point=OperatingPoint(tokens=256), way=way)
    small = Planner(nano, profile=planner.profile, reading=fake_reading(), source=Source(320, 240), fixed=fixed)
    roomy, tight = find(small, "50x"), find(small, "170x")
    assert (roomy.point.tokens, roomy.runtime) == (256, way)
    assert (tight.point.tokens, tight.runtime) == (256, replace(way, precision="bfloat16"))
    with pytest.raises(BudgetError, match=r"256 tokens of 8 frames of 168 px, exact decoding, bfloat16, batch 8"):
        find(small, "900x")


def test_a_fixed_way_counts_its_memory_without_a_profile(nano):
    way = Runtime(threads=1, workers=2, batch=8)
    alone, beside = Planner(nano), Planner(nano, fixed=Fixed(way=way))
    made = find(beside, "60MB")
    assert made.runtime == way
    assert made.cost.activation_bytes <= 60e6
    assert made.point.tokens < find(alone, "60MB").point.tokens or made.sampling != find(alone, "60MB").sampling


def test_a_fixed_schedule_of_widths_stays(nano, planner):
    narrow = OperatingPoint(tokens=256, width=(192, 192, 128, 128, 64, 64))
    made = find(Planner(nano, profile=planner.profile, fixed=Fixed(point=narrow)), "2gmacs")
    assert made.point == narrow
    assert made.cost.macs == nano.config.cost(frames=8, size=168, tokens=256, width=narrow.width).macs


def test_reasons_name_what_was_given(nano):
    all_of_them = find(Planner(nano, fixed=Fixed(point=OperatingPoint(tokens=9999))), "9gmacs")
    assert all_of_them.reasons["tokens"] == "all 1152 of the grid, fewer than the 9999 that were given"
    proposed = find(Planner(nano, sampling=Sampling(frames=4, size=112)), "9gmacs")
    assert proposed.reasons["sampling"] == "the grid that was proposed"
    with pytest.raises(PointError, match="multiples of 1 frames and of 14 px, got 4 frames of 100 px; take 4 of 98"):
        Planner(nano, sampling=Sampling(frames=4, size=100))


def test_frames_of_tubelets_come_in_whole_ones():
    subject = describe("videomae/tiny")
    made = find(Planner(subject), "1mmacs")
    assert made.sampling.frames % 2 == 0
    assert find(Planner(subject), "9gmacs").point.tokens == 100


def test_float32_where_the_best_measured_point_fits_in_it(elastic, planner):
    """1152 tokens fit in bfloat16 alone; 512 are better and fit in float32."""
    points = [
        {"frames": 8, "size": 168, "tokens": t, "width": 192, "accuracy": a}
        for t, a in ((256, 0.7), (512, 0.9), (1152, 0.8))
    ]
    subject = replace(elastic, fronts=(Front("world@1", "hit@1", tuple(points)),))
    measured = Planner(subject, profile=replace(planner.profile, subject=subject))
    exact = min(
        measured.estimate(measured.sampling, 512, 192, way).cost.milliseconds
        for way in measured.profile.runtimes
        if way.precision == "float32" and way.batch == way.workers == 1
    )
    made = find(measured, f"{exact * 1.05 * (1 + measured.margin)}ms")
    assert (made.point.tokens, made.runtime.precision) == (512, "float32")


def test_a_fixed_size_leaves_frames(planner, nano):
    made = find(Planner(nano, profile=planner.profile, fixed=Fixed(size=True)), "1.3ms")
    assert made.sampling.size == 168
    assert made.sampling.frames < 8


def test_measured_fronts_decide(elastic, elastic_planner):
    """Here the narrow model is the better one at equal cost, and more than 512 tokens harm."""
    points = [
        {"frames": 8, "size": 168, "tokens": t, "width": w, "accuracy": a}
        for w, values in ((64, (0.70, 0.80, 0.90, 0.85)), (192, (0.6, 0.72, 0.82, 0.84)))
        for t, a in zip((72, 256, 512, 1152), values, strict=True)
    ]
    subject = replace(elastic, fronts=(Front("world@1", "hit@1", tuple(points)),))
    profile = replace(elastic_planner.profile, subject=subject)
    measured = Planner(subject, profile=profile, reading=fake_reading())
    made = find(measured, "1000ms")
    assert (made.point.width, made.point.tokens) == (64, 512)
    assert made.reasons["accuracy"] == "0.900 hit@1, the best of what was measured on world@1 and fits"
    between = find(measured, "1.5ms")
    assert between.point.width == 64
    assert 256 < between.point.tokens < 512
    accuracy = float(between.reasons["accuracy"].split()[0])
    assert 0.8 < accuracy < 0.9
    below = find(measured, "0.6ms")  # fewer tokens than any that were measured: the prior
    assert below.reasons["accuracy"].startswith("not measured")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "0.1ms",
            r"no plan for nano keeps 0.1ms; the cheapest there is, .*1 frame of 84 px.*ms with the margin where 0.1",
        ),
        ("1mmacs", r"the cheapest there is, .* GMACs where 0.001 are allowed"),
        ("9000x", r"x realtime with the margin where 9000 are wanted"),
        ("0.001MB", r"MB above the weights with the margin where 0.001 are allowed"),
        ("total 1MB", r"MB in total with the margin where 1 are allowed"),
        ("5tokens", r"tokens where 5 are allowed"),
        ("40ms, 0.001MB", r"MB above the weights with the margin where 0.001 are allowed"),
    ],
)
def test_refuses_the_impossible_and_names_the_cheapest(planner, text, message):
    with pytest.raises(BudgetError, match=message):
        find(planner, text)


def test_without_a_profile_only_times_are_refused(nano):
    blind = Planner(nano)
    assert find(blind, "1gmacs").cost.milliseconds is None
    for text in ("40ms", "20x, 1gmacs"):
        with pytest.raises(BudgetError, match="was not profiled on this machine"):
            find(blind, text)
    with pytest.raises(BudgetError, match="reading video was not profiled"):
        find(Planner(nano, profile=fake_profile(nano)), "20x")


def test_a_family_without_tokens_says_so():
    subject = describe("timesformer/tiny")
    assert find(Planner(subject), "10gmacs").point.tokens is None
    with pytest.raises(BudgetError, match=r"has no axis tokens: it always uses \d+, and 3 were allowed"):
        find(Planner(subject), "3tokens")


def test_the_public_function_reads_text(tmp_path, monkeypatch):
    monkeypatch.setenv("ELASTIVID_CACHE", str(tmp_path))
    made = plan("fluxvit/small", "20gmacs")
    assert made.cost.gmacs <= 20
    assert (made.sampling.frames, made.sampling.size) == (24, 252)
    with pytest.raises(BudgetError, match="cannot read the video '720p'"):
        plan("nano", "20gmacs", source="720p")


def test_extrapolation_is_said(nano):
    few = replace(fake_profile(nano), rows=tuple(r for r in fake_profile(nano).rows if r.tokens < 200))
    made = Planner(nano, profile=few).plan(Budget.parse("1000ms"))
    assert "dearer than any" in made.reasons["extrapolated"]


def test_a_way_of_running_is_not_trusted_far_beyond_what_was_measured_in_it(nano):
    """Side by side only cheap points were measured: the dear ones run in the way that was measured furthest."""
    rows = fake_profile(nano, disturbed=False).rows
    rows = [r if r.runtime.workers == 1 else replace(r, milliseconds=0.8 * r.milliseconds) for r in rows]
    made = {}
    for name, kept in (("all", rows), ("few", [r for r in rows if r.runtime.workers == 1 or r.tokens < 600])):
        profile = replace(fake_profile(nano), rows=tuple(kept))
        planner = Planner(nano, profile=profile, reading=fake_reading(), source=Source(320, 240))
        made |= {(name, text): planner.plan(Budget.parse(text)) for text in ("20x", "250x")}
    assert {key: plan.runtime.workers for key, plan in made.items()} == {
        ("all", "20x"): 2,
        ("all", "250x"): 2,
        ("few", "20x"): 1,
        ("few", "250x"): 2,
    }
    assert made["few", "20x"].point.tokens == 1152


def test_true_times_keep_their_budgets(nano):
    """The machine's formula beside what the planner believed: within the margin, and the budget is used."""
    quiet = fake_profile(nano, disturbed=False)
    planner, meter = Planner(nano, profile=quiet), FakeMeter(nano)
    for limit in (2, 4, 9, 15, 25, 40):
        made = find(planner, f"{limit}ms")
        took = meter.true(made.sampling.frames, made.sampling.size, made.point, made.runtime)
        assert took <= limit
        assert took >= 0.75 * limit or made.point.tokens == 1152
    assert json.loads(made.to_json())["model"] == "nano"
