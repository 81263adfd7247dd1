"""Commands for people with models: train, eval, convert. `elastivid.app.cli` adds them to its own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer()

SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be given several times.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


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
    run: Annotated[Path, typer.Option("--from", help="Folder of a run.")],
    settings: SetOption = None,
    best: Annotated[bool, typer.Option("--best", help="The best checkpoint instead of the last.")] = False,
    device: DeviceOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Evaluate a trained model at every operating point of its recipe; writes evaluated.json into the run's folder."""
    from elastivid.app.training import evaluate_run, recipe_for, table, write_json
    from elastivid.train.checkpoint import BEST, LAST

    made = recipe_for(recipe, settings or [], smoke=False, run=run)
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Convert a checkpoint of public code. Strict: what is missing or left over is listed, and nothing is written."""
    from elastivid.app.convert import lines_of_report, run_convert, values_of_report

    done = run_convert(checkpoint, address, out, settings or [], key=key, licence=licence)
    print(json.dumps(values_of_report(*done), indent=2) if as_json else "\n".join(lines_of_report(*done)))
