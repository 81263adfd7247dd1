"""`Plan`: what will be read, what a model spends on it and where it runs, with the price and the reasons."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from elastivid.core.cost import Cost
from elastivid.core.errors import PlanError, PointError
from elastivid.core.point import OperatingPoint, Runtime, Sampling


@dataclass(frozen=True)
class Plan:
    """One complete choice.

    Args:
        sampling: which frames are read.
        point: what the model spends on a clip.
        runtime: where and how it runs.
        cost: predicted cost of one clip; activations are those of all clips that run at the same time,
            their input included.
        reasons: why each choice was made, such as {"tokens": "the largest count within 5 GMACs"}.
        model: address of the model that the plan is for.
        budget: what was asked for, as `Budget.parse` reads it.
        realtime_factor: predicted seconds of video per second, decoding included; `None` when not measured.
    """

    sampling: Sampling
    point: OperatingPoint
    runtime: Runtime
    cost: Cost
    reasons: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    budget: str = ""
    realtime_factor: float | None = None

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that are equal for plans with equal model, sampling, point and runtime.

        Budget, predictions and reasons do not change what is computed, so they are left out. The value is the same on
        every machine and in every session.

        Raises:
            PlanError: the point holds a selector object.
        """
        text = json.dumps(self._decisive(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """The plan as JSON text that `from_json` reads back to an equal plan.

        Raises:
            PlanError: the point holds a selector object.
        """
        content = self._decisive() | {
            "cost": asdict(self.cost),
            "reasons": dict(self.reasons),
            "budget": self.budget,
            "realtime_factor": self.realtime_factor,
            "fingerprint": self.fingerprint,
        }
        return json.dumps(content, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
            PlanError: the text is no JSON object, has missing or unknown keys, holds a value of another kind, or was
                changed after writing.
            PointError: a value is out of range.
        """
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise PlanError(f"a plan must be JSON text: {error}") from error
        _need_keys("plan", content, {*_PARTS, *_PLAIN, "fingerprint"})
        parts = {}
        for name, kind in _PARTS.items():
            _need_keys(name, content[name], {f.name for f in fields(kind)})
            try:
                parts[name] = kind(**{key: _tuple(value) for key, value in content[name].items()})
            except PointError:
                raise
            except (TypeError, ValueError) as error:
                raise PlanError(f"{name} of the plan cannot be: {error}; write it with Plan.to_json") from error
        plan = cls(**parts, **{name: content[name] for name in _PLAIN})
        if plan.fingerprint != content["fingerprint"]:
            raise PlanError(
                f"the plan's content has fingerprint {plan.fingerprint} but states {content['fingerprint']}: "
                "it was changed after writing; build a new Plan instead of editing the file"
            )
        return plan

    def _decisive(self) -> dict[str, Any]:
        """What decides the result, as plain JSON values."""
        if self.point.selector is not None:
            raise PlanError(
                f"a plan cannot write the selector object {self.point.selector!r}; leave OperatingPoint.selector at "
                "None, which takes the model's own"
            )
        return {
            "model": self.model,
            "sampling": asdict(self.sampling),
            "point": asdict(self.point),
            "runtime": asdict(self.runtime),
        }


_PARTS: dict[str, type[Any]] = {"sampling": Sampling, "point": OperatingPoint, "runtime": Runtime, "cost": Cost}
_PLAIN = ("reasons", "model", "budget", "realtime_factor")


def _need_keys(name: str, content: object, keys: set[str]) -> None:
    if not isinstance(content, dict):
        raise PlanError(f"{name} must be a JSON object, got {type(content).__name__}")
    missing, unknown = sorted(keys - set(content)), sorted(set(content) - keys)
    if missing or unknown:
        raise PlanError(f"{name} has missing keys {missing} and unknown keys {unknown}; write it with Plan.to_json")


def _tuple(value: Any) -> Any:
    """JSON has lists where our values have tuples."""
    return tuple(value) if isinstance(value, list) else value
