"""How much of the processor other programs use: a time measured beside them is no time of ours."""

from __future__ import annotations

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")


class Watch:
    """Tells what share of all processors others used since it was made; 0 where the system does not say (not Linux)."""

    def __init__(self) -> None:
        self._busy, self._own, self._started = _busy_seconds(), time.process_time(), time.perf_counter()

    @property
    def others(self) -> float:
        """Share of all processors in [0, 1]; coarse below a tenth of a second."""
        elapsed = time.perf_counter() - self._started
        if elapsed <= 0 or self._busy == 0.0:
            return 0.0
        busy, own = _busy_seconds() - self._busy, time.process_time() - self._own
        return min(max((busy - own) / (elapsed * (os.cpu_count() or 1)), 0.0), 1.0)


def _busy_seconds() -> float:
    """Seconds of work of all processors since the system started, waiting left out."""
    if not STAT.is_file():
        return 0.0
    user, nice, system, _idle, _wait, *rest = (int(v) for v in STAT.read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
