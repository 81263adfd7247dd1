"""Windows to moments: merging, suppression, order."""

from itertools import pairwise

import numpy as np
import pytest

from elastivid.search.moments import find_moments
from elastivid.search.records import FileRecord
from elastivid.search.snapshot import WINDOW, Snapshot


def snapshot(**scores_by_path: list[float]) -> Snapshot:
    """Windows of 4 s every 2 s whose score for the query (1, 0) is what the lists say."""
    files, rows, vectors = {}, [], []
    for number, (path, scores) in enumerate(scores_by_path.items()):
        files[path] = FileRecord(number, path, 1, 1, "indexed", windows=len(scores))
        rows += [(number, 2.0 * k, 2.0 * k + 4) for k in range(len(scores))]
        vectors += [(score, np.sqrt(1 - score**2)) for score in scores]
    windows = np.array(rows, dtype=WINDOW)
    return Snapshot("s", np.array(vectors, np.float32), windows, files, np.ones(len(windows), bool))


QUERY = np.array([1.0, 0.0], np.float32)


def test_neighbours_near_the_peak_become_one_moment():
    (first, *_) = find_moments(snapshot(a=[0, 0, 0.8, 0.9, 0.85, 0, 0, 0]), QUERY, top=5)
    assert (first.start_seconds, first.end_seconds, first.windows) == (4.0, 12.0, 3)
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


def test_equal_scores_are_ordered_by_path_then_time():
    moments = find_moments(snapshot(z=[0.9, 0, 0, 0.9], a=[0, 0, 0.9]), QUERY, top=3)
    assert [(m.path, m.start_seconds) for m in moments] == [("a", 4.0), ("z", 0.0), ("z", 6.0)]


def test_many_windows_of_one_moment_do_not_hide_the_next_file():
    found = snapshot(long=[0.9] * 3000, other=[0.5], rest=[0.0] * 3000)
    moments = find_moments(found, QUERY, top=2)
    assert [m.path for m in moments] == ["long", "other"]
    assert moments[0].windows == 3000


def test_agrees_with_a_plain_search_when_nothing_overlaps():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(5000, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    files = {f"{k:04d}": FileRecord(k, f"{k:04d}", 1, 1, "indexed", windows=1) for k in range(5000)}
    windows = np.array([(k, 0.0, 4.0) for k in range(5000)], dtype=WINDOW)
    found = Snapshot("s", vectors, windows, files, np.ones(5000, bool))
    query = vectors[17]
    wanted = np.argsort(-(vectors @ query), kind="stable")[:1000]
    assert [m.path for m in find_moments(found, query, top=1000)] == [f"{k:04d}" for k in wanted]


def test_rows_that_do_not_take_part_are_never_found():
    found = snapshot(a=[0.9, 0.9], b=[0.5])
    hidden = Snapshot("s", found.vectors, found.windows, found.files, np.array([False, False, True]))
    assert [m.path for m in find_moments(hidden, QUERY, top=5)] == ["b"]
    nothing = Snapshot("s", found.vectors, found.windows, found.files, np.zeros(3, bool))
    assert find_moments(nothing, QUERY, top=5) == []
