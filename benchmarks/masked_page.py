"""The page and the plot of `masked.py`: gains with intervals, costs beside them.

Letters: N clips.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from actions import FOLDS
from masked import (
    BENCH,
    BENCH_CLIPS,
    DECODER,
    ENCODER,
    LONGER,
    METHODS,
    PRETRAIN,
    RATIO_STEPS,
    RATIOS,
    TUNE,
    Job,
    best_rate,
    rate_trials,
)
from miniature import TEST_CLIPS
from tables import machine, table, write_page

from elastivid.data.fluxbench import TASKS, VERSION
from elastivid.data.listing import read_entries
from elastivid.evaluate.statistics import Comparison, bootstrap, holm, paired_bootstrap

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
TITLES = {
    "scratch": "from scratch", "videomae": "VideoMAE", "v2": "VideoMAE V2", "mvd": "MVD", "umt": "UMT",
    "longer": f"VideoMAE, {LONGER} times as long",
    "image": "MAE of single frames (MVD's image teacher)", "fine-tuning": "fine-tuning",
}  # fmt: skip
Found = dict[str, np.ndarray]


def result(out: Path, job: Job) -> dict[str, Any] | None:
    """What a run left; `None` where it is not finished."""
    file = out / job.name / "result.json"
    found: dict[str, Any] | None = json.loads(file.read_text()) if file.is_file() else None
    return found


def hits_by_path(out: Path, jobs: Sequence[Job]) -> dict[str, float]:
    """Hits of finished runs by clip."""
    done = [found for job in jobs if (found := result(out, job)) is not None]
    return {path: float(hit) for run in done for path, hit in zip(run["paths"], run["hits"], strict=True)}


def actions_hits(args: argparse.Namespace) -> tuple[Found, np.ndarray]:
    """Hits (N,) on the real actions of every method that has finished all folds, and the films (N,)."""
    source = {str(e.path.relative_to(args.labelled)): e.source for e in read_entries(args.labelled)}
    paths = sorted(source)
    found = {}
    for method in METHODS:
        by_path = hits_by_path(args.out, [Job("actions", method, fold) for fold in range(FOLDS)])
        if len(by_path) == len(paths):
            found[method] = np.array([by_path[path] for path in paths])
    return found, np.array([source[path] for path in paths])


def bench_hits(args: argparse.Namespace) -> Found:
    """Hits (N,) of every finished method on flux-bench, the mean over seeds."""
    found = {}
    for method in METHODS:
        runs = [run for seed in range(9) if (run := result(args.out, Job("bench", method, seed))) is not None]
        if runs:
            found[method] = np.mean([run["hits"] for run in runs], axis=0)
    return found


def compared(hits: Found, sources: np.ndarray | None) -> dict[str, Comparison]:
    """Every method against no pre-training."""
    return {
        m: paired_bootstrap(hits["scratch"], hits[m], sources) for m in hits if "scratch" in hits and m != "scratch"
    }


def found_at_all(gains: Sequence[dict[str, Comparison]]) -> str:
    """One sentence: which gains are left when all tests of the page count."""
    tests = [(n, m) for n, part in enumerate(gains) for m in part]
    adjusted = holm([gains[n][m].p_value for n, m in tests])
    left = [f"{TITLES[m]} on {('real actions', 'flux-bench')[n]}" for (n, m), p in zip(tests, adjusted, strict=True)
            if p <= 0.05]  # fmt: skip
    return f"Distinguishable from scratch: {', '.join(left)}." if left else "No method is distinguishable from scratch."


def seconds_of(out: Path, method: str) -> float:
    """Processor seconds of a pre-training and of the teachers that were trained for it."""
    needed = (*Job("pretrain", method).needs, Job("pretrain", method))
    return sum((result(out, job) or {"seconds": 0.0})["seconds"] for job in needed)


def longer_loss(out: Path) -> str:
    """What more steps did to the loss, as a sentence."""
    plain, longer = (result(out, Job("pretrain", method)) for method in ("videomae", "longer"))
    if plain is None or longer is None:
        return ""
    return f"{LONGER} times as many steps take VideoMAE's loss from {plain['loss']:.3f} to {longer['loss']:.3f}. "


def verdict(gain: Comparison, adjusted: float) -> str:
    """The gain with its interval, and what is left of it when all tests of the page count."""
    text = f"{100 * gain.difference:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
    if adjusted > 0.05:
        return f"{text}, not distinguishable (Holm p = {adjusted:.2g})"
    return f"{text} (Holm p = {adjusted:.2g})"


def main_table(args: argparse.Namespace, costs: dict[str, Any]) -> tuple[str, list[dict[str, Comparison]]]:
    """Accuracy and gain on both, cost beside them; the comparisons on actions and on flux-bench."""
    actions, films = actions_hits(args)
    bench = bench_hits(args)
    gains = [compared(actions, films), compared(bench, None)]
    order = [(number, method) for number, part in enumerate(gains) for method in part]
    adjusted = dict(zip(order, holm([gains[n][m].p_value for n, m in order]), strict=True))
    rows = []
    for method in METHODS:
        row = [TITLES[method]]
        for number, (hits, sources) in enumerate(((actions, films), (bench, None))):
            row.append(str(bootstrap(hits[method], sources)) if method in hits else "-")
            has = method in gains[number]
            row.append(verdict(gains[number][method], adjusted[number, method]) if has else "-")
        step = costs["steps"].get("videomae" if method == "longer" else method)
        row += [f"{step['gmacs']:.3f}" if step else "-", f"{seconds_of(args.out, method):.0f}"]
        rows.append(row)
    head = ["pre-trained by", "real actions, top-1", "gain, points", "flux-bench", "gain, points", "GMACs a clip",
            "seconds in all"]  # fmt: skip
    return table(head, rows), gains


def hidden(share: float) -> float:
    """Share of the places that is hidden when `share` is asked for: whole tubes."""
    places = ENCODER.table_grid[1] * ENCODER.table_grid[2]
    return int(places * share) / places


def cost_table(costs: dict[str, Any]) -> str:
    """What a step of each costs."""
    base = costs["steps"]["videomae"]["seconds"]
    names = {name: f"VideoMAE, {hidden(share):.0%} hidden" for name, share in RATIOS.items()}
    rows = [
        [names.get(name, TITLES.get(name, name)), f"{row['gmacs']:.3f}", f"{1000 * row['seconds']:.0f}",
         f"{costs['batch'] / row['seconds']:.0f}", f"{row['seconds'] / base:.2f}"]
        for name, row in costs["steps"].items()
    ]  # fmt: skip
    return table(["step of", "GMACs a clip, forward", "ms a step", "clips/s", "times VideoMAE"], rows)


def ratio_rows(args: argparse.Namespace, costs: dict[str, Any]) -> list[list[str]]:
    """Masking ratios of VideoMAE on the inner split."""
    jobs = {hidden(share): Job("inner", name) for name, share in RATIOS.items()}
    source = {str(e.path.relative_to(args.labelled)): e.source for e in read_entries(args.labelled)}
    base = hits_by_path(args.out, [Job("inner", "scratch", rate=best_rate(args.out))])
    rows = [["from scratch", str(bootstrap(list(base.values()), [source[p] for p in base])), "-", "-", "-", "-"]]
    for share, job in jobs.items():
        hits, spent = hits_by_path(args.out, [job]), result(args.out, Job("pretrain", job.method))
        if not hits or spent is None:
            continue
        films = [source[p] for p in hits]
        gain = paired_bootstrap([base[p] for p in hits], list(hits.values()), films)
        step = costs["steps"][job.method]
        rows.append(
            [f"{share:.0%}", str(bootstrap(list(hits.values()), films)), str(gain), f"{step['gmacs']:.3f}",
             f"{costs['batch'] / step['seconds']:.0f}", f"{spent['loss']:.3f}"]
        )  # fmt: skip
    return rows


def rate_rows(args: argparse.Namespace) -> list[list[str]]:
    """Learning rates of fine-tuning on the inner split, without pre-training."""
    found = {job.rate: result(args.out, job) for job in rate_trials()}
    return [[f"{rate:g}", f"{100 * run['accuracy']:.1f} %"] for rate, run in found.items() if run]


def task_rows(hits: Found) -> list[list[str]]:
    """Percent right by task of flux-bench."""
    rows = [["chance", *(f"{100 * task.chance:.0f}" for task in TASKS)]]
    for method, values in hits.items():
        rows.append([TITLES[method], *(f"{100 * values[i :: len(TASKS)].mean():.0f}" for i in range(len(TASKS)))])
    return rows


def draw(args: argparse.Namespace, gains: Sequence[dict[str, Comparison]]) -> None:
    """Gains against what pre-training cost."""
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 4.0), dpi=150, sharex=True)
    for axes, gain, name in zip(panels, gains, ("real actions, five folds", VERSION), strict=True):
        axes.axhline(0, color="0.5", linewidth=1)
        for method, found in gain.items():
            spent = seconds_of(args.out, method)
            value, ends = 100 * found.difference, (found.low, found.high)
            below, above = value - 100 * ends[0], 100 * ends[1] - value
            axes.errorbar(spent, value, [[below], [above]], fmt="o", capsize=3)
            right = spent > 400  # its name stands to the left, where there is room
            place = {"xytext": (-6 if right else 6, 4), "ha": "right" if right else "left"}
            axes.annotate(TITLES[method], (spent, value), textcoords="offset points", **place)
        axes.set_title(name)
        axes.set_xlabel("processor seconds of pre-training")
        axes.set_xscale("log")
        axes.margins(x=0.25)
    panels[0].set_ylabel("gain over scratch, points")
    figure.tight_layout()
    figure.savefig(IMAGES / "masked.png")
    plt.close(figure)


def write(args: argparse.Namespace) -> None:
    """Write docs/benchmarks/masked.md and docs/images/masked.png."""
    costs = json.loads((args.out / "costs.json").read_text())
    text, gains = main_table(args, costs)
    draw(args, gains)
    _, films = actions_hits(args)
    bench = bench_hits(args)
    tuned = [run for m in METHODS for k in range(FOLDS) if (run := result(args.out, Job("actions", m, k)))]
    windows = [json.loads(line) for line in (args.out / "unlabelled.jsonl").read_text().splitlines()]
    files = len({row["path"] for row in windows})
    e, d = ENCODER, DECODER
    write_page(
        "masked",
        "# Masked pre-training in miniature",
        f"{machine('matplotlib')} Written by `python benchmarks/masked.py page` from the runs of "
        "`python benchmarks/masked.py run` and `python benchmarks/masked.py costs`.",
        f"One encoder for every row: {e.depth} blocks of {e.embed_dim} channels on {e.num_frames} frames of "
        f"{e.image_size} px, cubes of {e.tubelet_size} x {e.patch_size} x {e.patch_size}, {np.prod(e.table_grid)} "
        f"tokens; decoders of {d.depth} blocks of {d.embed_dim}. Every method pre-trains it for {PRETRAIN['steps']} "
        f"steps (in one row {LONGER} times as many) of 32 clips at a rate of {PRETRAIN['learning_rate']:g}, the same "
        "clips in the same order; then it is fine-tuned like the encoder that was not pre-trained: AdamW at "
        f"{best_rate(args.out):g}, {TUNE.epochs:g} epochs on real actions, {BENCH.epochs:g} epochs of {BENCH_CLIPS} "
        "clips on flux-bench, bfloat16 products.",
        f"Pre-training saw no labelled clip: half of its samples are {len(windows)} windows of {files} other real "
        "files, half are training clips of flux-bench without their answers. Files whose names mark them as HMDB51 are "
        "left out, as the labelled clips come from its films. MVD's teachers are the VideoMAE of this table and a "
        "masked autoencoder of single frames, trained on the same clips, features not standardised. UMT's is `nano`, "
        "which saw 221,000 rendered scenes with captions and no real video: it was taught the kind of things that "
        "flux-bench asks for, so UMT's row there also shows what those captions are worth.",
        f"{found_at_all(gains)} {longer_loss(args.out)}All steps are far below what the papers train: this says what "
        "so little of it is worth, nothing about the methods at their scale.",
        text,
        f"Real actions: {len(films)} clips of {len(set(films))} films in {FOLDS} folds of whole films, 21 "
        f"classes, chance 4.8 %. flux-bench: the first {TEST_CLIPS} test clips of {VERSION}. Dashes: not run. "
        "Brackets: 95 % of 10,000 resamplings of whole films (of clips on flux-bench); gains are paired with the same "
        "clips from scratch. p-values are Holm's over all tests of the table. GMACs: forward pass of one clip in "
        "pre-training, teachers included. Seconds: processor time of the whole pre-training, reading included; those "
        "of MVD count its two teachers, those of UMT do not count `nano`. "
        f"Fine-tuning takes {np.median([run['seconds'] for run in tuned]):.0f} s a fold.",
        "![Gain over scratch against seconds of pre-training](../images/masked.png)",
        "## What a step costs",
        f"Forward, backward and update of {costs['batch']} clips on one thread, processor time, median of "
        f"{costs['rounds']} rounds in which the methods take turns. Reading a clip from the cache costs "
        f"{1000 * costs['reading_seconds']:.1f} ms more.",
        cost_table(costs),
        "## Masking ratio",
        f"VideoMAE of {RATIO_STEPS} steps at several shares of hidden cubes, fine-tuned on three quarters of the "
        "training side of fold 0 and scored on the rest, 134 clips: a look, too few clips for small differences. The "
        f"main table hides {hidden(PRETRAIN['mask']):.0%}, which was set before any fold was scored. "
        "The loss is that of pre-training on "
        "fixed clips; it is of different places at every ratio.",
        table(
            ["hidden", "top-1 inside", "gain over scratch", "GMACs a clip", "clips/s", "loss"], ratio_rows(args, costs)
        ),
        "## Settings",
        "The rate of fine-tuning is the best of three without pre-training on that inner split, before any fold was "
        "scored, so no gain comes from the rate; flux-bench takes the same one. Pixels are rebuilt as they are, not "
        "standardised per cube: flat cubes of noisy clips would have nothing but noise for a target. After 300 steps "
        "at nine tenths hidden neither was better there (19.4 % plain, 20.1 % standardised). "
        "Steps, patch size, positions and the share hidden were changed before any fold was scored, after looks at "
        "losses and at the inner split.",
        table(["rate", "from scratch, inner split"], rate_rows(args)),
        "## flux-bench by task, %",
        table(["pre-trained by", *(task.name for task in TASKS)], task_rows(bench)),
    )
