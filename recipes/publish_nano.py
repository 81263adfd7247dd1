"""Turn a run of the recipe `nano` into the weights file that the package ships.

    python recipes/publish_nano.py --run runs/nano --card recipes/nano_card.json \
        --out src/elastivid/weights/nano.safetensors

The run leaves such a file itself; this one gets the published address and the card. Expected: one file below 15 MB;
`elastivid info nano` prints its card. What its operating points are worth is measured by benchmarks/front.py.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from elastivid.recipes.nano import Nano
from elastivid.train.checkpoint import config_of_run, load_weights
from elastivid.weights.load import load, save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--card", type=Path, required=True, help="JSON: what it was trained on and what it measures")
    parser.add_argument("--address", default="dual/nano@v2")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    recipe = Nano(config_of_run(args.run, Nano))
    module = recipe.build()
    load_weights(module, args.run)
    made = recipe.exported(module)
    card = json.loads(args.card.read_text(encoding="utf-8"))
    save(made.model, args.out, address=args.address, licence=made.licence, card=card, measured=dict(made.measured))
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, space {load(str(args.out)).space_id}")


if __name__ == "__main__":
    main()
