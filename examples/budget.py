"""What a model costs at several operating points, and which of them a budget allows.

python examples/budget.py ["20gmacs, 200MB"]
"""

from __future__ import annotations

import sys

from elastivid import Budget
from elastivid.models.fluxvit import PRESETS

FRAMES, SIZE = 8, 224


def main(text: str) -> None:
    """Print a row per preset and token count."""
    budget = Budget.parse(text)
    print(f"budget: {budget}; clip of {FRAMES} frames of {SIZE} pixels")
    for preset in ("nano", "small", "base"):
        config = PRESETS[preset]
        for tokens in (128, 512, 2048):
            cost = config.cost(frames=FRAMES, size=SIZE, tokens=tokens)
            verdict = "; ".join(cost.violations(budget, tokens=tokens)) or "fits"
            print(f"{preset:6} {tokens:5} tokens  {cost}  ->  {verdict}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "20gmacs, 200MB")
