"""Confidence: uniform p-values for unrelated queries, exact ranks, sums kept by file equal to brute force."""

import os

import numpy as np
import pytest
from worlds import ColourEncoder, a_record, render

from elastivid.search import confidence
from elastivid.search.confidence import best_by_file, confidence_of, null_scores, null_texts
from elastivid.search.index import Index
from elastivid.search.records import QueryError
from elastivid.search.snapshot import WINDOW, Snapshot

DIM = 32


def unit(rng: np.random.Generator, count: int) -> np.ndarray:
    x = rng.normal(size=(count, DIM)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def library(rng: np.random.Generator, files: int, first_id: int = 0) -> Snapshot:
    """Files of 1 to 9 windows each, with random vectors."""
    ids = np.repeat(np.arange(first_id, first_id + files), rng.integers(1, 10, files))
    windows = np.zeros(len(ids), dtype=WINDOW)
    windows["file_id"] = ids
    windows["start_seconds"] = np.arange(len(ids))
    records = {k: a_record(k, f"{k}", 1) for k in np.unique(ids).tolist()}
    return Snapshot("s", unit(rng, len(ids)), windows, records, np.ones(len(ids), bool))


class Texts:
    """Random vectors for texts; counts how often it was asked."""

    def __init__(self, seed: int = 9) -> None:
        self.calls, self.seed = 0, seed

    def __call__(self, texts):
        self.calls += 1
        return unit(np.random.default_rng(self.seed), len(texts))


def test_the_null_texts_are_many_short_and_different():
    texts = null_texts()
    assert len(texts) > 250
    assert len(set(texts)) == len(texts)
    assert all(text == text.strip() and 2 <= len(text.split()) <= 12 for text in texts)


def test_ranks_are_exact():
    nulls = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    scores = np.array([0.05, 0.2, 0.25, 0.4, 0.5], np.float32)
    assert confidence_of(scores, nulls) == pytest.approx([0.0, 1 - 4 / 5, 1 - 3 / 5, 1 - 2 / 5, 1 - 1 / 5])


def test_unrelated_queries_get_uniform_p_values(tmp_path):
    """Whatever the library: 400 queries that are draws from the null distribution, in libraries of other sizes."""
    rng = np.random.default_rng(0)
    values = []
    for files in (1, 5, 50, 300):
        found = library(rng, files)
        nulls = null_scores(tmp_path / f"{files}.safetensors", found, Texts(files)).best(
            np.unique(found.windows["file_id"])
        )
        best = (found.vectors @ unit(rng, 100).T).max(axis=0)  # (N, 100) -> (100,)
        values.append(1 - confidence_of(best, nulls))
    p = np.sort(np.concatenate(values))
    assert p.min() > 0
    distance = np.abs(p - (np.arange(len(p)) + 0.5) / len(p)).max()  # Kolmogorov-Smirnov
    assert distance < 1.63 / np.sqrt(len(p)) + 1 / len(null_texts())  # 1 % level
    assert np.mean(p <= 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(p))


def test_a_planted_match_is_certain(tmp_path):
    rng = np.random.default_rng(1)
    found = library(rng, 200)
    nulls = null_scores(tmp_path / "n.safetensors", found, Texts()).best(np.unique(found.windows["file_id"]))
    assert confidence_of(np.array([0.999]), nulls)[0] == 1 - 1 / (len(null_texts()) + 1)


def test_best_scores_by_file_equal_brute_force(monkeypatch):
    rng = np.random.default_rng(2)
    found, queries = library(rng, 60), unit(rng, 7)
    ids = found.windows["file_id"]
    for chunk in (3, 64, 10_000):
        monkeypatch.setattr(confidence, "_CHUNK_ROWS", chunk)
        rows = np.flatnonzero(np.isin(ids, rng.permutation(60)[:40]))
        best = best_by_file(found, rows, queries)
        wanted = [(found.vectors[ids == k] @ queries.T).max(axis=0) for k in np.unique(ids[rows])]
        np.testing.assert_allclose(best, wanted, atol=1e-6)


def test_files_of_rows():
    found = library(np.random.default_rng(5), 20)
    ids = found.windows["file_id"]
    assert found.first_rows.tolist() == [int(np.flatnonzero(ids == k)[0]) for k in range(20)]
    for chosen in ([], [3], [0, 7, 19], list(range(20))):
        assert found.files_of(np.isin(ids, chosen)).tolist() == chosen


def test_kept_scores_follow_the_library(tmp_path):
    """Files that come and go: only new ones are computed, and the result is what a fresh start gives."""
    path = tmp_path / "nulls.safetensors"
    rng = np.random.default_rng(3)
    old, texts = library(rng, 30), Texts()
    first = null_scores(path, old, texts)
    assert texts.calls == 1
    assert null_scores(path, old, texts).maxima.tolist() == first.maxima.tolist()
    assert texts.calls == 1
    new = library(rng, 25, first_id=30)
    rows = np.flatnonzero(old.windows["file_id"] >= 10)  # ten files are gone
    both = Snapshot(
        "s",
        np.concatenate([old.vectors[rows], new.vectors]),
        np.concatenate([old.windows[rows], new.windows]),
        {**old.records, **new.records},
        np.ones(len(rows) + len(new.windows), bool),
    )
    grown = null_scores(path, both, texts)
    assert texts.calls == 1
    fresh = null_scores(tmp_path / "fresh.safetensors", both, Texts())
    assert grown.file_ids.tolist() == fresh.file_ids.tolist() == list(range(10, 55))
    np.testing.assert_allclose(grown.maxima, fresh.maxima, atol=1e-6)
    chosen = np.array([12, 40, 41])
    picked = np.isin(both.windows["file_id"], chosen)
    brute = (both.vectors[picked] @ fresh.vectors.T).max(axis=0)
    np.testing.assert_allclose(grown.best(chosen), brute, atol=1e-6)


def test_damaged_or_foreign_scores_are_made_anew(tmp_path):
    path = tmp_path / "nulls.safetensors"
    found = library(np.random.default_rng(4), 5)
    wanted = null_scores(path, found, Texts()).maxima
    whole = path.read_bytes()
    for content in (b"", b"\x08\0\0\0\0\0\0\0{broken}", whole[: len(whole) // 2]):
        path.write_bytes(content)
        np.testing.assert_array_equal(null_scores(path, found, Texts()).maxima, wanted)
        assert path.read_bytes() != content
    other = Snapshot("other space", found.vectors, found.windows, found.records, found.searchable)
    texts = Texts()
    null_scores(path, other, texts)
    assert texts.calls == 1
    assert [p.name for p in tmp_path.iterdir()] == ["nulls.safetensors"], "nothing is left lying about"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_no_obstacle(tmp_path):
    tmp_path.chmod(0o500)
    found = library(np.random.default_rng(4), 5)
    assert null_scores(tmp_path / "nulls.safetensors", found, Texts()).maxima.shape == (5, len(null_texts()))
    tmp_path.chmod(0o700)


def test_an_unwritable_place_is_no_obstacle(tmp_path):
    found = library(np.random.default_rng(4), 5)
    assert null_scores(tmp_path / "nowhere" / "n.safetensors", found, Texts()).maxima.shape == (5, len(null_texts()))


def test_what_is_not_there_is_not_found(tmp_path):
    render(tmp_path / "a.mp4", ("red", 8), ("blue", 6))
    render(tmp_path / "b.mp4", ("blue", 8))
    index = Index.open(tmp_path / "l.ev", encoder=ColourEncoder())
    index.add([tmp_path / "a.mp4", tmp_path / "b.mp4"])
    assert index.search("red")[0].confidence > 0.95
    assert index.search("green") == []
    result = index.search_with_cost("green", top=2)
    assert not result.found
    assert len(result.moments) == 2, "the best guesses stay at hand"
    assert result.confidence == result.moments[0].confidence < 0.95
    assert index.search("green", top=2, min_confidence=0) == result.moments
    assert index.search("red", min_confidence=1) == []
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(QueryError, match="min_confidence must be between 0 and 1"):
            index.search("red", min_confidence=wrong)


def test_an_example_has_no_confidence_and_is_found(tmp_path):
    render(tmp_path / "a.mp4", ("red", 8))
    index = Index.open(tmp_path / "l.ev", encoder=ColourEncoder())
    index.add(tmp_path / "a.mp4")
    result = index.search_with_cost(like=f"{tmp_path / 'a.mp4'}@2s")
    assert result.found
    assert result.confidence is None
