"""FluxViT against the released code (largest differences) and against its published cost; speed on this machine.

    ELASTIVID_SHARED=../shared python benchmarks/encoder.py

Writes docs/benchmarks/encoder.md. Needs the golden file of the reference for the first table.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path

import torch
from safetensors import safe_open
from tables import machine, table, write_page

from elastivid.core.cost import measured_macs
from elastivid.core.point import OperatingPoint
from elastivid.models.fluxvit import PRESETS, FluxViTConfig, convert_reference

PUBLISHED_BLOCKS = {"small": (13.3, 31.4, 82.1, 152.0), "base": (48.0, 106.0, 251.0, 435.0)}
TOKENS = (512, 1024, 2048, 3072)


def golden_rows(file: Path) -> list[list[str]]:
    """Largest absolute difference of every golden case."""
    with safe_open(file, framework="pt") as opened:
        metadata, tensors = opened.metadata(), {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118
    model = FluxViTConfig.from_reference(json.loads(metadata["config"])).build().eval()
    model.load_state_dict(
        convert_reference({k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")})
    )
    rows = []
    for i, case in enumerate(json.loads(metadata["cases"])):
        video = tensors[f"case{i}.video"].float().transpose(1, 2)  # (B, 3, T, H, W) -> (B, T, 3, H, W)
        with torch.inference_mode():
            out = model(video, point=OperatingPoint(tokens=case["kept"]), head=case["head"])
        keep = tensors[f"case{i}.keep"].bool()
        kept = out.taps.get("kept", torch.arange(keep.shape[1]).expand(len(keep), -1))
        same = torch.equal(torch.zeros_like(keep).scatter(1, kept, True), keep)
        differences = [
            (out.taps["pooled"] - tensors[f"case{i}.feature"]).abs().max().item(),
            (out.logits - tensors[f"case{i}.logits"]).abs().max().item(),
        ]
        shape = f"{case['frames']} x {case['size']} px, {case['kept']} tokens, head {case['head']}"
        rows.append([shape, "equal" if same else "DIFFERENT", *(f"{d:.1e}" for d in differences)])
    return rows


def mac_rows() -> list[list[str]]:
    """Predicted block MACs beside the published ones, and predicted totals beside torch's counter."""
    rows = []
    for name, published in PUBLISHED_BLOCKS.items():
        config = PRESETS[name]
        model = config.build().eval()
        video = torch.zeros(1, 16, 3, 224, 224)
        for tokens, giga in zip(TOKENS, published, strict=True):
            blocks = config.depth * (12 * tokens * config.embed_dim**2 + 2 * tokens**2 * config.embed_dim) / 1e9
            point = OperatingPoint(tokens=tokens)
            predicted = config.cost(frames=16, size=224, tokens=tokens).macs
            counted = measured_macs(lambda model=model, video=video, point=point: model(video, point=point))
            ours = [f"{giga:g}", f"{blocks:.1f}", f"{100 * (blocks / giga - 1):+.1f} %"]
            total = [f"{predicted / 1e9:.1f}", f"{counted / 1e9:.1f}", f"{100 * (predicted / counted - 1):+.2f} %"]
            rows.append([f"{name}, {tokens} tokens", *ours, *total])
    return rows


def speed_rows() -> list[list[str]]:
    """Clips per second of nano at several token counts, batch 1 and 16, taken in turns."""
    config = PRESETS["nano"]
    model = config.build().eval()
    points: list[tuple[int | None, int]] = [(t, b) for t in (64, 128, 256, 512, None) for b in (1, 16)]
    times: dict[tuple[int | None, int], list[float]] = {p: [] for p in points}
    with torch.inference_mode():
        for _ in range(6):
            for tokens, batch in points:
                video = torch.randn(batch, 8, 3, 168, 168)
                start = time.perf_counter()
                model(video, point=OperatingPoint(tokens=tokens))
                times[tokens, batch].append((time.perf_counter() - start) / batch)
    rows = []
    for tokens, batch in points:
        gmacs = config.cost(frames=8, size=168, tokens=tokens).gmacs
        seconds = statistics.median(times[tokens, batch][1:])
        speed = [f"{1000 * seconds:.1f}", f"{1 / seconds:.0f}", f"{gmacs / seconds:.0f}"]
        rows.append([f"{tokens or 1152} tokens, batch {batch}", f"{gmacs:.2f}", *speed])
    return rows


def main() -> None:
    golden = Path(os.environ.get("ELASTIVID_SHARED", "../shared")) / "golden" / "fluxvit_tiny.safetensors"
    if golden.is_file():
        head = ["case", "kept tokens", "max difference of feature", "max difference of logits"]
        parity = table(head, golden_rows(golden))
    else:
        parity = f"Not measured: no golden file at {golden}."
    heads = ["GMACs", "published blocks", "our blocks", "difference", "our total", "counted total", "difference"]
    write_page(
        "encoder",
        "# FluxViT: parity, cost, speed",
        f"{machine()} Written by `python benchmarks/encoder.py`.",
        "## Against the released code, random weights, float32",
        parity,
        "## Multiply-accumulates",
        "Published: blocks only, arXiv 2503.14237. Counted: torch's counter under the MATH attention backend, "
        "16 frames of 224 px.",
        table(heads, mac_rows()),
        "## Speed of nano, 8 frames of 168 px, float32",
        "Median of five rounds in which all rows take turns.",
        table(["operating point", "GMACs", "ms per clip", "clips/s", "GMACs/s"], speed_rows()),
    )


if __name__ == "__main__":
    main()
