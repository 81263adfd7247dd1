"""The folder of a run: what it is (`run.json`), where it stands (`last.pt`), its best and its final weights.

A file is written beside its place, flushed to the disk and renamed, so whatever ends the process, the place holds
either the old file or the new one. Checkpoints hold tensors, numbers and text only and are read without executing
anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from elastivid import __version__
from elastivid.core.files import read_json
from elastivid.train.recipe import Recipe
from elastivid.train.settings import differences, fingerprint, from_values, to_values
from elastivid.train.stages import TrainingError
from elastivid.weights.writing import misfits

LAST, BEST, MODEL, RUN = "last.pt", "best.pt", "model.safetensors", "run.json"


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Replace `path` by what `write` writes; on the disk when this returns."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    with contextlib.suppress(OSError):  # not every system can flush a folder
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint."""
    write_atomically(path, lambda file: torch.save(state, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU.

    Raises:
        TrainingError: the file is missing or damaged.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise TrainingError(f"no checkpoint at {path}; train first, or name the folder of a run") from error
    except Exception as error:  # torch raises whatever its parts raise
        raise TrainingError(f"cannot read the checkpoint {path} ({type(error).__name__}: {error})") from error
    return state


def describe_run(recipe: Recipe) -> dict[str, Any]:
    """What `run.json` holds: recipe, settings, their fingerprint, seed and versions."""
    values = to_values(recipe.config)
    return {
        "recipe": recipe.name,
        "config": values,
        "fingerprint": fingerprint(recipe.name, values),
        "seed": recipe.config.seed,
        "versions": {
            "elastivid": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "accelerate": version("accelerate"),
            "python": platform.python_version(),
        },
    }


def open_run(folder: Path, recipe: Recipe, *, resume: bool) -> bool:
    """Make sure that `folder` is the run of `recipe`; whether there is a checkpoint to go on from.

    Raises:
        TrainingError: the folder holds a run and `resume` is false, or the run of another recipe or other settings;
            the message says which.
    """
    described, path = describe_run(recipe), folder / RUN
    if path.exists():
        if not resume:
            raise TrainingError(f"{folder} already holds a run; go on with it (--resume), or name another folder")
        before = read_json(path)
        _require_run_of(folder, before, recipe.name)
        lines = differences(before.get("config", {}), described["config"])
        if lines:
            raise TrainingError(
                f"{folder} was started with other settings; before -> now: " + "; ".join(lines) + ". "
                "Resume with the settings of the start (--resume without --set does), or name another folder"
            )
        return (folder / LAST).exists()
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(described, indent=2)
    write_atomically(path, lambda file: file.write(text.encode()))
    return False


def is_run(folder: Path) -> bool:
    """Whether `folder` holds a run, begun or finished."""
    return (folder / RUN).is_file()


def forget_run(folder: Path) -> None:
    """Undo `open_run` for a run that did not come to its first step; the folder goes too if nothing else is in it."""
    (folder / RUN).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty: it was there before
        folder.rmdir()


def config_of_run(folder: Path, recipe: type[Recipe]) -> Any:
    """The settings that the run in `folder` was started with.

    Raises:
        TrainingError: there is no run, or it is one of another recipe.
        SettingError: the settings are of another version of the recipe.
    """
    if not is_run(folder):
        raise TrainingError(f"{folder} holds no run (no {RUN} in it)")
    described = read_json(folder / RUN)
    _require_run_of(folder, described, recipe.__module__.rpartition(".")[2])
    return from_values(recipe.config_class, described["config"])


def _require_run_of(folder: Path, described: Mapping[str, Any], recipe: str) -> None:
    """Refuse the run of another recipe."""
    if described.get("recipe") != recipe:
        raise TrainingError(
            f"{folder} holds a run of the recipe {described.get('recipe')!r}, not of {recipe!r}; name that recipe, or "
            "another folder"
        )


def load_weights(module: torch.nn.Module, path: Path) -> int:
    """Fill `module` with the weights of a run, its moving average where it has one, and return their step.

    Args:
        module: what the recipe's `build` returned.
        path: a checkpoint, or the folder of a run, whose last checkpoint is taken.

    Raises:
        TrainingError: there is no checkpoint, or it does not fit the module; the message lists the names.
    """
    state = load_checkpoint(path / LAST if path.is_dir() else path)
    weights = state.get("average") or state["module"]
    problem = misfits(module.state_dict(), weights)
    if problem:
        raise TrainingError(f"{path} {problem}")
    module.load_state_dict(weights)
    return int(state["step"])
