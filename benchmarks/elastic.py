"""FluxViT elastic in tokens and width beside a plain ViT of the same shape: time, share of the peak, gains, precision.

    python benchmarks/elastic.py --minutes 7        repeat until it writes the page; finished cells are kept

Writes docs/benchmarks/elastic.md and docs/images/elastic-speed.png. Measurements lie in `--cache`, so a run that stops
is continued. Inside a cell all models take turns; a time is the shortest of its rounds, because whatever else runs on
the machine only ever adds to it. The plain ViT is written here with torch's own layers: LayerNorm, Linear, exact GELU,
scaled_dot_product_attention, pre-norm blocks, and a mean over tokens instead of our attention pool.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tables import machine, table, write_page
from torch import Tensor, nn

from elastivid import load
from elastivid.core.cost import block_macs, linear_macs
from elastivid.core.point import OperatingPoint
from elastivid.layers.embed import patchify
from elastivid.models.fluxvit import PRESETS, FluxViTConfig
from elastivid.video.reader import VideoReader
from elastivid.video.samplers import uniform

GRIDS = {512: (8, 112), 1024: (4, 224), 2048: (8, 224), 3072: (12, 224)}  # tokens: (frames, side), patch 14
MODELS = ("small", "base")
WIDTHS = {"small": (384, 256, 192, 128), "base": (768, 576, 384, 192)}
PRECISIONS = ("float32", "bfloat16")
IMAGE = Path(__file__).resolve().parents[1] / "docs" / "images" / "elastic-speed.png"
Cells = dict[str, dict[str, float]]


class PlainBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), of torch's own layers."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, D) to (B, N, D)."""
        b, n, d = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, d // self.heads)  # (B, N, 3, A, K)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, A, N, K) each
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out


class PlainViT(nn.Module):
    """Patch projection, learned positions, class token, blocks, norm, mean."""

    def __init__(self, dim: int, depth: int, heads: int, patch: int, tokens: int) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(3 * patch * patch, dim)
        self.positions = nn.Parameter(torch.randn(1, tokens + 1, dim))
        self.cls = nn.Parameter(torch.randn(1, 1, dim))
        self.blocks = nn.ModuleList(PlainBlock(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, video: Tensor) -> Tensor:
        """Map (B, T, 3, H, W) to (B, D)."""
        x = self.embed(patchify(video.to(self.cls.dtype), self.patch))
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        pooled: Tensor = self.norm(x).mean(dim=1)
        return pooled


def in_turns(runs: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Shortest milliseconds of each run; all take turns, two to seven rounds, about `seconds` in all."""
    best = dict.fromkeys(runs, float("inf"))
    started, rounds = time.perf_counter(), 0
    while rounds < 2 or (rounds < 7 and time.perf_counter() - started < seconds):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - begin))
        rounds += 1
    return best


def clip_of(tokens: int, batch: int = 1) -> Tensor:
    """Random clips whose grid has exactly `tokens` patches."""
    frames, side = GRIDS[tokens]
    return torch.randn(batch, frames, 3, side, side)


def macs_of(config: FluxViTConfig, tokens: int, width: int | None = None) -> int:
    """MACs of one clip of `clip_of`."""
    frames, side = GRIDS[tokens]
    return config.cost(frames=frames, size=side, width=width).macs


def plain_macs(config: FluxViTConfig, tokens: int) -> int:
    """MACs of the plain ViT on one clip of `clip_of`."""
    embed = linear_macs(tokens, 3 * config.patch_size**2, config.embed_dim)
    return embed + config.depth * block_macs(tokens + 1, config.embed_dim)


def pair(name: str, tokens: int) -> dict[str, nn.Module]:
    """Ours and the plain ViT in both precisions."""
    config = PRESETS[name]
    models: dict[str, nn.Module] = {}
    for precision in PRECISIONS:
        plain = PlainViT(config.embed_dim, config.depth, config.num_heads, config.patch_size, tokens)
        models[f"ours {precision}"] = config.build().eval().cast(precision)
        models[f"plain {precision}"] = plain.eval().to(getattr(torch, precision))
    return models


def speed_cell(name: str, tokens: int, batch: int) -> dict[str, float]:
    """Milliseconds of a batch."""
    video, models = clip_of(tokens, batch), pair(name, tokens)
    for model in models.values():
        model(clip_of(tokens))
    return in_turns({key: lambda model=model: model(video) for key, model in models.items()}, 15)


def compile_cell(name: str) -> dict[str, float]:
    """bfloat16 at 2048 tokens, batch 1, with and without torch.compile, beside the linear peak."""
    models, video = pair(name, 2048), clip_of(2048)
    runs: dict[str, Callable[[], Any]] = {}
    cell = {}
    for kind in ("ours", "plain"):
        model = models[f"{kind} bfloat16"]
        runs[kind] = lambda model=model: model(video)
        compiled = torch.compile(model)
        started = time.perf_counter()
        compiled(video)
        cell[f"{kind} compile seconds"] = time.perf_counter() - started
        runs[f"{kind} compiled"] = lambda compiled=compiled: compiled(video)
    for dim in (PRESETS[name].embed_dim, 4096):
        x, weight = torch.randn(2048, dim).bfloat16(), torch.randn(4096, dim).bfloat16()
        runs[f"peak {dim}"] = lambda x=x, weight=weight: [F.linear(x, weight) for _ in range(4)]
    cell |= in_turns(runs, 25)
    for dim in (PRESETS[name].embed_dim, 4096):
        cell[f"peak {dim}"] = 4 * 2048 * 4096 * dim / cell[f"peak {dim}"] / 1e6  # GMACs/s
    return cell


def width_cell(name: str, tokens: int) -> dict[str, float]:
    """Milliseconds at every width and precision, batch 1, and of the exported model at half width."""
    video, runs = clip_of(tokens), {}
    half = PRESETS[name].embed_dim // 2
    for precision in PRECISIONS:
        model = PRESETS[name].build().eval().cast(precision)
        for width in WIDTHS[name]:
            point = OperatingPoint(width=width)
            runs[f"{width} {precision}"] = lambda model=model, point=point: model(video, point=point)
        small = model.at(OperatingPoint(width=half))
        runs[f"exported {precision}"] = lambda small=small: small(video)
    return in_turns(runs, 20)


def selection_cell(name: str) -> dict[str, float]:
    """Milliseconds of K tokens kept from 16 frames of 224 px, bfloat16, batch 1: the plot's curves."""
    model, video, runs = PRESETS[name].build().eval().cast("bfloat16"), torch.randn(1, 16, 3, 224, 224), {}
    for width in WIDTHS[name][::2]:
        for tokens in (128, 256, 512, 1024, 2048, 3072):
            point = OperatingPoint(tokens=tokens, width=width)
            runs[f"{width} {tokens}"] = lambda point=point: model(video, point=point)
    frame = PlainViT(768, 12, 12, 16, 196).eval().bfloat16()  # the image tower of SigLIP 2 base, patch 16, 224 px
    runs["frames 16"] = lambda: frame(torch.randn(16, 1, 3, 224, 224))
    return in_turns(runs, 25)


def precision_cell(folder: Path) -> dict[str, float]:
    """Cosines between float32 and bfloat16 embeddings of real clips, nano's weights, at several points."""
    exact, cast, cell = load("nano"), load("nano").cast("bfloat16"), {}
    clips = []
    files = sorted(folder.rglob("*.mp4"))
    for file in files[:: max(1, len(files) // 24)][:24]:
        with VideoReader(file, size=168) as reader:
            clip = reader.frames_at(uniform(reader.count_frames(), 8))
        clips.append(exact.transform(clip.frames))  # (8, 3, H, W)
    if not clips:
        raise SystemExit(f"no .mp4 under {folder}; set ELASTIVID_SHARED to the folder that holds data/labelled")
    video = torch.stack(clips)  # (24, 8, 3, H, W)
    for width in (192, 128, 64):
        for tokens in (64, 256, None):
            point = OperatingPoint(tokens=tokens, width=width)
            cosines = (exact.embed_clips(video, point=point) * cast.embed_clips(video, point=point)).sum(-1)
            cell[f"{width} {tokens or 'all'} mean"] = float(cosines.mean())
            cell[f"{width} {tokens or 'all'} least"] = float(cosines.min())
    return cell


def wanted_cells(folder: Path) -> dict[str, Callable[[], dict[str, float]]]:
    """Every measurement by name, the dearest last."""
    cells: dict[str, Callable[[], dict[str, float]]] = {"precision": lambda: precision_cell(folder)}
    for batch in (1, 8):
        for name in MODELS:
            for tokens in GRIDS:
                run = lambda name=name, tokens=tokens, batch=batch: speed_cell(name, tokens, batch)  # noqa: E731
                cells[f"speed {name} {tokens} {batch}"] = run
        for name in MODELS if batch == 1 else ():
            cells[f"compile {name}"] = lambda name=name: compile_cell(name)
            for tokens in GRIDS:
                cells[f"width {name} {tokens}"] = lambda name=name, tokens=tokens: width_cell(name, tokens)
            cells[f"selection {name}"] = lambda name=name: selection_cell(name)
    return cells


def verdict(value: float, goal: float, *, most: bool = False) -> str:
    """The value with two decimals, and whether it meets its goal."""
    met = value <= goal if most else value >= goal
    return f"{value:.2f}" if met else f"**{value:.2f}**"


def speed_rows(cells: Cells) -> list[list[str]]:
    """One row per model, tokens and batch."""
    rows = []
    for name in MODELS:
        for tokens in GRIDS:
            for batch in (1, 8):
                cell = cells.get(f"speed {name} {tokens} {batch}")
                if cell is None:
                    rows.append([f"{name}, {tokens} tokens, batch {batch}", *["not measured"] * 8])
                    continue
                ours, plain = cell["ours float32"], cell["plain float32"]
                ours16, plain16 = cell["ours bfloat16"], cell["plain bfloat16"]
                gmacs = batch * macs_of(PRESETS[name], tokens) / 1e9
                times = [f"{t:,.0f}" for t in (plain, ours, plain16, ours16)]
                ratios = [verdict(ours / plain, 1.1, most=True), f"{ours16 / plain16:.2f}"]
                gain = verdict(ours / ours16, 2.5 if name == "small" else 3.0)
                rows.append([f"{name}, {tokens} tokens, batch {batch}", f"{gmacs:,.0f}", *times, *ratios, gain])
    return rows


def compile_rows(cells: Cells) -> list[list[str]]:
    """Share of the measured linear peak, with and without compilation."""
    rows = []
    for name in MODELS:
        cell, config = cells[f"compile {name}"], PRESETS[name]
        for kind, macs in (("ours", macs_of(config, 2048)), ("plain", plain_macs(config, 2048))):
            for run in (kind, f"{kind} compiled"):
                speed = macs / cell[run] / 1e6  # GMACs/s
                own, top = (cell[f"peak {d}"] for d in (config.embed_dim, 4096))
                goal = 0.3 if name == "small" else 0.4
                shares = [verdict(speed / top, goal) if kind == "ours" else f"{speed / top:.2f}", f"{speed / own:.2f}"]
                took = f"{cell[f'{kind} compile seconds']:.0f}" if "compiled" in run else ""
                rows.append([f"{name}, {run}", f"{cell[run]:,.0f}", f"{speed:.0f}", *shares, took])
    return rows


def gain_rows(cells: Cells, precision: str) -> list[list[str]]:
    """Milliseconds and, behind them, gain over full width (same tokens) and over 3072 tokens (same width).

    Both as fractions of the ratio of MACs.
    """
    goal = 0.8 if precision == "float32" else 0.6
    rows = []
    for name in MODELS:
        config, full = PRESETS[name], PRESETS[name].embed_dim
        for width in WIDTHS[name]:
            row = [f"{name}, width {width}"]
            for tokens in GRIDS:
                own = cells[f"width {name} {tokens}"]
                macs, spent = macs_of(config, tokens, width), own[f"{width} {precision}"]
                wide = own[f"{full} {precision}"] / spent / (macs_of(config, tokens, full) / macs)
                most = cells[f"width {name} 3072"][f"{width} {precision}"]
                long = most / spent / (macs_of(config, 3072, width) / macs)
                marks = ["-" if width == full else verdict(wide, goal), "-" if tokens == 3072 else verdict(long, goal)]
                row.append(f"{spent:,.1f} ms: {marks[0]}, {marks[1]}")
            rows.append(row)
    return rows


def export_rows(cells: Cells) -> list[list[str]]:
    """The elastic model at half width beside the exported one."""
    rows = []
    for name in MODELS:
        half = PRESETS[name].embed_dim // 2
        for precision in PRECISIONS:
            own = [cells[f"width {name} {t}"] for t in GRIDS]
            ratios = [f"{c[f'{half} {precision}'] / c[f'exported {precision}']:.2f}" for c in own]
            rows.append([f"{name}, width {half}, {precision}", *ratios])
    return rows


def precision_rows(cells: Cells) -> list[list[str]]:
    """Mean and least cosine per point."""
    cell = cells["precision"]
    names = [key.removesuffix(" mean") for key in cell if key.endswith(" mean")]
    return [
        [f"width {n.split()[0]}, {n.split()[1]} tokens", f"{cell[f'{n} mean']:.5f}", f"{cell[f'{n} least']:.5f}"]
        for n in names
    ]


def draw(cells: Cells) -> None:
    """Milliseconds and GMACs against tokens for several widths, and a frame-pooled image model as the line to beat."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), constrained_layout=True)
    counts = (128, 256, 512, 1024, 2048, 3072)
    frame_ms = cells["selection base"]["frames 16"] / 16
    frame_gmacs = (linear_macs(196, 768, 768) + 12 * block_macs(196, 768)) / 1e9
    for name, style in (("small", "-"), ("base", "--")):
        for index, width in enumerate(WIDTHS[name][::2]):
            point = [PRESETS[name].cost(frames=16, size=224, tokens=k, width=width).gmacs for k in counts]
            spent = [cells[f"selection {name}"][f"{width} {k}"] for k in counts]
            for axis, values in zip(axes, (spent, point), strict=True):
                axis.plot(counts, values, style, marker="o", color=f"C{index}", label=f"FluxViT {name}, width {width}")
    for frames in (4, 8, 16):
        for axis, one in zip(axes, (frame_ms, frame_gmacs), strict=True):
            axis.axhline(frames * one, color="black", linewidth=0.8, linestyle=":")
            axis.text(counts[0], frames * one, f"{frames} frames, frame-pooled ViT-B/16", fontsize=8, va="bottom")
    for axis, unit in zip(axes, ("milliseconds per clip, bfloat16, batch 1", "GMACs per clip"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="tokens kept of 4096 (16 frames of 224 px)", ylabel=unit)
        axis.set_xticks(counts, [str(c) for c in counts])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    IMAGE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGE, dpi=110)


def write(cells: Cells) -> None:
    """The page, once every cell is there."""
    speed = [
        "",
        "GMACs",
        "plain f32",
        "ours f32",
        "plain bf16",
        "ours bf16",
        "ours/plain f32",
        "ours/plain bf16",
        "f32/bf16 ours",
    ]
    share = ["bfloat16, 2048 tokens, batch 1", "ms", "GMACs/s", "of peak", "of peak at this D", "seconds to compile"]
    counts = [f"{t} tokens" for t in GRIDS]
    peak = " and ".join(f"{cells[f'compile {n}']['peak 4096']:.0f}" for n in MODELS)
    write_page(
        "elastic",
        "# The elastic encoder: time against tokens, width and precision",
        f"{machine()} Written by `python benchmarks/elastic.py`, random weights, seed 0. Bold: misses the goal.",
        __doc__.split("\n\n")[2].strip(),
        "![milliseconds and GMACs against tokens](../images/elastic-speed.png)",
        "## Beside a plain ViT of the same shape",
        "Milliseconds per batch. Goals: ours at most 1.10 of the plain one in float32; bfloat16 at least 2.5 (small) "
        "and 3 (base) times as fast as float32. The plain bfloat16 model spends its attention in torch's kernel.",
        table(speed, speed_rows(cells)),
        "## Share of the linear peak, with and without torch.compile",
        f"Peak: the fastest `F.linear` of 2048 x 4096 by 4096 x 4096 in bfloat16, {peak} GMACs/s beside the two. "
        "Goals: 0.30 (small), 0.40 (base).",
        table(share, compile_rows(cells)),
        "## Gains of width and tokens",
        "Milliseconds at batch 1, then the gain over full width at these tokens and the gain over 3072 tokens at this "
        "width, both as fractions of the ratio of MACs: 1.00 means that time falls as MACs do. Goals: 0.80 in float32, "
        "0.60 in bfloat16.",
        "### float32",
        table(["", *counts], gain_rows(cells, "float32")),
        "### bfloat16",
        table(["", *counts], gain_rows(cells, "bfloat16")),
        "## What slicing costs",
        "Time of the elastic model at half width over that of the model `at` exports, batch 1.",
        table(["", *counts], export_rows(cells)),
        "## What bfloat16 loses",
        "Cosine between float32 and bfloat16 embeddings of 24 real clips, 8 frames of 168 px, weights of nano.",
        table(["point", "mean cosine", "least"], precision_rows(cells)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="start no further cell after this long")
    parser.add_argument("--cache", type=Path, default=Path("build/elastic-cells.json"), help="finished measurements")
    parser.add_argument("--again", default="", help="measure cells whose name starts with this anew")
    parser.add_argument("--only", default="", help="measure only cells whose name starts with this")
    options = parser.parse_args()
    folder = Path(os.environ.get("ELASTIVID_SHARED", "../shared")) / "data" / "labelled"
    cells: Cells = json.loads(options.cache.read_text()) if options.cache.is_file() else {}
    wanted, started = wanted_cells(folder), time.perf_counter()
    options.cache.parent.mkdir(parents=True, exist_ok=True)
    for name, measure in wanted.items():
        if not name.startswith(options.only) or (
            name in cells and not (options.again and name.startswith(options.again))
        ):
            continue
        if time.perf_counter() - started > 60 * options.minutes:
            break
        torch.manual_seed(0)
        with torch.inference_mode():
            cells[name] = measure()
        print(name, {k: round(v, 4) for k, v in cells[name].items()}, flush=True)
        options.cache.write_text(json.dumps(cells, indent=1))
    missing = [name for name in wanted if name not in cells]
    if missing:
        print(f"{len(missing)} of {len(wanted)} measurements missing: {', '.join(missing)}; run again")
    if any(not name.startswith("speed") for name in missing):
        return
    draw(cells)
    write(cells)


if __name__ == "__main__":
    main()
