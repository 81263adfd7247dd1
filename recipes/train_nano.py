"""Train `nano`: a FluxViT and a text tower in one space, on the synthetic world and, if given, labelled clips.

    python recipes/train_nano.py world   --out runs/world.pt
    python recipes/train_nano.py sharpen --init runs/world.pt --out runs/sharp.pt
    python recipes/train_nano.py real    --init runs/sharp.pt --labelled ../shared/data/labelled --out runs/nano.pt
    python recipes/train_nano.py real    --init runs/sharp.pt --labelled ... --fold 0 --out runs/fold0.pt

Contrastive loss at three token counts per clip (Flux-Multi, arXiv 2503.14237), hard negative captions that differ
in one attribute, a linear map that must name colours, shapes and motions from clips and texts alike, the largest
count teaching the smaller ones, and a moving average that is what gets kept.
Expected: see docs/benchmarks/nano.md, which names seeds, steps, hours and the machine.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from elastivid.core.point import OperatingPoint
from elastivid.data.labelled import LabelledClips
from elastivid.data.mixture import ATTRIBUTE_SIZES, Mixture, MixtureConfig, collate
from elastivid.losses.attributes import attributes
from elastivid.losses.contrastive import agreement, contrastive
from elastivid.models.dual import PRESETS, FluxDual
from elastivid.train.ema import Ema


@dataclass(frozen=True)
class Phase:
    """A stretch of training at one frame size; `tokens` are the counts that every clip is encoded at."""

    steps: int
    size: int
    tokens: tuple[int, ...]


STAGES = {
    "world": (Phase(2600, 112, (64,)), Phase(500, 112, (96, 48, 24))),
    "sharpen": (Phase(80, 168, (256, 128, 64)),),
    "real": (Phase(130, 112, (128, 64, 32)), Phase(10, 168, (256, 128, 64))),
}
LEARNING_RATE = {"world": 1.2e-3, "sharpen": 5e-4, "real": 6e-4}
REAL_SHARE = {"world": 0.0, "sharpen": 0.0, "real": 0.6}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    parser.add_argument("--init", type=Path, help="checkpoint to start from")
    parser.add_argument("--labelled", type=Path, help="folder with labels.csv (stage real)")
    parser.add_argument("--fold", type=int, default=-1, help="fold of sources to leave out, 0 to 4; -1 uses all")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--scale", type=float, default=1.0, help="multiply all step counts (0.01 for a smoke run)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def build(init: Path | None) -> FluxDual:
    model = PRESETS["nano"].build()
    if init:
        model.load_state_dict(torch.load(init, weights_only=True)["model"])
    return model


def to_video(model: FluxDual, frames: torch.Tensor) -> torch.Tensor:
    """Decoded frames uint8 (B, T, H, W, 3) to model input (B, T, 3, H, W)."""
    transform = replace(model.transform, size=frames.shape[2])
    return transform(frames.flatten(0, 1).numpy()).unflatten(0, frames.shape[:2])  # (B*T, ...) -> (B, T, ...)


def forward_loss(
    model: FluxDual, head: torch.nn.Linear, batch: dict, tokens: tuple[int, ...]
) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean over token counts of contrastive and attribute loss, plus agreement of small counts with the largest."""
    texts, hard = batch["texts"], batch["hard_texts"]
    flat = [t for row in hard for t in row]
    words = F.normalize(model.text(*model.text.tokenize(texts + flat)), dim=-1)  # (B + B*M, D)
    wrong = words[len(texts) :].reshape(len(texts), -1, model.dim)  # (B*M, D) -> (B, M, D)
    scale = model.log_scale.exp().clamp(max=100)
    grid = model.video.embed(to_video(model, batch["frames"]))
    loss, first, report = attributes(head(10 * words[: len(texts)]), batch["attributes"], ATTRIBUTE_SIZES), None, {}
    for count in tokens:
        clips = F.normalize(model.video.encode(grid, OperatingPoint(tokens=count)).embedding, dim=-1)
        part = contrastive(clips, words[: len(texts)], scale, same=batch["same"], hard_texts=wrong)
        report[f"loss{count}"] = float(part.detach())
        named = attributes(head(10 * clips), batch["attributes"], ATTRIBUTE_SIZES)
        report[f"named{count}"] = float(named.detach())
        loss = loss + (part + named) / len(tokens)
        if first is None:
            first = clips
            right = (clips * words[: len(texts)]).sum(-1)
            report["hard_hit"] = float((right > torch.einsum("bd,bmd->bm", clips, wrong).amax(1)).float().mean())
        else:
            loss = loss + agreement(clips, first)
    return loss, report


def main() -> None:
    args = parse()
    torch.manual_seed(args.seed)
    model = build(args.init)
    model.train()
    head = torch.nn.Linear(model.dim, sum(ATTRIBUTE_SIZES))  # used in training only
    ema = Ema(model, decay=0.998)
    trained = [*model.parameters(), *head.parameters()]
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
        )
        data = Mixture(config, clips, cache=args.out.parent)
        for batch in DataLoader(data, batch_size=args.batch, num_workers=1, collate_fn=collate, prefetch_factor=3):
            step += 1
            rate = peak * min(step / (0.05 * total), 0.5 * (1 + math.cos(math.pi * step / total)) + 0.01)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, report = forward_loss(model, head, batch, phase.tokens)
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
                torch.save({"model": ema.model.state_dict(), "step": step, "total": total, "seed": args.seed}, partial)
                partial.replace(args.out)


if __name__ == "__main__":
    main()
