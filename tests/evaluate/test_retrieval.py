"""Ranks against a plain version, by hand, and where scores tie."""

from __future__ import annotations

import numpy as np
import pytest

from elastivid.evaluate.retrieval import Retrieval, both_ways, ranks


def slowly(scores, right):
    """One item after the other: how many wrong ones are not beaten by the best right one."""
    found = []
    for row, wanted in zip(scores, right, strict=True):
        best = max(score for score, is_right in zip(row, wanted, strict=True) if is_right)
        rank = 1
        for score, is_right in zip(row, wanted, strict=True):
            if not is_right and score >= best:
                rank += 1
        found.append(rank)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_plain_version_with_ties_and_several_captions(seed):
    rng = np.random.default_rng(seed)
    clips = 13
    clip_of = np.concatenate([np.arange(clips), rng.integers(0, clips, 20)])
    scores = rng.integers(0, 6, (len(clip_of), clips)).astype(float)  # many ties
    captions, videos = both_ways(scores, clip_of)
    right = clip_of[:, None] == np.arange(clips)
    assert captions.tolist() == slowly(scores, right)
    assert videos.tolist() == slowly(scores.T, right.T)


def test_a_model_that_says_the_same_of_everything_is_last():
    captions, videos = both_ways(np.zeros((6, 3)), [0, 0, 1, 1, 2, 2])
    assert captions.tolist() == [3] * 6
    assert videos.tolist() == [5] * 3  # the four captions of the others, then its own


def test_a_perfect_model_and_the_numbers_of_a_list():
    captions, videos = both_ways(np.eye(4), range(4))
    assert (captions.tolist(), videos.tolist()) == ([1] * 4, [1] * 4)
    found = Retrieval.of(np.array([1, 2, 5, 6, 10, 11]), 20)
    assert (found.r1, found.r5, found.r10) == (1 / 6, 3 / 6, 5 / 6)
    assert (found.median_rank, found.mean_rank) == (5, 35 / 6)
    assert found.to_values("clips_")["clips_r1"] == found.r1


def test_errors():
    with pytest.raises(ValueError, match="1 queries have no right item"):
        ranks(np.zeros((2, 2)), np.array([[True, False], [False, False]]))
    with pytest.raises(ValueError, match="not numbers"):
        ranks(np.array([[np.nan, 1.0]]), np.array([0]))
    with pytest.raises(ValueError, match="1 queries have no right item"):
        both_ways(np.zeros((2, 3)), [0, 1])
    with pytest.raises(ValueError, match="no queries"):
        Retrieval.of(np.zeros(0), 1)
