"""Commands for people with models: train, eval, replay, classify, convert, optimize. `app.cli` adds them to its own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from elastivid.app.options import (
    BudgetOption,
    DeviceOption,
    DownloadOption,
    JsonOption,
    LimitMemoryOption,
    LimitSecondsOption,
    SetOption,
)

commands = typer.Typer()


@commands.command()
def train(
    recipe: Annotated[str | None, typer.Argument(help="Name of a shipped recipe, or the path of a .py file.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run: checkpoints, logs, the model.")] = None,
    settings: SetOption = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="A run of under a minute that shows that all works.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    device: DeviceOption = "auto",
    processes: Annotated[int, typer.Option(help="Processes on this machine that share every batch.", min=1)] = 1,
    show: Annotated[bool, typer.Option("--list", help="List the shipped recipes.")] = False,
) -> None:
    """Train a model by a recipe. Ctrl-C writes a checkpoint; the same command with --resume goes on."""
    from elastivid.app.training import launch, lines_of_recipes, recipe_for, run_training

    if show:
        print("\n".join(lines_of_recipes()))
        return
    if recipe is None or out is None:
        raise typer.BadParameter("name a recipe and --out FOLDER, or give --list to see the recipes")
    made = recipe_for(recipe, settings or [], smoke=smoke, run=out if resume else None)
    if processes > 1 and "WORLD_SIZE" not in os.environ:
        raise typer.Exit(launch(processes))
    code = run_training(made, out, resume=resume, device=device)
    if code:
        raise typer.Exit(code)


@commands.command("eval")
def evaluate(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or the path of a .py file.")],
    run: Annotated[Path | None, typer.Option("--from", help="Folder of a run; not for zero_shot.")] = None,
    settings: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="Write the result to this file, for elastivid replay.")] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="An evaluation of under a minute: shows that all works.")
    ] = False,
    best: Annotated[bool, typer.Option("--best", help="The best checkpoint instead of the last.")] = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Evaluate at every operating point: a run by its recipe (into evaluated.json there), or any model by zero_shot."""
    from elastivid.app.evaluation import lines_of_result, run_evaluation
    from elastivid.app.training import evaluate_run, recipe_for, table, write_json
    from elastivid.evaluate.protocol import Evaluation
    from elastivid.train.checkpoint import BEST, LAST

    made = recipe_for(recipe, settings or [], smoke=smoke, run=run)
    if isinstance(made, Evaluation):
        result = run_evaluation(made, device)
        if out is not None:
            result.write(out)
        print(result.to_json() if as_json else "\n".join(lines_of_result(result, out)))
        return
    if run is None:
        raise typer.BadParameter(f"{recipe} evaluates what it trained: give --from FOLDER of a run")
    values = evaluate_run(made, run / (BEST if best else LAST), device)
    write_json(run / "evaluated.json", values)
    print(json.dumps(values, indent=2) if as_json else "\n".join([*table(values["rows"]), f"{run / 'evaluated.json'}"]))


@commands.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A .pth, .pt, .bin or .safetensors file of public code.")],
    address: Annotated[str, typer.Option("--as", help="Family and preset: internvideo2/small, videomae/base, ...")],
    out: Annotated[Path | None, typer.Option(help="File to write [default: the checkpoint's name here].")] = None,
    settings: SetOption = None,
    key: Annotated[str | None, typer.Option(help="Where the tensors are in the file, such as model_ema.")] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights, kept in the file.")] = "unknown",
    as_json: JsonOption = False,
) -> None:
    """Convert a checkpoint of public code. Strict: what is missing or left over is listed, and nothing is written."""
    from elastivid.app.convert import lines_of_report, run_convert, values_of_report

    done = run_convert(checkpoint, address, out, settings or [], key=key, licence=licence)
    print(json.dumps(values_of_report(*done), indent=2) if as_json else "\n".join(lines_of_report(*done)))


@commands.command()
def replay(
    result: Annotated[Path, typer.Argument(help="A file that elastivid eval --out wrote.")],
    data: Annotated[Path | None, typer.Option(help="Where the data lie now.")] = None,
    model: Annotated[str | None, typer.Option(help="Where the weights lie now.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the new result to this file.")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Run an evaluation again and compare: rows and predictions. Exit code 1 when anything differs by over 1e-6."""
    from elastivid.app.evaluation import again, lines_of_replay, run_evaluation
    from elastivid.evaluate.result import Result

    before = Result.read(result)
    now = run_evaluation(again(before, data, model), device)
    if out is not None:
        now.write(out)
    lines, same = lines_of_replay(before, now)
    print("\n".join(lines))
    if not same:
        raise typer.Exit(1)


@commands.command()
def classify(
    sources: Annotated[list[str], typer.Argument(metavar="FILES...", help="Videos, or folders of them.")],
    model: Annotated[
        str, typer.Option(help="nano, a weights file, hf:organisation/repository, or what a fine-tuning run exported.")
    ] = "nano",
    labels: Annotated[Path | None, typer.Option(help="File with a name of a class on each line.")] = None,
    classes: Annotated[str | None, typer.Option(help='Names of classes: "a dog, a cat, a street".')] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help='Sentence around a name, such as "a film of {}"; may be given several times.'),
    ] = None,
    budget: BudgetOption = None,
    top: Annotated[int, typer.Option(help="How many classes of each file.", min=1)] = 5,
    as_json: JsonOption = False,
    limit_seconds: LimitSecondsOption = None,
    limit_memory: LimitMemoryOption = None,
    allow_download: DownloadOption = False,
) -> None:
    """Say what videos show: by names you give (nano and other dual encoders), or by those a model was trained for."""
    from elastivid.app.classify import lines_of_classes, values_of_classes
    from elastivid.app.engines import limits_of
    from elastivid.app.interrupts import interruptible
    from elastivid.app.progress import show_measuring, show_progress
    from elastivid.evaluate.names import read_names, split_names
    from elastivid.search.classify import classify as run
    from elastivid.search.classify import plan_for_classes

    if labels is not None and classes is not None:
        raise typer.BadParameter("give --labels or --classes, not both")
    names = read_names(labels) if labels is not None else split_names(classes) if classes is not None else ()
    plan = None
    if budget is not None:
        from elastivid.app.plan import line_of_index_plan

        with interruptible("nothing was classified yet"), show_measuring() as measuring:
            plan = plan_for_classes(sources, model, budget, measuring)
        print(line_of_index_plan(plan), file=sys.stderr if as_json else sys.stdout)
    with interruptible("nothing was kept"), show_progress() as progress:
        found = run(
            sources,
            names,
            model=model,
            prompts=prompt,
            plan=plan,
            limits=limits_of(limit_seconds, limit_memory),
            allow_download=allow_download,
            progress=progress,
        )
    print(json.dumps(values_of_classes(found, top), indent=2) if as_json else "\n".join(lines_of_classes(found, top)))
    if not any(len(file.probabilities) for file in found.files):
        raise typer.Exit(1)


@commands.command()
def optimize(
    model: Annotated[str, typer.Argument(help="nano, a weights file, or the file of a classifier.")],
    data: Annotated[str, typer.Argument(help="List or folder of labelled clips, or world: rendered scenes.")],
    tokens: Annotated[int, typer.Option(help="Tokens to keep of every clip.", min=1)],
    frames: Annotated[str, typer.Option(help="Frames to try: 4,8,12 or first:last:step.")] = "4:16:4",
    sizes: Annotated[str, typer.Option(help="Sides in pixels to try.")] = "56:224:28",
    widths: Annotated[str, typer.Option(help="Widths to try; 0 for the full one.")] = "0",
    search: Annotated[str, typer.Option(help="exhaustive, or climb: fewer points, from the unmasked grid.")] = "climb",
    scenes: Annotated[int, typer.Option(help="Scenes per attribute, for world.", min=1)] = 100,
    limit: Annotated[int | None, typer.Option(help="Most clips of a list.", min=2)] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the surface to this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the frames and size to take a number of tokens from. What was measured is kept; run it again to go on."""
    from elastivid.app import optimize as shown
    from elastivid.planning.optimize import Kept, Space
    from elastivid.planning.optimize import optimize as search_best

    space = Space(
        shown.numbers_of(frames, "frames"), shown.numbers_of(sizes, "sizes"), shown.numbers_of(widths, "widths")
    )
    kept = Kept(shown.scorer_of(model, data, space, scenes=scenes, limit=limit), progress=shown.say_point)
    found = search_best(kept, space, tokens, search=search)
    if plot is not None:
        shown.draw_surface(found, plot)
    text = "\n".join(shown.lines_of_optimum(found, kept.measured))
    print(json.dumps(shown.values_of_optimum(found), indent=2) if as_json else text)
