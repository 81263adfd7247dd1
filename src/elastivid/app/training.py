"""What `elastivid train` and `elastivid eval` do and print."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from elastivid.app.progress import Lines
from elastivid.core.errors import ElastividError
from elastivid.search.printing import span

if TYPE_CHECKING:
    from elastivid.train.loop import Finished, Progress
    from elastivid.train.recipe import Recipe, Row

AGAIN_AFTER_SECONDS = 2.0  # launchers repeat a signal at once; a person takes longer


def lines_of_recipes() -> list[str]:
    """A line per shipped recipe."""
    from elastivid.recipes import summaries

    found = summaries()
    wide = max(map(len, found), default=0)
    return [f"{name:<{wide}}  {text}" for name, text in found.items()]


def recipe_for(name: str, assignments: Sequence[str], *, smoke: bool, run: Path | None) -> Recipe:
    """The recipe `name` with its settings.

    Args:
        name: shipped recipe, or path of a file.
        assignments: `key=value` each.
        smoke: start from the smoke settings.
        run: start from the settings of the run in this folder, if it holds one and `smoke` is false.
    """
    from elastivid.recipes import find
    from elastivid.train.checkpoint import RUN, config_of_run
    from elastivid.train.settings import changed

    kind = find(name)
    config = kind.config_class()
    if smoke:
        config = kind.smoke(config)
    elif run is not None and (run / RUN).exists():
        config = config_of_run(run, kind)
    return kind(changed(config, assignments))


def run_training(recipe: Recipe, out: Path, *, resume: bool, device: str) -> int:
    """Train, show how it goes, and return the exit code."""
    from elastivid.train.loop import train

    main = int(os.environ.get("RANK", "0")) == 0
    with stop_on_signals(main) as stop, show_training() as progress:
        try:
            finished = train(
                recipe,
                out,
                resume=resume,
                device=device,
                begins=lambda: print(line_of_start(recipe, out), file=sys.stderr, flush=True),
                progress=progress,
                should_stop=lambda: stop.number is not None,
            )
        except ElastividError:
            if main:
                raise
            return 1  # the main process says it
    if main:
        print("\n".join(lines_of_finished(finished, out)))
    return 128 + (stop.number or 0) if not finished.complete else 0


def line_of_start(recipe: Recipe, out: Path) -> str:
    """What is about to be trained."""
    config = recipe.config
    stages = ", ".join(f"{stage.name} {stage.steps} steps" for stage in recipe.stages())
    length = f"{stages}, spread over {config.minutes:g} minutes" if config.minutes else stages
    return f"{recipe.name}: {length}; {config.batch_size} samples a step; run in {out}"


def lines_of_finished(finished: Finished, out: Path) -> list[str]:
    """What a run came to."""
    from elastivid.train.checkpoint import MODEL

    if not finished.complete:
        return [f"stopped after {finished.step} steps; checkpoint written; go on with the same command and --resume"]
    lines = table(finished.rows)
    lines.append(f"{finished.step} steps in {span(finished.seconds)}; model: {out / MODEL}; logs: {out}")
    return lines


def evaluate_run(recipe: Recipe, weights: Path, device: str) -> dict[str, Any]:
    """Evaluate the weights of a run per operating point: rows, and what they were measured on."""
    import torch

    from elastivid.train.checkpoint import describe_run, load_weights
    from elastivid.train.devices import accelerator_for
    from elastivid.train.order import seed_everything

    accelerator = accelerator_for(device, recipe.config.precision)
    seed_everything(recipe.config.seed)
    module = recipe.build()
    step = load_weights(module, weights)
    module = module.to(accelerator.device).eval()
    seed_everything(recipe.config.seed)
    with torch.no_grad():
        rows = recipe.evaluate(module)
    return {**describe_run(recipe), "step": step, "weights": str(weights), "rows": rows}


def table(rows: Sequence[Row]) -> list[str]:
    """Rows as aligned columns; a column for every key of the first row."""
    if not rows:
        return ["the recipe evaluates nothing"]
    names = list(rows[0])
    cells = [[name.replace("_", " ") for name in names], *([_cell(row.get(name)) for name in names] for row in rows)]
    wide = [max(len(line[column]) for line in cells) for column in range(len(names))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(line, wide, strict=True)).rstrip() for line in cells]


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write JSON atomically."""
    from elastivid.train.checkpoint import write_atomically

    text = json.dumps(values, indent=2)
    write_atomically(path, lambda file: file.write(text.encode()))


def launch(processes: int) -> int:
    """Run this command `processes` times on this machine, as torchrun does, and return the exit code.

    A signal that asks to end reaches every process, and this one waits until they have written their checkpoint.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    arguments, skip = [], False
    for argument in sys.argv[1:]:
        if skip or argument.startswith("--processes="):
            skip = False
        elif argument == "--processes":
            skip = True
        else:
            arguments.append(argument)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    logging.disable(logging.CRITICAL)  # of this process only, which does nothing else: the others say what went wrong
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, max_restarts=0, nproc_per_node=processes, run_id=f"elastivid-{os.getpid()}",
        rdzv_backend="c10d", rdzv_endpoint="localhost:0",
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "elastivid", *arguments)
    except SignalException as error:
        return 128 + int(error.sigval)
    except ChildFailedError as error:
        return max(1, int(error.get_first_failure()[1].exitcode))
    return 0


class Stop:
    """The signal that asked to stop, or none yet."""

    number: int | None = None

    def asked(self) -> bool:
        """Whether it came."""
        return self.number is not None


@contextmanager
def stop_on_signals(speak: bool) -> Iterator[Stop]:
    """Inside, the first signal that asks to end is noted, for the loop to look at; a later one ends at once."""
    stop = Stop()
    first = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if stop.number is not None and time.monotonic() - first > AGAIN_AFTER_SECONDS:
            raise KeyboardInterrupt
        if stop.number is None:
            stop.number, first = number, time.monotonic()
            if speak:
                print("\nelastivid: finishing the step, then writing a checkpoint; again to stop at once",
                      file=sys.stderr, flush=True)  # fmt: skip

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def show_training() -> Iterator[Callable[[Progress], None]]:
    """A callback for `train`: a live bar on a terminal, a line every ten seconds elsewhere."""
    if not sys.stderr.isatty():
        yield Lines(_line_of_training)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.fields[stage]}"),
        BarColumn(None),
        TaskProgressColumn(),
        TextColumn("{task.fields[rest]}"),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True, expand=True) as bar:
        task = bar.add_task("training", total=1.0, stage="preparing", rest="")

        def show(progress: Progress) -> None:
            bar.update(task, completed=progress.share, stage=progress.stage, rest=escape(summary(progress)))

        yield show


def _line_of_training(progress: Progress) -> str:
    return f"{progress.stage}, {progress.share:.0%}: {summary(progress)}"


def summary(progress: Progress) -> str:
    """Step, loss, speed, share of waiting for samples, time left."""
    parts = [f"step {progress.step}"]
    if "loss" in progress.values:
        parts.append(f"loss {progress.values['loss']:.3f}")
    parts.append(f"{progress.samples_per_second:.1f} samples/s")
    if progress.loading_share > 0.1:
        parts.append(f"{progress.loading_share:.0%} waiting for samples")
    if progress.seconds_left is not None:
        parts.append(f"{span(progress.seconds_left)} left")
    return ", ".join(parts)
