"""`Plan`: what is written reads back, and the fingerprint names what is computed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from elastivid.core.cost import Cost
from elastivid.core.errors import PlanError, PointError
from elastivid.core.plan import Plan
from elastivid.core.point import OperatingPoint, Runtime, Sampling

PLAN = Plan(
    Sampling(frames=16, decode="keyframes"),
    OperatingPoint(tokens=256, width=(96, 192)),
    Runtime(threads=2, batch=8),
    Cost(macs=5, milliseconds=1.5, hardware="here"),
    {"tokens": "the largest count within 5 GMACs"},
)


def test_json_reads_back_to_the_same_plan():
    assert Plan.from_json(PLAN.to_json()) == PLAN


@pytest.mark.parametrize(
    "changed",
    [
        replace(PLAN, sampling=Sampling(frames=17, decode="keyframes")),
        replace(PLAN, point=OperatingPoint(tokens=256, width=(96, 191))),
        replace(PLAN, runtime=Runtime(threads=2, batch=8, precision="bfloat16")),
    ],
)
def test_fingerprint_changes_with_what_is_computed(changed):
    assert changed.fingerprint != PLAN.fingerprint


def test_fingerprint_ignores_prediction_and_reasons():
    assert replace(PLAN, cost=Cost(), reasons={}).fingerprint == PLAN.fingerprint


def test_fingerprint_is_the_same_in_another_process():
    code = (
        "from elastivid.core.plan import Plan; import sys; print(Plan.from_json(sys.stdin.read()).fingerprint, end='')"
    )
    other = subprocess.run([sys.executable, "-c", code], input=PLAN.to_json(), capture_output=True, text=True)
    assert other.stdout == PLAN.fingerprint


def test_refuses_what_is_not_a_plan():
    with pytest.raises(PlanError, match="must be JSON text"):
        Plan.from_json("{")
    with pytest.raises(PlanError, match="plan must be a JSON object, got list"):
        Plan.from_json("[]")
    content = json.loads(PLAN.to_json())
    with pytest.raises(PlanError, match=r"missing keys \['cost'\] and unknown keys \['price'\]"):
        Plan.from_json(json.dumps({("price" if k == "cost" else k): v for k, v in content.items()}))
    content["sampling"]["fps"] = 3
    with pytest.raises(PlanError, match=r"sampling has missing keys \[\] and unknown keys \['fps'\]"):
        Plan.from_json(json.dumps(content))


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("sampling", "frames", "8", "sampling of the plan cannot be"),
        ("point", "tokens", "8", "tokens must be a whole number"),
        ("cost", "macs", -5, "cost of the plan cannot be: Cost.macs must be finite and >= 0, got -5"),
    ],
)
def test_refuses_values_of_another_kind(part, key, value, message):
    content = json.loads(PLAN.to_json())
    content[part][key] = value
    with pytest.raises((PlanError, PointError), match=message):
        Plan.from_json(json.dumps(content))


def test_refuses_an_edited_plan():
    content = json.loads(PLAN.to_json())
    content["sampling"]["frames"] = 99
    with pytest.raises(PlanError, match="changed after writing"):
        Plan.from_json(json.dumps(content))


def test_refuses_to_write_a_selector_object():
    plan = replace(PLAN, point=OperatingPoint(selector=object()))
    with pytest.raises(PlanError, match=r"leave OperatingPoint\.selector at None"):
        plan.to_json()
