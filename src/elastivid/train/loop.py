"""The training loop: named steps over accelerate, for every recipe, on one CPU or many GPUs.

    for stage in stages:  for step in stage:  next batch, forward and backward, optimizer step, log, save, evaluate

**Exact resume.** Everything random in a step is seeded from (seed, stage, step), samples are functions of their
position (`elastivid.train.order`), rates are functions of the step; a checkpoint holds weights, moments, the moving
average, the step and the sums that the next log line is made of. So a run that was killed anywhere goes on from its
last checkpoint to the same log lines and, on a CPU, bit for bit the same weights. With `minutes` the steps depend on
the clock: such a run resumes, but is not repeatable.

**Not finite.** A loss or gradient with an infinity or not-a-number never reaches the weights: the step is skipped,
counted and logged with the positions of its samples; `max_skipped` in a row end the run.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from elastivid.train.checkpoint import BEST, LAST, forget_run, is_run, load_checkpoint, open_run, save_checkpoint
from elastivid.train.devices import accelerator_for, largest_over, mean_over, moved, told_by_main
from elastivid.train.ema import Ema
from elastivid.train.export import export
from elastivid.train.log import Log
from elastivid.train.optim import Adam
from elastivid.train.order import StepBatches, ignore_signals, mixed, positions_of, seed_everything
from elastivid.train.recipe import Recipe, Row
from elastivid.train.sharding import average_scalars, clip_gradients, fill, shard, whole_state
from elastivid.train.stages import (
    Stage,
    TrainingError,
    check_frozen,
    check_gradients,
    check_trained,
    hashes,
    set_modes,
    trained_names,
)
from elastivid.train.window import Window

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Progress:
    """Where a run stands, for whoever shows it. `share` is done of the whole, in [0, 1]; times are seconds."""

    stage: str
    step: int
    share: float
    values: Mapping[str, float]
    samples_per_second: float
    loading_share: float
    seconds_left: float | None


@dataclass(frozen=True)
class Finished:
    """What `train` returns.

    Args:
        module: what was trained, the moving average where there is one, in evaluation mode on the run's device.
        rows: the last evaluation.
        step: optimizer steps done.
        seconds: time they took, over all starts.
        complete: false when the run was asked to stop before its end.
    """

    module: nn.Module
    rows: list[Row]
    step: int
    seconds: float
    complete: bool


def train(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    begins: Callable[[], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Finished:
    """Train `recipe` in `folder`, or go on with the run there.

    Args:
        recipe: what to train.
        folder: checkpoints, logs and the final model go there.
        resume: go on from the last checkpoint in the folder; without one, start.
        device: see `accelerator_for`.
        begins: called once in the main process when nothing speaks against training, before anything is built.
        progress: called after every step in the main process.
        should_stop: asked after every step; true ends the run after a checkpoint.

    Raises:
        TrainingError: the folder holds another run, a stage did not train what it says, or too many steps in a row
            were not finite.
    """
    accelerator = accelerator_for(device, recipe.config.precision)
    parts = recipe.config.accumulate * accelerator.num_processes
    if recipe.config.batch_size % parts:
        raise TrainingError(
            f"batch_size {recipe.config.batch_size} must be a multiple of accumulate x processes, "
            f"{recipe.config.accumulate} x {accelerator.num_processes}"
        )
    if recipe.config.sharded and accelerator.num_processes == 1:
        raise TrainingError("sharded spreads a model over several processes; start more of them (--processes)")
    recipe.stages()  # a recipe that only measures says so here, before there is a folder
    is_new = not is_run(folder)
    goes_on = told_by_main(accelerator, lambda: open_run(folder, recipe, resume=resume))
    if begins is not None and accelerator.is_main_process:
        begins()
    try:
        run = Run(recipe, folder, accelerator, progress, should_stop, is_new=not goes_on)
    except Exception:
        if is_new and accelerator.is_main_process:
            forget_run(folder)  # nothing was trained, and the next try may have other settings
        raise
    if goes_on:
        run.restore(load_checkpoint(folder / LAST))
    return run.run()


class Run:
    """One run of a recipe: its state and the named steps that change it.

    Args:
        recipe, folder: see `train`.
        accelerator: devices and processes.
        progress, should_stop: see `train`.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        accelerator: Accelerator,
        progress: Callable[[Progress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        *,
        is_new: bool = True,
    ) -> None:
        self.recipe, self.config, self.folder, self.accelerator = recipe, recipe.config, folder, accelerator
        self.progress, self.should_stop = progress, should_stop
        self.stages = recipe.stages()
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) < len(names):
            raise TrainingError(f"a recipe needs stages with different names, got {names}")
        seed_everything(self.config.seed)
        self.module = recipe.build()
        if is_new:
            recipe.begin(self.module)
        if not self.config.sharded:
            self.module = self.module.to(accelerator.device)
        self.trainable = [name for name, p in self.module.named_parameters() if p.requires_grad]
        self.stage_index = self.stage_step = self.step = 0
        self.seconds = 0.0
        self.skipped = self.skipped_in_a_row = 0
        self.best: float | None = None
        self.moments: dict[str, dict] = {}  # of the stage before
        self.adam: Adam | None = None  # of the stage under way
        self.learning_rate = 0.0
        self.clock_share = 0.0  # of `minutes`, the same in all processes
        self.evaluated = -1  # step of the last evaluation
        self.hashes: dict[str, bytes] = {}  # of all parameters at the start of the stage
        self.window = Window()  # for the next line of the log
        self.latest: dict[str, float] = {}  # means of the last one
        self.average: Ema | None = None
        self.forward: nn.Module = _Step(recipe, self.module)
        self.rows: list[Row] = []

    # ---- the run ----

    def run(self) -> Finished:
        """Train all stages from where the run stands, evaluate, export."""
        self.log = Log(self.folder, self.step, self.evaluated) if self.accelerator.is_main_process else None
        try:
            while self.stage_index < len(self.stages):
                if not self.run_stage(self.stages[self.stage_index]):
                    return self._finished(complete=False)
            if self.evaluated != self.step:
                self.evaluate()
                self.save()
            finished = self._finished(complete=True)
            if self.accelerator.is_main_process:
                with torch.no_grad():
                    export(self.recipe, finished.module, self.folder, self.step)
            self.accelerator.wait_for_everyone()
            return finished
        finally:
            if self.log is not None:
                self.log.close()

    def run_stage(self, stage: Stage) -> bool:
        """Train one stage to its end; false when the run was asked to stop before."""
        names = self.start_stage(stage)
        self.adam = adam = Adam(self.module, stage, names, self.moments)
        batches = self.batches(stage)
        began = time.perf_counter()
        try:
            while not self.stage_ends(stage):
                started, first = time.perf_counter(), self.stage_step == 0
                progress = self.progress_of_stage(stage)
                seed_everything(self.config.seed, self.stage_index, self.stage_step, self.accelerator.process_index)
                values = self.forward_backward(stage, batches, names if first else ())
                self.optimizer_step(adam, stage, values, stage.learning_rate_at(progress))
                self.stage_step += 1
                self.step += 1
                self.window.add_time(time.perf_counter() - started)
                if first:
                    check_frozen(stage, self.hashes, hashes(dict(self.module.named_parameters())), names)
                self.seconds, began = self.seconds + time.perf_counter() - began, time.perf_counter()
                stop = self.synchronise()
                self.after_step(stage, stop)
                if stop and not self.stage_ends(stage):
                    return False
        finally:
            del batches
        self.end_stage(stage, names)
        return True

    def start_stage(self, stage: Stage) -> list[str]:
        """Freeze what the stage does not train; names of what it does."""
        fixed = [name for name, _ in self.module.named_parameters() if name not in set(self.trainable)]
        names = trained_names(stage, self.trainable, fixed)
        if stage.ema_decay is not None:
            if self.average is None:
                self.average = Ema(self._rebuilt(self.module) if self.config.sharded else self.module)
            self.average.decay = stage.ema_decay
        if self.config.sharded:
            self.spread(names)
        else:
            for name, parameter in self.module.named_parameters():
                parameter.requires_grad_(name in set(names))
                parameter.grad = None
            self.accelerator.free_memory()  # of the stage before
            self.forward = self.accelerator.prepare(_Step(self.recipe, self.module))
        set_modes(self.module, names)
        if self.stage_step == 0:
            self.hashes = hashes(dict(self.module.named_parameters()))
        return names

    def spread(self, names: list[str]) -> None:
        """Make the model and its average anew, each spread over the processes; what trains is fixed with that."""
        made = self._rebuilt(self.module)
        for name, parameter in made.named_parameters():
            parameter.requires_grad_(name in set(names))
        self.module, state = made, whole_state(made)
        self.forward = _Step(self.recipe, made)
        shard(self.forward, self.accelerator.device)
        fill(made, state)
        if self.average is not None:
            average = self._rebuilt(self.average.model).requires_grad_(False)
            state = whole_state(average)
            shard(average, self.accelerator.device)
            fill(average, state)
            self.average.model = average.eval()

    def _rebuilt(self, module: nn.Module) -> nn.Module:
        """What the recipe builds, on the device, with the whole weights of `module`."""
        made = self.recipe.build().to(self.accelerator.device)
        fill(made, whole_state(module))
        return made

    def end_stage(self, stage: Stage, names: list[str]) -> None:
        """Check what changed, move to the next stage and write a checkpoint."""
        now = hashes(dict(self.module.named_parameters()))
        check_frozen(stage, self.hashes, now, names)
        check_trained(stage, self.hashes, now, names)
        self.moments, self.adam = self.adam.state() if self.adam else {}, None
        self.stage_index, self.stage_step, self.hashes = self.stage_index + 1, 0, {}
        self.save()

    # ---- the steps ----

    def batches(self, stage: Stage) -> Iterator[Any]:
        """Batches of this process from where the run stands."""
        config, process = self.config, self.accelerator.process_index
        # a run by the clock has no last step; a stage of steps has, and workers prepare none beyond it
        end = 2**40 if config.minutes else stage.steps
        sampler = StepBatches(
            self.stage_step, end, config.batch_size, config.accumulate, process, self.accelerator.num_processes
        )
        loader = DataLoader(
            self.recipe.dataset(stage),
            batch_sampler=sampler,
            collate_fn=self.recipe.collate,
            num_workers=config.num_workers,
            prefetch_factor=3 if config.num_workers else None,
            pin_memory=self.accelerator.device.type == "cuda",
            worker_init_fn=ignore_signals,
            generator=torch.Generator().manual_seed(0),  # else making it would draw from the global one
        )
        return iter(loader)

    def forward_backward(self, stage: Stage, batches: Iterator[Any], names: list[str] | tuple[()]) -> dict[str, Tensor]:
        """Gradients of one step, summed over its micro-batches, and what it reports; `loss` among it.

        Args:
            names: parameters that must have got a gradient; given in the first step of a stage.
        """
        reported: dict[str, Tensor] = {}
        count = self.config.accumulate
        for micro in range(count):
            waited = time.perf_counter()
            batch = moved(next(batches), self.accelerator.device)
            self.window.waiting_seconds += time.perf_counter() - waited
            draws = torch.Generator().manual_seed(mixed(self.config.seed, 1, self.stage_index, self.stage_step))
            with self._gradients_meet(last=micro == count - 1):
                with self.accelerator.autocast():
                    loss, parts = self.forward(batch, stage, draws)
                self.accelerator.backward(loss / count)
            for name, value in {"loss": loss, **parts}.items():
                part = value.detach().float() / count
                reported[name] = reported[name] + part if name in reported else part
        if self.config.sharded:
            average_scalars(self.module.parameters())
        if names:
            check_gradients(stage, self.module, names)
        return reported

    def optimizer_step(self, adam: Adam, stage: Stage, reported: Mapping[str, Tensor], learning_rate: float) -> None:
        """Clip, look whether everything is finite, and step or skip."""
        limit = math.inf if stage.clip_norm is None else stage.clip_norm
        norm = clip_gradients(adam.parameters, limit)
        names = [*reported, "gradient_norm"]
        numbers = torch.stack([*reported.values(), norm.detach().float()]).tolist()
        values = dict(zip(names, numbers, strict=True))
        finite = math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"])
        if largest_over(self.accelerator, float(not finite)):
            self.skip(stage, values)
        else:
            adam.step(learning_rate)
            self.skipped_in_a_row = 0
            self.window.add(values)
            if stage.ema_decay is not None and self.average is not None:
                self.average.update(self.module)
        self.learning_rate = learning_rate
        for parameter in adam.parameters:
            parameter.grad = None

    def skip(self, stage: Stage, values: Mapping[str, float]) -> None:
        """Count a step whose loss or gradient is not finite, log which samples it saw, give up after too many."""
        self.skipped += 1
        self.skipped_in_a_row += 1
        seen = positions_of(self.stage_step, self.config.batch_size, 0, 1)
        where = f"step {self.step + 1} (stage {stage.name!r}, positions {seen.start} to {seen.stop - 1})"
        if self.log is not None:
            self.log.metrics.write(
                step=self.step + 1,
                stage=stage.name,
                skipped="loss or gradient is not finite",
                positions=[seen.start, seen.stop],
                loss=values["loss"],
                gradient_norm=values["gradient_norm"],
            )
        if self.skipped_in_a_row >= self.config.max_skipped:
            raise TrainingError(
                f"{self.skipped_in_a_row} steps in a row had a loss or gradient that is not finite, the last {where}; "
                f"the weights hold none of them. Look at these samples, lower the learning rate "
                f"({stage.learning_rate:g}) or clip harder; metrics.jsonl in {self.folder} names every skipped step"
            )

    @contextmanager
    def _gradients_meet(self, last: bool) -> Iterator[None]:
        """Gradients of several processes are averaged in the last micro-batch of a step only."""
        if self.config.sharded:
            self.forward.set_requires_gradient_sync(last)  # type: ignore[operator]
            yield
        else:
            with nullcontext() if last else self.accelerator.no_sync(self.forward):
                yield

    # ---- between the steps ----

    def after_step(self, stage: Stage, stop: bool) -> None:
        """Log, save, evaluate and show, whatever is due."""
        config = self.config
        if self.step % config.log_every == 0 or self.stage_ends(stage):
            self.write_line(stage)
        if config.evaluate_every and self.step % config.evaluate_every == 0:
            self.evaluate()
        if stop or self.step % config.save_every == 0:
            self.save()
        if self.progress is not None and self.accelerator.is_main_process:
            self.progress(self.describe(stage))

    def write_line(self, stage: Stage) -> None:
        """A line of means since the last one, over all processes."""
        self.window.merge(self._mean)
        means, times = self.window.means(), self.window.times(self.config.batch_size)
        if self.log is not None and means:
            values = {"learning_rate": self.learning_rate, **means, "skipped": self.skipped}
            self.log.metrics.write(step=self.step, stage=stage.name, **values)
            self.log.curves("train", self.step, values)
        if self.log is not None and times:
            self.log.timing.write(step=self.step, seconds=self.seconds, **times)
            self.log.curves("timing", self.step, times)
        self.latest = means or self.latest
        self.window.clear()

    def evaluate(self) -> None:
        """Rows per operating point of the moving average, or of the model where there is none; the best is kept."""
        result = self.result()
        if self.accelerator.is_main_process:
            result.eval()
            seed_everything(self.config.seed)
            with torch.no_grad():
                self.rows = self.recipe.evaluate(result)
            if self.average is None:
                set_modes(self.module, [name for name, p in self.module.named_parameters() if p.requires_grad])
            if self.rows and self.log is not None:
                score = self.recipe.score(self.rows)
                self.log.evaluation.write(step=self.step, score=score, rows=self.rows)
                self.log.curves("evaluation", self.step, {"score": score})
                if self.best is None or score > self.best:
                    self.best = score
                    save_checkpoint(
                        self.folder / BEST, {"module": result.state_dict(), "step": self.step, "score": score}
                    )
        self.evaluated = self.step
        self.accelerator.wait_for_everyone()

    def save(self) -> None:
        """Write the checkpoint that the run goes on from."""
        state = self.state()
        if self.accelerator.is_main_process:
            assert self.log is not None
            self.log.sync()
            save_checkpoint(self.folder / LAST, state)
        self.accelerator.wait_for_everyone()

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, whole; all processes must ask."""
        self.window.merge(self._mean)
        return {
            "window": self.window.state(),
            "module": whole_state(self.module),
            "average": whole_state(self.average.model) if self.average else None,
            "average_steps": self.average.steps if self.average else 0,
            "moments": self.adam.state() if self.adam else self.moments,
            "stage_index": self.stage_index,
            "stage_step": self.stage_step,
            "step": self.step,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "best": self.best,
            "evaluated": self.evaluated,
            "rows": json.dumps(self.rows),
            "hashes": {name: value.hex() for name, value in self.hashes.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned in another process."""
        self.module.load_state_dict(state["module"])
        if state["average"] is not None:
            self.average = Ema(self.module)
            self.average.model.load_state_dict(state["average"])
            self.average.steps = state["average_steps"]
        plain = ("moments", "stage_index", "stage_step", "step", "seconds", "skipped", "skipped_in_a_row", "best")
        for name in (*plain, "evaluated"):
            setattr(self, name, state[name])
        self.rows = json.loads(state["rows"])
        self.synchronise()
        self.hashes = {name: bytes.fromhex(value) for name, value in state["hashes"].items()}
        self.window.restore(state["window"])

    # ---- where the run stands ----

    def result(self) -> nn.Module:
        """The moving average, or the model where there is none, whole; all processes must ask."""
        held = self.average.model if self.average is not None else self.module
        return self._rebuilt(held) if self.config.sharded else held

    def progress_of_stage(self, stage: Stage) -> float:
        """Share of the stage that is done after the coming step, in (0, 1]."""
        if not self.config.minutes:
            return (self.stage_step + 1) / stage.steps
        before, own = self._shares(stage)
        return min(max(self.clock_share - before, 1e-6) / own, 1.0)

    def stage_ends(self, stage: Stage) -> bool:
        """Whether the stage has no step left; by the clock it has at least one."""
        if not self.config.minutes:
            return self.stage_step >= stage.steps
        before, own = self._shares(stage)
        return self.stage_step > 0 and self.clock_share >= before + own

    def _shares(self, stage: Stage) -> tuple[float, float]:
        """Shares of all steps before the stage and in it."""
        total = sum(s.steps for s in self.stages)
        return sum(s.steps for s in self.stages[: self.stages.index(stage)]) / total, stage.steps / total

    def synchronise(self) -> bool:
        """Agree with the other processes on the clock; whether any of them was asked to stop."""
        if self.config.minutes:
            self.clock_share = largest_over(self.accelerator, self.seconds) / (60.0 * self.config.minutes)
        return bool(largest_over(self.accelerator, float(self.should_stop is not None and self.should_stop())))

    def describe(self, stage: Stage) -> Progress:
        """Where the run stands."""
        total = sum(s.steps for s in self.stages)
        share = min(self.clock_share, 1.0) if self.config.minutes else self.step / total
        times = self.window.times(self.config.batch_size)
        return Progress(
            stage=stage.name,
            step=self.step,
            share=share,
            values=self.window.means() or self.latest,
            samples_per_second=self.step * self.config.batch_size / max(self.seconds, 1e-9),
            loading_share=times.get("loading_share", 0.0),
            seconds_left=self.seconds * (1 - share) / share if share else None,
        )

    def _finished(self, *, complete: bool) -> Finished:
        return Finished(self.result().eval(), self.rows, self.step, self.seconds, complete)

    def _mean(self, values: Tensor) -> Tensor:
        return mean_over(self.accelerator, values)


class _Step(nn.Module):
    """The recipe's step as a module, so that DDP sees one forward per backward whatever parts the step calls."""

    def __init__(self, recipe: Recipe, module: nn.Module) -> None:
        super().__init__()
        self.module, self.recipe = module, recipe

    def forward(self, batch: Any, stage: Stage, draws: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Loss and its parts."""
        return self.recipe.step(self.module, batch, stage, draws)
