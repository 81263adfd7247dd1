"""A budget becomes a plan, and the plan is carried out: what was predicted beside what it took.

python examples/plan.py [MODEL] ["5gmacs, 600MB"]
"""

from __future__ import annotations

import sys

import numpy as np

import elastivid as ev
from elastivid.core.errors import BudgetError
from elastivid.planning.run import Runner


def main(model: str, budget: str) -> None:
    """Plan, print why, run the plan on a clip of noise. A budget in ms or x first measures the machine (2 minutes)."""
    plan = ev.plan(model, budget)
    print(f"{plan.model} within {plan.budget}: {plan.point.tokens} tokens, {plan.cost}")
    for choice, reason in plan.reasons.items():
        print(f"  {choice}: {reason}")
    frames = np.random.default_rng(0).integers(0, 255, (plan.sampling.frames, 240, 320, 3), dtype=np.uint8)
    with Runner(plan) as runner:
        result = runner.embed_frames(frames[None])
    print(f"embedding {tuple(result.embeddings.shape)}, measured {result.measured}")
    try:
        ev.plan(model, "1mmacs")
    except BudgetError as error:
        print(f"refused: {error}")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ("nano", "0.5gmacs, 40MB")))
