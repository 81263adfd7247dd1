"""`RealMeter`: times a model the way plans run it, through the same `Executor`.

Letters: B batch, T frames, H W pixels.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from elastivid.core.point import OperatingPoint, Runtime
from elastivid.planning.load import Watch
from elastivid.planning.run import Executor
from elastivid.planning.subject import Subject

SHORTEST_VISIT = 0.15  # seconds: shorter calls are repeated, up to five times
DISTURBED = 0.1  # share of the processors that we need and others took: above it a visit is repeated
RETRIES = 3
WARM_BELOW = 0.5  # seconds: what takes longer needs no call to warm up


class RealMeter:
    """Runs clips of noise through a model. Only sizes matter for time, so untrained weights serve as well.

    A visit during which others took processors that the model needs is repeated, up to three times.

    Args:
        subject: the model.

    Attributes:
        disturbed: per visit the share of the processors that others took of what was needed.
    """

    def __init__(self, subject: Subject) -> None:
        self._model = subject.build()
        self._fewest_frames = subject.fewest_frames
        self._executors: dict[Runtime, Executor] = {}
        self.disturbed: list[float] = []
        self._last: Runtime | None = None
        self._seen: set[tuple[Runtime, int, int, OperatingPoint]] = set()

    def __call__(self, frames: int, size: int, point: OperatingPoint, runtime: Runtime) -> tuple[float, float]:
        """Milliseconds per clip, and the seconds that finding out took."""
        started = time.perf_counter()
        executor, shape = self._executor(runtime), (runtime, frames, size, point)
        video = torch.randn(runtime.batch, frames, 3, size, size)  # (B, T, 3, H, W)
        if runtime != self._last:  # wake the threads of this way of running
            executor.embed_clips(video[:1, : self._fewest_frames], point=replace(point, tokens=None))
            self._last = runtime
        milliseconds, taken = self._undisturbed(executor, video, point, runtime)
        if shape not in self._seen and time.perf_counter() - started < WARM_BELOW:  # memory and kernels were new
            milliseconds, taken = self._undisturbed(executor, video, point, runtime)
        self._seen.add(shape)
        self.disturbed.append(taken)
        return milliseconds, time.perf_counter() - started

    def _undisturbed(
        self, executor: Executor, video: Tensor, point: OperatingPoint, runtime: Runtime
    ) -> tuple[float, float]:
        """The least disturbed of a few visits: milliseconds per clip, and the share of our processors others took."""
        cores = os.cpu_count() or 1
        spare = max(0.0, 1.0 - (runtime.threads or cores) * runtime.workers / cores)
        best = math.inf, math.inf
        for _ in range(RETRIES):
            watch = Watch()
            milliseconds = self._time(executor, video, point, runtime)
            best = min(best, (max(watch.others - spare, 0.0), milliseconds))
            if best[0] <= DISTURBED:
                break
        return best[1], best[0]

    def _time(self, executor: Executor, video: Tensor, point: OperatingPoint, runtime: Runtime) -> float:
        started = time.perf_counter()
        if runtime.workers == 1:
            times: list[float] = []
            while sum(times) < SHORTEST_VISIT and len(times) < 5:
                before = time.perf_counter()
                executor.embed_clips(video, point=point)
                times.append(time.perf_counter() - before)
            return statistics.median(times) * 1e3 / runtime.batch
        with ThreadPoolExecutor(runtime.workers) as pool:
            rounds = 0
            while rounds < 1 or (time.perf_counter() - started < SHORTEST_VISIT and rounds < 5):
                list(pool.map(lambda _: executor.embed_clips(video, point=point), range(runtime.workers)))
                rounds += 1
        return (time.perf_counter() - started) * 1e3 / (rounds * runtime.workers * runtime.batch)

    def _executor(self, runtime: Runtime) -> Executor:
        """One cast copy per precision, whatever the threads and batches."""
        if runtime not in self._executors:
            alike = [e for r, e in self._executors.items() if r.precision == runtime.precision]
            self._executors[runtime] = alike[0].running(runtime) if alike else Executor(self._model, runtime)
        return self._executors[runtime]
