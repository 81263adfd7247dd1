"""Do plans hold? 100 budgets for two models, drawn after profiling, each measured afresh; and every front plotted.

    python benchmarks/plan.py profile          # measures the machine (under 5 minutes), keeps the profiles
    python benchmarks/plan.py check nano       # draws budgets with a fresh seed, plans, measures; goes on if stopped
    python benchmarks/plan.py check fluxvit/small
    python benchmarks/plan.py index            # indexes rendered video within six budgets in x realtime
    python benchmarks/plan.py reading --videos FOLDER   # predicted against real costs of reading real files
    python benchmarks/plan.py compile          # what torch.compile would gain
    python benchmarks/plan.py page             # writes docs/benchmarks/plan.md and docs/images/plan-front.png

The steps are apart because each wants the machine for itself for some minutes. What they find lies in the folder of
`ELASTIVID_CACHE` (or the user's cache folder) until the page is written.

Plans are made as the command makes them: with the profile, and a look at how fast the machine is at that moment.
Measured, per kind of limit: milliseconds through `Runner` (median of three calls and more, again while other programs
took more than a tenth of the processors it needs); x realtime from a fresh
measurement of reading and of `Runner` with the plan's workers; GMACs by torch's counter; MB by torch's allocator, once
for a worker and times the workers. Overshoot and use are relative to the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import indexing
import numpy as np
import torch
from tables import PAGES, machine, table, write_page
from torch.profiler import ProfilerActivity, profile

from elastivid.core.budget import Budget
from elastivid.core.cost import measured_macs
from elastivid.core.errors import BudgetError
from elastivid.core.plan import Plan
from elastivid.core.point import OperatingPoint, Runtime, Sampling
from elastivid.models.fluxvit import FluxViTConfig
from elastivid.planning.load import Watch
from elastivid.planning.meter import DISTURBED
from elastivid.planning.plan import Estimate, Planner
from elastivid.planning.prepare import TIMED, checked_now, profile_now, read_now
from elastivid.planning.profile import cache_folder, load_profile, profiled_widths
from elastivid.planning.reading import Source, load_reading, measure_reading
from elastivid.planning.run import Executor, Runner
from elastivid.planning.subject import describe
from elastivid.search.index import Index
from elastivid.search.library import find_videos
from elastivid.search.planned import typical_source
from elastivid.search.reading import Job, read_file
from elastivid.search.reading import Reading as ReadingOf
from elastivid.video.reader import VideoReader

MODELS = ("nano", "fluxvit/small")
SOURCE = Source(320, 240)
KINDS = {
    "ms": ("milliseconds_per_clip", 1, 16),
    "ms, batch 8": ("milliseconds_per_clip", 8, 6),
    "x": ("realtime_factor", None, 12),
    "gmacs": ("gmacs_per_clip", None, 8),
    "MB": ("state_megabytes", None, 8),
}
FRAME = FluxViTConfig(embed_dim=768, num_heads=12, patch_size=16, num_frames=1, image_size=224)
FRAMES = 8
INDEX_RANGE, INDEX_BUDGETS, INDEX_SECONDS = (15.0, 150.0), 6, 20
RSS_POINTS = [
    ("nano", 1, 1152),
    ("nano", 8, 256),
    ("nano", 8, 1152),
    ("fluxvit/small", 1, 2048),
    ("fluxvit/small", 8, 512),
]


def kept(name: str) -> Path:
    """Where a step leaves what it found."""
    return cache_folder() / "benchmark-plan" / f"{name.replace('/', '-')}.json"


def keep(name: str, values: Any) -> None:
    """Leave it for the page."""
    kept(name).parent.mkdir(parents=True, exist_ok=True)
    kept(name).write_text(json.dumps(values, indent=1))


def profile_step() -> None:
    """Measure both models and reading, and a frame model of SigLIP 2's shape."""
    seconds = {}
    for name in MODELS:
        started = time.perf_counter()
        profile_now(describe(name))
        seconds[name] = time.perf_counter() - started
    started = time.perf_counter()
    read_now()
    seconds["reading"] = time.perf_counter() - started
    model, frames = FRAME.build().eval(), torch.randn(FRAMES, 1, 3, 224, 224)
    frame_ms = {}
    for precision in ("float32", "bfloat16"):
        with torch.inference_mode():
            model.cast(precision)
            frame_ms[precision] = 1e3 * min(timed(lambda: model(frames)) for _ in range(4))
    keep("profile", {"seconds": seconds, "frame_ms": frame_ms})
    print(seconds, frame_ms)


def timed(run: Any) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def check_step(name: str) -> None:
    """Draw budgets, plan them, measure the plans."""
    subject = describe(name)
    planner = Planner(subject, profile=load_profile(subject), reading=load_reading(), source=SOURCE)
    if planner.profile is None or planner.reading is None:
        raise SystemExit(f"{name} has no profile of this machine and this code yet: run the step `profile` first")
    found = json.loads(kept(name).read_text()) if kept(name).exists() else {}
    if found.get("profiled") != planner.profile.measured_at:  # budgets are drawn after profiling
        found = {"profiled": planner.profile.measured_at, "seed": secrets.randbits(32), "rows": []}
    reading, model, done = measure_reading(), subject.build(), len(found["rows"])
    floors: dict[str, float] = {}
    for kind, limit, floor in drawn(planner, found["seed"])[done:]:
        budget = Budget(**{KINDS[kind][0]: limit}, batch=KINDS[kind][1])
        if kind not in floors:
            floors[kind] = spent(as_plan(floor, name), model, kind, planner, reading)
        row = {"kind": kind, "limit": limit, "cheapest": floors[kind], "plan": None}
        now = planner
        if KINDS[kind][0] in TIMED:  # as the command does
            now = Planner(subject, profile=checked_now(planner.profile), reading=planner.reading, source=SOURCE)
        try:
            plan = now.plan(budget)
        except BudgetError:
            plan = None
        if plan is not None:
            row |= {"plan": json.loads(plan.to_json()), "measured": spent(plan, model, kind, planner, reading)}
            print(kind, f"{limit:.4g} -> {row['measured']:.4g}", plan.point.tokens, plan.runtime.precision, flush=True)
        found["rows"].append(row)
        keep(name, found)


def drawn(planner: Planner, seed: int) -> list[tuple[str, float, Estimate]]:
    """Kind, limit and cheapest candidate of every budget."""
    rng, found = np.random.default_rng(seed), []
    for kind, (field, batch, count) in KINDS.items():
        cheap = planner.cheapest(Budget(**{field: 1e-9 if field != "realtime_factor" else 1e9}, batch=batch))
        dear = planner.dearest(Budget(**{field: 1.0}, batch=batch))
        ends = sorted(float(end.spent(field) or 0.0) for end in (cheap, dear))
        found += [(kind, float(v), cheap) for v in np.exp(rng.uniform(np.log(ends[0]), np.log(ends[1]), count))]
    return found


def index_step() -> None:
    """Index a rendered video of a length that takes about 15 seconds, for budgets drawn with a fresh seed."""
    seed = secrets.randbits(32)
    case = indexing.Case("", SOURCE.width, SOURCE.height, 8.0, 700_000)
    rows = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        indexing.make_video(folder / "once.mp4", case)
        for limit in np.exp(np.random.default_rng(seed).uniform(*np.log(INDEX_RANGE), INDEX_BUDGETS)):
            index = Index.open(folder / f"{limit:.4f}.ev")
            plan = index.plan(folder / "once.mp4", Budget(realtime_factor=float(limit)))
            video = folder / "videos" / f"{limit:.4f}.mp4"
            video.parent.mkdir(exist_ok=True)
            indexing.repeat_packets(folder / "once.mp4", video, INDEX_SECONDS * (plan.realtime_factor or 1.0))
            report = index.add(video, plan=plan)
            took = report.video_seconds / (report.elapsed_seconds - report.spent.load_seconds)
            rows.append({"limit": float(limit), "plan": json.loads(plan.to_json()), "took": took})
            print(f"{limit:.1f}x: planned {plan.realtime_factor:.1f}x, took {took:.1f}x", flush=True)
            video.unlink()
    keep("index", {"seed": seed, "rows": rows})


def reading_step(folder: Path) -> None:
    """Processor time of reading every video of at least four seconds, beside what is predicted from its header."""
    reading, sampling = load_reading(), Sampling()
    if reading is None:
        raise SystemExit("reading was not measured on this machine yet: run the step `profile` first")
    rows = []
    for file in find_videos([folder])[0]:
        job = Job(0, file.path, file.size_bytes, file.modified_ns)
        times = []
        for _ in range(3):
            started = time.process_time()
            ending = read_file(job, ReadingOf(sampling), lambda window, frames: None)
            times.append(time.process_time() - started)
        if ending.status != "indexed" or ending.duration_seconds < 4:
            continue
        with VideoReader(file.path) as reader:
            codec = reader.metadata.codec
        source = typical_source([file.path])
        predicted = reading.processor_seconds(source, sampling)[0] * ending.duration_seconds
        rows.append({"codec": codec, "source": str(source), "seconds": min(times), "predicted": predicted})
        print(f"{Path(file.path).name[-50:]}: {codec} {source}: {predicted / min(times):.2f}", flush=True)
    keep("reading", rows)


def compile_step() -> None:
    """What compiling gains at the native grid, and what it takes once per shape; both in turns, on all threads."""
    rows = []
    for name, tokens in (("nano", 256), ("fluxvit/small", 1024)):
        subject = describe(name)
        video, point = torch.randn(1, subject.frames, 3, subject.size, subject.size), OperatingPoint(tokens=tokens)
        for precision in ("float32", "bfloat16"):
            way = Runtime(threads=torch.get_num_threads(), precision=precision)
            plain = Executor(subject.build(), way)
            compiled = plain.running(replace(way, compiled=True))
            first = timed(lambda e=compiled, v=video, p=point: e.embed_clips(v, point=p))
            times: dict[Executor, list[float]] = {plain: [], compiled: []}
            for _ in range(9):
                for executor, found in times.items():
                    found.append(1e3 * timed(lambda e=executor, v=video, p=point: e.embed_clips(v, point=p)))
            eager, fast = (statistics.median(found) for found in times.values())
            rows.append([f"{name}, {tokens} tokens, {precision}", f"{eager:.1f}", f"{fast:.1f}", f"{first:.0f} s"])
            print(rows[-1], flush=True)
    keep("compile", rows)


def as_plan(estimate: Estimate, name: str) -> Plan:
    """A candidate as something that `Runner` carries out."""
    return Plan(estimate.sampling, estimate.point, estimate.runtime, estimate.cost, model=name)


def spent(plan: Plan, model: Any, kind: str, planner: Planner, reading: Any) -> float:
    """What a plan really takes, in the unit of its limit."""
    sampling, runtime = plan.sampling, plan.runtime
    shape = (runtime.batch, sampling.frames, 3, sampling.size, sampling.size)
    if kind == "gmacs":
        encoder = planner.subject.config.build().eval()
        return measured_macs(lambda: encoder(torch.zeros(1, *shape[1:]), point=plan.point)) / 1e9
    with Runner(plan, model) as runner:
        if kind == "MB":
            video = torch.randn(shape)
            peak = peak_bytes(lambda: runner.executor.embed_clips(video, point=plan.point)) + video.nbytes
            return peak * runtime.workers / 1e6
        video = torch.randn(runtime.batch * runtime.workers, *shape[1:])
        milliseconds = undisturbed(runner, video)
    if kind != "x":
        return milliseconds
    return reading.realtime_factor(planner.source, sampling, milliseconds)


def undisturbed(runner: Runner, video: torch.Tensor) -> float:
    """Median milliseconds of a few calls; all of them again, at most five times, while others used the processors."""
    runtime, cores = runner.plan.runtime, os.cpu_count() or 1
    spare = max(0.0, 1.0 - (runtime.threads or cores) * runtime.workers / cores)
    first = (runner.embed_clips(video).measured.milliseconds or 0.0) * len(video)  # also warms up
    found = []
    for _ in range(5):
        watch = Watch()
        calls = 1 if first > 4000 else 3 if first > 200 else 7
        times = [runner.embed_clips(video).measured.milliseconds or 0.0 for _ in range(calls)]
        found.append((max(watch.others - spare, 0.0), statistics.median(times)))
        if found[-1][0] <= DISTURBED:
            break
        time.sleep(1.0)
    return min(found)[1]


def peak_bytes(run: Any) -> int:
    """Most bytes of torch's allocator at the same time, above what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    return int(np.cumsum([event.nbytes() for event in sorted(events, key=lambda e: e.start_ns())]).max())


def rss_step(name: str, batch: int, tokens: int) -> float:
    """Peak resident MB above those of the loaded, warmed-up process. Call it in a process of its own."""
    subject = describe(name)
    runtime = Runtime(batch=batch, threads=torch.get_num_threads())
    planner, model = Planner(subject), subject.build()
    fewest = min(tokens, subject.available_tokens(2, subject.size))
    warm_up, plan = (
        as_plan(planner.estimate(planner.sampling, count, subject.full_width, runtime), name)
        for count in (fewest, tokens)
    )
    with Runner(warm_up, model) as runner:
        runner.embed_clips(torch.randn(1, 2, 3, subject.size, subject.size))
    with Runner(plan, model) as runner:
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        runner.embed_clips(torch.randn(batch, subject.frames, 3, subject.size, subject.size))
        return (status("VmHWM") - before) / 1e3


def status(name: str) -> int:
    """Kilobytes of a line of the process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


# the page


def outcome_rows() -> list[list[str]]:
    """Share within budget, overshoot and use per model and kind, beside always taking the cheapest plan."""
    rows = []
    for name in MODELS:
        found = json.loads(kept(name).read_text())["rows"]
        for kind in [*KINDS, "all"]:
            some = [row for row in found if kind in (row["kind"], "all")]
            planned = [row for row in some if row["plan"]]
            ours = [ratio(row["kind"], row["measured"], row["limit"]) for row in planned]
            floor = [ratio(row["kind"], row["cheapest"], row["limit"]) for row in some]
            rows.append([f"{name}, {kind}", str(len(some)), str(len(some) - len(planned)), *summary(ours)])
            if kind == "all":
                rows.append([f"{name}, always the cheapest", str(len(some)), "-", *summary(floor)])
    return rows


def ratio(kind: str, measured: float, limit: float) -> float:
    """Part of the budget that was spent."""
    return limit / measured if kind == "x" else measured / limit


def summary(ratios: list[float]) -> list[str]:
    """Share within, 95th percentile of the overshoot, median use."""
    over = np.maximum(np.array(ratios) - 1.0, 0.0)
    within = f"{np.mean(over == 0):.0%}"
    return [within, f"{np.quantile(over, 0.95):.1%}", f"{np.median(ratios):.0%}"]


def profile_rows() -> list[list[str]]:
    """How long profiling took and how far each point is off when it is left out."""
    seconds = json.loads(kept("profile").read_text())["seconds"]
    rows = []
    for name in MODELS:
        found = load_profile(describe(name))
        assert found is not None
        errors = np.abs(found.errors)
        shares = [f"{np.median(errors):.1%}", f"{np.quantile(errors, 0.9):.1%}", f"{found.margin:.1%}"]
        rows.append([name, str(len(found.rows)), f"{seconds[name]:.0f} s", *shares])
    rows.append(["reading", str(len(load_reading().rows)), f"{seconds['reading']:.0f} s", "-", "-", "-"])  # type: ignore[union-attr]
    rows.append(["together", "", f"{sum(seconds.values()):.0f} s", "", "", ""])
    return rows


def index_rows() -> list[list[str]]:
    """Budgets, plans and what indexing took."""
    rows = []
    for row in json.loads(kept("index").read_text())["rows"]:
        plan = row["plan"]
        what = f"{plan['point']['tokens']} tokens, {plan['runtime']['precision']}, {plan['sampling']['decode']}"
        rows.append([f"{row['limit']:.1f}x", what, f"{plan['realtime_factor']:.1f}x", f"{row['took']:.1f}x"])
    return rows


def reading_rows() -> list[list[str]]:
    """Predicted over measured cost of reading, per codec."""
    rows = json.loads(kept("reading").read_text())
    found = []
    for codec in sorted({row["codec"] for row in rows}, key=lambda c: -sum(row["codec"] == c for row in rows)):
        ratios = [row["predicted"] / row["seconds"] for row in rows if row["codec"] == codec]
        low, median, high = np.quantile(ratios, (0.1, 0.5, 0.9))
        found.append([codec, str(len(ratios)), f"{median:.2f}", f"{low:.2f} to {high:.2f}"])
    return found


def memory_rows() -> list[list[str]]:
    """Predicted peaks beside the allocator's and the process's, from the checks and in fresh processes."""
    rows = []
    for name in MODELS:
        found = [row for row in json.loads(kept(name).read_text())["rows"] if row["kind"] == "MB" and row["plan"]]
        errors = [abs(row["plan"]["cost"]["activation_bytes"] / 1e6 / row["measured"] - 1) for row in found]
        rows.append([f"{name}, {len(errors)} plans", "allocator", f"{np.median(errors):.1%}", f"{max(errors):.1%}", ""])
    for name, batch, tokens in RSS_POINTS:
        command = [sys.executable, __file__, "rss", name, "--batch", str(batch), "--tokens", str(tokens)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        resident, subject = float(done.stdout.split()[-1]), describe(name)
        point, runtime = OperatingPoint(tokens=tokens), Runtime(batch=batch)
        predicted = subject.activation_bytes(subject.frames, subject.size, point, runtime) / 1e6
        difference = f"{predicted / resident - 1:+.0%}"
        rows.append(
            [
                f"{name}, {tokens} tokens, batch {batch}",
                f"resident {resident:.0f} MB",
                difference,
                "",
                f"{predicted:.0f} MB",
            ]
        )
    return rows


def plot() -> None:
    """GMACs and milliseconds against tokens, a line per width; the frame-pooled model as the line to beat."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    frame_ms = json.loads(kept("profile").read_text())["frame_ms"]
    figure, axes = plt.subplots(2, 3, figsize=(15, 8.5), sharex="row")
    for line, name in zip(axes, MODELS, strict=True):
        subject = describe(name)
        found = load_profile(subject)
        assert found is not None
        everything = subject.available_tokens(subject.frames, subject.size)
        counts = np.unique(np.geomspace(32, everything, 40).astype(int))
        for width, colour in zip(profiled_widths(subject), ("#7fb3d5", "#2e86c1", "#1b4f72"), strict=False):
            points = [OperatingPoint(tokens=int(count), width=width) for count in counts]
            label = f"width {width}" + ("" if width in subject.trained_widths else " (cost only: not trained)")
            gmacs = [subject.cost(subject.frames, subject.size, point).gmacs for point in points]
            line[0].plot(counts, gmacs, color=colour, label=label)
            for place, precision in ((1, "float32"), (2, "bfloat16")):
                way = Runtime(threads=torch.get_num_threads(), precision=precision)
                times = [found.predict(subject.frames, subject.size, point, way) for point in points]
                line[place].plot(counts, times, color=colour, label=label)
                rows = [r for r in found.rows if r.runtime == way and r.width == width]
                rows = [r for r in rows if (r.frames, r.size) == (subject.frames, subject.size)]
                line[place].plot([r.tokens for r in rows], [r.milliseconds for r in rows], "o", color=colour, ms=5)
        pooled = FRAMES * FRAME.cost(frames=1, size=224).gmacs
        titles = ("GMACs", "ms, float32, one clip", "ms, bfloat16, one clip")
        for axis, title, limit in zip(line, titles, (pooled, frame_ms["float32"], frame_ms["bfloat16"]), strict=True):
            axis.axhline(limit, color="#c0392b", ls="--", label=f"{FRAMES} frames, SigLIP 2 base shape: {limit:.0f}")
            axis.set(xscale="log", yscale="log", title=f"{name}: {title}", xlabel="tokens kept")
            axis.grid(alpha=0.3, which="both")
            axis.legend(fontsize=8)
    figure.suptitle("What a clip costs: lines are predicted, dots measured", fontsize=12)
    figure.tight_layout()
    figure.savefig(PAGES.parent / "images" / "plan-front.png", dpi=110)


def page_step() -> None:
    """Write the page from what the other steps found."""
    plot()
    seeds = ", ".join(f"{name} {json.loads(kept(name).read_text())['seed']}" for name in MODELS)
    heads = ["budgets", "drawn", "refused", "within budget", "95th percentile of the overshoot", "median use"]
    write_page(
        "plan",
        "# Plans: do they hold?",
        f"{machine()} Written by the steps of `python benchmarks/plan.py`, each with the machine for itself.",
        "## Budgets drawn after profiling",
        "Log-uniform between the cheapest and the dearest point of a model; seeds drawn after profiling: "
        f"{seeds}. Goals: 95 % within, overshoot 10 %, use 75 %. Video for x realtime: {SOURCE}. Each plan was "
        "measured afresh. A refusal lies within the margin of the cheapest plan.",
        table(heads, outcome_rows()),
        "![GMACs and milliseconds against tokens and width](../images/plan-front.png)",
        "Dashed: 8 frames, each through a model of the shape of SigLIP 2 base (12 blocks, 768 channels, 196 tokens), "
        "pooled; its time is that of a FluxViT of these sizes.",
        "## Indexing within a budget",
        f"nano, rendered video of {SOURCE}, long enough for about {INDEX_SECONDS} s of work; loading left out; "
        f"seed {json.loads(kept('index').read_text())['seed']}.",
        table(["at least", "plan", "planned", "took"], index_rows()),
        "## Reading real files",
        "Processor time of reading a file to windows, predicted from size, frame rate and bits in its header, over "
        "measured; real videos of at least 4 s. Predictions are made for H.264.",
        table(["codec", "files", "median", "8 of 10 between"], reading_rows()),
        "## Why plans do not compile",
        "Milliseconds of one clip without and with `torch.compile`, in turns, and the first call of a shape.",
        table(["what", "ms", "ms compiled", "first call"], json.loads(kept("compile").read_text())),
        "## Profiling",
        "Error of each measured point when it is predicted from all others; the margin is the 95th percentile of the "
        "slower side with the usual spread of calls on top. Goal: both models within 5 minutes.",
        table(["what", "points", "took", "median error", "1 in 10 above", "margin"], profile_rows()),
        "## Memory above the weights, input included",
        "Plans: predicted against the peak of torch's allocator (goal 15 %). Resident: peak of a fresh process above "
        "what it held after loading and one small call; it also holds what the allocator does not give back and the "
        "scratch memory of kernels.",
        table(["what", "measured", "median difference", "largest", "predicted"], memory_rows()),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("step", choices=("profile", "check", "index", "reading", "compile", "page", "rss"))
    parser.add_argument("model", nargs="?", default="nano")
    parser.add_argument("--videos", type=Path, help="folder of real videos, for the step `reading`")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=256)
    wanted = parser.parse_args()
    if wanted.step == "reading":
        if not wanted.videos:
            parser.error("the step `reading` needs --videos FOLDER")
        reading_step(wanted.videos)
    elif wanted.step == "rss":
        print(rss_step(wanted.model, wanted.batch, wanted.tokens))
    else:
        steps = {"profile": profile_step, "index": index_step, "compile": compile_step, "page": page_step}
        steps.get(wanted.step, lambda: check_step(wanted.model))()


if __name__ == "__main__":
    main()
