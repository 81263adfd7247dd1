"""What training on real clips adds to `nano`: five fold models beside the model that saw rendered scenes alone.

    python benchmarks/nano_real.py masked --labelled ../shared/data/labelled --unlabelled clips.jsonl --out runs/real
    python benchmarks/nano_real.py train  --labelled ... --out runs/real --fold 0 [... --fold 4]
    python benchmarks/nano_real.py score  --labelled ... --out runs/real --fold 0 [... --fold 4]
    python benchmarks/nano_real.py page   --labelled ... --out runs/real

`masked` goes on from the shipped model with the stages `heads` and `masked` of the recipe `nano`, on clips that are in
no fold (`--unlabelled`, the list that benchmarks/masked.py makes). `train` goes on from there for one fold: stage
`real` without the fold. Both are runs of the recipe and go on where they were stopped. `score` looks at the fold with
the shipped model and with the fold's: a linear probe with the settings of benchmarks/actions.py on fewer frames, and
the names of the classes as texts. `page` writes docs/benchmarks/nano-real.md. `--inner` does all of it within the
training side of fold 0, with settings to try (`--set`): that is how they were chosen.
"""

from __future__ import annotations

import argparse
import json
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from actions import FOLDS, PROBE, SHARED, run_fold, sides, written
from tables import machine, table, write_page

from elastivid.core.point import OperatingPoint, Sampling
from elastivid.data.augment import Augmentation
from elastivid.data.listing import read_entries
from elastivid.data.mixture import GERUNDS
from elastivid.evaluate.choices import ATTRIBUTES, accuracy, draw_choices
from elastivid.evaluate.classifiers import class_vectors
from elastivid.evaluate.names import Names
from elastivid.evaluate.statistics import bootstrap, paired_bootstrap
from elastivid.models.dual import FluxDual
from elastivid.recipes._labelled import clips_of, computing_in
from elastivid.recipes.nano import Nano, NanoConfig
from elastivid.train.loop import train
from elastivid.train.settings import changed
from elastivid.weights.load import load

SETTINGS: dict[str, Any] = {
    "batch_size": 32,
    "precision": "bfloat16",
    "num_workers": 0,
    "world_steps": (0, 0),
    "shapes": ((8, 112), (8, 112), (8, 168), (4, 168)),
    "scenes": 10,
    "log_every": 10,
    "save_every": 50,
}
MASKED: dict[str, Any] = {"head_steps": 50, "masked_steps": 120, "dear_tokens": (96, 128, 160)}
REAL: dict[str, Any] = {"real_steps": 200, "real_share": 0.5, "frozen_blocks": 4, "dear_tokens": (128, 192, 256)}
FRAMES, KEPT = 8, 16  # of a probe, which has no reader but the encoder's
SCENES, SCENE_SEED = 60, 161_803  # rendered scenes per attribute, used for nothing else
CHOSEN = (
    "Settings were chosen on an inner split of the training side of fold 0, 402 clips to train and 134 to score, "
    "at 64, 96 and 128 tokens. Probe: 28.4, 29.9 and 30.6 % before; 27.6, 29.1 and 28.4 % after 80 steps of "
    "`masked` (of a first version, whose decoder read visible cells as well and learned nothing of either); 20.9, "
    "23.9 and 24.6 % after 160 steps of `real` that trained everything; 26.9, 27.6 and 25.4 % after 240 that left "
    "four blocks alone. Names: 4.5, 3.7 and 3.7 %; 3.7, 5.2 and 6.7 %; 18.7, 17.9 and 17.2 %; 16.4, 18.7 and 21.6 "
    "%. `real` behind `masked` was not tried there. A ridge regression from the tokens of nano as shipped "
    "explains 58 % of the variance of cells' gradient histograms in clips it was not solved for, and none of "
    "flow's."
)
SHIPPED = (
    "A model of all 671 clips (50 steps of `heads`, 120 of `masked`, 300 of `real`, 18 minutes of one core) was "
    "held against the shipped one on rendered videos, in the protocols of [retrieval](retrieval.md) and "
    "[demo](demo.md). R@1 at 512, 128 and 64 tokens, before and after: colour 97.1, 93.4, 88.3 and 94.9, 87.6, "
    "84.7 %; shape 96.2, 96.2, 95.0 and 93.8, 91.2, 88.8 %; motion 90.8, 86.5, 78.0 and 80.9, 80.9, 78.0 %; order "
    "86.0, 88.0, 81.0 and 88.0, 89.0, 77.0 %. After Holm's rule colour at 128 tokens (-5.8 points [-9.7, -2.3]) "
    "and motion at 512 (-9.9 [-15.4, -4.5]) differ. Of the twenty frozen queries 19 and 18 come first. Weights "
    "half way between the two keep the scenes, but their mAP on three folds is 12 to 14 % and they name no more "
    "than before. So the shipped weights stay."
)
SCENE_POINTS = ((8, 168, 256, 192), (8, 168, 128, 192), (8, 112, 64, 64))  # frames, side, tokens, width


def side_name(args: Namespace, fold: int) -> str:
    """How files of a fold, or of the inner split, begin."""
    return "inner" if args.inner else str(fold)


def pretrain(args: Namespace) -> Path:
    """The run that all folds go on from; made once, and of clips that are in none of them."""
    folder: Path = args.out / "masked"
    if not (folder / "model.safetensors").is_file():
        config = NanoConfig(**SETTINGS, **MASKED, init=Path("nano"), unlabelled=args.unlabelled, cache=args.out)
        train(Nano(config), folder, resume=(folder / "run.json").exists(), device="cpu")
    return folder


def train_fold(args: Namespace, fold: int) -> None:
    """A model that saw no film of the fold; with `--all` one that saw them all."""
    name = "nano-all" if args.all else "-".join(filter(None, ("nano", side_name(args, fold), args.name)))
    entries = read_entries(args.labelled)
    seen = entries if args.all else sides(entries, fold, args.inner)[0]
    labelled = written(args.out / f"{name}.data.jsonl", seen)
    config = NanoConfig(**SETTINGS, **REAL, init=pretrain(args), labelled=labelled, cache=args.out)
    folder = args.out / name
    train(Nano(changed(config, args.set)), folder, resume=(folder / "run.json").exists(), device="cpu")


@torch.no_grad()
def named(model: FluxDual, args: Namespace, fold: int) -> dict[str, Any]:
    """Cosines of the clips of a fold and the names of the classes, at the points of the probe."""
    _, test = sides(read_entries(args.labelled), fold, args.inner)
    config = replace(PROBE, cache=args.out / "clips", frames=FRAMES, kept_frames=KEPT, motion_words=0)
    classes = sorted(GERUNDS)
    clips = clips_of(config, test, classes, Augmentation())
    words = class_vectors(model, Names(tuple(GERUNDS[name] for name in classes)))  # (K, D)
    scores: list[list[list[float]]] = [[] for _ in config.points]
    for index in range(len(clips)):
        views = torch.from_numpy(clips.views(index, config.shape, views=config.test_views))
        video = model.transform.normalised(views)  # (V, T, 3, S, S)
        for number, point in enumerate(config.points):
            with computing_in(config, video.device):
                vectors = model.embed_clips(video, point=point)  # (V, D)
            scores[number].append((vectors.float() @ words.T).mean(dim=0).tolist())
    return {"paths": [str(e.path.absolute()) for e in test], "classes": classes, "scores": scores}


def on_scenes(model: FluxDual) -> dict[str, list[list[int]]]:
    """Right captions among wrong ones on held-out compositions: per attribute, per point, the number of hits."""
    found: dict[str, list[list[int]]] = {}
    for name in ATTRIBUTES:
        drawn = list(draw_choices(name, "held_out", SCENES, SCENE_SEED))
        found[name] = []
        for frames, side, tokens, width in SCENE_POINTS:
            point = OperatingPoint(tokens=tokens, width=width)
            share = accuracy(model, drawn, Sampling(frames=frames, size=side), [point])[0]
            found[name].append([round(share * SCENES), SCENES])
    return found


def score(args: Namespace, fold: int, kind: str, address: str) -> None:
    """Probe, class names and rendered scenes of a model on a fold; kept in a file."""
    side = side_name(args, fold)
    file = args.out / f"{kind}-{side}.json"
    if file.is_file():
        print(f"{file} is there already")
        return
    settings = [f"model={address}", f"frames={FRAMES}", f"kept_frames={KEPT}", "motion_words=0"]
    probe = Namespace(inner=args.inner, name=kind, out=args.out, labelled=args.labelled, set=settings)
    run_fold("probe", probe, fold)
    model = load(address)
    assert isinstance(model, FluxDual)
    kept = {**named(model, args, fold), "scenes": on_scenes(model), "space": model.space_id}
    file.write_text(json.dumps(kept))
    print(kind, side, summary(args, kind, side), flush=True)


def labels_of(args: Namespace, kept: dict[str, Any]) -> tuple[np.ndarray, list[str]]:
    """Class numbers (N,) and films of the clips of a scored fold."""
    known = {str(e.path.absolute()): e for e in read_entries(args.labelled)}
    found = [known[path] for path in kept["paths"]]
    return np.array([kept["classes"].index(e.label) for e in found]), [e.source for e in found]


def precisions(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of every clip the share of its class among the clips that the name of its class ranks at least as high, (N,).

    Their mean over the clips of a class is its average precision. Among equal scores other classes count first.
    """
    found = np.empty(len(labels))
    for k in np.unique(labels):
        own = labels == k
        order = np.lexsort((own, -scores[:, k]))
        share = np.cumsum(own[order]) / np.arange(1, len(own) + 1)  # (N,) by rank
        found[order[own[order]]] = share[own[order]]
    return found


def mean_over_classes(values: np.ndarray, labels: np.ndarray) -> float:
    """Mean over classes of the mean of their clips."""
    return float(np.mean([values[labels == k].mean() for k in np.unique(labels)]))


def summary(args: Namespace, kind: str, side: str) -> str:
    """The numbers of a scored model in one line."""
    kept = json.loads((args.out / f"{kind}-{side}.json").read_text())
    labels, _ = labels_of(args, kept)
    parts = []
    for rows in kept["scores"]:
        scores = np.array(rows)
        ap = mean_over_classes(precisions(scores, labels), labels)
        parts.append(f"names {100 * (scores.argmax(1) == labels).mean():.1f} % mAP {100 * ap:.1f}")
    shares = {name: [round(100 * hits / count) for hits, count in rows] for name, rows in kept["scenes"].items()}
    return "; ".join(parts) + f"; scenes {shares}"


@dataclass(frozen=True)
class Scored:
    """One model on all folds that were scored: N clips, P points.

    Args:
        hits: by name of a measure, (P, N).
        mean_ap: mean over folds and classes, by point.
        sources: films.
        scenes: by attribute and point, hits and scenes of all folds' models.
        spaces: of the models that were scored.
    """

    hits: dict[str, np.ndarray]
    mean_ap: list[float]
    sources: list[str]
    scenes: dict[str, np.ndarray]
    spaces: set[str]


def gathered(args: Namespace, kind: str, folds: list[int]) -> Scored:
    """What a model, or the models of the folds, made of the folds."""
    parts: dict[str, list[np.ndarray]] = {}
    spaces: set[str] = set()
    aps, sources, scenes = [], [], {name: np.zeros((len(SCENE_POINTS), 2), dtype=int) for name in ATTRIBUTES}
    for fold in folds:
        kept = json.loads((args.out / f"{kind}-{fold}.json").read_text())
        probe = json.loads((args.out / f"probe-{fold}-{kind}.json").read_text())
        labels, films = labels_of(args, kept)
        place = {str((args.labelled / path).absolute()): i for i, path in enumerate(probe["paths"])}
        rows = [place[path] for path in kept["paths"]]
        truth = np.array(kept["classes"])[labels]
        for reader, predicted in probe["predicted"].items():
            right = np.array(probe["classes"])[np.array(predicted)][:, rows] == truth  # (P, n)
            parts.setdefault(f"probe, {reader}", []).append(right.astype(float))
        scores = np.array(kept["scores"])  # (P, n, K)
        parts.setdefault("names", []).append((scores.argmax(2) == labels).astype(float))
        ranked = np.stack([precisions(point, labels) for point in scores])  # (P, n)
        parts.setdefault("precision", []).append(ranked)
        aps.append([mean_over_classes(point, labels) for point in ranked])
        sources += films
        spaces.add(kept["space"])
        for name in ATTRIBUTES:
            scenes[name] += np.array(kept["scenes"][name])
    joined = {name: np.concatenate(found, axis=1) for name, found in parts.items()}
    return Scored(joined, np.mean(aps, axis=0).tolist(), sources, scenes, spaces)


def page(args: Namespace) -> None:
    """Write docs/benchmarks/nano-real.md."""
    folds = [f for f in range(FOLDS) if all((args.out / f"{kind}-{f}.json").is_file() for kind in ("before", "real"))]
    before, after = gathered(args, "before", folds), gathered(args, "real", folds)
    if len(before.spaces) > 1:
        raise SystemExit(f"nano was not the same on all folds: spaces {sorted(before.spaces)}; score them again")
    titles = {
        "probe, both": "linear probe on the frozen encoder",
        "names": "names of the classes as texts",
    }
    rows = []
    for name, title in titles.items():
        for number, tokens in enumerate(SHARED["tokens"]):
            one, two = before.hits[name][number], after.hits[name][number]
            gain = paired_bootstrap(one, two, before.sources)
            rows.append([title, str(tokens), str(bootstrap(one, before.sources)), str(bootstrap(two, after.sources)),
                         str(gain)])  # fmt: skip
    for number, tokens in enumerate(SHARED["tokens"]):
        gain = paired_bootstrap(before.hits["precision"][number], after.hits["precision"][number], before.sources)
        cells = [f"{100 * found.mean_ap[number]:.1f} %" for found in (before, after)]
        rows.append(["mAP, clips looked for by the name of a class", str(tokens), *cells, str(gain)])
    scenes = []
    for number, (frames, side, tokens, width) in enumerate(SCENE_POINTS):
        cells = []
        for name in ATTRIBUTES:
            shares = [100 * found.scenes[name][number][0] / found.scenes[name][number][1] for found in (before, after)]
            cells.append(f"{shares[0]:.0f} / {shares[1]:.0f} %")
        scenes.append([f"{frames} x {side} px, {tokens} tokens, width {width}", *cells])
    write_page(
        "nano-real",
        "# nano and real clips",
        f"{machine()} Written by `python benchmarks/nano_real.py page`.",
        f"{len(before.sources)} clips of {len(GERUNDS)} actions, {len(folds)} of {FOLDS} folds by source film. Before: "
        f"`nano` as shipped, space {''.join(before.spaces)}, which saw rendered scenes alone. After: one model a fold, "
        "trained on from it by the recipe "
        f"`nano` on one processor core: {MASKED['head_steps']} steps of the stage `heads` and {MASKED['masked_steps']} "
        "of `masked` on windows of other real videos without labels, the same for all folds, then "
        f"{REAL['real_steps']} of `real` on the labelled clips of the other folds, which leaves the first "
        f"{REAL['frozen_blocks']} blocks as they are; rendered scenes with their captions beside them throughout; "
        f"{SETTINGS['batch_size']} samples a step. No model saw a film of the fold it is scored on. Brackets: 95 % of "
        "10,000 resamplings of whole films.",
        "Names are those that training put into sentences, so after training this is no zero-shot classification: "
        "the classes were trained, the films were not seen. mAP is the mean over folds and classes; its difference is "
        "that of the mean over clips. A probe reads features that training fitted to the very clips it is solved "
        "for, so after training with labels it says less than before.",
        CHOSEN,
        table(["measure", "tokens", "before", "after", "difference"], rows),
        "## Rendered scenes, before / after",
        f"Right captions among captions wrong in one attribute, compositions that training never draws; {SCENES} "
        f"scenes a model and attribute, seed {SCENE_SEED}, used for nothing else; after: all fold models together.",
        table(["point", *ATTRIBUTES], scenes),
        "## Why the shipped nano is the one before",
        SHIPPED,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("masked", "train", "score", "page"))
    parser.add_argument("--labelled", type=Path, required=True)
    parser.add_argument("--unlabelled", type=Path, help="list of other clips, see benchmarks/masked.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of runs, scores and decoded clips")
    parser.add_argument("--fold", type=int, action="append", choices=range(FOLDS), help="folds [default: all]")
    parser.add_argument("--inner", action="store_true", help="train and score within the training side of fold 0")
    parser.add_argument("--set", action="append", default=[], help="key=value, with --inner: settings to try")
    parser.add_argument("--name", default="", help="with --inner: appended to the name of a run")
    parser.add_argument("--all", action="store_true", help="with `train`: one model of every labelled clip")
    args = parser.parse_args()
    if (args.set or args.name) and not args.inner:
        parser.error("--set and --name are for --inner alone: what is reported has the settings of this file")
    folds = [0] if args.inner or args.all else args.fold or list(range(FOLDS))
    if args.what == "masked":
        pretrain(args)
    elif args.what == "train":
        for fold in folds:
            train_fold(args, fold)
    elif args.what == "score":
        for fold in folds:
            name = "-".join(filter(None, ("nano", side_name(args, fold), args.name)))
            score(args, fold, "before", "nano")
            score(args, fold, "-".join(filter(None, ("real", args.name))), str(args.out / name / "model.safetensors"))
    else:
        page(args)


if __name__ == "__main__":
    main()
