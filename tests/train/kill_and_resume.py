"""Trains in child processes that are killed at random moments, every other one while it writes a file if it can be
caught at it, and goes on until a run is whole.

    python kill_and_resume.py FOLDER KILLS SEED

Children are forked from one process that has everything imported, so that a kill costs milliseconds. Prints a line per
child: killed, or whole. A script of its own, because forking belongs into a process without threads.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from tiny_recipe import TinyConfig, TinyRecipe

from elastivid.train import checkpoint, log
from elastivid.train.loop import train

SHARE = 0.015  # of a whole run's time that a child gets at most after its first checkpoint, and again until it writes
EARLY = 0.25  # of the children are killed as soon as that, without a checkpoint of their own
PATIENCE_SECONDS = 30.0


def child(folder: Path) -> None:
    """Train or go on, in a process of its own; every file system call counts as a place to die."""
    torch.set_num_threads(1)
    log.importlib.util.find_spec = lambda name: None  # tensorboard starts a thread and takes half a second
    train(recipe(), folder, device="cpu", resume=True)


def recipe() -> TinyRecipe:
    """Many small steps, a checkpoint after every second one."""
    return TinyRecipe(replace(TinyConfig(), steps=(20, 60), save_every=2, log_every=3, evaluate_every=10))


def wait(until_true: Callable[[], bool], most_seconds: float) -> None:
    """Until something is true, but no longer than so many seconds."""
    end = time.monotonic() + most_seconds
    while time.monotonic() < end and not until_true():
        pass


def saved(folder: Path) -> int:
    """When the checkpoint was written, 0 where there is none."""
    file = folder / checkpoint.LAST
    return file.stat().st_mtime_ns if file.exists() else 0


def main(folder: Path, kills: int, seed: int) -> None:
    """Kill `kills` children, then let one end."""
    rng = random.Random(seed)
    began = time.monotonic()
    train(recipe(), folder / "whole", device="cpu")
    whole_seconds = time.monotonic() - began
    run = folder / "killed"
    while True:
        before = saved(run)
        pid = os.fork()
        if pid == 0:
            child(run)
            os._exit(0)
        if kills:
            if rng.random() > EARLY:
                wait(lambda before=before: saved(run) != before, PATIENCE_SECONDS)
            time.sleep(rng.uniform(0.0, SHARE * whole_seconds))
            if kills % 2:
                wait(lambda: any(run.glob("*.partial")), SHARE * whole_seconds)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        killed = os.WIFSIGNALED(status)
        writing = " while writing" if list(folder.glob("killed/*.partial")) else ""
        done = (folder / "killed" / checkpoint.LAST).exists()
        step = checkpoint.load_checkpoint(folder / "killed" / checkpoint.LAST)["step"] if done else 0
        print("killed" + writing if killed else f"ended {status}", "checkpoint at step", step, flush=True)
        if not kills:
            break
        kills -= killed
        if not killed:
            break


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
