"""A machine whose times are a formula, so that plans can be checked to the digit."""

from __future__ import annotations

from elastivid.core.point import OperatingPoint, Runtime
from elastivid.planning.profile import Profile, measure, ways_of_running
from elastivid.planning.reading import Reading, ReadingRow
from elastivid.planning.subject import Subject

CORES = 2


class FakeMeter:
    """Two cores; bfloat16 is three times as fast; every third call is disturbed and takes twice as long."""

    def __init__(self, subject: Subject, disturbed: bool = True) -> None:
        self.subject, self.disturbed, self.calls = subject, disturbed, 0

    def __call__(self, frames: int, size: int, point: OperatingPoint, runtime: Runtime) -> tuple[float, float]:
        self.calls += 1
        milliseconds = self.true(frames, size, point, runtime)
        if self.disturbed and self.calls % 3 == 0:
            milliseconds *= 2
        return milliseconds, milliseconds * runtime.batch * runtime.workers / 1e3

    def true(self, frames: int, size: int, point: OperatingPoint, runtime: Runtime) -> float:
        work = self.subject.work(frames, size, point)
        alone = 2.0 / runtime.batch + 20.0 * work.macs / 1e9 + 0.2 * work.pixels / 1e5
        speed = {"float32": 1.0, "bfloat16": 3.0}[runtime.precision]
        return alone / speed / min((runtime.threads or 1) * runtime.workers, CORES) ** 0.9


def fake_profile(subject: Subject, seconds: float = 400.0, disturbed: bool = True) -> Profile:
    return measure(subject, FakeMeter(subject, disturbed), runtimes=ways_of_running(CORES), seconds=seconds)


def fake_reading() -> Reading:
    rows = (ReadingRow(320, 240, 0.1, 1.0, 0.2, 5.0, 8.0), ReadingRow(1920, 1080, 3.0, 36.0, 3.0, 100.0, 200.0))
    return Reading("here", rows, 0.05, 0.01, CORES)
