"""Train `nano`: a FluxViT and a text tower in one space, on the synthetic world and, if given, labelled clips.

    python recipes/train_nano.py world   --out runs/world.pt
    python recipes/train_nano.py sharpen --init runs/world.pt --out runs/sharp.pt
    python recipes/train_nano.py real    --init runs/sharp.pt --labelled ../shared/data/labelled --out runs/real.pt
    python recipes/train_nano.py finish  --init runs/real.pt  --labelled ../shared/data/labelled --out runs/nano.pt
    python recipes/train_nano.py real    --init runs/sharp.pt --labelled ... --fold 0 --out runs/fold0.pt  # to score

The loss is that of `elastivid.train.dual`: contrastive with hard negative captions, first at one token count per clip,
then at three (Flux-Multi, arXiv 2503.14237); a moving average of the weights is what gets kept.
Expected: docs/benchmarks/demo.md and docs/benchmarks/actions.md; about an hour on two cores without bf16 units.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from elastivid.data.labelled import LabelledClips
from elastivid.data.mixture import Mixture, MixtureConfig, collate
from elastivid.layers.block import initialise_mimetic
from elastivid.models.dual import PRESETS, FluxDual
from elastivid.train.dual import DualLoss
from elastivid.train.ema import Ema


@dataclass(frozen=True)
class Phase:
    """A stretch of training at one frame size; `tokens` are the counts that every clip is encoded at."""

    steps: int
    size: int
    tokens: tuple[int, ...]
    plain_share: float = 0.0


STAGES = {
    "world": (
        Phase(2000, 112, (64,), plain_share=0.8),
        Phase(1000, 112, (64,), plain_share=0.3),
        Phase(150, 112, (96, 48, 24)),
    ),
    "sharpen": (Phase(100, 168, (256, 128, 64)),),
    "real": (Phase(300, 112, (64,)), Phase(40, 168, (256, 128, 64))),
    "finish": (Phase(300, 168, (256, 64)),),
}
LEARNING_RATE = {"world": 2e-3, "sharpen": 5e-4, "real": 6e-4, "finish": 6e-4}
REAL_SHARE = {"world": 0.0, "sharpen": 0.0, "real": 0.6, "finish": 0.2}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    parser.add_argument("--init", type=Path, help="checkpoint to start from")
    parser.add_argument("--labelled", type=Path, help="folder with labels.csv (stage real)")
    parser.add_argument(
        "--fold", type=int, default=-1, choices=range(-1, 5), help="fold of sources to leave out, 0 to 4; -1 uses all"
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--scale", type=float, default=1.0, help="multiply all step counts (0.01 for a smoke run)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if REAL_SHARE[args.stage] > 0 and not args.labelled:
        parser.error(f"stage {args.stage} needs --labelled FOLDER, a folder with labels.csv")
    return args


def build(init: Path | None) -> tuple[FluxDual, DualLoss]:
    """The model and the heads that training adds, both from `init` if given."""
    model = PRESETS["nano"].build().train()
    losses = DualLoss(model.dim, model.config.video.embed_dim)
    if init:
        stored = torch.load(init, weights_only=True)
        model.load_state_dict(stored["model"])
        losses.load_state_dict(stored["losses"])
    else:
        for block in model.video.blocks:
            initialise_mimetic(block)
    return model, losses


def main() -> None:
    args = parse()
    torch.manual_seed(args.seed)
    model, losses = build(args.init)
    ema = Ema(model, decay=0.998)
    trained = [*model.parameters(), *losses.parameters()]
    decay, plain = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
    peak = LEARNING_RATE[args.stage]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], lr=peak, betas=(0.9, 0.98)
    )
    phases = [replace(p, steps=max(2, int(p.steps * args.scale))) for p in STAGES[args.stage]]
    clips = LabelledClips.from_folder(args.labelled) if args.labelled else None
    total, step, start = sum(p.steps for p in phases), 0, time.time()
    for phase in phases:
        config = MixtureConfig(
            length=phase.steps * args.batch,
            seed=args.seed * 1000 + step,
            size=phase.size,
            real_share=REAL_SHARE[args.stage],
            leave_out=args.fold,
            plain_share=phase.plain_share,
        )
        data = Mixture(config, clips, cache=args.out.parent)
        for batch in DataLoader(data, batch_size=args.batch, num_workers=1, collate_fn=collate, prefetch_factor=3):
            step += 1
            rate = peak * min(step / (0.05 * total), 0.5 * (1 + math.cos(math.pi * step / total)) + 0.01)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, report = losses(model, batch, phase.tokens)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            ema.update(model)
            if step % 50 == 0 or step == total:
                values = " ".join(f"{k} {v:.3f}" for k, v in report.items())
                seconds = time.time() - start
                print(
                    f"step {step}/{total} {values} grad {norm:.2f} scale {model.logit_scale:.1f} "
                    f"{step * args.batch / seconds:.1f} clips/s {seconds:.0f} s",
                    flush=True,
                )
            if step % 200 == 0 or step == total:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                partial = args.out.with_suffix(".partial")
                states = {"model": ema.model.state_dict(), "losses": losses.state_dict()}
                torch.save({**states, "step": step, "total": total, "seed": args.seed}, partial)
                partial.replace(args.out)


if __name__ == "__main__":
    main()
