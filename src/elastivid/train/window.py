"""What happened since the last line of the log: sums of what steps report, and where their time went."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class Window:
    """Collects steps until `clear`.

    Attributes:
        seconds: time of the steps.
        waiting_seconds: the part of it that was spent waiting for samples.
        timed_steps: steps that the times are of; skipped ones count.
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.steps = 0
        self.seconds = self.waiting_seconds = 0.0
        self.timed_steps = 0

    def add(self, values: Mapping[str, float]) -> None:
        """Count a step that reports `values`."""
        self.steps += 1
        for name, value in values.items():
            self.sums[name] += value

    def add_time(self, seconds: float) -> None:
        """Count the time of a step."""
        self.timed_steps += 1
        self.seconds += seconds

    def clear(self) -> None:
        """Begin anew."""
        self.__init__()  # type: ignore[misc]

    def means(self) -> dict[str, float]:
        """Mean of everything reported, by name; nothing where no step was counted."""
        return {name: total / self.steps for name, total in sorted(self.sums.items())}

    def times(self, batch_size: int) -> dict[str, float]:
        """Seconds per step, share of waiting and samples per second; nothing where no time was counted."""
        if not self.seconds:
            return {}
        return {
            "seconds_per_step": self.seconds / self.timed_steps,
            "loading_share": self.waiting_seconds / self.seconds,
            "samples_per_second": self.timed_steps * batch_size / self.seconds,
        }

    def merge(self, mean: Callable[[Tensor], Tensor]) -> None:
        """Replace the sums by their mean over processes, which `mean` takes; all processes must ask."""
        names = sorted(self.sums)
        if names:
            merged = mean(torch.tensor([self.sums[name] for name in names], dtype=torch.float64))
            self.sums = defaultdict(float, zip(names, merged.tolist(), strict=True))

    def state(self) -> dict[str, float]:
        """Sums and steps, for a checkpoint; times are of one process and start anew."""
        return {**self.sums, "": float(self.steps)}

    def restore(self, state: Mapping[str, float]) -> None:
        """Take over what `state` returned."""
        self.clear()
        self.sums.update(state)
        self.steps = int(self.sums.pop(""))
