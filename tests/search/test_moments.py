"""Windows to moments: merging, suppression, order."""

from itertools import pairwise

import numpy as np
import pytest
from worlds import a_record

from elastivid.search.moments import find_moments
from elastivid.search.snapshot import WINDOW, Snapshot


def snapshot(**scores_by_path: list[float]) -> Snapshot:
    """Windows of 4 s every 2 s whose score for the query (1, 0) is what the lists say."""
    files, rows, vectors = {}, [], []
    for number, (path, scores) in enumerate(scores_by_path.items()):
        files[number] = a_record(number, path, windows=len(scores))
        rows += [(number, 2.0 * k, 2.0 * k + 4) for k in range(len(scores))]
        vectors += [(score, np.sqrt(1 - score**2)) for score in scores]
    windows = np.array(rows, dtype=WINDOW)
    return Snapshot("s", np.array(vectors, np.float32), windows, files, np.ones(len(windows), bool))


QUERY = np.array([1.0, 0.0], np.float32)


def test_neighbours_near_the_peak_become_one_moment():
    (first, *_) = find_moments(snapshot(a=[0, 0, 0.8, 0.9, 0.85, 0, 0, 0]), QUERY, top=5)
    assert first.windows == 3
    assert 6.0 <= first.start_seconds < 8.0 < first.end_seconds <= 10.0  # what no other window shows
    assert first.score == pytest.approx(0.9)
    assert first.peak_seconds == 8.0


def test_a_weaker_neighbour_is_not_merged_but_spent():
    moments = find_moments(snapshot(a=[0, 0, 0.4, 0.9, 0.4, 0, 0, 0]), QUERY, top=9)
    assert (moments[0].start_seconds, moments[0].end_seconds) == (6.0, 10.0)
    spans = sorted((m.start_seconds, m.end_seconds) for m in moments)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans)), spans


def test_two_peaks_of_one_file_are_two_moments():
    moments = find_moments(snapshot(a=[0.9, 0, 0, 0, 0, 0.8, 0, 0]), QUERY, top=2)
    assert [m.start_seconds for m in moments] == [0.0, 10.0]


def test_files_are_never_merged():
    moments = find_moments(snapshot(a=[0, 0.9], b=[0.9, 0]), QUERY, top=2)
    assert [(m.path, m.windows) for m in moments] == [("a", 1), ("b", 1)]


def test_moments_of_one_file_never_share_a_second():
    rng = np.random.default_rng(0)
    moments = find_moments(snapshot(a=rng.uniform(0, 1, 200).tolist()), QUERY, top=200)
    spans = sorted((m.start_seconds, m.end_seconds) for m in moments)
    assert len(spans) > 20
    assert all(start < end for start, end in spans)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans)), spans


def test_one_long_file_does_not_take_most_places():
    rng = np.random.default_rng(0)
    long = [0.9 - 0.001 * k if k % 4 == 0 else 0.0 for k in range(400)]
    others = {f"b{k}": [0.0, 0.3 + 0.01 * k, 0.0] for k in range(9)}
    rest = {f"c{k}": rng.uniform(0, 0.1, 50).tolist() for k in range(40)}
    found = snapshot(long=long, **others, **rest)
    assert [m.path for m in find_moments(found, QUERY, top=10)] == ["long"] * 5 + [f"b{k}" for k in range(8, 3, -1)]
    strict = find_moments(found, QUERY, top=10, per_file=1)
    assert [m.path for m in strict] == ["long", *(f"b{k}" for k in range(8, -1, -1))]
    assert [m.path for m in find_moments(found, QUERY, top=10, per_file=10)] == ["long"] * 10


def test_places_that_other_files_leave_free_are_filled():
    found = snapshot(long=[0.9 - 0.001 * k if k % 4 == 0 else 0.0 for k in range(400)], other=[0.2, 0.0])
    moments = find_moments(found, QUERY, top=10)
    assert [m.path for m in moments] == ["long"] * 9 + ["other"]
    assert [m.score for m in moments] == sorted((m.score for m in moments), reverse=True)


def test_the_rule_of_places_holds_for_any_scores():
    """Against a plain reading of the rule: walk all peaks in order, set aside what a full file offers."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        scores = {f"f{k}": [] for k in range(int(rng.integers(1, 6)))}
        for name in scores:  # isolated peaks, so that moments are what they are in any order
            peaks = rng.uniform(0.3, 0.9, int(rng.integers(1, 30)))
            scores[name] = [s for peak in peaks for s in (0.0, 0.0, float(peak), 0.0, 0.0)]
        top, cap = int(rng.integers(1, 12)), int(rng.integers(1, 5))
        ordered = sorted(((s, name) for name, row in scores.items() for s in row if s > 0), reverse=True)
        kept, aside = [], []
        for score, name in ordered:
            (kept if sum(n == name for _, n in kept) < cap else aside).append((score, name))
        wanted = sorted(kept[:top] + aside[: max(top - len(kept), 0)], reverse=True)
        got = find_moments(snapshot(**scores), QUERY, top, per_file=cap)
        peaks = [(round(m.score, 5), m.path) for m in got if m.score > 0.2]
        assert peaks == [(round(s, 5), n) for s, n in wanted][: len(peaks)]
        assert len(peaks) == len(wanted)


def test_equal_scores_are_ordered_by_path_then_time():
    moments = find_moments(snapshot(z=[0.9, 0, 0, 0.9], a=[0, 0, 0.9]), QUERY, top=3)
    assert [(m.path, m.peak_seconds) for m in moments] == [("a", 6.0), ("z", 2.0), ("z", 8.0)]


def test_many_windows_of_one_moment_do_not_hide_the_next_file():
    found = snapshot(long=[0.9] * 3000, other=[0.5], rest=[0.0] * 3000)
    moments = find_moments(found, QUERY, top=2)
    assert [m.path for m in moments] == ["long", "other"]
    assert moments[0].windows == 3000


def test_agrees_with_a_plain_search_when_nothing_overlaps():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(5000, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    files = {k: a_record(k, f"{k:04d}", windows=1) for k in range(5000)}
    windows = np.array([(k, 0.0, 4.0) for k in range(5000)], dtype=WINDOW)
    found = Snapshot("s", vectors, windows, files, np.ones(5000, bool))
    query = vectors[17]
    wanted = np.argsort(-(vectors @ query), kind="stable")[:1000]
    assert [m.path for m in find_moments(found, query, top=1000)] == [f"{k:04d}" for k in wanted]


def test_only_the_wanted_windows_are_searched():
    found = snapshot(a=[0.9, 0.9], b=[0.5, 0.1], c=[0.4])
    searched = np.array([False, False, True, True, True])
    assert [m.path for m in find_moments(found, QUERY, top=2, searched=searched)] == ["b", "c"]
    assert find_moments(found, QUERY, top=2, searched=np.zeros(5, bool)) == []


def test_rows_that_do_not_take_part_are_never_found():
    found = snapshot(a=[0.9, 0.9], b=[0.5])
    hidden = Snapshot("s", found.vectors, found.windows, found.records, np.array([False, False, True]))
    assert [m.path for m in find_moments(hidden, QUERY, top=5)] == ["b"]
    nothing = Snapshot("s", found.vectors, found.windows, found.records, np.zeros(3, bool))
    assert find_moments(nothing, QUERY, top=5) == []
