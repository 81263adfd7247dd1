"""Long video in constant memory: what guided memory is worth beside rules that do not look at the question.

    python benchmarks/memory.py accuracy [--cache FOLDER] [--only PART]  # about half an hour on one core, resumable
    python benchmarks/memory_cost.py [--cache FOLDER]                    # resident memory and time per frame, 7 minutes
    python benchmarks/memory.py page [--cache FOLDER]                    # writes docs/benchmarks/memory.md and a plot

Without a word `accuracy`, then `page`.

Videos of 72 to 9,984 frames with planted evidence and a question known beforehand (`elastivid.data.asking`), tokens of
the shipped model's frozen encoder. Seeds: training 11 and 12, what was chosen by looking at results 21, this page 31.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import cache as cached
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tables import machine, table, write_page
from torch import Tensor

from elastivid.core.answer import Answer
from elastivid.data.asking import Asked, Drawing, Stock, draw_asked, make_stock, tokens_of
from elastivid.data.questions import KINDS, OTHER
from elastivid.evaluate.metrics import format_share
from elastivid.memory.adacm2 import AdaCM2, CappedAdaCM2
from elastivid.memory.bank import MergingMemory
from elastivid.memory.base import VideoMemory
from elastivid.memory.cache import CacheMemory, Retention
from elastivid.memory.window import FirstInFirstOut, KeepAll, RandomKeeping, UniformThinning
from elastivid.models.tiny_vlm import COUNT, WHEN, TinyVLM, chunk_times
from elastivid.search.watch import read_answers
from elastivid.weights.load import load_asker

SEED = 31
CHUNKS = (9, 36, 120, 360, 1248)  # of 8 frames
LONGEST = CHUNKS[-1]
FRACTION = 20  # memory of the main table, as a part of keeping all of the longest video
RECENT = 0.1
BATCH = 63
WATCH = "Watch: decode, encode, remember"
COST_LENGTHS = (100, 1000, 10_000)  # frames at which memory and time are read
SMALL_TOKENS = 50  # a cap that is full at all of them
CACHE = Path("runs/memory")
INTRODUCTION = """Videos are put together from rendered events, encoded once: every 12 s something else is seen (busy) \
or mostly nothing (quiet). What a question asks about is planted once, for "how often" one to four times, at random \
times; a quarter of the questions ask about what is not there. Everything else is drawn so that the answer is unique \
and near misses abound: for "what does the red star do?" there are red rings and blue stars, but no other red star. \
All compositions of colour, shape and motion occur, also those that training never saw. Right means: the words; for \
"how often" the number of stretches; for "when" both ends within a chunk of 4 s. Connector and decoder run under \
autocast to bfloat16, keys and values are kept in it."""
KINDS_NOTE = """The last two rows are what the model itself can do, with everything in sight."""
COST_NOTE = """Times are those of the Q-Former alone, tokens at hand; the last row reads, encodes and remembers a file \
of 10,000 frames at 2 frames/s, in 1 MB. Rules and lengths take turns on one quiet core, medians of 40 turns of eight \
chunks (`Watch`: 12 of six). A memory that is not full has less to look at: the cap of 312 tokens is full from 504 \
frames on, so "apart" compares 1,000 with 10,000 frames there, and all three lengths in the other rows: the cap of 50 \
tokens is full at each of them."""
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "memory.png"
RULES: dict[str, Callable[[int], VideoMemory]] = {  # by tokens of a layer
    "AdaCM2, guided by the question": lambda m: CacheMemory(CappedAdaCM2(m, RECENT)),
    "first in, first out": lambda m: CacheMemory(FirstInFirstOut(m)),
    "uniform thinning": lambda m: CacheMemory(UniformThinning(m)),
    "random": lambda m: CacheMemory(RandomKeeping(m)),
    "MA-LMM merging bank": lambda m: MergingMemory(bank_slots(m), query_banks=False),
}
GUIDED, KEEP = "AdaCM2, guided by the question", "keep all"
SAME_SIZE = [(0.0, 0.95), (0.25, 14 / 15), (0.5, 0.9), (0.75, 0.8), (0.9, 0.5), (0.95, 0.0)]  # r = 0.95: 95 tokens
SMALLER = [(0.1, 0.1), (0.1, 0.5), (0.1, 0.8), (0.1, 0.9)]
PER_LAYER = [([0.1, 0.1], [0.965, 0.85]), ([0.1, 0.1], [0.85, 0.965])]
ABLATED = [*SAME_SIZE, *SMALLER, *PER_LAYER]
TOKEN_BYTES = 2 * (2 * 192 * 2 + 8)  # two layers: keys and values in bfloat16, time, frame number
SLOT_BYTES = 5 * (256 * 4 + 8)  # of the merging bank, which adds up in float32


def bank_slots(tokens: int) -> int:
    """Slots of a bank that take as many bytes as `tokens` tokens in both layers."""
    return max(1, tokens * TOKEN_BYTES // SLOT_BYTES)


def share_tokens(part: float) -> int:
    """Tokens of a layer for 1/`part` of what keeping all of the longest video takes."""
    return int(LONGEST * 5 / part)


def right(asked: Asked, answer: Answer, chunk: float) -> bool:
    """Whether an answer counts: the words; for "how often" the number of stretches; for "when" both ends within a
    chunk."""
    if asked.answer == COUNT:
        counted = answer.text in ("once", "twice") or answer.text.endswith(" times")
        return counted and len(answer.evidence) == len(asked.spans)
    if asked.answer == WHEN:
        (start, end), first = asked.spans[0], answer.evidence[0] if answer.evidence else None
        if first is None or not answer.text.startswith("from "):
            return False
        return abs(first.start_seconds - start) <= chunk and abs(first.end_seconds - end) <= chunk
    return answer.text == asked.answer


@torch.autocast("cpu", torch.bfloat16)
@torch.inference_mode()
def answered(model: TinyVLM, memory: VideoMemory, visual: Tensor, questions: list[Asked]) -> list[Answer]:
    """Answers about videos `visual` (B, T, P, C), one each, after they went through the memory chunk by chunk."""
    asked = model.questions([q.text for q in questions])
    chunk = model.config.chunk_seconds
    starts = chunk * torch.arange(float(visual.shape[1]))
    seconds = chunk_times(starts, model.config).expand(len(visual), -1, -1)  # (B, T, P)
    if not isinstance(memory, CacheMemory):
        memory = model.qformer.absorb(visual, seconds, memory)
    elif isinstance(memory.rule, AdaCM2 | CappedAdaCM2):
        text = {"text": model.question_text(asked), "text_valid": asked.valid}
        streamed = model.qformer.stream(visual, seconds, memory, **text).memory
        assert streamed is not None
        memory = streamed
    else:
        kept = kept_places(memory.rule, *visual.shape[1:3])
        memory = CacheMemory(KeepAll()).append(visual.flatten(1, 2)[:, kept], seconds.flatten(1, 2)[:, kept])
        for number, layer in enumerate(model.qformer.blocks[:: model.config.qformer.cross_every]):
            assert layer.cross is not None
            _, memory = memory.entries(number, layer.cross.project)
        memory = memory.finish()
    return read_answers(model, memory, asked, [q.text for q in questions], visual.shape[1] * chunk)


@cached
def kept_places(rule: Retention, chunks: int, chunk_tokens: int) -> Tensor:
    """Places of the tokens that a rule without a look at scores leaves of a video, the same for every video and layer:
    the memory itself runs, over the numbers of the tokens instead of their keys and values."""
    memory, numbers = CacheMemory(rule), torch.arange(chunks * chunk_tokens).reshape(chunks, 1, chunk_tokens, 1)
    for number in numbers:  # (1, P, 1)
        memory = memory.append(number, torch.zeros(1, chunk_tokens))
        entries, memory = memory.entries(0, lambda shown: (shown, shown))
        memory = memory.settle(0, entries.seconds).finish()
    return memory.layers[0].keys.flatten()


def drawn(stock: Stock, chunks: int, count: int, busy: float, kinds: tuple[str, ...] = KINDS) -> list[Asked]:
    """`count` videos with questions, kinds in turn; the same for every rule."""
    rng = np.random.default_rng([SEED, chunks, int(100 * busy)])
    drawing = Drawing(chunks, busy=busy, one_camera=0.0, held_out=True)
    return [draw_asked(stock, rng, drawing, kinds[n % len(kinds)]) for n in range(count)]


def measure(model: TinyVLM, stock: Stock, part: dict[str, Any], path: Path, until: float) -> bool:
    """Go on with one part of the accuracy tables (see `parts`) until a time; whether it is complete.

    What is done is written after every batch, so that an interrupted run goes on where it was.
    """
    questions = drawn(stock, part["chunks"], part["questions"], part["busy"], tuple(part.get("kinds", KINDS)))
    memory, half = memory_of(part), path.with_suffix(".half")
    result = json.loads(half.read_text()) if half.exists() else {**part, "marks": [], "false_answers": [], "seconds": 0}
    while len(result["marks"]) < len(questions):
        if time.perf_counter() > until:
            return False
        started, first = time.perf_counter(), len(result["marks"])
        some = questions[first : first + BATCH]
        visual = torch.stack([tokens_of(stock, q) for q in some])
        for question, answer in zip(some, answered(model, memory, visual, some), strict=True):
            result["marks"].append(
                [question.kind, question.present, right(question, answer, model.config.chunk_seconds)]
            )
            result["false_answers"] += [] if question.present else [answer.found]
        result["seconds"] += time.perf_counter() - started
        half.write_text(json.dumps(result))
    half.replace(path)
    return True


def memory_of(part: dict[str, Any]) -> VideoMemory:
    """An empty memory for a part."""
    if "alpha" in part:
        alpha, beta = (tuple(part[n]) if isinstance(part[n], list) else part[n] for n in ("alpha", "beta"))
        return CacheMemory(AdaCM2(alpha, beta))
    if "recent" in part:
        return CacheMemory(CappedAdaCM2(part["tokens"], part["recent"]))
    return CacheMemory(KeepAll()) if part["rule"] == KEEP else RULES[part["rule"]](part["tokens"])


def parts() -> dict[str, dict[str, Any]]:
    """Everything the accuracy tables need, by name, what matters most first."""
    found: dict[str, dict[str, Any]] = {}
    main = share_tokens(FRACTION)

    def add(name: str, **values: Any) -> None:
        found[name] = {"questions": 252, "busy": 0.9, "tokens": main, **values}

    for rule in (GUIDED, KEEP, "uniform thinning", "MA-LMM merging bank", "first in, first out", "random"):
        add(f"longest {rule}", rule=rule, chunks=LONGEST, questions=126)
    for rule in (GUIDED, KEEP):
        add(f"other {rule}", rule=rule, chunks=120, kinds=[OTHER], questions=126)
    for chunks in CHUNKS[:-1]:
        for rule in (*RULES, KEEP):
            add(f"{chunks} {rule}", rule=rule, chunks=chunks, questions=126 if chunks > 120 else 252)
    for alpha, beta in ABLATED:
        add(f"alpha {alpha} beta {beta}", rule=GUIDED, chunks=120, alpha=alpha, beta=beta, questions=126)
    for share in (100, 5):
        for rule in RULES:
            add(f"1/{share} {rule}", rule=rule, chunks=LONGEST, tokens=share_tokens(share), questions=126)
    for rule in (*RULES, KEEP):
        add(f"quiet {rule}", rule=rule, chunks=LONGEST, busy=0.1, questions=126)
    for recent in (0.0, 0.1, 0.5, 0.9):
        add(f"recent {recent}", rule=GUIDED, chunks=360, tokens=60, recent=recent, questions=126)
    return found


def accuracy(cache: Path, model: TinyVLM, only: str, limit_seconds: float) -> None:
    """Measure what is not in the cache yet, until the time is up."""
    started, stock = time.perf_counter(), stock_of(cache, model)
    for name, part in parts().items():
        path = cache / "results" / f"{name.replace('/', '_')}.json"
        until = started + limit_seconds
        if not name.startswith(only) or path.exists() or time.perf_counter() > until:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if measure(model, stock, part, path, until):
            result = json.loads(path.read_text())
            share = np.mean([mark[2] for mark in result["marks"]])
            print(f"{name}: {share:.3f} of {len(result['marks'])} in {result['seconds']:.0f} s", flush=True)


def stock_of(cache: Path, model: TinyVLM) -> Stock:
    """The events of this page, encoded once."""
    path = cache / f"report-{SEED}.pt"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        make_stock(model.encoder, model.config, SEED, backgrounds=30, events=20, split="all").save(path)
    return Stock.load(path)


def verdict(rows: list[dict[str, float]]) -> str:
    """Whether memory stays flat from the second length on: within 5 % or 8 MB."""
    held = [row["resident"] + row["state"] for row in rows[1:]]
    grew = max(held) - min(held)
    return "flat" if grew <= max(8e6, 0.05 * max(held)) else f"grows by {grew / 1e6:.0f} MB"


def page(cache: Path, model: TinyVLM) -> None:
    """Write the page and the plot from what is in the cache."""
    files = [f for ending in ("half", "json") for f in sorted((cache / "results").glob(f"*.{ending}"))]
    found = {f.stem: json.loads(f.read_text()) for f in files}
    texts = [
        "# Long video in constant memory",
        f"{machine()} Written by `python benchmarks/memory.py`; model nano-ask ({model.weights_id}), seed {SEED}.",
        INTRODUCTION,
        *_main_tables(found),
        *_kinds_table(found),
        *_memory_table(found),
        *_ablations(found),
        *_cost_tables(found),
    ]
    _draw(found)
    write_page("memory", *texts)


def _is_of(kind: str, mark: Sequence[Any]) -> bool:
    """Whether a mark is that of a question of this kind whose evidence is there."""
    return bool(mark[0] == kind and mark[1])


def _share(
    result: dict[str, Any] | None, *, interval: bool = True, only: Callable[[Any], bool] = lambda m: True
) -> str:
    if result is None:
        return "-"
    marks = [mark[2] for mark in result["marks"] if only(mark)]
    if not marks:
        return "-"
    if interval:
        return format_share(sum(marks), len(marks))
    few = f" ({len(result['marks'])})" if len(result["marks"]) < result["questions"] else ""
    return f"{100 * np.mean(marks):.0f}{few}"


def _main_tables(found: dict[str, Any]) -> list[str]:
    head = ["right answers, %", *(f"{8 * c:,} frames" for c in CHUNKS)]
    rows = []
    for rule in (*RULES, KEEP):
        cells = [_share(found.get(f"{c} {rule}" if c < LONGEST else f"longest {rule}"), interval=False) for c in CHUNKS]
        rows.append([f"**{rule}**" if rule == GUIDED else rule, *cells])
    longest = [
        [rule, _share(found.get(f"longest {rule}")), _false(found.get(f"longest {rule}"))] for rule in (*RULES, KEEP)
    ]
    return [
        "## Accuracy over length, busy videos",
        f"Memory: {share_tokens(FRACTION)} tokens per layer, {share_tokens(FRACTION) * TOKEN_BYTES / 1e6:.2f} MB, for "
        f"every rule but the last, which takes {LONGEST * 5 * TOKEN_BYTES / 1e6:.1f} MB at {8 * LONGEST:,} frames. 252 "
        "questions in each of the first three columns, 126 in the others; the same videos and questions for every "
        "rule.",
        table(head, rows),
        "![Accuracy over length](../images/memory.png)",
        f'At {8 * LONGEST:,} frames, with 95 % Wilson intervals. A false answer is any answer but "not in the video" '
        "to a question whose evidence is not there.",
        table(["rule", "right answers", "false answers"], longest),
        *_paired(found),
    ]


def _false(result: dict[str, Any] | None) -> str:
    if result is None or not result["false_answers"]:
        return "-"
    return format_share(sum(result["false_answers"]), len(result["false_answers"]))


def _paired(found: dict[str, Any]) -> list[str]:
    """Differences on the same questions, with a bootstrap interval."""
    lengths = CHUNKS[2:]
    names = [[f"{c} {rule}" if c < LONGEST else f"longest {rule}" for c in lengths] for rule in (*RULES, KEEP)]
    guided = [found.get(name) for name in names[0]]
    rows = []
    for others in names[1:]:
        pairs = zip(guided, map(found.get, others), strict=True)
        rows.append([others[-1].removeprefix("longest "), *(_gap(*pair) for pair in pairs)])
    head = ["AdaCM2 against, points [95 %, paired bootstrap]", *(f"{8 * c:,} frames" for c in lengths)]
    return [table(head, rows)]


def _gap(ours: dict[str, Any] | None, other: dict[str, Any] | None) -> str:
    if ours is None or other is None:
        return "-"
    marks = [np.array([mark[2] for mark in result["marks"]], dtype=float) for result in (ours, other)]
    gap = np.subtract(*(some[: min(map(len, marks))] for some in marks))
    draws = gap[np.random.default_rng(0).integers(len(gap), size=(4000, len(gap)))].mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{100 * gap.mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _kinds_table(found: dict[str, Any]) -> list[str]:
    rows = []
    for rule in (*RULES, KEEP):
        result = found.get(f"longest {rule}")
        cells = [_share(result, interval=False, only=partial(_is_of, kind)) for kind in KINDS]
        rows.append([rule, *cells, _share(result, interval=False, only=lambda m: not m[1])])
    short = found.get(f"{CHUNKS[0]} {KEEP}")
    cells = [_share(short, interval=False, only=partial(_is_of, kind)) for kind in KINDS]
    rows.append([f"keep all, {8 * CHUNKS[0]} frames", *cells, _share(short, interval=False, only=lambda m: not m[1])])
    other = [[rule, _false(found.get(f"other {rule}"))] for rule in (GUIDED, KEEP) if found.get(f"other {rule}")]
    return [
        f"## By kind of question, {8 * LONGEST:,} frames",
        table(["right answers, %", *KINDS, "not in the video"], rows),
        KINDS_NOTE,
        *(
            [table(["questions about what this world does not have, nouns not trained on", "answered anyway"], other)]
            if other
            else []
        ),
    ]


def _memory_table(found: dict[str, Any]) -> list[str]:
    shares = tuple(s for s in (100, FRACTION, 5) if s == FRACTION or f"1_{s} {GUIDED}" in found)
    rows = []
    for rule in RULES:
        names = [f"1_{s} {rule}" if s != FRACTION else f"longest {rule}" for s in shares]
        rows.append([rule, *(_share(found.get(name), interval=False) for name in names)])
    rows.append([KEEP, *[""] * (len(shares) - 1), _share(found.get(f"longest {KEEP}"), interval=False) + " (all)"])
    quiet = [[rule, _share(found.get(f"quiet {rule}"))] for rule in (*RULES, KEEP)]
    head = ["right answers, %", *(f"1/{s}: {share_tokens(s) * TOKEN_BYTES / 1e6:.2f} MB" for s in shares)]
    return [
        f"## Accuracy over memory, {8 * LONGEST:,} frames",
        "Memory as a part of what keeping everything takes. 126 questions.",
        table(head, rows),
        "Quiet videos: one slot of 12 s in ten shows something, the rest is bare background. 1/20 of the memory.",
        table(["rule", "right answers"], quiet),
    ]


def _ablations(found: dict[str, Any]) -> list[str]:
    def named(value: Any) -> str:
        return " / ".join(f"{v:.3g}" for v in value) if isinstance(value, list) else f"{value:.3g}"

    rows = []
    for alpha, beta in ABLATED:
        result = found.get(f"alpha {alpha} beta {beta}")
        if result is None:
            continue
        pair = (tuple(v) if isinstance(v, list) else v for v in (alpha, beta))
        rule = AdaCM2(*pair)
        limits = " / ".join(f"{rule.limit(layer, 5):.0f}" for layer in range(2))
        rows.append([f"alpha {named(alpha)}, beta {named(beta)}", limits, _share(result)])
    recent = [[f"{r:.0%}", _share(found.get(f"recent {r}"))] for r in (0.0, 0.1, 0.5, 0.9)]
    return [
        f"## The recursion: alpha and beta, {8 * 120:,} frames",
        "N <- ceil((alpha + (1 - alpha) beta) (N + 5)) in each of the two layers with cross-attention. 126 questions.",
        table(["shares (first / second layer)", "tokens per layer", "right answers"], rows),
        "With a cap of 60 tokens instead, 2,880 frames, 126 questions: the share of it for the most recent tokens:",
        table(["recent share", "right answers"], recent),
    ]


def _cost_tables(found: dict[str, Any]) -> list[str]:
    held_rows, time_rows = [], []
    for name in (*RULES, KEEP, WATCH):
        if f"resident {name}" not in found:
            continue
        rows = found[f"resident {name}"]["rows"]
        held = [f"{(r['resident'] + r['state']) / 1e6:.1f}" for r in rows]
        held_rows.append([name, *held, f"{rows[-1]['state'] / 1e6:.2f}", verdict(rows)])
    for tokens in (share_tokens(FRACTION), SMALL_TOKENS, 0):
        for name in (KEEP, WATCH) if not tokens else RULES:
            if f"times {name} {tokens}" not in found:
                continue
            rows = found[f"times {name} {tokens}"]["rows"]
            full = rows if tokens != share_tokens(FRACTION) else rows[1:]
            ratios = [r["ratio"] for r in full]
            paces = [f"{1e3 * r['seconds']:.2f}" for r in rows]
            apart = f"{100 * (max(ratios) / min(ratios) - 1):.0f} %"
            time_rows.append([name, str(tokens or "-"), *paces, apart])
    head = ["one question", *(f"{n:,} frames, MB" for n in COST_LENGTHS), "of which state, MB", "check"]
    time_head = ["ms a frame", "cap, tokens a layer", *(f"at {n:,} frames" for n in COST_LENGTHS), "apart where full"]
    return [
        "## Resident memory and time",
        "Memory of the process above a warmed baseline plus bytes of the state. The check: from 1,000 to 10,000 frames "
        "within 5 % or 8 MB.",
        table(head, held_rows) if held_rows else "With the weights of this page not measured yet.",
        *([COST_NOTE, table(time_head, time_rows)] if time_rows else []),
    ]


def _draw(found: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    several = f"1_5 {GUIDED}" in found  # the right half needs more than one size of memory
    figure, axes = plt.subplots(1, 1 + several, figsize=(10 if several else 6.4, 4.2), dpi=150, squeeze=False)
    left, right_ = axes[0, 0], axes[0, -1]
    for rule in (*RULES, KEEP):
        style = {
            "color": f"C{[*RULES, KEEP].index(rule)}",
            "lw": 2.6 if rule == GUIDED else 1.4,
            "marker": "o",
            "ms": 4,
            "ls": "--" if rule == KEEP else "-",
        }
        names = [(8 * c, f"{c} {rule}" if c < LONGEST else f"longest {rule}") for c in CHUNKS]
        points = [(x, 100 * np.mean([m[2] for m in found[n]["marks"]])) for x, n in names if n in found]
        left.plot(*zip(*points, strict=True), label=rule, **style)
        names = [(s, f"1_{s} {rule}" if s != FRACTION else f"longest {rule}") for s in (100, FRACTION, 5)]
        if rule == KEEP:
            names = [(1, f"longest {KEEP}")]
        sizes = [(share_tokens(s) * TOKEN_BYTES / 1e6, n) for s, n in names]
        points = [(x, 100 * np.mean([m[2] for m in found[n]["marks"]])) for x, n in sizes if n in found]
        if points and several:
            right_.plot(*zip(*points, strict=True), label=rule, **style)
    left.set(
        xscale="log",
        xlabel="frames",
        ylabel="right answers, %",
        ylim=(0, 100),
        title=f"memory fixed at {share_tokens(FRACTION) * TOKEN_BYTES / 1e6:.2f} MB",
    )
    if several:
        right_.set(xscale="log", xlabel="memory, MB", ylim=(0, 100), title=f"{8 * LONGEST:,} frames")
    left.legend(fontsize=8)
    for axis in axes[0]:
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(PICTURE)


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="all", choices=("all", "accuracy", "page"))
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--model", default="nano-ask")
    parser.add_argument("--only", default="", help="parts whose name begins with this")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no part after this time")
    args = parser.parse_args()
    model = load_asker(args.model)
    if args.what in ("all", "accuracy"):
        accuracy(args.cache, model, args.only, args.seconds)
    if args.what in ("all", "page"):
        page(args.cache, model)


if __name__ == "__main__":
    main()
