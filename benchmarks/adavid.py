"""TimeSformer and AdaVid against transformers and released code (largest differences), and what width buys here.

    ELASTIVID_SHARED=../shared python benchmarks/adavid.py

Writes docs/benchmarks/adavid.md. Needs the golden file of EgoVLP for its rows, and the extra `hf`.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from safetensors import safe_open
from tables import machine, table, write_page
from torch import Tensor, nn

from elastivid.core.cost import measured_macs
from elastivid.core.point import OperatingPoint
from elastivid.losses.contrastive import contrastive, egonce, shared_action
from elastivid.models import adavid, timesformer
from elastivid.models.adavid import AdaVidDualConfig
from elastivid.models.timesformer import TimeSformerConfig

ROUNDS = 6  # the first is not counted
FALLING, RISING = (768,) * 4 + (576,) * 4 + (384,) * 4, (384,) * 4 + (576,) * 4 + (768,) * 4
SCHEDULES = {"768": None, "576": 576, "384": 384, "192": 192, "768 x4, 576 x4, 384 x4": FALLING, "its reverse": RISING}


def noisy(model: nn.Module) -> nn.Module:
    """Random parameters of which none is without effect."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.15, mean=float("norm" in name.lower() and name.endswith("weight")))
    return model.eval()


def worst(ours: Tensor, theirs: Tensor) -> str:
    """Largest absolute difference."""
    return f"{(ours - theirs).abs().max().item():.1e}"


@torch.inference_mode()
def transformers_rows() -> list[list[str]]:
    """Every kind of attention with random weights against transformers' Timesformer."""
    rows = []
    for kind in ("divided_space_time", "joint_space_time", "space_only"):
        sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
        config = transformers.TimesformerConfig(
            **sizes, num_frames=4, image_size=64, patch_size=16, attention_type=kind, num_labels=7
        )
        theirs = noisy(transformers.TimesformerForVideoClassification(config))
        ours = TimeSformerConfig.from_reference(config.to_dict()).build().eval()
        ours.load_state_dict(timesformer.convert_reference(theirs.state_dict()))
        for size in (64, 32):
            video = torch.randn(3, 4, 3, size, size)
            hidden = theirs.timesformer(video).last_hidden_state
            tokens = ours.norm(ours(video).tokens.x)
            if kind == "space_only":  # (B*T, 1+n, D): theirs returns every frame by itself
                hidden = hidden.unflatten(0, (3, 4))
                hidden, tokens = hidden[:, :, 1:].flatten(1, 2), tokens[:, 4:]
            else:  # theirs lie site by site
                sites = hidden[:, 1:].unflatten(1, (-1, 4)).transpose(1, 2).flatten(1, 2)  # (B, n, T, D) -> (B, N, D)
                hidden = torch.cat([hidden[:, :1], sites], dim=1)
            rows.append([f"{kind}, 4 frames of {size} px", worst(tokens, hidden)])
    return rows


@torch.inference_mode()
def egovlp_rows(file: Path) -> tuple[list[list[str]], list[list[str]]]:
    """Embeddings of every golden model case, and losses of every golden case."""
    with safe_open(file, framework="pt") as opened:
        metadata, tensors = opened.metadata(), {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118
    model = AdaVidDualConfig.from_reference(json.loads(metadata["config"])).build().eval()
    model.load_state_dict(
        adavid.convert_reference({k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")})
    )
    embeddings, losses = [], []
    for i, case in enumerate(json.loads(metadata["cases"])):
        given = {k.partition(".")[2]: v for k, v in tensors.items() if k.startswith(f"case{i}.")}
        if case["kind"] == "model":
            clips = model.video(given["video"].float()).embedding
            texts = model.text(given["input_ids"], given["attention_mask"].sum(1))
            cosines = F.normalize(texts, dim=-1) @ F.normalize(clips, dim=-1).T
            pairs = (clips, "video_embedding"), (texts, "text_embedding"), (cosines, "similarity")
            embeddings.append([case["describe"], *(worst(ours, given[name]) for ours, name in pairs)])
        eye, positives = torch.eye(case["batch"]), shared_action(given["verbs"], given["nouns"])
        ours = egonce(given["similarity"], eye, 20, positives), 2 * contrastive(given["similarity"], eye, 20)
        losses.append([case["describe"], worst(ours[0], given["egonce"]), worst(ours[1], given["infonce"])])
    return embeddings, losses


def cost_rows() -> list[list[str]]:
    """Predicted and counted MACs of AdaVid base at schedules of widths, 4 frames of 224 px."""
    config = adavid.PRESETS["base"]
    model, video = config.build().eval(), torch.zeros(1, 4, 3, 224, 224)
    full = config.cost(frames=4, size=224).macs
    rows = []
    for name, width in SCHEDULES.items():
        predicted = config.cost(frames=4, size=224, width=width).macs
        counted = measured_macs(lambda width=width: model(video, point=OperatingPoint(width=width)))
        difference = f"{100 * (predicted / counted - 1):+.2f} %"
        rows.append([name, f"{predicted / 1e9:.1f}", f"{counted / 1e9:.1f}", difference, f"{full / predicted:.2f}"])
    return rows


def speed_rows() -> list[list[str]]:
    """Milliseconds per clip of TimeSformer base, 8 frames of 224 px, batch 1: transformers and ours, in turns."""
    reference = transformers.TimesformerConfig()
    theirs = transformers.TimesformerModel(reference).eval()
    config = TimeSformerConfig.from_reference(reference.to_dict())
    ours, video = config.build().eval(), torch.randn(1, 8, 3, 224, 224)
    ours.load_state_dict({**ours.state_dict(), **timesformer.convert_reference(theirs.state_dict())})
    rounded, half = config.build().eval().cast("bfloat16"), ours.at(OperatingPoint(width=384)).cast("bfloat16")
    theirs_rounded, video_rounded = transformers.TimesformerModel(reference).eval().bfloat16(), video.bfloat16()
    runs: dict[tuple[str, str], Callable[[], object]] = {("transformers", "float32"): lambda: theirs(video)}
    for name, width in SCHEDULES.items():
        point = OperatingPoint(width=width)
        runs[f"ours, {name}", "float32"] = lambda point=point: ours(video, point=point)
    runs["transformers", "bfloat16"] = lambda: theirs_rounded(video_rounded)
    runs["ours, 768", "bfloat16"] = lambda: rounded(video)
    runs["ours, cut out at 384", "bfloat16"] = lambda: half(video)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for key, run in runs.items():
                start = time.perf_counter()
                run()
                times[key].append(time.perf_counter() - start)
    seconds = {key: statistics.median(values[1:]) for key, values in times.items()}
    widths: dict[str, object] = {f"ours, {name}": width for name, width in SCHEDULES.items()}
    widths["ours, cut out at 384"] = 384
    rows = []
    for (name, precision), value in seconds.items():
        gmacs = config.cost(frames=8, size=224, width=widths.get(name)).gmacs
        gain = f"{seconds['transformers', precision] / value:.2f}"
        rows.append([f"{name}, {precision}", f"{gmacs:.0f}", f"{1000 * value:.0f}", f"{gmacs / value:.0f}", gain])
    return rows


def main() -> None:
    golden = Path(os.environ.get("ELASTIVID_SHARED", "../shared")) / "golden" / "egovlp.safetensors"
    parts = [f"Not measured: no golden file at {golden}."]
    if golden.is_file():
        embeddings, losses = egovlp_rows(golden)
        parts = [
            table(["max difference to EgoVLP's released code", "clip", "text", "cosines"], embeddings),
            table(["losses on the cosines of", "EgoNCE", "InfoNCE, both directions added"], losses),
        ]
    write_page(
        "adavid",
        "# TimeSformer and AdaVid: parity, cost, speed",
        f"{machine('transformers')} Written by `python benchmarks/adavid.py`.",
        "## Against the references, random weights, float32",
        table(["transformers' Timesformer", "max difference of tokens"], transformers_rows()),
        *parts,
        "## Multiply-accumulates of AdaVid base",
        "4 frames of 224 px, widths of its 12 blocks. Counted: torch's counter under the MATH attention backend.",
        table(["widths", "GMACs", "counted", "difference", "full / this"], cost_rows()),
        "## Speed of TimeSformer base, divided attention",
        f"8 frames of 224 px, batch 1. Median of {ROUNDS - 1} rounds in which all rows take turns; gain over "
        "transformers in the same precision.",
        table(["", "GMACs", "ms per clip", "GMACs/s", "gain"], speed_rows()),
    )


if __name__ == "__main__":
    main()
