"""What each selector keeps of one rendered clip: draws docs/images/selectors.png.

    python benchmarks/selection_picture.py

`nano` on 8 frames of 168 px (1152 patches), a quarter of them kept. Dropped patches are faded; merged patches show the
mean colour of their token.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from elastivid.core.point import OperatingPoint
from elastivid.core.tokens import Tokens
from elastivid.data.synthetic import canonical_caption, render_frames, sample_scene
from elastivid.models.dual import FluxDual
from elastivid.select.base import Merger, Reducer
from elastivid.select.masks import AttentionScore, RandomFrames, RandomTokens, RandomTubes, RunningCell
from elastivid.select.merge import ToMe, VidTLDR
from elastivid.select.motion import DiffFP, GroupDynamic
from elastivid.select.text import TextGuided
from elastivid.weights.load import load

IMAGE = Path(__file__).resolve().parents[1] / "docs" / "images" / "selectors.png"
FRAMES, SIZE, PATCH, KEEP = 8, 168, 14, 288
SEED = 70_212
SENSOR_NOISE = 1.5  # grey levels; without it nothing that stands still changes at all
PAPER = 250  # what dropped patches fade to


def scene_with_still_camera() -> tuple[np.ndarray, str]:
    """Frames uint8 (T, H, W, 3) and caption of the first drawn scene of two moving things before a still background."""
    rng = np.random.default_rng(SEED)
    while True:
        scene = sample_scene(rng, "train", "pair")
        moving = all(phrase.motion in ("left", "right", "up", "down", "orbit", "bounce") for phrase in scene.content)
        if moving and scene.camera.kind == "still" and scene.background.kind == "gradient":
            times = np.linspace(0.25, scene.duration_seconds - 0.25, FRAMES)
            frames = render_frames(scene, times, SIZE) + rng.normal(0, SENSOR_NOISE, (FRAMES, SIZE, SIZE, 3))
            return frames.clip(0, 255).astype(np.uint8), canonical_caption(scene.content)


def panels(model: FluxDual, tokens: Tokens, caption: str) -> dict[str, tuple[Reducer, torch.Tensor]]:
    """What is drawn, by title: a reducer and the features by which it judges."""
    patches = tokens.x
    final = model.video.encode(tokens, OperatingPoint()).tokens.x[:, 1:]
    asked = TextGuided.asking(model, caption, project=model.embed_tokens)
    return {
        "RandomTokens()": (RandomTokens(), patches),
        "RandomTubes()": (RandomTubes(), patches),
        "RandomFrames()": (RandomFrames(), patches),
        "RunningCell()": (RunningCell(), patches),
        "GroupDynamic(1)   change, best of the clip": (GroupDynamic(1), patches),
        "GroupDynamic()   change, an equal share in each of 4 groups of frames": (GroupDynamic(), patches),
        "DiffFP()   first frame, then change": (DiffFP(), patches),
        "AttentionScore(model.video.cls_attention)": (AttentionScore(model.video.cls_attention), patches),
        f'TextGuided   "{caption}", behind the encoder': (asked, final),
        "ToMe()   alike patches become their mean": (ToMe(), patches),
        "VidTLDR(GroupDynamic().scores)   what stands still fades": (VidTLDR(GroupDynamic().scores), patches),
    }


def drawn(frames: np.ndarray, reducer: Reducer, tokens: Tokens, metric: torch.Tensor) -> np.ndarray:
    """Frames (T, H, W, 3) with dropped patches faded and merged ones replaced by the mean patch of their token."""
    count = tokens.num_placed
    traced = replace(tokens, x=torch.eye(count)[None])  # features that say which patches a token is made of
    share = reducer.reduce(traced, KEEP, metric=metric).x[0]  # (K, N)
    side = SIZE // PATCH
    cut = frames.reshape(FRAMES, side, PATCH, side, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)  # (T, h, w, P, P, 3)
    patches = torch.from_numpy(cut.reshape(count, -1).astype(np.float32))  # (N, P*P*3)
    weight, owner = share.max(dim=0)  # (N,)
    shown = (share @ patches)[owner] if isinstance(reducer, Merger) else patches  # (N, P*P*3)
    grey = patches.unflatten(1, (-1, 3)).mean(dim=2, keepdim=True).expand(-1, -1, 3).flatten(1)  # (N, P*P*3)
    shown = torch.where(weight[:, None] > 0, shown, 0.16 * grey + 0.84 * PAPER)
    back = shown.reshape(FRAMES, side, side, PATCH, PATCH, 3).permute(0, 1, 3, 2, 4, 5)  # (T, h, P, w, P, 3)
    return back.reshape(FRAMES, SIZE, SIZE, 3).byte().numpy()


@torch.inference_mode()
def main() -> None:
    model = load("nano")
    frames, caption = scene_with_still_camera()
    tokens = model.video.embed(model.transform(frames)[None])
    strips = {f'All {tokens.num_placed} patches   "{caption}"': frames}
    for title, (reducer, metric) in panels(model, tokens, caption).items():
        strips[title] = drawn(frames, reducer, tokens, metric)
    figure, axes = plt.subplots(6, 2, figsize=(13.4, 11.6), dpi=100)
    gap = np.full((SIZE, 6, 3), 255, dtype=np.uint8)
    for axis, (title, strip) in zip(axes.flatten(order="F"), strips.items(), strict=True):
        pictures = [strip[t] for t in range(0, FRAMES, 2)]
        axis.imshow(np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis=1))
        axis.set_title(title, loc="left", fontsize=9.5)
        axis.axis("off")
    figure.subplots_adjust(left=0.005, right=0.995, top=0.975, bottom=0.005, hspace=0.13, wspace=0.02)
    buffer = io.BytesIO()
    figure.savefig(buffer)
    Image.open(buffer).convert("RGB").quantize(96).save(IMAGE, optimize=True)
    print(f"{IMAGE.name}: {IMAGE.stat().st_size / 1e3:.0f} kB, {caption}")


if __name__ == "__main__":
    main()
