"""`Evaluation`: a recipe that trains nothing. `elastivid eval NAME` runs it and writes a `Result`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import NoReturn

from torch import Generator, Tensor, nn
from torch.utils.data import Dataset

from elastivid.core.errors import ElastividError
from elastivid.evaluate.result import Result
from elastivid.train.recipe import Recipe
from elastivid.train.stages import Stage, TrainingError


class EvaluationError(ElastividError, ValueError):
    """Data do not fit a protocol, or too much of them cannot be read."""


class Evaluation(Recipe):
    """Settings and one function, `run`. It has no stages: `elastivid train` refuses it."""

    @abstractmethod
    def run(self, *, device: str = "cpu", progress: Callable[[int, int], None] | None = None) -> Result:
        """Evaluate.

        Args:
            device: torch's name of it.
            progress: called with clips done and clips in all.

        Raises:
            EvaluationError: the data do not fit.
        """

    def build(self) -> nn.Module:
        """Refused."""
        self._refuse()

    def stages(self) -> tuple[Stage, ...]:
        """Refused."""
        self._refuse()

    def dataset(self, stage: Stage) -> Dataset:
        """Refused."""
        self._refuse()

    def step(
        self, module: nn.Module, batch: object, stage: Stage, draws: Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Refused."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise TrainingError(f"{self.name} trains nothing, it measures: run elastivid eval {self.name} instead")
