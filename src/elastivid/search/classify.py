"""What videos show, by class: files -> windows -> probabilities, averaged over the windows of a file.

Files are read as for an index: in processes that may die alone, within limits, overlapped with the model. A file that
cannot be read becomes a row with the reason; the others go on.

Letters: K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from elastivid.core.budget import Budget
from elastivid.core.errors import BudgetError
from elastivid.core.plan import Plan
from elastivid.core.point import OperatingPoint, Sampling
from elastivid.evaluate.names import Names
from elastivid.search.indexing import Pipeline, Progress
from elastivid.search.library import FoundFile, find_videos
from elastivid.search.planned import PlannedPipeline, plan_for_files
from elastivid.search.printing import printable
from elastivid.search.reading import Job, Reading
from elastivid.search.records import FileRecord, LibraryError
from elastivid.search.writer import IndexedFile
from elastivid.video.source import Limits
from elastivid.weights.classifier import config_of, is_classifier
from elastivid.weights.load import read_metadata, resolve

if TYPE_CHECKING:
    from elastivid.evaluate.classifiers import Classifier

CLASSIFIED = "classified"


@dataclass(frozen=True)
class Labelled:
    """One file.

    Args:
        path: absolute path, or what was asked for where there is no such file.
        status: "classified"; "partial" (what could be read was); "failed" or "crashed" (nothing could be read).
        reason: why the status is not "classified".
        probabilities: float32 (K,), the mean over windows; empty where nothing could be read.
        names: of the classes, K of them.
        windows: how many were seen.
        duration_seconds: of the file.
    """

    path: str
    status: str
    reason: str = ""
    probabilities: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    names: tuple[str, ...] = ()
    windows: int = 0
    duration_seconds: float = 0.0

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The most probable classes with their probabilities, the most probable first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.names[i], float(self.probabilities[i])) for i in order]


@dataclass(frozen=True)
class Classification:
    """What `classify` found, and what it cost.

    Args:
        files: in the order in which they were named and listed.
        model: address.
        weights_id: hash of the weights.
        sampling, point: what was read of each window and spent on it.
        gmacs_per_window: billions of multiply-accumulates.
        windows: seen in all.
        video_seconds: of video that they cover.
        elapsed_seconds: from start to end, loading the model included.
        load_seconds: of these, loading the model.
        unlisted: folders that could not be listed, with reasons.
        plan: what a budget led to.
    """

    files: tuple[Labelled, ...]
    model: str
    weights_id: str
    sampling: Sampling
    point: OperatingPoint
    gmacs_per_window: float
    windows: int
    video_seconds: float
    elapsed_seconds: float
    load_seconds: float
    unlisted: tuple[str, ...] = ()
    plan: Plan | None = None

    @property
    def x_realtime(self) -> float:
        """Seconds of video per second, without loading the model."""
        return self.video_seconds / max(self.elapsed_seconds - self.load_seconds, 1e-9)


def classify(
    sources: Sequence[str | Path] | str | Path,
    classes: Sequence[str] = (),
    *,
    model: str = "nano",
    prompts: Sequence[str] | None = None,
    budget: Budget | str | None = None,
    plan: Plan | None = None,
    sampling: Sampling | None = None,
    point: OperatingPoint | None = None,
    limits: Limits | None = None,
    allow_download: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Classification:
    """Classify videos: files, or folders of them.

    Args:
        sources: files and folders; what does not exist becomes a row that says so.
        classes: names in words, for a dual encoder (zero-shot); leave them out for a model with a head of its own.
        model: shipped name, weights file, `hf:` address, or the file of a trained classifier.
        prompts: texts with `{}` in the place of a name, which are averaged; `None` takes a few plain ones.
        budget: what may be spent on a window, such as "20x" or "1gmacs"; see `elastivid.plan`.
        plan: a plan made before, in the stead of `budget`.
        sampling: windows, frames and size; `None` takes what the model is meant for, or the plan's.
        point: tokens and width; `None` likewise.
        limits: what reading one file may cost.
        allow_download: fetch an `hf:` checkpoint that is not in the local cache.
        progress: called after every batch and every file.

    Raises:
        ClassesError: the names are missing, repeated, or the model has its own.
        BudgetError: nothing keeps the budget, or it was given beside a plan, sampling or point.
        UnknownNameError, WeightsError: there is no such model.
    """
    started = time.perf_counter()
    roots = [sources] if isinstance(sources, str | Path) else list(sources)
    if (budget is not None) + (plan is not None) + (sampling is not None or point is not None) > 1:
        raise BudgetError(
            "a budget or a plan decides about frames, tokens and width; give one of them, or sampling and point"
        )
    from elastivid.evaluate.classifiers import open_classifier

    names = Names(tuple(classes)) if prompts is None else Names(tuple(classes), tuple(prompts))
    classifier = open_classifier(model, names, allow_download=allow_download)
    load_seconds = time.perf_counter() - started
    if budget is not None:
        plan = plan_for_classes(roots, model, budget)
    if plan is not None:
        sampling, point = plan.sampling, plan.point
    sampling, point = sampling or classifier.sampling, point or classifier.point
    found, unlisted, absent = _listed(roots)
    run = _Run(classifier, sampling, point, limits or Limits(), plan, progress)
    run.read(found)
    by_path = {**{done.path: done for done in run.done}, **{row.path: row for row in absent}}
    order = [file.path for file in found] + [row.path for row in absent]
    return Classification(
        files=tuple(by_path[path] for path in order),
        model=classifier.address,
        weights_id=classifier.weights_id,
        sampling=sampling,
        point=point,
        gmacs_per_window=classifier.cost(sampling, point).gmacs,
        windows=run.pipeline.windows_done,
        video_seconds=run.pipeline.video_seconds,
        elapsed_seconds=time.perf_counter() - started,
        load_seconds=load_seconds,
        unlisted=tuple(printable(str(error)) for error in unlisted),
        plan=plan,
    )


def plan_for_classes(
    sources: Sequence[str | Path],
    model: str,
    budget: Budget | str,
    progress: Callable[[float, float, str], None] | None = None,
) -> Plan:
    """The plan within `budget` for classifying `sources` with a model; measures this machine where that is needed.

    Raises:
        BudgetError, UnknownNameError, PlanError: see `elastivid.plan`.
    """
    wanted = Budget.parse(budget) if isinstance(budget, str) else budget
    found, _, _ = _listed(list(sources))
    sampling = None
    if is_classifier(model):  # windows, frames and size are those its head was trained on
        sampling = config_of(read_metadata(resolve(model))).sampling
    return plan_for_files(model, [file.path for file in found], wanted, sampling=sampling, progress=progress)


class _Run:
    """Reads files and keeps what the classifier makes of them."""

    def __init__(
        self,
        classifier: Classifier,
        sampling: Sampling,
        point: OperatingPoint,
        limits: Limits,
        plan: Plan | None,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.classifier, self.done = classifier, list[Labelled]()
        reading = Reading(sampling, limits, transform=classifier.transform)
        engine: Any = Pipeline if plan is None else PlannedPipeline(plan)
        self.pipeline: Pipeline = engine(classifier.encoder, reading, point, self.keep, progress)

    def read(self, files: list[FoundFile]) -> None:
        """Classify all of them."""
        self.pipeline.run([Job(i, file.path, file.size_bytes, file.modified_ns) for i, file in enumerate(files)])

    def keep(self, finished: list[IndexedFile]) -> None:
        """Take files whose windows are all embedded."""
        self.done += [_labelled(item.record, item.vectors, self.classifier) for item in finished]


def _labelled(record: FileRecord, vectors: np.ndarray, classifier: Classifier) -> Labelled:
    import torch

    status = CLASSIFIED if record.status == "indexed" else record.status
    if not len(vectors):
        return Labelled(record.path, status, record.reason, names=classifier.names)
    mean = classifier.probabilities(torch.from_numpy(vectors)).mean(dim=0).numpy()  # (n, D) -> (K,)
    return Labelled(record.path, status, record.reason, mean, classifier.names, len(vectors), record.duration_seconds)


def _listed(roots: Sequence[str | Path]) -> tuple[list[FoundFile], list[OSError], list[Labelled]]:
    """Files in the order of the sources, folders that could not be listed, and rows for sources that do not exist."""
    found: dict[str, FoundFile] = {}
    unlisted: list[OSError] = []
    absent: list[Labelled] = []
    for root in roots:
        try:
            files, troubles = find_videos([root])
        except LibraryError as error:
            absent.append(Labelled(str(root), "failed", str(error)))
            continue
        found.update((file.path, file) for file in files)
        unlisted += troubles
    return list(found.values()), unlisted, absent
