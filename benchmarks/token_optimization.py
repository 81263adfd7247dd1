"""Token Optimization of nano: for 128, 256 and 512 tokens, which frames and size to take them from.

    python benchmarks/token_optimization.py [--scenes 80] [--tokens 128 256 512]

Writes docs/benchmarks/token-optimization.md and docs/images/token-optimization-*.png. Rendered scenes of compositions
that training never draws, multiple choice; one half of the scenes chooses, the other reports. What was measured is
kept in the user's cache folder, so it goes on where it was stopped. Needs the extra `plot`; a quarter of an hour.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tables import machine, table, write_page

from elastivid.app.optimize import draw_surface, say_point
from elastivid.evaluate.scoring import WorldChoices
from elastivid.planning.optimize import Kept, Optimum, Space, optimize
from elastivid.weights.load import load

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
TOKENS = (128, 256, 512)
SPACE = Space((4, 8, 16), (56, 84, 112, 140, 168))


def row_of(tokens: int, found: Optimum) -> list[str]:
    """Best point, unmasked grid, and what the first gains over the second."""
    best, base = (f"{p.frames} x {p.size} px" for p in (found.best, found.base))
    costs = {row.point: row.gmacs for row in found.rows}
    first = [str(tokens), best, str(found.accuracy), f"{costs[found.best]:.2f}"]
    return [*first, base, str(found.base_accuracy), f"{costs[found.base]:.2f}", str(found.gain)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=80, help="per attribute")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    wanted = parser.parse_args()
    scenes = wanted.scenes
    kept = Kept(WorldChoices(load("nano"), scenes), progress=say_point)
    rows, pictures, agree = [], [], []
    for tokens in wanted.tokens:
        found = optimize(kept, SPACE, tokens)
        climbed = optimize(kept, SPACE, tokens, search="climb")
        rows.append(row_of(tokens, found))
        agree.append(
            f"{tokens} tokens: {len(climbed.rows)} of {len(found.rows)} points, "
            + ("the same best point" if climbed.best == found.best else f"best {climbed.best}, {climbed.gain}")
        )
        name = f"token-optimization-{tokens}.png"
        draw_surface(found, IMAGES / name)
        pictures.append(f"![Accuracy over frames and size at {tokens} tokens](../images/{name})")
    write_page(
        "token-optimization",
        "# Token Optimization of nano",
        machine() + f" Multiple choice on {4 * scenes} rendered scenes of held-out compositions (seed 11): one half "
        "chooses the point, the other half reports it. Intervals of 95 % by bootstrap; the gain is paired.",
        table(["tokens", "best", "accuracy", "GMACs", "unmasked", "accuracy", "GMACs", "gain"], rows),
        "Unmasked is the best grid that has just so many tokens, so none is selected. All points of a row run the "
        "blocks on equally many tokens; they differ in what is read, rendered and embedded.",
        "Climbing from the unmasked grid looks at fewer points: " + "; ".join(agree) + ".",
        "\n\n".join(pictures),
        "Red: the chosen point; white: the unmasked grid. Numbers in the pictures are over all scenes.",
        f"Command: `python benchmarks/token_optimization.py --tokens {' '.join(map(str, wanted.tokens))}`",
    )


if __name__ == "__main__":
    main()
