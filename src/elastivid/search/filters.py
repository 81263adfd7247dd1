"""Which files a search looks at: `Filters(path="holiday/*", after="2024-06", min_height=720)`.

Filters choose files before anything is ranked, so the best moments of the chosen files are found however few they are.
All conditions must hold. A condition on something that is not known of a file, such as the duration where the header
does not say, leaves the file out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from datetime import date, datetime, time
from fnmatch import fnmatchcase

from elastivid.search.records import FileRecord, Place, QueryError

_FORMATS = ("%Y", "%Y-%m", "%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S")
_RANGES = (("min_duration_seconds", "max_duration_seconds"), ("min_height", "max_height"), ("min_width", "max_width"))


@dataclass(frozen=True)
class Filters:
    """Conditions on files. `None` everywhere means: any.

    Args:
        path: glob pattern for the end of the path, from a folder or file name on: "*.mkv", "holiday/*". `*` stands for
            anything, `/` included, `?` for one character, `[ab]` for one of these. Several patterns: any of them. Of
            a file with copies one must fit, path and dates together, and results name that one.
        after: files modified at that time or later: a date, a datetime or text such as "2024", "2024-06",
            "2024-06-30", "2024-06-30T18:00" (local time; a date alone is its first moment).
        before: files modified earlier than that.
        min_duration_seconds, max_duration_seconds: bounds of the duration, both included.
        min_width, max_width, min_height, max_height: bounds of the picture in pixels as stored, both included.

    Raises:
        QueryError: a value cannot be read, is negative, or no file could fulfil both ends of a range.
    """

    path: str | tuple[str, ...] | None = None
    after: str | date | None = None
    before: str | date | None = None
    min_duration_seconds: float | None = None
    max_duration_seconds: float | None = None
    min_width: int | None = None
    max_width: int | None = None
    min_height: int | None = None
    max_height: int | None = None

    def __post_init__(self) -> None:
        patterns = (self.path,) if isinstance(self.path, str) else self.path or ()
        if not all(isinstance(pattern, str) and pattern for pattern in patterns):
            raise QueryError(f'a path pattern must be text such as "holiday/*" or "*.mkv", got {self.path!r}')
        object.__setattr__(self, "path", tuple(patterns) or None)
        object.__setattr__(self, "after", _to_datetime("after", self.after))
        object.__setattr__(self, "before", _to_datetime("before", self.before))
        if self.after is not None and self.before is not None and _ns(self.after) >= _ns(self.before):
            raise QueryError(f"nothing lies after {self.after} and before {self.before}; exchange the two")
        for low, high in _RANGES:
            at_least, at_most = getattr(self, low), getattr(self, high)
            for name, value in ((low, at_least), (high, at_most)):
                if value is not None and not 0 <= value < math.inf:
                    raise QueryError(f"{name} must be a number from 0 on, got {value}")
            if at_least is not None and at_most is not None and at_least > at_most:
                raise QueryError(f"{low} {at_least:g} is above {high} {at_most:g}; exchange the two")

    def __bool__(self) -> bool:
        """Whether there is any condition."""
        return any(getattr(self, field.name) is not None for field in fields(self))

    def __str__(self) -> str:
        """The conditions, as a person would write them down."""
        set_ones = {field.name: getattr(self, field.name) for field in fields(self)}
        return ", ".join(
            f"{name} {' or '.join(value) if isinstance(value, tuple) else value}"
            for name, value in set_ones.items()
            if value is not None
        )

    def accept(self, file: FileRecord) -> bool:
        """Whether the file fulfils all conditions."""
        return self.fitting_path(file) is not None

    def fitting_path(self, file: FileRecord) -> str | None:
        """The first path of the file, which may have copies, that fulfils all conditions; None when none does."""
        if not (
            _within(file.duration_seconds, self.min_duration_seconds, self.max_duration_seconds)
            and _within(file.width, self.min_width, self.max_width)
            and _within(file.height, self.min_height, self.max_height)
        ):
            return None
        return next((place.path for place in file.places if not place.missing and self._fits(place)), None)

    def _fits(self, place: Place) -> bool:
        if self.path is not None and not any(_matches(place.path, pattern) for pattern in self.path):
            return False
        if self.after is not None and place.modified_ns < _ns(self.after):
            return False
        return self.before is None or place.modified_ns < _ns(self.before)


def _matches(path: str, pattern: str) -> bool:
    """Whether the end of the path, from the start of a name on, fits the pattern."""
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"*/{pattern}")


def _within(value: float, low: float | None, high: float | None) -> bool:
    """0 stands for unknown, which lies in no range."""
    if low is None and high is None:
        return True
    return value > 0 and (low is None or value >= low) and (high is None or value <= high)


def _to_datetime(name: str, value: str | date | None) -> datetime | None:
    if value is None or isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return datetime.combine(value, time())
    for pattern in _FORMATS:
        try:
            return datetime.strptime(value.strip(), pattern)
        except ValueError:
            continue
    raise QueryError(f"cannot read the date {value!r} of {name!r}; write 2024, 2024-06, 2024-06-30 or 2024-06-30T18:00")


def _ns(moment: str | date) -> int:
    assert isinstance(moment, datetime)
    return int(moment.timestamp() * 1e9)
