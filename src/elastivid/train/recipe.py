"""`Recipe`: all that one training is, as values and a few functions. `elastivid.train.loop` runs it.

A recipe is a module with `RECIPE = MyRecipe` in it: of `elastivid.recipes`, or any file. It builds what is trained,
declares stages, gives a data set and the loss of a batch, and says what the result is worth. It never holds a loop, a
device, an optimizer or a checkpoint. See docs/training.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from elastivid.train.stages import Stage

PRECISIONS = ("auto", "float32", "bfloat16")
Row = dict[str, Any]


@dataclass(frozen=True)
class RecipeConfig:
    """The settings that the loop reads; a recipe's own config adds to them.

    Args:
        seed: of weights, order, draws and dropout.
        batch_size: samples of an optimizer step, over all processes and micro-batches.
        accumulate: micro-batches of a step. A contrastive loss sees one micro-batch at a time.
        precision: "float32", "bfloat16" (autocast over float32 weights), or "auto": bfloat16 on GPUs that have it.
        num_workers: processes that prepare batches; 0 does it in the training process.
        log_every: steps between two lines of the log, which hold means over them.
        save_every: steps between two checkpoints.
        evaluate_every: steps between two evaluations; 0 evaluates at the end only.
        max_skipped: steps in a row that may be skipped for a loss or gradient that is not finite.
        minutes: end after this time instead of after the steps of the stages, which then share the time out.
        sharded: spread weights, gradients and moments over the processes (FSDP) instead of copying them (DDP).

    Raises:
        ValueError: a value is out of range.
    """

    seed: int = 0
    batch_size: int = 32
    accumulate: int = 1
    precision: str = "auto"
    num_workers: int = 1
    log_every: int = 50
    save_every: int = 500
    evaluate_every: int = 0
    max_skipped: int = 10
    minutes: float = 0.0
    sharded: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "log_every", "save_every", "max_skipped"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("num_workers", "evaluate_every", "minutes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {self.precision!r}")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate must divide batch_size {self.batch_size}, got {self.accumulate}")


@dataclass(frozen=True)
class Exported:
    """The model that a run is for, and what its file says of it.

    Args:
        model: without what only training needs.
        licence: SPDX expression of the weights.
        card: how it came about, beside what the loop knows; JSON values.
        measured: what plans go by, see `elastivid.weights.load.save`.
    """

    model: nn.Module
    licence: str = "unknown"
    card: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)


class Recipe(ABC):
    """What is trained, on what, and how. A subclass sets `config_class` and fills in the methods.

    Args:
        config: settings; the defaults are the documented full-scale run.
    """

    config_class: ClassVar[type[RecipeConfig]] = RecipeConfig
    config: Any

    def __init__(self, config: RecipeConfig | None = None) -> None:
        config = self.config_class() if config is None else config
        if not isinstance(config, self.config_class):
            raise TypeError(f"{type(self).__name__} takes a {self.config_class.__name__}, got {type(config).__name__}")
        self.config = config

    @property
    def name(self) -> str:
        """Name of the module that defines the recipe."""
        return type(self).__module__.rpartition(".")[2]

    @classmethod
    def smoke(cls, config: Any) -> Any:
        """`config` made so small that the whole run takes less than a minute on one core."""
        return config

    @classmethod
    def small(cls) -> Self:
        """The recipe with its smoke settings."""
        return cls(cls.smoke(cls.config_class()))

    @abstractmethod
    def build(self) -> nn.Module:
        """Everything that is trained, heads included, on the CPU. Global generators are seeded before the call."""

    def begin(self, module: nn.Module) -> None:  # noqa: B027
        """What a new run finds out before its first step, on the CPU; a resumed one has it in its checkpoint. Nothing
        by default."""

    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """The stages, in order. A parameter that two stages in a row train keeps its moments."""

    @abstractmethod
    def dataset(self, stage: Stage) -> Dataset:
        """Samples of a stage by position 0, 1, 2, ... without end; a sample depends on the seed and its position only.

        `elastivid.train.order.Epochs` makes such a stream of a finite data set.
        """

    def collate(self, samples: Sequence[Any]) -> Any:
        """A batch of samples; tensors in dicts, lists and tuples are moved to the device."""
        return default_collate(list(samples))

    @abstractmethod
    def step(
        self, module: nn.Module, batch: Any, stage: Stage, draws: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Loss of a batch and its parts for the log.

        Args:
            module: what `build` returned.
            batch: what `collate` returned.
            stage: the stage under way.
            draws: CPU generator that depends on the seed and the step only: all processes and micro-batches of a step
                draw the same, so draw operating points from it.

        Returns:
            A scalar to minimise, a mean over the samples of the batch, and scalars to log.
        """

    def evaluate(self, module: nn.Module) -> list[Row]:
        """What the model is worth: a row per operating point, cost beside accuracy. Called without gradients.

        Rows hold JSON values; `point` says where, `gmacs` what it costs, `accuracy` in [0, 1] what it is worth.
        """
        return []

    def score(self, rows: Sequence[Row]) -> float:
        """The number by which the best checkpoint is chosen, more is better: by default the mean accuracy."""
        return sum(float(row["accuracy"]) for row in rows) / len(rows)

    def exported(self, module: nn.Module) -> Exported:
        """The model that the run is for; by default all that was trained."""
        return Exported(module)
