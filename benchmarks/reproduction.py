"""What FluxViT and AdaVid claim, in miniature: small models on flux-bench, compared as in the tables of the papers.

    python benchmarks/reproduction.py run --seconds 480      # call again until it says that all is done
    python benchmarks/reproduction.py page                   # tables and plots of what is finished

A run is trained by `elastivid.train.loop` in a folder of its own under --folder, goes on where it was stopped, and
leaves `result.json`: which test clips it got right at which operating point, and what it cost. Several calls of `run`
may work side by side. `page` writes docs/benchmarks/reproduction.md, its plots, and the table of axes in
docs/flux-bench.md. What is trained and asked is in miniature.py; the statistics are in verdicts.py.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from miniature import (
    BASE_STEPS,
    COUNTS,
    FIXED,
    METHODS,
    TEST_CLIPS,
    TUNE_STEPS,
    VALIDATION_CLIPS,
    WIDTHS,
    MiniatureConfig,
    MiniatureRecipe,
    Spot,
    choices,
    hits_at,
    training_gmacs,
)  # fmt: skip

from elastivid.core.cost import hardware_key
from elastivid.data.fluxbench import load_clips
from elastivid.models.fluxvit import FluxViT
from elastivid.train.loop import train

SEEDS = (0, 1, 2)
BASES = {0: 0, 1: 1, 2: 0}  # seed: the base its runs continue from
FIRST = ("fixed", "flux-multi", "width-sampled", "joint")
SECOND = ("half-width", "flux-single", "width-decreasing")
THIRD = ("random", "tube", "dynamic", "group-2")
MORE_STEPS = {"width-sampled": 800, "width-decreasing": 800, "half-width": 800, "joint": 400}  # narrow steps cost less
FRONTS = ("flux-multi", "width-sampled", "joint")  # compared at equal budgets, so validation chooses their points
OPTIMIZED = ("fixed", "flux-single", "flux-multi", "joint")  # Token Optimization chooses their grids
EVALUATION_SECONDS = 70  # left at the end of a call for the run that ends in it
SCHEDULES = {"falling": (128, 128, 64, 32), "uniform": (96, 96, 96, 96), "rising": (32, 64, 128, 128)}  # equal MACs
FINE_COUNTS = (128, 96, 64, 48, 32, 16)  # of the model that is elastic in tokens only


def planned() -> list[tuple[str, int]]:
    """All runs, those first that the figures need: (method, seed)."""
    runs = [("base", seed) for seed in sorted(set(BASES.values()))]
    order = [(SEEDS[:2], FIRST[:3]), (SEEDS[:1], FIRST[3:] + SECOND), (SEEDS[1:2], FIRST[3:] + SECOND),
             (SEEDS[2:], FIRST + SECOND), (SEEDS, THIRD)]  # fmt: skip
    return runs + [(method, seed) for seeds, group in order for seed in seeds for method in group]


def fixed_spots(method: str) -> list[Spot]:
    """Where a model is asked on test clips whatever validation says."""
    spots = [Spot(*FIXED), Spot(4, 64), Spot(2, 64)]
    if METHODS[method].counts != (None,) or method == "fixed":
        spots += [Spot(16, 64, count, selector=METHODS[method].selector) for count in COUNTS]
    if method in ("fixed", "width-sampled", "width-decreasing", "half-width", "joint"):
        spots += [Spot(*FIXED, width=width) for width in WIDTHS[:-1]]
    if method in ("width-sampled", "width-decreasing", "joint"):
        spots += [Spot(*FIXED, width=widths) for widths in SCHEDULES.values()]
    if method in ("width-sampled", "joint"):
        spots += [Spot(4, 64, width=64), Spot(16, 64, width=64), Spot(16, 64)]
    if method == "joint":
        spots += [Spot(1, 64), Spot(8, 48), Spot(8, 32), Spot(16, 64, 16)]
    return spots


def optimized_spots(method: str) -> list[list[Spot]]:
    """Groups of spots of which validation chooses one: a group per token count (and width)."""
    if method not in OPTIMIZED:
        return []
    counts = FINE_COUNTS if method == "flux-multi" else COUNTS
    return [[Spot(*grid, count) for grid in choices(count)] for count in counts]


def narrowed(spots: list[Spot]) -> list[Spot]:
    """The chosen spots of the joint model at every width."""
    return [Spot(s.frames, s.size, s.tokens, width) for s in spots for width in WIDTHS[:-1]]


def evaluate(method: str, model: FluxViT, clips: Path) -> list[dict]:
    """Rows of a finished model: spots, cost, hits on the test clips, and accuracy on validation clips."""
    spots, chosen = fixed_spots(method), []
    groups = optimized_spots(method)
    validation = load_clips(clips, "validation", VALIDATION_CLIPS)
    if groups:
        asked = [spot for group in groups for spot in group]
        scores = dict(zip(asked, hits_at(model, validation, asked).mean(axis=1), strict=True))
        chosen = [max(group, key=lambda spot: (scores[spot], -spot.gmacs)) for group in groups]
    both = chosen + (narrowed(chosen) if method == "joint" else [])
    spots = list(dict.fromkeys(spots + both))
    test = load_clips(clips, "test", TEST_CLIPS)
    known = hits_at(model, validation, spots if method in FRONTS else spots[:1]).mean(axis=1).tolist()
    known += [None] * (len(spots) - len(known))
    return [
        {
            **asdict(spot), "gmacs": spot.gmacs, "chosen": spot in both, "validation": seen,
            "accuracy": float(hits.mean()), "hits": np.packbits(hits).tobytes().hex(),
        }
        for spot, hits, seen in zip(spots, hits_at(model, test, spots), known, strict=True)
    ]  # fmt: skip


def hits_of(row: dict) -> np.ndarray:
    """The hits (N,) of a row of `result.json` as 0.0 and 1.0."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(row["hits"]), np.uint8))[:TEST_CLIPS].astype(np.float64)


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether this process may work on the run in `folder`; others may not until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def config_of(root: Path, method: str, seed: int) -> MiniatureConfig:
    """Settings of a run."""
    base = None if method == "base" else root / f"base-{BASES[seed]}" / "model.safetensors"
    tuned = base is not None
    steps = MORE_STEPS.get(method, TUNE_STEPS) if tuned else BASE_STEPS
    return MiniatureConfig(
        method=method, seed=seed, clips=root / "clips", base=base, steps=steps,
        learning_rate=1e-3 if tuned else 1.5e-3, evaluate_every=0 if tuned else 500,
    )  # fmt: skip


def run_one(root: Path, method: str, seed: int, until: float) -> bool:
    """Train and evaluate one run as far as `until` (seconds of the monotonic clock) lets it; whether it is finished."""
    folder = root / f"{method}-{seed}"
    began, config = _processor_seconds(), config_of(root, method, seed)
    done = train(MiniatureRecipe(config), folder, resume=True, device="cpu",
                 should_stop=lambda: time.monotonic() > until - EVALUATION_SECONDS)  # fmt: skip
    spent = folder / "processor_seconds"
    before = float(spent.read_text()) if spent.exists() else 0.0
    spent.write_text(f"{before + _processor_seconds() - began}\n")
    if not done.complete:
        return False
    trained = float(spent.read_text())
    began = _processor_seconds()
    rows = evaluate(method, done.module.model, root / "clips")
    partial = folder / "result.partial"
    partial.write_text(json.dumps({
        "method": method, "seed": seed, "steps": config.steps, "batch_size": config.batch_size,
        "training_gmacs": training_gmacs(METHODS[method]) * config.steps * config.batch_size,
        "training_seconds": trained, "evaluation_seconds": _processor_seconds() - began,
        "hardware": hardware_key(), "rows": rows,
    }, indent=1))  # fmt: skip
    partial.replace(folder / "result.json")
    print(f"{method} {seed}: {trained:.0f} s, at the fixed grid {rows[0]['accuracy']:.1%}", flush=True)
    return True


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def run(root: Path, seconds: float) -> None:
    """Work on unfinished runs until the time is over."""
    until, open_runs = time.monotonic() + seconds, 0
    for method, seed in planned():
        folder = root / f"{method}-{seed}"
        if (folder / "result.json").exists():
            continue
        open_runs += 1
        ready = method == "base" or (root / f"base-{BASES[seed]}" / "result.json").exists()
        if not ready or time.monotonic() > until - EVALUATION_SECONDS:
            continue
        with claimed(folder) as mine:
            if mine and not (folder / "result.json").exists():
                open_runs -= run_one(root, method, seed, until)
    print("all runs are done" if not open_runs else f"{open_runs} runs are open or under way elsewhere; call again")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("run", "page"))
    parser.add_argument("--folder", type=Path, default=Path("runs/miniatures"))
    parser.add_argument("--seconds", type=float, default=1e9, help="how long to work in this call")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.do == "run":
        run(args.folder, args.seconds)
    else:
        from verdicts import write

        write(args.folder)


if __name__ == "__main__":
    main()
