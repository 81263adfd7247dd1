"""What the operating points of `nano` are worth, beside what they cost: accuracy over frames, size, tokens and width.

    python benchmarks/front.py [--model nano] [--scenes 40]

Writes docs/benchmarks/front.md and docs/images/nano-front.png. Accuracy is the share of right captions among captions
that are wrong in one attribute (`elastivid.evaluate.choices`), the mean over colour, shape, motion (chance 1/4) and
order (chance 1/2), on compositions that training never draws.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from tables import machine, table, write_page

from elastivid.core.point import OperatingPoint, Sampling
from elastivid.evaluate.choices import ATTRIBUTES, accuracy, draw_choices
from elastivid.evaluate.metrics import format_share
from elastivid.models.dual import FluxDual
from elastivid.weights.load import load

GRIDS = {  # (frames, size): token counts
    (8, 168): (64, 128, 256, 512),
    (8, 112): (32, 64, 128, 256),
    (4, 112): (32, 64, 128),
}
WIDTHS = (64, 128, 192)
SEED = 271_828
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "nano-front.png"


def measure(model: FluxDual, scenes: int) -> list[tuple[Sampling, OperatingPoint, float, list[float]]]:
    """Grid, point, GMACs and the share of right captions per attribute, cheapest first."""
    rows = []
    for (frames, size), counts in GRIDS.items():
        sampling = replace(Sampling(), frames=frames, size=size)
        points = [OperatingPoint(tokens=count, width=width) for width in WIDTHS for count in counts]
        parts = [
            accuracy(model, list(draw_choices(attribute, "held_out", scenes, SEED)), sampling, points)
            for attribute in ATTRIBUTES
        ]
        for point, *shares in zip(points, *parts, strict=True):
            gmacs = model.cost(frames=frames, size=size, point=point).gmacs
            rows.append((sampling, point, gmacs, shares))
            print(frames, size, point.tokens, point.width, f"{gmacs:.3f}", shares, flush=True)
    return sorted(rows, key=lambda row: row[2])


def draw(rows: list[tuple[Sampling, OperatingPoint, float, list[float]]]) -> None:
    """Accuracy against GMACs, a line per grid and width."""
    figure, axes = plt.subplots(figsize=(7.2, 4.8), dpi=150)
    colours = dict(zip(WIDTHS, ("#c44e52", "#dd8452", "#2a788e"), strict=True))
    marks = dict(zip(GRIDS, ("o", "s", "^"), strict=True))
    for (frames, size), mark in marks.items():
        for width in WIDTHS:
            line = [r for r in rows if (r[0].frames, r[0].size, r[1].width) == (frames, size, width)]
            axes.plot([r[2] for r in line], [100 * sum(r[3]) / len(r[3]) for r in line], marker=mark, markersize=5,
                      linewidth=1.2, color=colours[width], alpha=0.9,
                      label=f"width {width}, {frames} frames of {size} px")  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("GMACs per clip (each line: more tokens to the right)")
    axes.set_ylabel("right captions, %")
    axes.set_title("One set of weights: nano at 33 operating points, unseen compositions", fontsize=10)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7, ncol=3, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--scenes", type=int, default=40, help="scenes per attribute")
    args = parser.parse_args()
    model = load(args.model)
    rows = measure(model, args.scenes)
    draw(rows)
    count = len(ATTRIBUTES) * args.scenes
    cells = [
        [
            f"{sampling.frames} x {sampling.size} px", str(point.tokens), str(point.width), f"{gmacs:.3f}",
            format_share(round(sum(shares) * args.scenes), count), *(f"{100 * share:.0f} %" for share in shares),
        ]
        for sampling, point, gmacs, shares in rows
    ]  # fmt: skip
    write_page(
        "front",
        "# What the operating points of nano are worth",
        f"{machine()} Written by `python benchmarks/front.py`; model `{args.model}`, space {model.space_id}, "
        f"seed {SEED}, {args.scenes} scenes per attribute of compositions that training never draws, the same for all "
        "rows. Brackets: 95 % Wilson interval. Chance: 25 % for colour, shape and motion, 50 % for order.",
        "![accuracy against GMACs](../images/nano-front.png)",
        table(["frames", "tokens", "width", "GMACs", "right captions", *ATTRIBUTES], cells),
        "Rows whose intervals overlap cannot be told apart. These scenes are simple: what they say of frame size and "
        "of token counts does not carry over to real videos, so the shipped file states the widths and counts it was "
        "trained at, and plans choose between them by their stated order (tokens go first, then width).",
    )


if __name__ == "__main__":
    main()
