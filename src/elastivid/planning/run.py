"""`Executor`: a model as a `Runtime` says it runs. `Runner`: a plan carried out, with what it cost.

Precision is that of the weights, cast once: autocast would cast them at every call and lose fused norms. Threads are
set around each call and put back. Compiling happens at the first call of each shape.

Letters: B batch, T frames, H W pixels, D channels of an embedding.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Event, Lock, Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elastivid.core.cost import Cost, hardware_key
from elastivid.core.errors import PlanError, PointError
from elastivid.core.plan import Plan
from elastivid.core.point import OperatingPoint, Runtime
from elastivid.models.base import DualEncoder, VideoEncoder
from elastivid.video.transforms import Transform

_SETTING = Lock()


@contextmanager
def threads_of(runtime: Runtime) -> Iterator[None]:
    """Run what is inside on `runtime.threads` threads; threads that are born meanwhile get what they always got."""
    before = torch.get_num_threads()
    if runtime.threads in (None, before):
        yield
        return
    _set_here(runtime.threads or before)
    try:
        yield
    finally:
        _set_here(before)


def _set_here(count: int) -> None:
    """Set the number of torch's threads for the calling thread.

    `torch.set_num_threads` also sets it for threads that are born later. What those took before, a thread that is born
    here finds out and sets again. A thread whose first use of torch falls in between gets `count`.
    """
    changed, known = Event(), Event()

    def keep() -> None:
        others = torch.get_num_threads()
        known.set()
        changed.wait()
        torch.set_num_threads(others)

    with _SETTING:
        keeper = Thread(target=keep, name="elastivid-threads")
        keeper.start()
        known.wait()
        try:
            torch.set_num_threads(count)
        finally:
            changed.set()
            keeper.join()


class Executor:
    """A model whose weights are held in the precision of a runtime, and that runs as it says.

    Everything but embedding clips is the model's own: names, space, texts. What it returns is float32.

    Args:
        model: left as it is; a cast copy is made where one is needed.
        runtime: device, precision, threads, compiled. Cutting clips into batches is up to the caller.
    """

    def __init__(self, model: VideoEncoder | DualEncoder, runtime: Runtime) -> None:
        self.runtime = runtime
        self._model = model
        as_it_is = runtime.precision == "float32" and runtime.device == "cpu"
        self.cast = model if as_it_is else copy.deepcopy(model).cast(runtime.precision).to(runtime.device)
        self._prepare()

    def _prepare(self) -> None:
        run = self.cast if isinstance(self.cast, VideoEncoder) else self.cast.embed_clips
        self._run: Any = torch.compile(run, dynamic=False) if self.runtime.compiled else run

    def running(self, runtime: Runtime) -> Executor:
        """The same cast weights run another way: threads, batch, workers or compiled differ.

        Raises:
            PlanError: precision or device differ.
        """
        if (runtime.precision, runtime.device) != (self.runtime.precision, self.runtime.device):
            raise PlanError(f"weights cast for {self.runtime} cannot run as {runtime}; make another Executor")
        other = copy.copy(self)
        other.runtime = runtime
        other._prepare()
        return other

    def __getattr__(self, name: str) -> Any:
        """What an executor lacks is the model's."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._model, name)

    @torch.inference_mode()
    def embed_clips(self, video: Tensor, *, point: OperatingPoint | None = None) -> Tensor:
        """Embeddings float32 (B, D) of clips (B, T, 3, H, W) that passed the transform."""
        with threads_of(self.runtime):
            result = self._run(video.to(self.runtime.device), point=point)
            embedding: Tensor = result if isinstance(result, Tensor) else result.embedding
            return embedding.float().cpu()


@dataclass(frozen=True)
class Result:
    """Embeddings with what was predicted and what was spent, both per clip.

    Args:
        embeddings: float32 (B, D).
        predicted: cost that the plan stated.
        measured: the same with the measured milliseconds.
    """

    embeddings: Tensor
    predicted: Cost
    measured: Cost


class Runner:
    """Carries out a plan on frames. A context manager: leaving it ends its threads.

    Args:
        plan: what to do.
        model: the model that the plan was made for; `None` loads or builds `plan.model`.

    Raises:
        PlanError: the plan names no model and none was given.
    """

    def __init__(self, plan: Plan, model: VideoEncoder | DualEncoder | None = None) -> None:
        if model is None:
            if not plan.model:
                raise PlanError("the plan names no model; pass the one to run")
            from elastivid.planning.subject import describe

            model = describe(plan.model).build()
        self.plan = plan
        self.executor = Executor(model, plan.runtime)
        own = getattr(model, "transform", None) or Transform(size=plan.sampling.size)
        self.transform = own.squared(plan.sampling.size)
        self._hardware = hardware_key(plan.runtime)
        self._pool = ThreadPoolExecutor(plan.runtime.workers, "elastivid-worker")

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def embed_frames(self, clips: np.ndarray) -> Result:
        """Embeddings of decoded frames uint8 (B, T, H, W, 3); the transform is not part of the measured time."""
        b, t = clips.shape[:2]
        flat = self.transform(clips.reshape(b * t, *clips.shape[2:]))  # (B, T, H, W, 3) -> (B * T, 3, S, S)
        return self.embed_clips(flat.reshape(b, t, *flat.shape[1:]))  # (B * T, 3, S, S) -> (B, T, 3, S, S)

    def embed_clips(self, video: Tensor) -> Result:
        """Embeddings of clips (B, T, 3, H, W) that passed the transform, in batches as the plan says.

        Raises:
            PointError: there are no clips.
        """
        if not len(video):
            raise PointError(f"there is nothing to embed: got clips of shape {tuple(video.shape)}; pass at least one")
        batches = video.split(self.plan.runtime.batch)
        started = time.perf_counter()
        embeddings = torch.cat(self.run(batches))
        milliseconds = (time.perf_counter() - started) * 1e3 / len(video)
        measured = replace(self.plan.cost, milliseconds=milliseconds, hardware=self._hardware)
        return Result(embeddings, self.plan.cost, measured)

    def run(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """Embeddings of batches, `workers` of them at a time."""
        if self.plan.runtime.workers == 1:
            return [self.executor.embed_clips(batch, point=self.plan.point) for batch in batches]
        return list(self._pool.map(lambda batch: self.executor.embed_clips(batch, point=self.plan.point), batches))
