"""What remembering costs: resident memory while a video grows, and milliseconds a frame, each rule beside the others.

    python benchmarks/memory_cost.py resident [--cache FOLDER]    # memory, each rule in its own process, 3 minutes
    python benchmarks/memory_cost.py times [--cache FOLDER]       # on a quiet machine, one process, 4 minutes

Without a word both. `python benchmarks/memory.py page` writes what they found onto its page.

Times: every rule is grown to 100, 1,000 and 10,000 frames first. Then rules and lengths take turns, some chunks a turn,
always from the same three states, so that a machine that slows down slows all of them alike; the median turn counts.
Two caps: the one of the accuracy tables, which is full from 504 frames on, so that 1,000 and 10,000 frames compare; and
one of 50 tokens, which is full at all three lengths. A memory that is not full yet has less to look at and costs less.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory import (
    CACHE,
    COST_LENGTHS,
    FRACTION,
    KEEP,
    RULES,
    SEED,
    SMALL_TOKENS,
    WATCH,
    memory_of,
    share_tokens,
    stock_of,
)
from torch import Tensor

from elastivid.data.asking import Stock
from elastivid.data.planted import PlantedFormat, planted_library
from elastivid.memory.base import VideoMemory
from elastivid.memory.cache import CacheMemory
from elastivid.memory.window import KeepAll
from elastivid.models.tiny_vlm import TinyVLM, chunk_times
from elastivid.search.watch import Watch, WatchPlan
from elastivid.weights.load import load_asker

QUESTIONS = ["when does the red star spin?"]
TURN_CHUNKS = 8  # of 8 frames
TURNS = 40
WATCH_CHUNKS, WATCH_TURNS = 7, 12


def save(cache: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Keep what was measured where the page looks for it."""
    path = cache / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"name": name, "rows": rows}))
    print(name, rows, flush=True)


class Streaming:
    """Shows chunks of events in front of one question to a memory."""

    def __init__(self, model: TinyVLM, stock: Stock) -> None:
        self.model, self.stock = model, stock
        asked = model.questions(QUESTIONS)
        self.text = {"text": model.question_text(asked), "text_valid": asked.valid}

    def chunk(self, number: int) -> tuple[Tensor, Tensor]:
        """Tokens (1, 1, P, C) of chunk `number` and their times (1, 1, P)."""
        event = int(np.random.default_rng([SEED, number]).integers(len(self.stock.phrases)))
        visual = self.stock.tokens[event, number % 3][None, None].float()
        return visual, chunk_times(torch.tensor([4.0 * number]), self.model.config)[None]

    @torch.autocast("cpu", torch.bfloat16)
    @torch.inference_mode()
    def grown(self, memory: VideoMemory, first: int, last: int) -> VideoMemory:
        """`memory` after chunks `first` to `last`."""
        for number in range(first, last):
            grew = self.model.qformer.stream(*self.chunk(number), memory, **self.text).memory
            assert grew is not None
            memory = grew
        return memory

    @torch.autocast("cpu", torch.bfloat16)
    @torch.inference_mode()
    def grown_at_once(self, chunks: int) -> VideoMemory:
        """What keeping all holds after so many chunks, without a pass for each of them."""
        parts = [self.chunk(number) for number in range(chunks)]
        visual, seconds = (torch.cat([p[i] for p in parts], dim=1).flatten(1, 2) for i in (0, 1))  # (1, T*P, ...)
        memory: VideoMemory = CacheMemory(KeepAll()).append(visual, seconds)
        for number, layer in enumerate(self.model.qformer.blocks[:: self.model.config.qformer.cross_every]):
            assert layer.cross is not None
            _, memory = memory.entries(number, layer.cross.project)
        return memory.finish()


def resident(cache: Path, address: str) -> None:
    """Memory while a video grows, each rule in a process of its own; then a real file through `Watch`."""
    for name in [*RULES, KEEP, WATCH]:
        command = [sys.executable, __file__, "one", "--cache", str(cache), "--model", address, "--only", name]
        subprocess.run(command, check=True)


def one(cache: Path, address: str, name: str) -> None:
    """`resident` for one rule: bytes held above a warmed baseline, and bytes of state."""
    if name == WATCH:
        path, plan = watched_file(cache), WatchPlan(model=address, memory_bytes=1_000_000, precision="bfloat16")
        with Watch(path, QUESTIONS, plan) as warm:
            warm.run(until_seconds=400.0)  # long enough that its memory is full

        def on(watch: Watch, first: int, last: int) -> Watch:
            watch.run(until_seconds=4.0 * last)
            return watch

        with Watch(path, QUESTIONS, plan) as watch:
            save(cache, f"resident {name}", held_rows(watch, on))
        return
    model = load_asker(address)
    streaming, part = Streaming(model, stock_of(cache, model)), {"rule": name, "tokens": share_tokens(FRACTION)}
    streaming.grown(memory_of(part), 0, 100)  # warm
    save(cache, f"resident {name}", held_rows(memory_of(part), streaming.grown))


def held_rows(memory: Any, grown: Callable[[Any, int, int], Any]) -> list[dict[str, Any]]:
    """Bytes above the start, of the process and of the state, at every length."""
    baseline, rows, done = resident_bytes(), [], 0
    for frames in COST_LENGTHS:
        memory, done = grown(memory, done, frames // 8), frames // 8
        rows.append({"frames": frames, "resident": resident_bytes() - baseline, "state": memory.nbytes})
    return rows


def resident_bytes() -> int:
    """Bytes of memory of this process, freed ones given back first."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell the memory of a process")


def watched_file(cache: Path) -> Path:
    """A file of 10,200 frames at 2 frames/s."""
    form = PlantedFormat(fps=2, seconds_per_event=128.0)
    library = planted_library(cache / "long", (85.0,), SEED, planted_format=form, processes=1)
    return cache / "long" / library.videos[0].file


def times(cache: Path, address: str) -> None:
    """Milliseconds a frame at every length, of every rule and of a whole `Watch`, in turns."""
    model = load_asker(address)
    streaming = Streaming(model, stock_of(cache, model))
    states: dict[tuple[str, int, int], VideoMemory] = {}
    for tokens in (share_tokens(FRACTION), SMALL_TOKENS):
        for rule in RULES:
            memory, done = memory_of({"rule": rule, "tokens": tokens}), 0
            for frames in COST_LENGTHS:
                memory, done = streaming.grown(memory, done, frames // 8), frames // 8
                states[rule, tokens, frames] = memory
    states |= {(KEEP, 0, frames): streaming.grown_at_once(frames // 8) for frames in COST_LENGTHS}
    took: dict[tuple[str, int, int], list[float]] = {key: [] for key in states}
    keys = list(states)
    for turn in range(-1, TURNS):
        for key in keys if turn % 2 else keys[::-1]:
            first = key[2] // 8
            started = time.perf_counter()
            streaming.grown(states[key], first, first + TURN_CHUNKS)
            if turn >= 0:  # the first turn warms
                took[key].append((time.perf_counter() - started) / TURN_CHUNKS / 8)
    for rule, tokens in dict.fromkeys(key[:2] for key in keys):
        series = [took[rule, tokens, frames] for frames in COST_LENGTHS]
        save(cache, f"times {rule} {tokens}", time_rows(series))
    save(cache, f"times {WATCH} 0", time_rows(watched_times(cache, address)))


def time_rows(series: list[list[float]]) -> list[dict[str, Any]]:
    """Median seconds of each length, and the median over turns of how they compare with those at 1,000 frames."""
    middle = np.array(series[1])
    return [
        {"frames": frames, "seconds": float(np.median(some)), "ratio": float(np.median(np.array(some) / middle))}
        for frames, some in zip(COST_LENGTHS, series, strict=True)
    ]


def watched_times(cache: Path, address: str) -> list[list[float]]:
    """Seconds a frame of reading, encoding and remembering a file around each length: a watch for each, in turns."""
    path, plan = watched_file(cache), WatchPlan(model=address, memory_bytes=1_000_000, precision="bfloat16")
    watches = [Watch(path, QUESTIONS, plan) for _ in COST_LENGTHS]
    for watch, frames in zip(watches, COST_LENGTHS, strict=True):
        watch.run(until_seconds=frames // 8 * 4.0 - (4.0 * WATCH_CHUNKS * WATCH_TURNS if frames == 10_000 else 0.0))
    took: list[list[float]] = [[] for _ in watches]
    for turn in range(WATCH_TURNS):
        for watch, some in list(zip(watches, took, strict=True))[:: 1 if turn % 2 else -1]:
            marks: list[float] = []
            goal = watch.watched_seconds + 4.0 * WATCH_CHUNKS
            watch.run(until_seconds=goal, progress=lambda *_, marks=marks: marks.append(time.perf_counter()))
            some.append(float(np.median(np.diff(marks))) / 8)  # the first chunk finds its place in the file
    for watch in watches:
        watch.close()
    return took


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="all", choices=("all", "resident", "times", "one"))
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--model", default="nano-ask")
    parser.add_argument("--only", default="", help="the rule of `one`")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "one":
        one(args.cache, args.model, args.only)
    if args.what in ("all", "resident"):
        resident(args.cache, args.model)
    if args.what in ("all", "times"):
        times(args.cache, args.model)


if __name__ == "__main__":
    main()
