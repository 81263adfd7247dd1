"""Turn a checkpoint of `train_nano.py` into the weights file that the package ships, with its measured front.

    python recipes/publish_nano.py --checkpoint runs/nano.pt --card recipes/nano_card.json \
        --out src/elastivid/weights/nano.safetensors

The front is the share of right captions among captions that are wrong in one attribute (`elastivid.evaluate.choices`),
the mean over colour, shape, motion and order, at every operating point below, on scenes that no training run draws.
Plans choose among these points. Expected: one file below 15 MB; `elastivid info nano` prints its card.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from elastivid.core.point import OperatingPoint, Sampling
from elastivid.evaluate.choices import ATTRIBUTES, accuracy, draw_choices
from elastivid.models.dual import PRESETS, FluxDual
from elastivid.weights.load import load, save

WIDTHS = (64, 128, 192)  # those that train_nano.py draws
FEWEST_TOKENS, MOST_TOKENS = 32, 512  # of train_nano.py
GRIDS = {  # (frames, size): token counts
    (8, 168): (32, 64, 128, 256, 512),
    (8, 112): (32, 64, 128, 256, 512),
    (4, 112): (32, 64, 128, 256),
    (16, 112): (64, 128, 256, 512),
}
SEED = 31_415


def measure_front(model: FluxDual, scenes: int) -> dict:
    """Accuracy at every grid, width and token count, on `scenes` scenes per attribute."""
    rows = []
    for (frames, size), counts in GRIDS.items():
        points = [OperatingPoint(tokens=count, width=width) for width in WIDTHS for count in counts]
        sampling = replace(Sampling(), frames=frames, size=size)
        parts = [
            accuracy(model, list(draw_choices(attribute, "train", scenes, SEED)), sampling, points)
            for attribute in ATTRIBUTES
        ]
        for point, *shares in zip(points, *parts, strict=True):
            mean = round(sum(shares) / len(shares), 4)
            rows.append(
                {"frames": frames, "size": size, "tokens": point.tokens, "width": point.width, "accuracy": mean}
            )
            print(rows[-1], [round(share, 3) for share in shares], flush=True)
    return {
        "weights": model.space_id,
        "data": f"elastivid.evaluate.choices@1, seed {SEED}, {scenes} scenes per attribute",
        "metric": "share of right captions, mean of colour, shape, motion (chance 1/4) and order (1/2)",
        "points": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--card", type=Path, required=True, help="JSON: what it was trained on and what it measures")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=60, help="scenes per attribute of the front; 0 leaves it out")
    args = parser.parse_args()
    model = PRESETS["nano"].build()
    model.load_state_dict(torch.load(args.checkpoint, weights_only=True)["model"])
    card = json.loads(args.card.read_text(encoding="utf-8"))
    measured = {"trained_widths": list(WIDTHS), "trained_tokens": [FEWEST_TOKENS, MOST_TOKENS]}
    about = {"address": "dual/nano@v2", "licence": "Apache-2.0", "card": card}
    save(model, args.out, **about, measured=measured)  # rounds the model to what the file holds
    if args.scenes:
        save(model, args.out, **about, measured={**measured, "fronts": [measure_front(model, args.scenes)]})
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, space {load(str(args.out)).space_id}")


if __name__ == "__main__":
    main()
