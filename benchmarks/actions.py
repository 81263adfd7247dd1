"""What `nano` knows of real actions: five folds by source film, beside a classical descriptor and an untrained model.

    python benchmarks/actions.py --labelled ../shared/data/labelled --folds runs/fold0 ... runs/fold4

Fold k is scored by a model that the recipe `nano` trained without it (`--set fold=k`, see its docstring). Writes
docs/benchmarks/actions.md: mean average precision of class-name queries against chance, and top-1 of a linear probe
with a 95 % interval. The classical row is a grid of gradient and optical-flow histograms with a linear SVM, on the
same folds and frames. All predictions are on clips whose film the model, the probe and the SVM never saw.
"""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from tables import machine, table, write_page

from elastivid.core.point import OperatingPoint
from elastivid.data.labelled import LabelledClips, cache_frames
from elastivid.data.mixture import GERUNDS
from elastivid.evaluate.metrics import average_precision, expected_average_precision, format_share
from elastivid.models.dual import PRESETS, FluxDual
from elastivid.recipes.nano import WithHeads
from elastivid.train.checkpoint import load_weights

POINT = OperatingPoint(tokens=256)
FRAMES = 8


def build(checkpoint: Path | None) -> FluxDual:
    """nano with the weights of a run, or untrained towers with the distilled text table."""
    torch.manual_seed(0)
    module = WithHeads(PRESETS["nano"].build())
    if checkpoint:
        load_weights(module, checkpoint)
    return module.model.eval()


@torch.inference_mode()
def embed(model: FluxDual, frames: np.ndarray, mirrored: bool = False) -> np.ndarray:
    """Unit vectors (N, D) of clips uint8 (N, T, H, W, 3), at 168 pixels."""
    transform = replace(model.transform, size=168)
    vectors = []
    for clip in frames:
        video = transform(clip[:, :, ::-1] if mirrored else clip)
        vectors.append(model.embed_clips(video[None], point=POINT)[0].numpy())
    return np.stack(vectors)


def histograms(clip: np.ndarray, grid: int = 3, bins: int = 8) -> np.ndarray:
    """Orientation histograms of gradients and of Farneback flow on a grid, summed over time: classical features."""
    grey = [cv2.cvtColor(cv2.resize(f, (128, 96)), cv2.COLOR_RGB2GRAY) for f in clip]
    fields = []
    for before, after in itertools.pairwise(grey):
        flow = cv2.calcOpticalFlowFarneback(before, after, None, 0.5, 3, 15, 3, 5, 1.2, 0)
        gx, gy = cv2.Sobel(after, cv2.CV_32F, 1, 0), cv2.Sobel(after, cv2.CV_32F, 0, 1)
        change = cv2.GaussianBlur(flow, (0, 0), 2)
        boundaries = [cv2.Sobel(change[..., c], cv2.CV_32F, *d) for c in (0, 1) for d in ((1, 0), (0, 1))]
        fields.append([(gx, gy), (flow[..., 0], flow[..., 1]), tuple(boundaries[:2]), tuple(boundaries[2:])])
    parts = []
    for kind in range(4):
        total = np.zeros((3, grid, grid, bins))
        for t, pair in enumerate(fields):
            x, y = pair[kind]
            size, angle = np.hypot(x, y), np.arctan2(y, x)
            bin_of = ((angle + np.pi) / (2 * np.pi) * bins).astype(int) % bins
            rows = np.minimum(np.arange(96) * grid // 96, grid - 1)[:, None].repeat(128, 1)
            columns = np.minimum(np.arange(128) * grid // 128, grid - 1)[None].repeat(96, 0)
            np.add.at(total[t * 3 // len(fields)], (rows, columns, bin_of), size)
        part = np.sqrt(total / (total.sum() + 1e-6))
        parts.append(part.ravel())
    return np.concatenate(parts)


def probe(features: np.ndarray, flipped: np.ndarray, labels: np.ndarray, test: np.ndarray) -> int:
    """Right answers on `test` of a linear classifier trained on the rest and its mirror images."""
    rest = ~test
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    classifier.fit(np.concatenate([features[rest], flipped[rest]]), np.concatenate([labels[rest]] * 2))
    return int((classifier.predict(features[test]) == labels[test]).sum())


def precision(model: FluxDual, vectors: np.ndarray, labels: np.ndarray, classes: list[str]) -> list[float]:
    """Average precision of each class-name query over the clips given, classes without a clip left out."""
    with torch.inference_mode():
        texts = model.embed_texts([f"a person {GERUNDS[c]}" for c in classes]).numpy()
    present = [i for i, c in enumerate(classes) if (labels == c).any()]
    return [average_precision(vectors @ texts[i], labels == classes[i]) for i in present]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labelled", type=Path, required=True)
    parser.add_argument("--folds", type=Path, nargs=5, required=True, help="runs that left out fold 0 ... 4")
    parser.add_argument("--world", type=Path, help="run before any real clip was seen: one more row")
    args = parser.parse_args()
    clips = LabelledClips.from_folder(args.labelled)
    cached = cache_frames(clips, args.folds[0].parent / "labelled-192.npy", frames=16, size=192)
    frames = cached[:, np.arange(FRAMES) * 2 + 1]  # (N, 8, 192, 192, 3)
    labels, fold_of, classes = np.array(clips.labels), clips.folds(), list(clips.classes)
    chance = [
        expected_average_precision(int(((labels == c) & (fold_of == k)).sum()), int((fold_of == k).sum()))
        for k in range(5)
        for c in classes
        if ((labels == c) & (fold_of == k)).any()
    ]
    gmacs = f"{PRESETS['nano'].build().cost(frames=FRAMES, size=168, point=POINT).gmacs:.2f}"
    rows = [["chance", "-", f"{100 * np.mean(chance):.1f} %", f"{100 / len(classes):.1f} %", "-"]]
    start = time.process_time()
    classical = np.stack([histograms(clip) for clip in cached])
    per_clip = f"{1000 * (time.process_time() - start) / len(cached):.0f}"
    right = 0
    for k in range(5):
        test = fold_of == k
        svm = make_pipeline(StandardScaler(), LinearSVC(C=0.001, dual="auto")).fit(classical[~test], labels[~test])
        right += int((svm.predict(classical[test]) == labels[test]).sum())
    rows.append(["gradient + flow histograms, linear SVM", "-", "-", format_share(right, len(labels)), per_clip])
    models: list[tuple[str, list[Path | None]]] = [("nano, untrained", [None] * 5)]
    if args.world:
        models.append(("nano, rendered world only", [args.world] * 5))
    models.append(("nano, world + real actions", list(args.folds)))
    for name, checkpoints in models:
        values: list[float] = []
        right, seconds, last, features, flipped = 0, 0.0, "unset", np.empty(0), np.empty(0)
        for k, checkpoint in enumerate(checkpoints):
            test, model = fold_of == k, build(checkpoint)
            if last != str(checkpoint):
                start = time.process_time()
                features = embed(model, frames)
                seconds = time.process_time() - start
                flipped, last = embed(model, frames, mirrored=True), str(checkpoint)
            right += probe(features, flipped, labels, test)
            values += precision(model, features[test], labels[test], classes)
        shares = [f"{100 * np.mean(values):.1f} %", format_share(right, len(labels))]
        rows.append([name, gmacs, *shares, f"{1000 * seconds / len(labels):.0f}"])
    sizes = ", ".join(str(int((fold_of == k).sum())) for k in range(5))
    write_page(
        "actions",
        "# Real actions, five folds by source film",
        f"{machine('scikit-learn', 'opencv-python-headless')} Written by `python benchmarks/actions.py`.",
        f"{len(labels)} clips of {len(classes)} actions from {len(set(clips.sources))} films; films are never split, "
        f"folds hold {sizes} clips. Class-name queries rank the clips of one fold; the linear probe predicts every "
        "clip once. Brackets: 95 % Wilson interval. The classical row reads 16 frames a clip, nano 8.",
        table(["model", "GMACs", "mAP of class names", "top-1 of linear probe", "processor ms per clip"], rows),
    )


if __name__ == "__main__":
    main()
