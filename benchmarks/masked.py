"""Masked pre-training in miniature: what VideoMAE, V2, MVD and UMT gain over no pre-training, and what each costs.

    python benchmarks/masked.py run --seconds 540      # call again until it says that all is done
    python benchmarks/masked.py costs                  # processor time of a step, methods in turn
    python benchmarks/masked.py page                   # docs/benchmarks/masked.md and its plot

One encoder for all (`ENCODER`): 4 blocks of 128 channels on 8 frames of 64 pixels, cubes of 2 x 16 x 16. Every method
pre-trains it on the same clips, in the same order, for as many steps; then it is fine-tuned with the same settings,
seeds and steps as the encoder that was not pre-trained: on the real actions, on five folds by film, and on flux-bench.

Pre-training sees no clip that is scored, and no labelled clip at all: half of its samples are windows of the other real
clips (`--clips`, `--texts`; those that names mark as HMDB51 are left out, as the labelled clips come from its films),
half are training clips of flux-bench, without their answers. MVD's video teacher is the VideoMAE of this benchmark and
its image teacher a masked autoencoder of single frames, trained here as well. UMT's teacher is the video tower of
`nano`, which has seen rendered scenes with their captions and no real video.

Learning rate (without pre-training, so that no gain comes from it) and masking ratios are compared on an inner split of
the training side of fold 0. Runs go on where they
were stopped, and several calls of `run` may work side by side.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from actions import FOLDS, sides, written
from miniature import TEST_CLIPS, answers
from reproduction import claimed
from torch import nn
from torch.utils.data import Dataset

from elastivid.data.clips import ClipStream, Weighted
from elastivid.data.fluxbench import FIRST_CLASS
from elastivid.data.listing import VIDEO_SUFFIXES, read_entries
from elastivid.models.classifier import ClipClassifier
from elastivid.models.mvd import MVDConfig
from elastivid.models.videomae import DecoderConfig, PretrainingConfig, VideoMAE, VideoMAEConfig
from elastivid.recipes._bench import BenchClips
from elastivid.recipes._labelled import Parts, classifier_of, probabilities
from elastivid.recipes._masked import MaskedRecipe, teacher_of
from elastivid.recipes.finetune import Finetune, FinetuneConfig
from elastivid.recipes.mvd_distill import DistillConfig, Distilled, MVDDistill
from elastivid.recipes.umt_pretrain import UMTPretrain, UMTPretrainConfig
from elastivid.recipes.videomae_pretrain import VideoMAEConfig as PlainConfig
from elastivid.recipes.videomae_pretrain import VideoMAEPretrain
from elastivid.recipes.videomae_v2_pretrain import VideoMAEV2Config, VideoMAEV2Pretrain
from elastivid.train.export import export
from elastivid.train.loop import Finished, train
from elastivid.train.recipe import Recipe, Row
from elastivid.train.stages import Stage
from elastivid.video.errors import VideoError
from elastivid.video.reader import VideoReader

ENCODER = VideoMAEConfig(
    embed_dim=128, depth=4, num_heads=4, patch_size=16, tubelet_size=2, num_frames=8, image_size=64,
    positions="factorised",
)  # fmt: skip
DECODER = DecoderConfig(embed_dim=96, depth=2, num_heads=3, positions="factorised")
METHODS = ("scratch", "videomae", "longer", "v2", "mvd", "umt")
LONGER = 10  # times the steps of VideoMAE
RATIOS = {f"videomae-{share}": share / 100 for share in (50, 75, 90, 95)}  # asked for; whole tubes hide
RATIO_STEPS = 300  # of these; all else equal
RATES = (5e-4, 1e-3, 2e-3)  # tried on the inner split without pre-training
WINDOW_SECONDS, MOST_WINDOWS = 2.0, 40  # of a file, spread evenly
BENCH_CLIPS = 7000
HMDB51 = re.compile(r"_[cn]m_np\d_|hmdb51", re.IGNORECASE)  # how its files are called
SHAPE: dict[str, Any] = {"frames": ENCODER.num_frames, "size": ENCODER.image_size, "short_side": 128, "kept_frames": 16,
                         "precision": "bfloat16", "num_workers": 0, "save_every": 200}  # fmt: skip
PRETRAIN: dict[str, Any] = {**SHAPE, "stride": 0, "steps": 600, "learning_rate": 2e-3, "mask": 0.75,
                            "warmup_share": 0.1, "final_share": 0.01}  # fmt: skip
PIXELS: dict[str, Any] = {"standardise": False}
TUNE = FinetuneConfig(epochs=8.0, layer_decay=1.0, **SHAPE)
BENCH = replace(TUNE, epochs=2.0, drop_path=0.0, mixing=0.0, smoothing=0.0, test_views=1, save_every=100)


class OnCorpus(MaskedRecipe):
    """Trains on real windows and rendered clips, half and half."""

    def dataset(self, stage: Stage) -> Dataset:
        """Samples of both in turn."""
        rendered = BenchClips(bench_folder(self.config.folder.parent), "train", BENCH_CLIPS)
        both = Weighted([(self.clips, 1.0), (rendered, 1.0)])
        return ClipStream(both, self.shapes(), self.config.batch_size, self.config.seed)


class SmallVideoMAE(OnCorpus, VideoMAEPretrain):
    """VideoMAE of `ENCODER`; of single frames where the settings have one."""

    def build(self) -> nn.Module:
        """Encoder and decoder."""
        single: dict[str, Any] = {"num_frames": 1, "tubelet_size": 1} if self.config.frames == 1 else {}
        return PretrainingConfig(replace(ENCODER, **single), DECODER).build()


class SmallV2(OnCorpus, VideoMAEV2Pretrain):
    """VideoMAE V2 of `ENCODER`."""

    def build(self) -> nn.Module:
        """Encoder and decoder."""
        return PretrainingConfig(ENCODER, DECODER).build()


class SmallMVD(OnCorpus, MVDDistill):
    """MVD of `ENCODER`."""

    def build(self) -> nn.Module:
        """Student and teachers."""
        image, video = teacher_of(self.config.image_teacher), teacher_of(self.config.video_teacher)
        assert isinstance(image, VideoMAE)
        assert isinstance(video, VideoMAE)
        encoder = replace(ENCODER, drop_path=self.config.drop_path)
        student = MVDConfig(encoder, DECODER, image.config.embed_dim, video.config.embed_dim)
        return Distilled(student.build(), image, video)


class SmallUMT(OnCorpus, UMTPretrain):
    """UMT of `ENCODER`."""

    def sizes(self) -> VideoMAEConfig:
        """The student's."""
        return ENCODER


class BenchFinetune(Finetune):
    """Fine-tunes on flux-bench; a clip's answer is the best one of its task."""

    @cached_property
    def parts(self) -> Parts:
        """Training clips and frozen test clips."""
        folder = bench_folder(self.config.folder.parent)
        halves: list[Any] = [BenchClips(folder, "train", BENCH_CLIPS), BenchClips(folder, "test", TEST_CLIPS)]
        return Parts(*halves)

    @torch.no_grad()
    def hits(self, module: nn.Module) -> np.ndarray:
        """Which test clips are answered rightly, bool (N,)."""
        assert isinstance(module, ClipClassifier)
        test: Any = self.parts.test
        found = []
        for start in range(0, len(test), 32):
            part = range(start, min(start + 32, len(test)))
            frames = torch.from_numpy(np.concatenate([test.views(i, self.config.shape) for i in part]))
            tasks = torch.from_numpy(test.clips.tasks[part.start : part.stop])
            with torch.autocast("cpu", torch.bfloat16):
                logits = module(module.config.transform.normalised(frames)).logits
            wanted = torch.tensor(FIRST_CLASS)[tasks] + torch.from_numpy(test.clips.labels[part.start : part.stop])
            found.append((answers(logits, tasks).argmax(dim=1) == wanted).numpy())
        return np.concatenate(found)

    def evaluate(self, module: nn.Module) -> list[Row]:
        """Nothing here: `run_bench` asks for the hits."""
        return []


def bench_folder(out: Path) -> Path:
    """Where rendered clips lie."""
    return out / "flux-bench"


def corpus(args: argparse.Namespace) -> Path:
    """The list of real windows to pre-train on, written once."""
    file = args.out / "unlabelled.jsonl"
    if file.is_file():
        return file
    rows = []
    paths = sorted(p for folder in (args.clips, args.texts) for p in folder.rglob("*"))
    for path in paths:
        if path.suffix.lower() not in VIDEO_SUFFIXES or HMDB51.search(path.name):
            continue
        try:
            with VideoReader(path) as reader:
                seconds = reader.measure_seconds()
        except VideoError as error:
            print(f"left out: {error}")
            continue
        count = min(MOST_WINDOWS, int(seconds / WINDOW_SECONDS))
        row = {"path": str(path.absolute()), "label": "-"}
        if count < 2:
            rows.append(row)
            continue
        starts = np.linspace(0, seconds - WINDOW_SECONDS, count).round(2)
        rows += [{**row, "start_seconds": s, "end_seconds": s + WINDOW_SECONDS} for s in starts.tolist()]
    args.out.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
    partial.replace(file)
    return file


def pretraining(args: argparse.Namespace, name: str) -> MaskedRecipe:
    """The recipe that pre-trains `name`."""
    shared = {**PRETRAIN, "data": args.out / "unlabelled.jsonl", "cache": args.out / "clips"}
    if name == "image":  # single frames
        return SmallVideoMAE(PlainConfig(**{**shared, **PIXELS, "frames": 1}))
    if name == "v2":
        return SmallV2(VideoMAEV2Config(**shared, **PIXELS))
    if name == "mvd":
        teachers = {
            f"{kind}_teacher": str(weights(args, of)) for kind, of in (("image", "image"), ("video", "videomae"))
        }
        return SmallMVD(DistillConfig(**shared, **teachers))
    if name == "umt":
        return SmallUMT(UMTPretrainConfig(**shared, teacher="nano", taught_blocks=2))
    if name == "longer":
        shared |= {"steps": LONGER * PRETRAIN["steps"]}
    if name in RATIOS:
        shared |= {"mask": RATIOS[name], "steps": RATIO_STEPS}
    return SmallVideoMAE(PlainConfig(**shared, **PIXELS))


def weights(args: argparse.Namespace, name: str) -> Path:
    """Where the encoder of a method lies once it is pre-trained."""
    return args.out / "pretrain" / name / "model.safetensors"


@dataclass(frozen=True)
class Job:
    """One run: of pre-training, or of fine-tuning the encoder of a method.

    Args:
        kind: "pretrain", "inner" (a part of the training side of fold 0), "actions" or "bench".
        method: name of the pre-training.
        part: number of the fold, or of the seed.
        rate: learning rate of fine-tuning; 0 for the one that was best on the inner split.
    """

    kind: str
    method: str
    part: int = 0
    rate: float = 0.0

    @property
    def name(self) -> str:
        """Folder of the run below --out."""
        if self.kind == "pretrain":
            return f"pretrain/{self.method}"
        rate = f"-{self.rate:g}" if self.rate else ""
        return f"{self.kind}/{self.method}-{self.part}{rate}"

    @property
    def needs(self) -> tuple[Job, ...]:
        """Runs that must be finished before."""
        if self.kind == "pretrain":
            return (Job("pretrain", "image"), Job("pretrain", "videomae")) if self.method == "mvd" else ()
        return (Job("pretrain", self.method), *(() if self.rate else rate_trials()))


def rate_trials() -> tuple[Job, ...]:
    """Runs that choose the learning rate of fine-tuning."""
    return tuple(Job("inner", "scratch", rate=rate) for rate in RATES)


def best_rate(out: Path) -> float:
    """The rate that is best without pre-training on the inner split."""
    shares = {j.rate: json.loads((out / j.name / "result.json").read_text())["accuracy"] for j in rate_trials()}
    return max(shares, key=lambda rate: shares[rate])


def planned() -> list[Job]:
    """All runs, those first that others or the main table need."""
    jobs = [Job("pretrain", "scratch"), *rate_trials()]
    for method in ("scratch", "videomae", "umt", "v2", "mvd", "longer"):
        jobs += [job for job in (*Job("pretrain", method).needs, Job("pretrain", method)) if job not in jobs]
        jobs += [Job("actions", method, fold) for fold in range(FOLDS)]
    jobs += [Job("bench", name) for name in METHODS]
    return jobs + [Job(kind, name) for name in RATIOS for kind in ("pretrain", "inner")]


def advance(recipe: Recipe, folder: Path, until: float) -> tuple[Finished, float]:
    """Train as far as `until` (seconds of the monotonic clock); also the processor seconds so far, over all calls."""
    spent = folder / "processor_seconds"
    began = time.process_time()
    done = train(recipe, folder, resume=True, device="cpu", should_stop=lambda: time.monotonic() > until)
    seconds = time.process_time() - began + (float(spent.read_text()) if spent.is_file() else 0.0)
    spent.write_text(f"{seconds}\n")
    return done, seconds


def run_pretraining(args: argparse.Namespace, job: Job, folder: Path, until: float) -> dict[str, Any] | None:
    """Pre-train; what the last evaluation says and what it cost. "scratch" is the encoder as it is built."""
    recipe = pretraining(args, job.method)
    if job.method == "scratch":
        torch.manual_seed(0)
        export(recipe, recipe.build(), folder, 0)
        return {"seconds": 0.0}
    done, seconds = advance(recipe, folder, until)
    if not done.complete:
        return None
    return {"seconds": seconds, "steps": done.step, **done.rows[-1]}


def run_actions(args: argparse.Namespace, job: Job, folder: Path, until: float) -> dict[str, Any] | None:
    """Fine-tune without a fold and keep what is right in it."""
    train_side, test_side = sides(read_entries(args.labelled), job.part, inner=job.kind == "inner")
    lists = {
        part: written(folder / f"{part}.jsonl", side) for part, side in (("data", train_side), ("test", test_side))
    }
    rate = job.rate or best_rate(args.out)
    config = replace(TUNE, **lists, learning_rate=rate, model=str(weights(args, job.method)), cache=args.cache)
    recipe = Finetune(config)
    done, seconds = advance(recipe, folder, until)
    if not done.complete:
        return None
    assert isinstance(done.module, ClipClassifier)
    test: Any = recipe.parts.test
    found = list(probabilities(done.module, test, config))
    indices = [i for part, _ in found for i in part]
    predicted = np.concatenate([scores[0] for _, scores in found]).argmax(axis=1)
    right = [int(number) == test.label_of(i) for i, number in zip(indices, predicted, strict=True)]
    paths = [str(test.entries[i].path.relative_to(args.labelled.absolute())) for i in indices]
    return {"seconds": seconds, "steps": done.step, "paths": paths, "hits": right, "accuracy": float(np.mean(right))}


def run_bench(args: argparse.Namespace, job: Job, folder: Path, until: float) -> dict[str, Any] | None:
    """Fine-tune on flux-bench and keep what is right of its test clips."""
    config = replace(
        BENCH, seed=job.part, learning_rate=best_rate(args.out), model=str(weights(args, job.method)),
        cache=args.out / "clips",
    )  # fmt: skip
    recipe = BenchFinetune(config)
    done, seconds = advance(recipe, folder, until)
    if not done.complete:
        return None
    hits = recipe.hits(done.module)
    return {"seconds": seconds, "steps": done.step, "hits": hits.tolist(), "accuracy": float(hits.mean())}


RUNS = {"pretrain": run_pretraining, "inner": run_actions, "actions": run_actions, "bench": run_bench}


def finished(out: Path, job: Job) -> bool:
    """Whether a run has left its result."""
    return (out / job.name / "result.json").is_file()


def attempt(args: argparse.Namespace, job: Job, until: float) -> bool:
    """Work on a run as long as time allows; false where it has to wait for others or somebody else works on it."""
    folder = args.out / job.name
    if not all(finished(args.out, needed) for needed in job.needs):
        return False
    with claimed(folder) as mine:
        if not mine or finished(args.out, job):
            return False
        result = RUNS[job.kind](args, job, folder, until)
        if result is not None:
            partial = folder / "result.partial"
            partial.write_text(json.dumps(result))
            partial.replace(folder / "result.json")
            shown = ", ".join(f"{k} {result[k]:.3f}" for k in ("accuracy", "gmacs", "seconds") if k in result)
            print(f"{job.name}: {shown}", flush=True)
    return True


def run(args: argparse.Namespace) -> None:
    """Work on unfinished runs until the time is over, always on the first that can be worked on."""
    until = time.monotonic() + args.seconds
    corpus(args)
    jobs = [job for job in planned() if any(fnmatch(job.name, pattern) for pattern in args.only or "*")]
    while time.monotonic() < until - 20:
        if not any(attempt(args, job, until) for job in jobs if not finished(args.out, job)):
            break
    still_open = sum(not finished(args.out, job) for job in jobs)
    print("all runs are done" if not still_open else f"{still_open} runs are open or under way elsewhere; call again")


def costs(args: argparse.Namespace, rounds: int = 5, steps: int = 2, batch: int = 32) -> None:
    """Processor time of a training step of every method on one batch, the methods in turn, and of reading a clip."""
    subjects: dict[str, tuple[Recipe, nn.Module, float]] = {}
    for name in ("videomae", "v2", "mvd", "umt", "image", *RATIOS):
        recipe = pretraining(args, name)
        module = recipe.build().train()
        subjects[name] = recipe, module, recipe.gmacs(module)
    tuned = BenchFinetune(replace(TUNE, model=str(weights(args, "scratch")), cache=args.out / "clips"))
    classifier = classifier_of(tuned.config, tuned.parts.train.classes).train()
    subjects["fine-tuning"] = tuned, classifier, classifier.cost(frames=8, size=64).gmacs
    began = time.process_time()
    stream = subjects["videomae"][0].dataset(subjects["videomae"][0].stages()[0])
    samples = [stream[i] for i in range(batch)]
    began = time.process_time()
    samples = [stream[i] for i in range(batch, 2 * batch)]
    reading = (time.process_time() - began) / batch
    both = subjects["videomae"][0].collate(samples)
    taken: dict[str, list[float]] = {name: [] for name in subjects}
    optimizers = {
        n: torch.optim.AdamW([p for p in m.parameters() if p.requires_grad]) for n, (_, m, _) in subjects.items()
    }
    for turn in range(rounds + 1):
        for name, (recipe, module, _) in subjects.items():
            data = {**both, "frames": both["frames"][:, :1] if name == "image" else both["frames"],
                    "labels": torch.arange(batch) % 21}  # fmt: skip
            began = time.process_time()
            for step in range(steps):
                with torch.autocast("cpu", torch.bfloat16):
                    loss, _ = recipe.step(module, data, recipe.stages()[0], torch.Generator().manual_seed(step))
                loss.backward()
                optimizers[name].step()
                optimizers[name].zero_grad()
            if turn:  # the first round warms up
                taken[name].append((time.process_time() - began) / steps)
    found = {name: {"seconds": float(np.median(taken[name])), "gmacs": subjects[name][2]} for name in subjects}
    result = {"batch": batch, "rounds": rounds, "reading_seconds": reading, "steps": found}
    (args.out / "costs.json").write_text(json.dumps(result, indent=1))
    for name, row in found.items():
        print(f"{name}: {row['gmacs']:.3f} GMACs, {batch / row['seconds']:.0f} clips/s")
    print(f"reading {1000 * reading:.2f} ms a clip")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("run", "costs", "page"))
    shared = Path("../shared/data")
    parser.add_argument("--labelled", type=Path, default=shared / "labelled")
    parser.add_argument("--clips", type=Path, default=shared / "clips", help="real clips to pre-train on")
    parser.add_argument("--texts", type=Path, default=shared / "text", help="more of them")
    parser.add_argument("--out", type=Path, default=Path("runs/masked"), help="folder of runs and results")
    parser.add_argument("--cache", type=Path, help="folder of decoded labelled clips [default: below --out]")
    parser.add_argument("--seconds", type=float, default=1e9, help="how long to work in this call")
    parser.add_argument("--only", action="append", help="runs whose name fits, such as 'actions/*-0'")
    args = parser.parse_args(arguments)
    args.cache = args.cache or args.out / "labelled"
    torch.set_num_threads(1)
    if args.do == "page":
        from masked_page import write

        write(args)
    else:
        {"run": run, "costs": costs}[args.do](args)


if __name__ == "__main__":
    main()
