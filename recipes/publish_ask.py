"""Turn the model that `elastivid train ask_tiny` left behind into the weights file that the package ships.

    python recipes/publish_ask.py --model runs/ask/model.safetensors --card recipes/ask_card.json \
        --out src/elastivid/weights/nano_ask.safetensors

Expected: one file of about 6.3 MB in half precision. What it is worth is measured by benchmarks/memory.py.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from elastivid.weights.load import load_asker, read_metadata


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--card", type=Path, required=True, help="JSON: what it was trained on and what it is good for")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    metadata = read_metadata(args.model)
    told = json.loads(args.card.read_text(encoding="utf-8"))
    metadata |= {"address": "nano-ask@v2", "card": {**metadata["card"], **told}, "licence": "Apache-2.0"}
    state = {name: value.half().contiguous() for name, value in load_file(args.model).items()}
    save_file(state, args.out, metadata={key: json.dumps(value) for key, value in metadata.items()})
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, {load_asker(str(args.out)).weights_id}")


if __name__ == "__main__":
    main()
