"""What operating points cost on this machine: a few measured, the rest interpolated, the error measured as well.

    rows   = time of ~14 (frames, size, tokens, width) under each way of running (precision, threads, workers, batch)
    times  = `TimeModel` per way of running
    error  = every row predicted from the others

The full grid would take hours. Token counts go down in octaves on the native grid; smaller grids and widths are
measured at two counts each, which is what the terms of `TimeModel` need. Rounds over all rows alternate, so that a slow
minute of the machine touches all of them alike, and the time of a row is the median of the faster half of its calls:
other processes can only slow a call down.

A profile is kept as JSON in the user's cache folder (`ELASTIVID_CACHE` names another), one file per machine, model
sizes and version of the code that runs.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from elastivid.core.errors import PlanError
from elastivid.core.point import OperatingPoint, Runtime
from elastivid.planning.subject import Subject
from elastivid.planning.timing import TimeModel

SECONDS = 120.0  # time spent on measuring one model
MOST_CALL_SECONDS = 1.5  # dearer calls are left to extrapolation, but for the native grid on all threads
MOST_DEAR_SECONDS = 4.0  # of that one, and of the dearest point of every way of running that holds more than one clip
MOST_CALLS = 9
SHORTEST_CALL_SECONDS = 0.15  # of what tells whether the machine is as fast as it was
THROUGHPUT_BATCH = 8
OCTAVES = 6
FEWEST_TOKENS = 16

Progress = Callable[[float, float, str], None]  # seconds done, seconds in all, what is being measured


@dataclass(frozen=True)
class Row:
    """One measured time.

    Args:
        frames, size, tokens, width: what was computed.
        runtime: how it ran.
        milliseconds: per clip.
        spread: median of all calls over `milliseconds`, minus one: how disturbed the machine was.
        calls: how often it ran.
    """

    frames: int
    size: int
    tokens: int
    width: int
    runtime: Runtime
    milliseconds: float
    spread: float = 0.0
    calls: int = 1

    @property
    def point(self) -> OperatingPoint:
        """What the model spends."""
        return OperatingPoint(tokens=self.tokens, width=self.width)


class Meter(Protocol):
    """Runs a point once."""

    def __call__(self, frames: int, size: int, point: OperatingPoint, runtime: Runtime) -> tuple[float, float]:
        """Milliseconds per clip, and the seconds that finding out took."""
        ...


@dataclass(frozen=True)
class Profile:
    """Measured times of one model on one machine. Make one with `measure` or `load_profile`.

    Args:
        machine: processor, cores and torch version (`machine_key`).
        model: sizes of the model (`Subject.key`).
        rows: what was measured.
        seconds: how long measuring took.
        measured_at: date and time.
        slowed: how much slower the machine is by now, in the way of running that suffers most; see `as_it_is_now`.
    """

    machine: str
    model: str
    rows: tuple[Row, ...]
    seconds: float
    measured_at: str
    subject: Subject = field(repr=False, compare=False)
    slowed: float = 1.0

    def predict(self, frames: int, size: int, point: OperatingPoint, runtime: Runtime) -> float:
        """Milliseconds per clip.

        Batches between the measured ones are interpolated in logarithms; beyond them the nearest is taken.

        Raises:
            PlanError: nothing was measured with this precision, these threads and workers.
        """
        work = self.subject.work(frames, size, point)
        models = self._models.get(_way(runtime), {})
        if not models:
            raise PlanError(f"nothing was measured with {runtime}; measured: {', '.join(map(str, self.runtimes))}")
        batches = sorted(models)
        below = max((b for b in batches if b <= runtime.batch), default=batches[0])
        above = min((b for b in batches if b >= runtime.batch), default=batches[-1])
        low, high = models[below].predict(work), models[above].predict(work)
        share = math.log(runtime.batch / below) / math.log(above / below) if above > below else 0.0
        return low * (high / low) ** share

    def is_extrapolated(self, frames: int, size: int, point: OperatingPoint, runtime: Runtime) -> bool:
        """Whether the point lies far above the dearest one measured in this way of running."""
        return self.subject.work(frames, size, point).macs > 1.5 * self.most_macs(runtime)

    def most_macs(self, runtime: Runtime) -> float:
        """MACs of the dearest point measured in this way of running, whatever the batch."""
        models = self._models.get(_way(runtime), {}).values()
        return max((model.most_macs for model in models), default=0.0)

    @cached_property
    def runtimes(self) -> tuple[Runtime, ...]:
        """Ways of running that were measured."""
        return tuple(dict.fromkeys(row.runtime for row in self.rows))

    @cached_property
    def errors(self) -> np.ndarray:
        """measured / predicted - 1 of every row, predicted from the others."""
        parts = [model.left_out for models in self._models.values() for model in models.values()]
        return np.concatenate([np.zeros(0), *parts])

    @property
    def margin(self) -> float:
        """Share by which a plan stays below a limit on time.

        Only 1 in 20 left-out rows took longer than that, and what a row says is the quieter half of its calls: so it
        grows by how much slower the usual call of the usual row was.
        """
        if not self.rows:
            return 0.1
        rows_apart = max(0.0, float(np.quantile(self.errors, 0.95))) if len(self.errors) else 0.1
        return (1.0 + rows_apart) * (1.0 + float(np.median([row.spread for row in self.rows]))) - 1.0

    @cached_property
    def _models(self) -> dict[tuple[object, ...], dict[int, TimeModel]]:
        references: dict[str, TimeModel] = {}
        models: dict[tuple[object, ...], dict[int, TimeModel]] = {}
        for runtime in sorted(self.runtimes, key=lambda r: (r.batch * r.workers, -(r.threads or 0))):
            rows = [row for row in self.rows if row.runtime == runtime]
            works = [self.subject.work(row.frames, row.size, row.point) for row in rows]
            model = TimeModel(works, [row.milliseconds for row in rows], references.get(runtime.precision))
            references.setdefault(runtime.precision, model)  # one clip on all threads comes first
            models.setdefault(_way(runtime), {})[runtime.batch] = model
        return models

    def to_json(self) -> str:
        """Text that `from_json` reads back to an equal profile."""
        content = {name: getattr(self, name) for name in ("machine", "model", "seconds", "measured_at")}
        return json.dumps(content | {"rows": [asdict(row) for row in self.rows]}, indent=1)

    @classmethod
    def from_json(cls, text: str, subject: Subject) -> Profile:
        """The profile that `to_json` wrote, of the model `subject`.

        Raises:
            PlanError: the text is no profile, or one of another model.
        """
        try:
            content = json.loads(text)
            rows = tuple(Row(**{**row, "runtime": Runtime(**row["runtime"])}) for row in content.pop("rows"))
            profile = cls(rows=rows, subject=subject, **content)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PlanError(f"not a profile ({type(error).__name__}: {error}); measure again") from error
        if profile.model != subject.key or not profile.rows:
            raise PlanError(f"the profile is not one of {subject.address}; measure again")
        return profile


def _way(runtime: Runtime) -> tuple[object, ...]:
    """What a runtime says, the batch left out."""
    return tuple(asdict(replace(runtime, batch=1)).values())


# what is measured


def grid_points(subject: Subject) -> list[tuple[int, int, OperatingPoint]]:
    """Frames, size and point of every row: octaves of tokens on the native grid, two for smaller grids and widths.

    Each stands once, however small the model is: of one frame, half is one frame too.
    """
    frames, size = subject.frames, subject.size
    everything = subject.available_tokens(frames, size)
    widths = profiled_widths(subject)[:-1]
    if "tokens" not in subject.axes:
        return [(frames, size, OperatingPoint(width=w)) for w in (*widths, None)]
    counts = [min(everything, max(everything >> octave, FEWEST_TOKENS)) for octave in range(OCTAVES)]
    points = [(frames, size, OperatingPoint(tokens=count)) for count in counts]
    points += [(frames, size, OperatingPoint(tokens=c, width=w)) for w in widths for c in (counts[1], counts[3])]
    patch = int(subject.config.patch_size)
    smaller = max(patch, size * 2 // 3 // patch * patch)
    half, quarter = subject.whole_tubelets(frames // 2), subject.whole_tubelets(frames // 4)
    for grid in ((half, size), (frames, smaller), (quarter, smaller)):
        available = subject.available_tokens(*grid)
        counts = [available, max(available // 6, min(FEWEST_TOKENS, available))]
        points += [(*grid, OperatingPoint(tokens=count)) for count in counts]
    return list(dict.fromkeys(points))


def profiled_widths(subject: Subject) -> tuple[int, ...]:
    """Widths that are measured: those it was trained at, else thirds of its heads; ascending, full width last."""
    cut = getattr(subject.config, "widths", None)  # a model that holds only some channels
    if len(subject.trained_widths) > 1 or "width" not in subject.axes or cut:
        return subject.trained_widths
    heads, full = int(subject.config.num_heads), subject.full_width
    kept = {max(1, round(heads * share)) for share in (1 / 3, 2 / 3)}
    return (*sorted({full // heads * count for count in kept if count < heads}), full)


def ways_of_running(
    cores: int, workers: int | None = None, *, precisions: Iterable[str] = ("float32", "bfloat16")
) -> list[Runtime]:
    """Latency on one, some and all threads; throughput on all threads together and on workers of one thread each.

    Args:
        cores: threads that torch uses.
        workers: batches that indexing embeds at the same time; `None` is one per core.
        precisions: of the weights.
    """
    threads = sorted({1, min(4, cores), cores})
    ways = [Runtime(threads=count) for count in threads]
    ways.append(Runtime(threads=cores, batch=THROUGHPUT_BATCH))
    beside = Runtime(threads=1, workers=workers or cores, batch=THROUGHPUT_BATCH)
    ways += [beside] if beside not in ways else []
    return [replace(way, precision=precision) for precision in precisions for way in ways]


@dataclass
class _Trial:
    frames: int
    size: int
    point: OperatingPoint
    runtime: Runtime
    times: list[float] = field(default_factory=list)
    spent: float = 0.0

    def row(self, subject: Subject) -> Row:
        settled = sorted(self.times)
        typical = float(np.median(settled[: (len(settled) + 1) // 2]))
        tokens = self.point.tokens or subject.available_tokens(self.frames, self.size)
        width = self.point.width if isinstance(self.point.width, int) else subject.full_width
        spread = float(np.median(settled)) / typical - 1.0
        return Row(self.frames, self.size, tokens, width, self.runtime, typical, spread, len(self.times))


def measure(
    subject: Subject,
    meter: Meter,
    *,
    runtimes: Sequence[Runtime],
    seconds: float = SECONDS,
    progress: Progress | None = None,
) -> Profile:
    """Measure a model here.

    Args:
        subject: the model.
        meter: runs a point; `elastivid.planning.meter.RealMeter` does it for real.
        runtimes: ways of running to measure, see `ways_of_running`.
        seconds: about how long to measure.
        progress: called after every call.
    """
    report = progress or (lambda done, total, what: None)
    trials = _first_round(subject, meter, runtimes, report, seconds)
    spent = sum(trial.spent for trial in trials)
    share = max(seconds, spent) / len(trials)
    while spent < seconds:
        before = spent
        for trial in trials:
            enough = len(trial.times) >= MOST_CALLS or (len(trial.times) >= 2 and trial.spent > share)
            if enough or spent >= seconds:
                continue
            spent += _run(trial, meter)
            report(min(spent, seconds), seconds, _named(trial))
        if spent == before:
            break
    report(seconds, seconds, "done")
    rows = tuple(trial.row(subject) for trial in trials)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Profile(machine_key(), subject.key, rows, round(spent, 1), now, subject)


def as_it_is_now(profile: Profile, meter: Meter) -> Profile:
    """The profile with times as they are now: machines have slow hours, and a plan is to hold in them too.

    In every way of running the dearest point of at most `SHORTEST_CALL_SECONDS` is measured again, the better of two
    visits. Where it takes longer than the profile says, all times of this way do; where it takes less, nothing changes.
    """
    factors = {}
    for runtime in profile.runtimes:
        rows = [row for row in profile.rows if row.runtime == runtime]
        clips = runtime.batch * runtime.workers
        cheap = [row for row in rows if row.milliseconds * clips <= 1e3 * SHORTEST_CALL_SECONDS]
        row = max(cheap, key=lambda r: r.milliseconds) if cheap else min(rows, key=lambda r: r.milliseconds)
        now = min(meter(row.frames, row.size, row.point, runtime)[0] for _ in range(2))
        factors[runtime] = max(1.0, now / row.milliseconds)
    longer = tuple(replace(row, milliseconds=row.milliseconds * factors[row.runtime]) for row in profile.rows)
    return replace(profile, rows=longer, slowed=max(factors.values()))


def _first_round(
    subject: Subject, meter: Meter, runtimes: Sequence[Runtime], report: Progress, seconds: float
) -> list[_Trial]:
    """Every affordable trial once, the cheapest first, so that what the next one takes is known beforehand."""
    points = sorted(grid_points(subject), key=lambda item: subject.cost(*item).macs)
    trials: list[_Trial] = []

    def run(trial: _Trial) -> float:
        taken = _run(trial, meter)
        trials.append(trial)
        report(min(sum(t.spent for t in trials), seconds), seconds, _named(trial))
        return taken

    for runtime in runtimes:
        rate, clips = 0.0, runtime.batch * runtime.workers
        native_limit = MOST_DEAR_SECONDS if clips == 1 and runtime.threads != 1 else MOST_CALL_SECONDS
        left_out: list[tuple[float, _Trial]] = []  # MACs, and what was too dear
        for place, (frames, size, point) in enumerate(points):
            macs = subject.cost(frames, size, point).macs * clips
            trial = _Trial(frames, size, point, runtime)
            if place >= 3 and macs * rate > (native_limit if size == subject.size else MOST_CALL_SECONDS):
                left_out.append((macs, trial))
                continue
            rate = run(trial) / macs
        affordable = [trial for macs, trial in left_out if macs * rate <= MOST_DEAR_SECONDS]
        if clips > 1 and affordable:  # what batches save on cheap points they may not save on this one
            run(affordable[-1])
    return trials


def _run(trial: _Trial, meter: Meter) -> float:
    milliseconds, seconds = meter(trial.frames, trial.size, trial.point, trial.runtime)
    trial.times.append(milliseconds)
    trial.spent += seconds
    return seconds


def _named(trial: _Trial) -> str:
    runtime = trial.runtime
    clips = f"{runtime.workers} x {runtime.batch} clips" if runtime.workers > 1 else f"{runtime.batch} clips"
    threads = f"{runtime.threads} thread" + ("s" if runtime.threads != 1 else "")
    width = f", width {trial.point.width}" if trial.point.width else ""
    return f"{trial.point.tokens or 'all'} tokens{width}, {runtime.precision}, {clips}, {threads}"


# where profiles are kept


def cache_folder() -> Path:
    """Folder of what can be measured again: `ELASTIVID_CACHE`, else `elastivid` in the user's cache folder."""
    named = os.environ.get("ELASTIVID_CACHE")
    if named:
        return Path(named).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "elastivid"


def machine_key() -> str:
    """Processor, cores that torch uses, and torch version."""
    from elastivid.core.cost import hardware_key

    return " | ".join(hardware_key().split(" | ")[:3])


def code_key() -> str:
    """Hash of the code whose speed a profile measures: an update of the library is measured again."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for folder in ("layers", "models", "select"):
        for path in sorted((package / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def profile_path(subject: Subject) -> Path:
    """File of the profile of this model on this machine."""
    name = hashlib.sha256("\n".join((machine_key(), subject.key, code_key())).encode()).hexdigest()[:16]
    return cache_folder() / "profiles" / f"{name}.json"


def load_profile(subject: Subject) -> Profile | None:
    """The profile of this model on this machine, or `None` when there is none that can be read."""
    try:
        return Profile.from_json(profile_path(subject).read_text(encoding="utf-8"), subject)
    except (OSError, ValueError):
        return None


def save_profile(profile: Profile) -> Path:
    """Keep a profile for the next time; written beside its place and moved there, so a reader never sees half of it."""
    path = profile_path(profile.subject)
    write_atomically(path, profile.to_json())
    return path


def write_atomically(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
