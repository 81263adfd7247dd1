"""Exact borders: a step among frame scores, and a whole moment on a real file."""

from dataclasses import replace

import numpy as np
import pytest
from worlds import ColourEncoder, render

from elastivid.core.point import OperatingPoint, Sampling
from elastivid.search.index import Index
from elastivid.search.moments import Moment
from elastivid.search.refine import STEP_SECONDS, find_step, refine_moment
from elastivid.video.errors import VideoError


def test_a_step_is_found_between_the_frames_around_it():
    for place in range(1, 40):
        scores = np.where(np.arange(40) < place, 0.2, 0.7)
        assert find_step(scores, rising=True) == place - 1
        assert find_step(scores, rising=False) is None
        assert find_step(-scores, rising=False) == place - 1


def test_a_step_survives_noise_and_blinking():
    rng = np.random.default_rng(0)
    for _ in range(50):
        place = int(rng.integers(5, 35))
        scores = np.where(np.arange(40) < place, 0.2, 0.6) + rng.normal(0, 0.08, 40)
        scores[place + 2 :: 4] -= 0.15
        assert abs(find_step(scores, rising=True) + 1 - place) <= 2


def test_where_there_is_no_step_none_is_found():
    rng = np.random.default_rng(0)
    assert find_step(np.full(40, 0.4), rising=True) is None
    assert find_step(np.ones(1), rising=True) is None
    assert find_step(np.ones(0), rising=True) is None
    noise = [find_step(rng.normal(0, 1, 40), rising=True) for _ in range(100)]
    assert sum(step is not None for step in noise) < 20


def test_the_best_step_is_that_of_least_squares():
    rng = np.random.default_rng(1)
    for _ in range(20):
        scores = np.sort(rng.normal(0, 1, 40))
        errors = [scores[:k].var() * k + scores[k:].var() * (40 - k) for k in range(1, 40)]
        assert find_step(scores, rising=True) == np.argmin(errors)


@pytest.fixture
def index(tmp_path) -> Index:
    render(tmp_path / "a.mp4", ("grey", 11.3), ("red", 5.4), ("grey", 9.3))
    render(tmp_path / "b.mp4", ("red", 6.2), ("grey", 6))
    index = Index.open(tmp_path / "l.ev", encoder=ColourEncoder())
    index.add([tmp_path / "a.mp4", tmp_path / "b.mp4"])
    return index


def test_borders_are_exact_to_half_a_step(index):
    rough = {m.path[-5]: m for m in index.search("red", top=2, min_confidence=0)}
    exact = {m.path[-5]: m for m in index.search("red", top=2, min_confidence=0, refine=True)}
    assert exact["a"].start_seconds == pytest.approx(11.3, abs=STEP_SECONDS / 2 + 0.1)
    assert exact["a"].end_seconds == pytest.approx(16.7, abs=STEP_SECONDS / 2 + 0.1)
    assert exact["b"].start_seconds == 0.0, "nothing begins there: the border of the file stays"
    assert exact["b"].end_seconds == pytest.approx(6.2, abs=STEP_SECONDS / 2 + 0.1)
    for name in "ab":
        assert replace(exact[name], start_seconds=0, end_seconds=1) == replace(
            rough[name], start_seconds=0, end_seconds=1
        )


def test_about_thirty_frames_are_embedded(index, tmp_path):
    encoder = ColourEncoder()
    moment = Moment(str(tmp_path / "a.mp4"), 11.0, 17.0, 1.0, 14.0)
    query = encoder.embed_texts(["red"])[0]
    exact = refine_moment(encoder, moment, query, Sampling(), OperatingPoint())
    assert exact.start_seconds == pytest.approx(11.3, abs=STEP_SECONDS / 2 + 0.1)
    assert encoder.windows_seen <= 32


def test_guesses_are_not_refined(index):
    index._wanted.encoder.windows_seen = 0
    result = index.search_with_cost("green", refine=True)
    assert not result.found
    assert result.refine_seconds == 0
    assert result.moments == index.search_with_cost("green").moments
    assert index._wanted.encoder.windows_seen == 0


def test_a_moment_of_a_file_that_is_gone_keeps_its_borders_and_says_so(index, tmp_path):
    rough = index.search("red", top=2, min_confidence=0)
    (tmp_path / "a.mp4").unlink()
    result = index.search_with_cost("red", top=2, refine=True)
    assert any(note.startswith("not refined: a.mp4: ") for note in result.notes)
    kept = {m.path: m for m in result.moments}
    assert next(m for m in rough if m.path.endswith("a.mp4")) == kept[str(tmp_path / "a.mp4")]
    with pytest.raises(VideoError):
        refine_moment(
            ColourEncoder(),
            Moment(str(tmp_path / "a.mp4"), 0, 4, 1.0, 2),
            np.array([1.0, 0, 0], np.float32),
            Sampling(),
            OperatingPoint(),
        )
