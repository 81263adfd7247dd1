"""Turn a checkpoint of `train_nano.py` into the weights file that the package ships.

    python recipes/publish_nano.py --checkpoint runs/nano.pt --card recipes/nano_card.json \
        --out src/elastivid/weights/nano.safetensors

Expected: one file below 15 MB; `elastivid info nano` prints its card. What its operating points are worth is measured
by benchmarks/front.py.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from elastivid.models.dual import PRESETS
from elastivid.weights.load import load, save

WIDTHS = (64, 128, 192)  # those that train_nano.py draws
FEWEST_TOKENS, MOST_TOKENS = 32, 512  # of train_nano.py


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--card", type=Path, required=True, help="JSON: what it was trained on and what it measures")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model = PRESETS["nano"].build()
    model.load_state_dict(torch.load(args.checkpoint, weights_only=True)["model"])
    card = json.loads(args.card.read_text(encoding="utf-8"))
    measured = {"trained_widths": list(WIDTHS), "trained_tokens": [FEWEST_TOKENS, MOST_TOKENS]}
    save(model, args.out, address="dual/nano@v2", licence="Apache-2.0", card=card, measured=measured)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, space {load(str(args.out)).space_id}")


if __name__ == "__main__":
    main()
