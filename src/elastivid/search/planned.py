"""Indexing within a budget: a plan for an index, and the engine that carries it out.

An index has one sampling and one operating point, because scores of windows that were given different amounts of work
do not compare well. So a budget chooses both for a new index; for an existing one only how the model runs is left to
choose, and a budget that this cannot keep is refused.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from elastivid.core.budget import Budget
from elastivid.core.errors import BudgetError
from elastivid.core.plan import Plan
from elastivid.core.point import Runtime
from elastivid.planning.plan import Fixed
from elastivid.planning.prepare import planner_for
from elastivid.planning.reading import Source
from elastivid.planning.subject import describe
from elastivid.search.indexing import BATCH_WINDOWS, ENCODER_THREADS, Commit, Pipeline, Progress
from elastivid.search.library import find_videos
from elastivid.search.reading import Reading

if TYPE_CHECKING:
    from elastivid.core.point import OperatingPoint, Sampling
    from elastivid.search.index import Encoder, Index

PROBED = 8
PROBE_SECONDS = 30.0
PROBE = """
import json, os, sys
from elastivid.video.errors import VideoError
from elastivid.video.reader import VideoReader
for path in sys.argv[1:]:
    try:
        with VideoReader(path) as reader:
            found = reader.metadata
            frames = (found.duration_seconds or 0.0) * (found.average_fps or 0.0)
            values = {"width": found.width, "height": found.height, "fps": found.average_fps or 30.0}
            if frames:
                values |= {"kilobits": os.path.getsize(path) * 8e-3 / frames, "seconds": found.duration_seconds}
            print(json.dumps(values), flush=True)
    except (VideoError, OSError):
        pass
"""


def plan_for_index(
    index: Index, roots: list[str], budget: Budget, progress: Callable[[float, float, str], None] | None = None
) -> Plan:
    """The plan within `budget` for adding `roots` to an index; measures this machine where that is needed.

    Args:
        index: new or existing.
        roots: what will be added; the files there tell what decoding costs.
        budget: milliseconds are those of a window when windows are embedded side by side, as indexing does.
        progress: called while measuring.

    Raises:
        BudgetError: nothing keeps the budget, or the budget states a batch that indexing does not have.
        UnknownNameError, PlanError: the model cannot be planned.
    """
    if index._wanted.encoder is not None:
        raise BudgetError("a budget needs a model that is named, not an encoder object; pass its sampling and point")
    _require_batch(budget)
    made_with = index.settings if index._store.exists else None
    sampling = made_with.sampling if made_with else index._wanted.sampling
    point = made_with.point if made_with else index._wanted.point
    try:
        return plan_for_files(index._model_name, roots, budget, sampling=sampling, point=point, progress=progress)
    except BudgetError as error:
        if made_with is None:
            raise
        raise BudgetError(
            f"{error}; the index was made with these frames and tokens, and only precision is left to choose: allow "
            "more, or index into another path"
        ) from error


def plan_for_files(
    model: str,
    roots: list[str],
    budget: Budget,
    *,
    sampling: Sampling | None = None,
    point: OperatingPoint | None = None,
    progress: Callable[[float, float, str], None] | None = None,
) -> Plan:
    """The plan within `budget` for windows of the videos under `roots`, embedded side by side as a `Pipeline` does.

    Args:
        model: address.
        roots: files and folders; they tell what decoding costs.
        budget: what may be spent on a window.
        sampling, point: fixed where they are given.
        progress: called while measuring.

    Raises:
        BudgetError: nothing keeps the budget, or it states a batch that a pipeline does not have.
        UnknownNameError, PlanError: the model cannot be planned.
    """
    _require_batch(budget)
    way = Runtime(threads=1, batch=BATCH_WINDOWS, workers=ENCODER_THREADS)
    fixed = Fixed(sampling=sampling is not None, size=True, point=point, way=way)
    planner = planner_for(
        describe(model), budget, sampling=sampling, source=typical_source(roots), fixed=fixed, progress=progress
    )
    return planner.plan(budget)


def _require_batch(budget: Budget) -> None:
    """Refuse a batch that a pipeline does not have."""
    if budget.batch not in (None, BATCH_WINDOWS):
        raise BudgetError(f"windows are embedded {BATCH_WINDOWS} at a time, got batch {budget.batch}; leave it out")


def typical_source(roots: list[str]) -> Source:
    """What is typical of the videos under `roots`: headers of up to eight, read in a process that may die alone.

    Sound counts as picture: it has few bits.
    """
    found, _ = find_videos(roots)
    chosen = [file.path for file in found[:: max(1, len(found) // PROBED)]][:PROBED]
    if not chosen:
        return Source()
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE, *chosen], capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
        text = done.stdout
    except subprocess.TimeoutExpired as late:
        text = late.stdout.decode() if isinstance(late.stdout, bytes) else ""
    sources = [Source(**json.loads(line)) for line in text.splitlines() if line.endswith("}")]
    return replace(Source.typical(sources), files=len(found))


class PlannedPipeline:
    """An engine for `Index.add`: the pipeline of this machine with the model in the precision of a plan.

    Args:
        plan: how the model runs.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __call__(
        self,
        encoder: Encoder,
        reading: Reading,
        point: OperatingPoint,
        commit: Commit,
        progress: Callable[[Progress], None] | None = None,
    ) -> Pipeline:
        """A pipeline; the weights are cast once, here."""
        from elastivid.planning.run import Executor

        executor = Executor(encoder, self.plan.runtime)  # type: ignore[arg-type]
        return Pipeline(executor, reading, point, commit, progress)
