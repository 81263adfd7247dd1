"""Indexing on Ray Data: the same job per file as `elastivid.search.indexing`, on one machine or on a cluster.

    driver   lists files, decides which have to be read, stores what comes back
    actors   one per core, each with a model: a few files at a time go through a `Pipeline` of one core, whose reading
             process may die alone as ever

Every machine of a cluster must see the files at the same paths. Files come back whole, in any order. Ray's reports of
usage to its makers are switched off.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from elastivid.core.errors import MissingExtraError
from elastivid.core.point import OperatingPoint
from elastivid.search.indexing import COMMIT_EVERY_SECONDS, Pipeline, Spent
from elastivid.search.reading import Job, Reading
from elastivid.search.workers import Take
from elastivid.search.writer import IndexedFile

if TYPE_CHECKING:
    from elastivid.search.index import Encoder

FILES_AT_A_TIME = 16
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}


@dataclass(frozen=True)
class _Done:
    """What came of a few files."""

    files: list[IndexedFile]
    windows: int
    video_seconds: float
    spent: Spent


class RayPipeline(Pipeline):
    """A `Pipeline` whose files are read and embedded by Ray: on the cluster that is connected, else on this machine."""

    def run(self, jobs: list[Job], take: Take | None = None) -> None:
        """Index `jobs`, as `Pipeline.run` does.

        Raises:
            MissingExtraError: Ray is not installed.
        """
        ray = _ray()
        self._bytes_total += sum(job.size_bytes for job in jobs)
        self._files_total += len(jobs)
        taken = [found for job in jobs if (found := take(job) if take else job) is not None]
        self._skipped += len(jobs) - len(taken)
        if not taken:
            return
        began = not ray.is_initialized()
        if began:
            here = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}}
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "lancedb fork", RuntimeWarning)  # Ray forks only to start programs
                ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", runtime_env=here)
        try:
            for done in self._results(ray, taken):
                self._take(done)
        finally:
            self._store()
            if began:
                ray.shutdown()

    def _results(self, ray: Any, jobs: list[Job]) -> Iterator[_Done]:
        actors = max(min(int(ray.cluster_resources().get("CPU", 1)), len(jobs)), 1)
        count = min(
            FILES_AT_A_TIME, math.ceil(len(jobs) / (2 * actors))
        )  # two rounds or more, so that all end together
        parts = [{"jobs": pickle.dumps(jobs[place : place + count])} for place in range(0, len(jobs), count)]
        results = ray.data.from_items(parts, override_num_blocks=len(parts)).map(
            _IndexFiles,
            fn_constructor_args=(self._encoder, self._reading, self._point),
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=1,
        )
        for row in results.iter_rows():
            yield pickle.loads(row["done"])

    def _take(self, done: _Done) -> None:
        self._finished += done.files
        self.records += [file.record for file in done.files]
        self.windows_done += done.windows
        self.video_seconds += done.video_seconds
        self._bytes_done += sum(file.record.size_bytes for file in done.files)
        for part in fields(Spent):
            setattr(self.spent, part.name, getattr(self.spent, part.name) + getattr(done.spent, part.name))
        if time.perf_counter() - self._committed >= COMMIT_EVERY_SECONDS:
            self._store()
        self._report(done.files[-1].record.path if done.files else "")


class _IndexFiles:
    """What an actor does with a few files."""

    def __init__(self, encoder: Encoder, reading: Reading, point: OperatingPoint) -> None:
        self._encoder, self._reading, self._point = encoder, reading, point

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        files: list[IndexedFile] = []
        pipeline = Pipeline(self._encoder, self._reading, self._point, files.extend, cores=1)
        pipeline.run(pickle.loads(row["jobs"]))
        pipeline.spent.store_seconds = 0.0  # nothing is stored here
        done = _Done(files, pipeline.windows_done, pipeline.video_seconds, pipeline.spent)
        return {"done": pickle.dumps(done)}


def _ray() -> Any:
    os.environ.update(SETTINGS)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError("ray", "ray") from error
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray
