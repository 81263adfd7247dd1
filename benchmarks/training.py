"""Whether training resumes exactly, processes add up, samples come fast enough, and smoke runs are short.

    python benchmarks/training.py [--kills 40] [--folder runs/benchmark]

Writes docs/benchmarks/training.md. Kills: a run of 80 steps with a checkpoint after every second one is killed with
SIGKILL at random moments, most often after it wrote a checkpoint of its own, every other time while it writes a file if
it can be caught at it, and resumed until it ends, seed after seed; its log, its last checkpoint and its model are
compared bit for bit with a run that nobody killed. Processes: two processes with half the batch each against
one with all of it (`tests/train/two_processes.py`). Loading: share of the time of a step that is spent waiting for
samples, with one process preparing them beside the one that trains on one thread. About six minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from tables import machine, table, write_page

from elastivid.evaluate.protocol import Evaluation
from elastivid.recipes import find, names
from elastivid.train.checkpoint import LAST, MODEL, load_checkpoint
from elastivid.train.log import METRICS, TIMING, read_lines
from elastivid.train.settings import keys

TESTS = Path(__file__).resolve().parents[1] / "tests" / "train"
WRITTEN = (METRICS, "evaluation.jsonl")
PARTS = {"pairs": "two small towers", "flux_clip": "flux_clip", "adavid_contrastive": "adavid_contrastive",
         "sharded": "flux_clip, weights spread over them, stopped and resumed"}  # fmt: skip
LOADED = {
    "nano": ("nano, scenes rendered as they are needed", ["batch_size=8", "world_steps=2,6", "scenes=1"]),
    "flux_tune": (
        "flux_tune on flux-bench, clips kept on disk, FluxViT of 128 channels and 4 blocks",
        ["batch_size=32", "steps=10", "warmup_steps=2", "bench_clips=1400", "evaluated_clips=7",
         "model.embed_dim=128", "model.depth=4", "model.patch_size=16", "model.num_frames=16", "model.image_size=64",
         "model.pool_heads=4", "model.pool_dim=128", "model.num_heads=4", "token_counts=128,64,32", "frames=8,16,4",
         "sizes=64,64,16", "tokens=128,256"],
    ),
}  # fmt: skip


def python(*arguments: str | Path) -> str:
    """Output of a Python process on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def apart(one: object, other: object) -> float:
    """Largest difference of two checkpoints: of their numbers, or infinity where anything else differs."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return float("inf")
        return max((apart(one[key], other[key]) for key in one if key != "seconds"), default=0.0)
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return float((one.double() - other.double()).abs().max()) if one.numel() else 0.0
    return 0.0 if one == other else float("inf")


def killed(folder: Path, wanted: int) -> list[list[str]]:
    """Rows on runs that were killed until `wanted` kills came in time."""
    kills, writing, worst, logs, seed = 0, 0, 0.0, 0, 0
    while kills < wanted:
        place = folder / f"kills{seed}"
        out = python(TESTS / "kill_and_resume.py", place, "20", str(seed))
        kills += out.count("killed")
        writing += out.count("while writing")
        runs = [place / name for name in ("whole", "killed")]
        worst = max(worst, apart(*(load_checkpoint(run / LAST) for run in runs)))
        worst = max(worst, apart(*(load_file(run / MODEL) for run in runs)))
        logs += all((runs[0] / name).read_bytes() == (runs[1] / name).read_bytes() for name in WRITTEN)
        seed += 1
        print(f"{kills} kills", flush=True)
    return [
        ["kills with SIGKILL (of them while a file was being written)", f"{kills} ({writing})"],
        ["runs they are spread over", str(seed)],
        ["runs whose log lines equal those of an undisturbed run byte for byte", f"{logs} of {seed}"],
        ["largest difference of any weight, moment, average or counter", f"{worst:g}"],
    ]


def processes(folder: Path) -> list[list[str]]:
    """Rows on two processes against one."""
    script = TESTS / "two_processes.py"
    python("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, folder / "two")
    python(script, folder / "one")
    rows = []
    for name, what in PARTS.items():
        states = [load_checkpoint(folder / count / name / LAST)["module"] for count in ("one", "two")]
        lines = [read_lines(folder / count / name / METRICS) for count in ("one", "two")]
        losses = max(abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in zip(*lines, strict=True))
        rows.append([what, str(lines[0][-1]["step"]), f"{apart(*states):.1e}", f"{losses:.1e}"])
    return rows


def loading(folder: Path) -> list[list[str]]:
    """Rows on the share of waiting for samples; the first line of each stage, which starts the workers, left out."""
    rows = []
    for name, (what, settings) in LOADED.items():
        out = folder / f"loading-{name}"
        changes = [word for setting in ["num_workers=1", "log_every=1", *settings] for word in ("--set", setting)]
        if name == "flux_tune":
            changes += ["--set", f"cache={folder / 'cache'}"]
        python("-m", "elastivid", "train", name, "--out", out, "--device", "cpu", *changes)
        stages = {line["step"]: line["stage"] for line in read_lines(out / METRICS)}
        lines = [(stages[line["step"]], line) for line in read_lines(out / TIMING)]
        last = [line for stage, line in lines if stage == lines[-1][0]][1:]
        waiting = sum(line["loading_share"] * line["seconds_per_step"] for line in last)
        total = sum(line["seconds_per_step"] for line in last)
        rows.append([what, f"{total / len(last):.2f}", f"{100 * waiting / total:.1f} %"])
    return rows


def smoke(folder: Path, name: str) -> list[list[str]]:
    """A row on the smoke run of a recipe, in a process of its own on one thread."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    cache = ["--set", f"cache={folder / 'cache'}"] if "cache" in keys(find(name).config_class()) else []
    python("-m", "elastivid", "train", name, "--smoke", "--out", folder / "run", "--device", "cpu", *cache)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return [[name, f"{time.perf_counter() - began:.1f}", f"{spent:.1f}"]]


def kept(folder: Path, part: str, measure: Callable[[Path], list[list[str]]]) -> list[list[str]]:
    """Rows of a part, measured in a folder of its own, or as an interrupted run of this script left them."""
    file, place = folder / f"{part}.json", folder / part
    if not file.exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        rows = measure(place)
        file.write_text(json.dumps(rows))
        print(rows, flush=True)
    found: list[list[str]] = json.loads(file.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-training"), help="removed at the end")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    kills = kept(args.folder, "kills", lambda folder: killed(folder, args.kills))
    together = kept(args.folder, "processes", processes)
    waits = kept(args.folder, "loading", loading)
    trainings = [name for name in names() if not issubclass(find(name), Evaluation)]
    smoked = [row for name in trainings for row in kept(args.folder, f"smoke-{name}", partial(smoke, name=name))]
    write_page(
        "training",
        "# Training: resuming, processes, loading",
        f"{machine('accelerate')} Written by `python benchmarks/training.py`; what it does is in its head.",
        "## Killed and resumed",
        table(["what", "result"], kills),
        "## Two processes with half the batch against one with all of it",
        table(["what is trained", "steps", "weights apart at most", "losses apart at most"], together),
        "Goal: 1e-4. Losses are relative. AdamW turns rounding of tiny gradients into steps of full size, so weights "
        "drift apart faster than losses.",
        "## Waiting for samples",
        table(["recipe", "seconds per step", "share of waiting"], waits),
        "Goal: at most 10 %, with one process that prepares samples, on a busy machine. On a GPU steps are many times "
        "shorter: the share stays small only with as many of these processes as rendering or decoding needs.",
        "## Smoke runs",
        table(["recipe", "seconds", "seconds of processor time"], smoked),
        "On one thread, from the start of the command to its end; goal: under a minute. Other programs were running "
        "meanwhile: processor time is what counts.",
    )
    shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
