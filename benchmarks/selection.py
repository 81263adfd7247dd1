"""Every selector and merger: what it costs beside the encoder, what it keeps, and how it differs from references.

    ELASTIVID_SHARED=../shared python benchmarks/selection.py

Writes docs/benchmarks/selectors.md. Cost: FluxViT-S, 16 frames of 252 px (5184 tokens), K = 1024, batch 1, taken in
turns; processor time of one thread and the best of all rounds, which other processes disturb least. Quality: `nano` on
rendered scenes that nothing was tuned on. The picture beside it is drawn by benchmarks/selection_picture.py.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from tables import machine, table, write_page

from elastivid.core.point import OperatingPoint
from elastivid.core.tokens import Tokens
from elastivid.data.synthetic import Scene, canonical_caption, negative_contents, render_frames, sample_scene
from elastivid.evaluate.metrics import format_share
from elastivid.layers.embed import patch_coordinates
from elastivid.models.dual import FluxDual
from elastivid.models.fluxvit import PRESETS, FluxViT
from elastivid.select import merge
from elastivid.select.base import Keep, Merger, Reducer, Selector
from elastivid.select.masks import AttentionScore, RandomFrames, RandomTokens, RandomTubes, RunningCell
from elastivid.select.merge import ToMe, VidTLDR, focus, gini_impurity, match_every, match_halves, sharpened
from elastivid.select.motion import DiffFP, GroupDynamic
from elastivid.select.text import TextGuided
from elastivid.video import VideoReader
from elastivid.weights.load import load

SEED = 70_211
KEEP = 1024
ROUNDS = 6
SCENES = 150
REAL_CLIPS = 60
Quality = dict[str, list[float]]


class HalfPerRound(Merger):
    """ToMe with rounds that remove half of the tokens, as in the paper."""

    def reduce(self, tokens: Tokens, keep: Keep = None, *, metric: torch.Tensor | None = None) -> Tokens:
        merge.ROUND_DIVISOR, usual = 2, merge.ROUND_DIVISOR
        try:
            return ToMe().reduce(tokens, keep, metric=metric)
        finally:
            merge.ROUND_DIVISOR = usual


def reducers(model: FluxViT, text: TextGuided) -> dict[str, Reducer]:
    """Every selector by the name it has in the tables."""
    return {
        "random": RandomTokens(),
        "tube": RandomTubes(),
        "frame": RandomFrames(),
        "running cell": RunningCell(),
        "dynamic L1": GroupDynamic(1, p=1),
        "dynamic L2": GroupDynamic(1),
        "group-dynamic, 4 groups": GroupDynamic(4),
        "group-dynamic, released rule": GroupDynamic(),
        "DiffFP": DiffFP(),
        "attention of its own first block": AttentionScore(model.cls_attention),
        "text": text,
        "ToMe": ToMe(),
        "ToMe, half of the tokens per round": HalfPerRound(),
        "vid-TLDR, saliency from motion": VidTLDR(GroupDynamic().scores),
    }


@torch.inference_mode()
def cost_rows() -> list[list[str]]:
    """Processor time of reducing 5184 tokens to 1024, beside the whole encoder at that point in both precisions."""
    models = {"float32": PRESETS["small"].build().eval(), "bfloat16": PRESETS["small"].build().eval().bfloat16()}
    video = torch.randn(1, 16, 3, 252, 252, generator=torch.Generator().manual_seed(SEED))
    best: dict[tuple[str, str], float] = {}

    def timed(name: str, precision: str, run: Callable[[], Tokens | object]) -> object:
        start = time.process_time()
        result = run()
        seconds = time.process_time() - start
        best[name, precision] = min(seconds, best.get((name, precision), seconds))
        return result

    left: dict[str, int] = {}
    for _ in range(ROUNDS):
        for precision, model in models.items():
            clip = video.to(model.cls_token.dtype)
            point = OperatingPoint(tokens=KEEP)
            timed("encoder", precision, lambda model=model, clip=clip, point=point: model(clip, point=point))
            tokens = model.embed(clip)
            placed = model._placed(tokens, tokens.x.shape[-1])
            text = TextGuided(torch.randn(384, generator=torch.Generator().manual_seed(SEED)))
            for name, reducer in reducers(model, text).items():
                call = lambda r=reducer, p=placed, t=tokens: r.reduce(p, KEEP, metric=t.x)  # noqa: E731
                left[name] = timed(name, precision, call).num_placed  # type: ignore[attr-defined]
    rows = []
    for name in ("none", *left):
        cells = []
        for precision in models:
            seconds = best.get((name, precision), 0.0)
            cells += [f"{1e3 * seconds:.2f}", f"{100 * seconds / best['encoder', precision]:.2f} %"]
        rows.append([name, str(left.get(name, 5184)), *cells])
    whole = [f"{1e3 * best['encoder', p]:.0f}" for p in models]
    return [*rows, ["the whole encoder at 1024 tokens", "1024", whole[0], "100 %", whole[1], "100 %"]]


def object_cells(scene: Scene, times: np.ndarray, side: int) -> torch.Tensor:
    """Which cells (T*side*side,) of the grid the captioned things touch."""
    touched = torch.zeros(len(times), side, side, dtype=torch.bool)
    for t, seconds in enumerate(times):
        for box in scene.boxes_at(float(seconds)):
            rows = slice(int(box.top * side), int(np.ceil(box.bottom * side)))
            touched[t, rows, int(box.left * side) : int(np.ceil(box.right * side))] = True
    return touched.flatten()


@torch.inference_mode()
def real_likeness(model: FluxDual) -> dict[str, float]:
    """Mean cosine of embeddings at a quarter of the tokens to those of all, on real clips; empty without them."""
    folder = Path(os.environ.get("ELASTIVID_SHARED", "../shared")) / "data" / "labelled"
    if not folder.is_dir():
        return {}
    with open(folder / "labels.csv", newline="") as file:
        clips = list(csv.DictReader(file))
    like: Quality = {}
    for clip in clips[:: max(1, len(clips) // REAL_CLIPS)]:
        with VideoReader(folder / clip["file"], size=168) as reader:
            frames = reader.frames_at(np.linspace(0, int(clip["frames"]) - 1, 8).astype(int)).frames
        tokens = model.video.embed(model.transform(frames)[None])  # (1, T, 3, H, W)
        whole = model.video.encode(tokens, OperatingPoint()).embedding[0]
        asked = TextGuided.asking(model, clip["label"].replace("_", " "), project=model.embed_tokens)
        for name, reducer in reducers(model.video, asked).items():
            vector = model.video.encode(tokens, OperatingPoint(tokens=288, selector=reducer)).embedding[0]
            like.setdefault(name, []).append(float(torch.cosine_similarity(vector, whole, dim=0)))
    return {name: float(np.mean(values)) for name, values in like.items()} | {"none": 1.0}


@torch.inference_mode()
def quality_rows(model: FluxDual, scenes: int) -> list[list[str]]:
    """Share of the things' tokens kept, likeness of the embedding to that of all tokens, captions chosen rightly."""
    rng, times = np.random.default_rng(SEED), np.arange(8) * 0.5 + 0.25
    found: Quality = {}
    like: Quality = {}
    right: Quality = {}
    for index in range(scenes):
        scene = sample_scene(rng, "all", ("single", "pair", "sequence")[index % 3])
        video = model.transform(render_frames(scene, times, 168))[None]  # (1, T, 3, H, W)
        contents = [scene.content, *(content for _, content in negative_contents(scene, rng, 3, split="all"))]
        texts = model.embed_texts([canonical_caption(content) for content in contents])  # (4, D)
        tokens = model.video.embed(video)
        things = object_cells(scene, times, 12)
        whole = model.video.encode(tokens, OperatingPoint()).embedding[0]
        asked = TextGuided(texts[0], project=model.embed_tokens)
        for name, reducer in {"none": None, **reducers(model.video, asked)}.items():
            point = OperatingPoint(tokens=288 if reducer else None, selector=reducer)
            out = model.video.encode(tokens, point)
            vector = out.embedding[0]
            if isinstance(reducer, Selector) and things.any():
                share = things[out.taps["kept"][0]].sum() / things.sum()
                found.setdefault(name, []).append(float(share))
            like.setdefault(name, []).append(float(torch.cosine_similarity(vector, whole, dim=0)))
            right.setdefault(name, []).append(float((texts @ vector).argmax() == 0))
    rows, real = [], real_likeness(model)
    for name, values in like.items():
        likeness = f"{real[name]:.3f}" if real else "not measured"
        kept = f"{100 * np.mean(found[name]):.0f} %" if name in found else ("100 %" if name == "none" else "-")
        caption = format_share(int(sum(right[name])), len(right[name]))
        rows.append([name, kept, f"{np.mean(values):.3f}", likeness, caption])
    return rows


def golden(name: str) -> tuple[dict[str, torch.Tensor], list[dict[str, object]]]:
    """Tensors and cases of a golden file."""
    path = Path(os.environ.get("ELASTIVID_SHARED", "../shared")) / "golden" / f"{name}.safetensors"
    with safe_open(path, framework="pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}, json.loads(file.metadata()["cases"])  # noqa: SIM118


def merging_rows() -> list[list[str]]:
    """Largest differences of merged tokens and sizes to the reference implementations, case by case."""
    tensors, cases = golden("token_merging")
    rows = []
    for entry in cases:
        case = {k.split(".", 1)[1]: v for k, v in tensors.items() if k.startswith(f"case{entry['case']}.")}
        rows.append([str(entry["name"]), *(f"{d:.1e}" for d in _merging_differences(case, entry["settings"]))])
    return rows


def _merging_differences(case: dict[str, torch.Tensor], settings: object) -> tuple[float, float]:
    assert isinstance(settings, dict)
    tokens, kind = case["tokens"], settings["kind"]
    size = case.get("size", torch.ones(*tokens.shape[:2], 1)).squeeze(-1)
    if kind.startswith("tldr"):
        score = sharpened(gini_impurity(case["attention"]) if settings.get("gini") else focus(case["attention"]))
        if kind == "tldr_flux":
            protected = int(settings["with_cls_token"])
            matching = match_halves(tokens, tokens.shape[1] - settings["keep"], protected=protected)
            merged, sizes = matching.combine(tokens, score), None
        else:
            rate = settings["r"][settings.get("layer", 0)]
            matching = match_halves(tokens, int(tokens.shape[1] * rate) if rate < 1 else rate)
            merged, sizes = matching.mean(tokens, size, score)
    else:
        protected = settings.get("class_token", False) + settings.get("distill_token", False)
        kth = kind == "kth"
        matching = (
            match_every(case["metric"], settings["k"])
            if kth
            else match_halves(case["metric"], settings["r"], protected=protected)
        )
        merged, sizes = matching.mean(tokens, size)
        if not kth and not protected:  # the reference orders these by similarity
            traced = matching.combine(torch.eye(tokens.shape[1]).expand(len(tokens), -1, -1), reduce="amax")
            order = (traced.unsqueeze(1) == case["source"].unsqueeze(2)).all(dim=-1).int().argmax(dim=2)  # (B, K)
            merged, sizes = merged.gather(1, order.unsqueeze(-1).expand_as(merged)), sizes.gather(1, order)
    other = 0.0 if sizes is None else float((sizes - case["merged_size"].squeeze(-1)).abs().max())
    return float((merged - case["merged"]).abs().max()), other


def pruning_rows() -> list[list[str]]:
    """Keep masks of frame pruning that differ from the reference, per item of its packs."""
    tensors, cases = golden("videollama3_vision")
    rows = []
    for entry in cases:
        settings = entry["settings"]
        assert isinstance(settings, dict)
        if settings["kind"] != "encode":
            continue
        case = {k.split(".", 1)[1]: v for k, v in tensors.items() if k.startswith(f"case{entry['case']}.")}
        rules = (("keep_default", 0.1, 1), ("keep_custom", settings["threshold"], settings["min_tokens"]))
        for field, threshold, least in rules:
            wrong, pixels, done, kept = 0, case["pixel_values"], 0, 0
            for (t, h, w), side in zip(case["grid_sizes"].tolist(), case["merge_sizes"].tolist(), strict=True):
                count, grid = t * h * w, (t, h // side, w // side)
                x = pixels[:count].reshape(1, count // side**2, -1)  # patches of a cell lie together
                tokens = Tokens(x=x, coords=patch_coordinates(grid)[None], grid=grid)
                places = DiffFP(threshold / 255, min_tokens=least).select(tokens)
                mask = torch.zeros(x.shape[1], dtype=torch.bool).index_fill(0, places[0], True)
                wrong += int((mask != case[field][done : done + x.shape[1]]).sum())
                pixels, done, kept = pixels[count:], done + x.shape[1], kept + len(places[0])
            rows.append([f"{entry['name']}, threshold {threshold:g}/255", f"{kept} of {done}", str(wrong)])
    return rows


def main() -> None:
    torch.set_num_threads(1)
    costs = ["5184 to 1024 tokens", "tokens kept", "ms, float32", "of encoder", "ms, bfloat16", "of encoder"]
    quality = ["1152 to 288 tokens", "tokens of things kept", "cosine to all tokens", "the same, real clips", "caption"]
    write_page(
        "selectors",
        "# Selectors and mergers: cost, what is left, parity",
        f"{machine()} Written by `python benchmarks/selection.py`; how to choose: [selectors](../selectors.md).",
        "## Cost",
        "FluxViT-S, 16 frames of 252 px, batch 1: processor time of `reduce`, gathering included, on one thread, the "
        f"best of {ROUNDS} rounds in which all rows take turns, beside the whole encoder at 1024 tokens. The vector of "
        "the text is given; scoring by the model's own first block is counted.",
        table(costs, cost_rows()),
        "## What is left at a quarter of the tokens",
        f"The shipped `nano`, which was trained with group-dynamic selection alone, on {SCENES} rendered scenes (seed "
        f"{SEED}, used for nothing else) and about {REAL_CLIPS} real clips of a person acting. First column: of the "
        "patches that captioned things touch, how many stay; chance is 25 %. Last column: the true caption beats three "
        "that differ in one attribute; brackets: 95 % Wilson interval. The text selector is told the true caption, so "
        "its last column is not comparable: it knows the answer.",
        table(quality, quality_rows(load("nano"), SCENES)),
        "## Largest differences to reference implementations",
        table(["token_merging", "merged tokens", "merged sizes"], merging_rows()),
        table(["videollama3_vision: frame pruning", "kept", "masks that differ"], pruning_rows()),
        "`tome_vit`, `umt`, `videomae_v2_dual_masking` and `fluxvit_tiny` are compared in the tests: equal masks, and "
        "tokens and logits of a whole ViT with merging in every block within 1e-5.",
    )


if __name__ == "__main__":
    main()
