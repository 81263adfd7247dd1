"""Train `nano`: a FluxViT and a text tower in one space, elastic in tokens and in width.

    python recipes/train_nano.py world --out runs/world.pt --device cuda --workers 16
    python recipes/train_nano.py real  --out runs/nano.pt  --init runs/world.pt --labelled ../shared/data/labelled ...
    python recipes/train_nano.py real  --out runs/fold0.pt --init runs/world.pt --labelled ... --fold 0   # to score

The loss is that of `elastivid.train.dual`: contrastive with hard negative captions at three operating points a step,
the dearest at full width teaching two with drawn token counts and widths; batches differ in frames and frame size. A
moving average of the weights is what gets kept. Stage `world` renders its clips, stage `real` mixes in labelled ones.
Expected: docs/benchmarks/demo.md and docs/benchmarks/actions.md. Rendering is the bottleneck (10 ms a clip and core):
EXPECTED_TIME.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from elastivid.core.point import OperatingPoint
from elastivid.data.labelled import LabelledClips
from elastivid.data.mixture import PATCH_PIXELS, Mixture, MixtureConfig, Sample, collate
from elastivid.layers.block import initialise_mimetic
from elastivid.models.dual import PRESETS, FluxDual
from elastivid.train.dual import DualLoss, add_words, draw_points
from elastivid.train.ema import Ema

WIDTHS = (64, 128, 192)  # what a layer may be run at: one, two or three heads
SHAPES = ((8, 112), (8, 168), (8, 168), (8, 168), (4, 168), (4, 224), (16, 112), (16, 168))  # frames, side in pixels


@dataclass(frozen=True)
class Phase:
    """A stretch of training; `tokens` is the one count that clips are encoded at, None draws three points a step."""

    steps: int
    shapes: tuple[tuple[int, int], ...] = SHAPES
    tokens: int | None = None
    plain_share: float = 0.0


STAGES = {
    "world": (Phase(1000, ((8, 112),), 64, plain_share=0.7), Phase(3000, plain_share=0.15)),
    "real": (Phase(240),),
}
LEARNING_RATE = {"world": 2e-3, "real": 6e-4}
REAL_SHARE = {"world": 0.0, "real": 0.4}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    parser.add_argument("--init", type=Path, help="checkpoint to start from")
    parser.add_argument("--labelled", type=Path, help="folder with labels.csv (stage real)")
    parser.add_argument(
        "--fold", type=int, default=-1, choices=range(-1, 5), help="fold of sources to leave out, 0 to 4; -1 uses all"
    )
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that render")
    parser.add_argument("--scale", type=float, default=1.0, help="multiply all step counts (0.01 for a smoke run)")
    parser.add_argument(
        "--minutes", type=float, help="spread the schedule over this time, whatever number of steps fits"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if REAL_SHARE[args.stage] > 0 and not args.labelled:
        parser.error(f"stage {args.stage} needs --labelled FOLDER, a folder with labels.csv")
    return args


def build(init: Path | None, device: str) -> tuple[FluxDual, DualLoss]:
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
    return model.to(device), losses.to(device)


def main() -> None:
    args = parse()
    torch.manual_seed(args.seed)
    model, losses = build(args.init, args.device)
    ema = Ema(model, decay=0.998)
    trained = [*model.parameters(), *losses.parameters()]
    decay, plain = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
    peak = LEARNING_RATE[args.stage]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], lr=peak, betas=(0.9, 0.98)
    )
    phases = [replace(p, steps=max(2, int(p.steps * args.scale))) for p in STAGES[args.stage]]
    tokenizer = model.text.tokenizer

    def make_batch(samples: list[Sample]) -> dict[str, Any]:
        return add_words(collate(samples), tokenizer)

    loading = {"num_workers": args.workers, "prefetch_factor": 3, "pin_memory": args.device != "cpu"}
    clips = LabelledClips.from_folder(args.labelled) if args.labelled else None
    total, step, start, ends = sum(p.steps for p in phases), 0, time.time(), 0.0
    draws = torch.Generator().manual_seed(args.seed)
    for phase in phases:
        ends += phase.steps / total
        config = MixtureConfig(
            length=phase.steps * args.batch * (100 if args.minutes else 1),
            seed=args.seed * 1000 + step,
            shapes=phase.shapes,
            batch=args.batch,
            real_share=REAL_SHARE[args.stage],
            leave_out=args.fold,
            plain_share=phase.plain_share,
        )
        data = Mixture(config, clips, cache=args.out.parent)
        for batch in DataLoader(data, args.batch, collate_fn=make_batch, **loading):
            step += 1
            done = min((time.time() - start) / (60 * args.minutes), 1.0) if args.minutes else step / total
            rate = peak * min(max(done, 1 / total) / 0.05, 0.5 * (1 + math.cos(math.pi * done)) + 0.01)
            for group in optimizer.param_groups:
                group["lr"] = rate
            num_frames, side = batch["frames"].shape[1:3]
            points = draw_points(draws, num_frames * (side // PATCH_PIXELS) ** 2, WIDTHS, len(model.video.blocks))
            chosen = points if phase.tokens is None else (OperatingPoint(tokens=phase.tokens),)
            with torch.autocast(args.device, torch.bfloat16, enabled=args.device != "cpu"):
                loss, report = losses(model, batch, chosen)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            ema.update(model)
            last = done >= 1.0
            if step % 50 == 0 or last:
                values = " ".join(f"{k} {float(v):.3f}" for k, v in report.items())
                seconds = time.time() - start
                print(
                    f"step {step} {done:.0%} {values} grad {norm:.2f} scale {model.logit_scale:.1f} "
                    f"{step * args.batch / seconds:.1f} clips/s {seconds:.0f} s",
                    flush=True,
                )
            if step % 500 == 0 or last:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                partial = args.out.with_suffix(".partial")
                states = {"model": ema.model.state_dict(), "losses": losses.state_dict()}
                torch.save({**states, "step": step, "seed": args.seed}, partial)
                partial.replace(args.out)
            if done >= ends:
                break


if __name__ == "__main__":
    main()
