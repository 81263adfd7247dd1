"""Which samples a step sees, and the seeds of everything random in it: functions of (seed, position), never of history.

A stage is a stream of positions 0, 1, 2, ...; step s of a batch of B takes positions [s B, (s + 1) B). So a run that
goes on after a crash needs to know the step and nothing else, and any number of processes sees the same batches: of
every micro-batch each process takes the next equal part.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from elastivid.data.clips import place_in_epoch


def mixed(*numbers: int) -> int:
    """A seed of 63 bits made of several numbers; near ones give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_everything(*numbers: int) -> None:
    """Seed the global generators of torch, numpy and Python from several numbers."""
    seed = mixed(*numbers)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  for the code of others
    random.seed(seed)


def positions_of(step: int, batch_size: int, part: int, parts: int) -> range:
    """Positions of one of the equal consecutive parts of a step's batch."""
    size = batch_size // parts
    start = step * batch_size + part * size
    return range(start, start + size)


class StepBatches(Sampler[list[int]]):
    """Positions of one process, micro-batch after micro-batch, from a step on.

    Args:
        first_step, end_step: steps [first, end) of the stage.
        batch_size: samples of a step, over all processes and micro-batches.
        accumulate: micro-batches of a step.
        process, processes: which part of every micro-batch.
    """

    def __init__(
        self, first_step: int, end_step: int, batch_size: int, accumulate: int = 1, process: int = 0, processes: int = 1
    ) -> None:
        self.steps = range(first_step, end_step)
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.process = process
        self.processes = processes

    def __len__(self) -> int:
        return len(self.steps) * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        parts = self.accumulate * self.processes
        for step in self.steps:
            for micro in range(self.accumulate):
                yield list(positions_of(step, self.batch_size, micro * self.processes + self.process, parts))


class Epochs(Dataset):
    """A finite data set as a stream of positions: gone through again and again, each time in another order.

    Args:
        items: a map-style data set or a sequence, of length N.
        seed: of the orders and of `draw`.
        draw: makes a training sample of an item and a generator of its own, which depends on (seed, position): for
            augmentation that differs from epoch to epoch.

    Raises:
        ValueError: there are no items.
    """

    def __init__(
        self,
        items: Sequence[Any] | Dataset,
        seed: int,
        draw: Callable[[Any, np.random.Generator], Any] | None = None,
    ) -> None:
        self.items = items
        self.length = len(items)  # type: ignore[arg-type]
        if self.length == 0:
            raise ValueError("a data set without items cannot be trained on")
        self.seed = seed
        self.draw = draw

    def __getitem__(self, position: int) -> Any:
        item = self.items[place_in_epoch(position, self.seed, self.length)]
        return item if self.draw is None else self.draw(item, np.random.default_rng((self.seed, 1, position)))


def ignore_signals(worker: int) -> None:
    """For processes that prepare batches: only the training process reacts to being interrupted."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
