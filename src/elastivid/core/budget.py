"""`Budget`: what may be spent. Every limit carries its denominator in its name.

Budget.parse("5gmacs, 600MB")        at most 5 GMACs per clip and 600 MB above the weights
Budget.parse("20x, batch 8")         at least 20 seconds of video per second, clips in batches of 8
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from numbers import Real

from elastivid.core.errors import BudgetError

# unit as written -> (field, factor from the unit to the field's own)
_UNITS = {
    "mmacs": ("gmacs_per_clip", 1e-3),
    "gmacs": ("gmacs_per_clip", 1.0),
    "tmacs": ("gmacs_per_clip", 1e3),
    "ms": ("milliseconds_per_clip", 1.0),
    "s": ("milliseconds_per_clip", 1e3),
    "x": ("realtime_factor", 1.0),
    "mb": ("state_megabytes", 1.0),
    "gb": ("state_megabytes", 1e3),
    "tokens": ("tokens_per_clip", 1.0),
}
_ALLOWED = (
    "'5gmacs' (or mmacs, tmacs) and '40ms' (or s) per clip, '20x' realtime, '600MB' (or GB) above the weights, "
    "'total 600MB' with them, '512tokens' per clip, 'batch 8'"
)
_MEANT = {
    "token": "'tokens'",
    "realtime": "'x'",
    "m": "'mb'",
    "g": "'gb'",
    "mib": "'mb'",
    "gib": "'gb'",
    **{f"{prefix}flops": f"'{prefix}macs', half as many" for prefix in "mgt"},
}
_NUMBER = r"[-+]?(?:[\d.][\d._]*(?:e[-+]?\d+)?|nan|inf)"
_LIMIT = re.compile(rf"(?P<total>total\s+)?(?P<number>{_NUMBER})\s*(?P<unit>[a-z]*)(?P<realtime>(?<=x)\s*realtime)?")
_BATCH = re.compile(r"batch\s*(?P<number>\S+)")


@dataclass(frozen=True)
class Budget:
    """Limits on what one clip may cost. `None` means no limit; at least one limit must be given.

    Args:
        gmacs_per_clip: most billions of multiply-accumulates per clip.
        milliseconds_per_clip: longest time per clip: latency at batch 1, time of the batch divided by its size else.
        realtime_factor: fewest seconds of video per second of time, decoding included.
        state_megabytes: most megabytes (10^6 bytes) of state and peak activations above the weights.
        total_megabytes: the same with the weights.
        tokens_per_clip: most tokens per clip.
        batch: clips that run together; 1 states latency, more states throughput. `None` leaves it to the planner: 1
            where milliseconds are limited, else what runs fastest.

    Raises:
        BudgetError: a limit is not a positive finite number, there is no limit, or the memory limits contradict.
    """

    gmacs_per_clip: float | None = None
    milliseconds_per_clip: float | None = None
    realtime_factor: float | None = None
    state_megabytes: float | None = None
    total_megabytes: float | None = None
    tokens_per_clip: int | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        for name, value in self.limits().items():
            if isinstance(value, bool) or not isinstance(value, Real):
                raise BudgetError(f"{name} must be a number, got {value!r}; text is read by Budget.parse")
            if not (math.isfinite(value) and value > 0):
                raise BudgetError(f"{name} must be a finite number > 0, got {value:g}; leave it out for no limit")
        if not self.limits():
            raise BudgetError(f"a budget needs at least one limit; allowed: {_ALLOWED}")
        for name in ("tokens_per_clip", "batch"):
            value = getattr(self, name)
            if value is not None and not _is_whole(value):
                raise BudgetError(f"{name} must be a whole number >= 1, got {value!r}; leave it out for no limit")
        if self.state_megabytes and self.total_megabytes and self.state_megabytes > self.total_megabytes:
            raise BudgetError(
                f"total {self.total_megabytes:g}MB includes what lies above the weights, so it cannot be less than "
                f"{self.state_megabytes:g}MB above the weights; raise the total or drop one of the two"
            )

    @property
    def is_latency(self) -> bool:
        """Whether times are those of one clip alone (batch 1, which is also what leaving it out means)."""
        return self.batch in (None, 1)

    def limits(self) -> dict[str, float]:
        """The limits that are set, by field name; `batch` is not a limit."""
        fields = (
            "gmacs_per_clip",
            "milliseconds_per_clip",
            "realtime_factor",
            "state_megabytes",
            "total_megabytes",
            "tokens_per_clip",
        )
        return {name: getattr(self, name) for name in fields if getattr(self, name) is not None}

    @classmethod
    def parse(cls, text: str) -> Budget:
        """The budget that `text` states, such as "5gmacs", "40ms", "20x", "total 2GB, 512tokens", "40ms, batch 8".

        Limits are separated by commas; upper and lower case are the same.

        Raises:
            BudgetError: a part cannot be read, a unit is unknown, a limit is given twice, not finite or not > 0.
        """
        values: dict[str, float] = {}
        for part in text.split(","):
            name, value = _parse_part(part.strip(), text)
            if name in values:
                raise BudgetError(f"{name} is given twice in {text!r}; state one value")
            values[name] = value
        tokens, batch = values.pop("tokens_per_clip", None), values.pop("batch", None)
        return cls(**values, tokens_per_clip=_whole("tokens_per_clip", tokens), batch=_whole("batch", batch))

    def __str__(self) -> str:
        """Text that `parse` reads back to an equal budget."""
        patterns = {
            "gmacs_per_clip": "{}gmacs",
            "milliseconds_per_clip": "{}ms",
            "realtime_factor": "{}x",
            "state_megabytes": "{}MB",
            "total_megabytes": "total {}MB",
            "tokens_per_clip": "{}tokens",
        }
        parts = [patterns[name].format(_number(value)) for name, value in self.limits().items()]
        return ", ".join(parts if self.batch is None else [*parts, f"batch {self.batch}"])


def _parse_part(part: str, text: str) -> tuple[str, float]:
    """Field and value of one part of `text`."""
    if not part:
        where = f"a comma of {text!r} has no limit beside it" if text.strip() else "the budget is empty"
        raise BudgetError(f"{where}; allowed: {_ALLOWED}, separated by commas")
    lowered = part.lower()
    batch = _BATCH.fullmatch(lowered)
    if batch:
        return "batch", _to_float(batch["number"], part)
    match = _LIMIT.fullmatch(lowered)
    if not match:
        raise BudgetError(f"cannot read {part!r} in budget {text!r}; allowed: {_ALLOWED}, separated by commas")
    unit = match["unit"]
    if unit not in _UNITS:
        raise BudgetError(f"{_about_unit(unit, part, text)}; allowed: {_ALLOWED}")
    name, factor = _UNITS[unit]
    if match["total"]:
        if name != "state_megabytes":
            raise BudgetError(f"'total' goes with MB or GB only, got {part!r}; for example total 600MB")
        name = "total_megabytes"
    value = _to_float(match["number"], part) * factor
    if not (math.isfinite(value) and value > 0):
        raise BudgetError(f"{part!r} is no limit: it must be a finite number > 0; leave it out for no limit")
    return name, value


def _about_unit(unit: str, part: str, text: str) -> str:
    """What is wrong with a unit, and what may be meant."""
    if not unit:
        comma = re.search(rf"{re.escape(part)}\s*,\s*\d", text)
        return f"no unit in {part!r}" + (f" of {text!r}; decimals are written with a point" if comma else "")
    close = [repr(name) for name in difflib.get_close_matches(unit, _UNITS, n=1)]
    meant = _MEANT.get(unit) or "".join(close)
    return f"unknown unit {unit!r} in {part!r}" + (f" (perhaps {meant}?)" if meant else "")


def _to_float(number: str, part: str) -> float:
    try:
        return float(number)
    except ValueError:
        raise BudgetError(f"cannot read the number {number!r} in {part!r}; write it like 40 or 2.5") from None


def _whole(name: str, value: float | None) -> int | None:
    if value is None:
        return None
    if not _is_whole(value):
        raise BudgetError(f"{name} must be a whole number >= 1, got {value:g}; leave it out for no limit")
    return int(value)


def _is_whole(value: object) -> bool:
    """Whether it is a whole number from 1 up."""
    return isinstance(value, Real) and float(value).is_integer() and float(value) >= 1


def _number(value: float) -> str:
    """Shortest text that reads back as the same number."""
    return str(int(value)) if value == int(value) and value < 1e15 else repr(float(value))
