"""Results survive JSON, and what differs between two runs is named."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from elastivid.evaluate.result import Data, Result, ResultError, differences, hash_of_files, packed, unpacked, versions


@pytest.fixture
def result():
    predictions = {
        "classes": np.array([[0, 1], [2, 0]], np.int32),
        "scores": np.array([[0.9, 0.1], [0.6, 0.4]], np.float32),
    }
    return Result(
        protocol="zero_shot",
        settings={"views": 1},
        model="nano",
        weights_id="abc",
        data=Data("clips", "123", 2, ("run", "jump", "sit")),
        rows=({"point": "256 tokens", "gmacs": 1.5, "top1": 0.5, "milliseconds": 3.0},),
        predictions=(predictions,),
        left_out=({"path": "bad.mp4", "reason": "empty"},),
        seeds={"recipe": 0},
        versions=versions(),
    )


def test_json_there_and_back(result, tmp_path):
    result.write(tmp_path / "r.json")
    back = Result.read(tmp_path / "r.json")
    assert differences(result, back) == []
    assert replace(back, predictions=()) == replace(result, predictions=())
    assert all(np.array_equal(back.predictions[0][name], array) for name, array in result.predictions[0].items())
    assert back.versions["numpy"] == np.__version__


def test_every_difference_is_named(result):
    scores = result.predictions[0]["scores"].copy()
    scores[1, 0] += 0.01
    now = replace(
        result,
        weights_id="xyz",
        data=replace(result.data, hash="456"),
        rows=({"point": "256 tokens", "gmacs": 1.5, "top1": 0.25, "milliseconds": 9.0},),
        predictions=({**result.predictions[0], "scores": scores},),
    )
    assert differences(result, now) == [
        "weights: abc -> xyz",
        "data: 123 -> 456",
        "256 tokens: top1 0.5 -> 0.25",
        "256 tokens: scores of 1 of 2 samples differ, by up to 0.01",
    ]


def test_rounding_is_no_difference_and_an_infinity_is_one(result):
    def with_scores(value):
        scores = result.predictions[0]["scores"].copy()
        scores[0, 0] = value
        return replace(result, predictions=({**result.predictions[0], "scores": scores},))

    near = replace(result, rows=({**result.rows[0], "top1": 0.5 + 1e-7},))
    assert differences(result, near) == []
    assert len(differences(result, with_scores(np.nan))) == 1
    fewer = replace(result, predictions=({"classes": result.predictions[0]["classes"][:1]},))
    assert differences(result, fewer) == ["256 tokens: classes: (2, 2) -> (1, 2)", "256 tokens: scores: (2, 2) -> None"]
    assert differences(result, replace(result, rows=())) == ["operating points: 1 -> 0"]


def test_a_text_that_is_no_result(tmp_path, result):
    for text in ("", "[]", "{}", json.dumps({"format": 99}), result.to_json().replace('"data": "e', '"data": "f')):
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(ResultError, match="no result that elastivid wrote"):
            Result.read(tmp_path / "r.json")
    with pytest.raises(ResultError, match="cannot read"):
        Result.read(tmp_path / "absent.json")


def test_arrays_hold_what_they_state():
    good = packed(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert unpacked(good).tolist() == [[0, 1, 2], [3, 4, 5]]
    for wrong in ({**good, "shape": [2, 2]}, {**good, "shape": [3, 3]}, {**good, "type": "object"}):
        with pytest.raises(ValueError, match="array"):
            unpacked(wrong)
    with pytest.raises(ValueError, match="got complex128"):
        packed(np.zeros(2, complex))


def test_the_hash_of_data_sees_bytes_and_labels_but_no_names(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"one")
    a, b = tmp_path / "a", tmp_path / "b"
    assert hash_of_files([(a, "run")]) == hash_of_files([(b, "run")])
    assert hash_of_files([(a, "run")]) != hash_of_files([(a, "sit")])
    before = hash_of_files([(a, "run")])
    a.write_bytes(b"two")
    assert hash_of_files([(a, "run")]) != before
    assert hash_of_files([(tmp_path / "c", "run")]) not in (before, hash_of_files([(a, "run")]))
