"""Sources stay whole, labels are spread, and what stands on both sides is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from elastivid.data.listing import Entry, read_entries
from elastivid.data.splits import folds_by_size, leakage_report, leaks, split_by_source


def drawn(seed: int, sources: int = 60) -> list[Entry]:
    rng = np.random.default_rng(seed)
    entries = []
    for source in range(sources):
        label = str(rng.integers(4))
        for clip in range(int(rng.integers(1, 6))):
            entries.append(Entry(Path(f"{source}-{clip}.mp4"), label, source=f"film {source}"))
    return entries


@pytest.mark.parametrize("split", [split_by_source, folds_by_size])
def test_sources_are_whole_and_order_does_not_matter(split):
    entries = drawn(0)
    folds = split(entries, 5)
    of_source = {}
    for entry, fold in zip(entries, folds, strict=True):
        assert of_source.setdefault(entry.source, fold) == fold
    assert set(folds) == set(range(5))
    shuffled = np.random.default_rng(1).permutation(len(entries))
    assert np.array_equal(split([entries[i] for i in shuffled], 5), folds[shuffled])


def test_labels_are_spread_better_than_by_size_alone():
    def unevenness(entries, folds):
        labels = np.array([entry.label for entry in entries])
        return sum(np.var([((folds == k) & (labels == c)).sum() for k in range(5)]) for c in set(labels))

    for seed in range(3):
        entries = drawn(seed)
        stratified = split_by_source(entries, 5, seed)
        assert unevenness(entries, stratified) < 0.5 * unevenness(entries, folds_by_size(entries, 5))
        sizes = np.bincount(stratified)
        assert sizes.max() - sizes.min() <= 6


def test_seeds_give_other_folds_and_one_source_each_is_exact():
    entries = [Entry(Path(f"{i}.mp4"), "ab"[i % 2]) for i in range(40)]
    one, two = (split_by_source(entries, 4, seed) for seed in (0, 1))
    assert not np.array_equal(one, two)
    for folds in (one, two):
        assert all(sum(folds[::2] == k) == sum(folds[1::2] == k) == 5 for k in range(4))


def test_too_few_sources_are_refused():
    entries = [Entry(Path("a.mp4"), "x", source="film")] * 3
    for split in (split_by_source, folds_by_size):
        with pytest.raises(ValueError, match=r"need at least 2 folds and as many sources, got folds=2 and 1 sources"):
            split(entries, 2)


def test_leaks_of_sources_and_contents_are_reported(tmp_path):
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1"), ("d", b"33"), ("e", b"4")):
        (tmp_path / name).write_bytes(content)
    train = [Entry(tmp_path / "a", "x", source="one"), Entry(tmp_path / "b", "x", source="two")]
    test = [Entry(tmp_path / "c", "x", source="three"), Entry(tmp_path / "d", "x", source="two")]
    found = leaks(train, test)
    assert [(leak.kind, leak.train, leak.test) for leak in found] == [
        ("source", (tmp_path / "b",), (tmp_path / "d",)),
        ("content", (tmp_path / "a",), (tmp_path / "c",)),
    ]
    lines = leakage_report(train, test)
    assert lines[0] == "leakage: 1 content and 1 source on both sides; 100.0 % of the 2 test clips are touched"
    clean = [Entry(tmp_path / "e", "x"), Entry(tmp_path / "missing", "x")]
    assert leakage_report(train, clean)[0].startswith("leakage: none (no source and no file content of 2 clips")


def test_labelled_films_are_never_split(shared_data):
    entries = read_entries(shared_data / "labelled")
    assert len(entries) == 671
    for folds in (folds_by_size(entries, 5), split_by_source(entries, 5)):
        assert np.bincount(folds).max() - np.bincount(folds).min() <= 4
        train, test = ([e for e, k in zip(entries, folds, strict=True) if (k == 0) == side] for side in (False, True))
        assert leakage_report(train, test)[0].startswith("leakage: none")
    labels = {entry.label for entry in entries}
    folds = split_by_source(entries, 5)
    for fold in range(5):
        assert {e.label for e, k in zip(entries, folds, strict=True) if k == fold} == labels
