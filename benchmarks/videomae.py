"""VideoMAE-B beside transformers' VideoMAE with the same weights: speed, precision, selection, width, and training.

    python benchmarks/videomae.py [--rounds 6]

Writes docs/benchmarks/videomae.md. Weights are random: what is measured does not depend on them. All rows of a table
take turns in every round; the first round is not counted and the middle one of the others is reported. Needs the extra
`hf`; about 5 minutes on two cores.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import transformers
from tables import machine, table, write_page
from torch import Tensor, nn

from elastivid.core.point import OperatingPoint
from elastivid.core.tokens import Tokens
from elastivid.layers.embed import patch_coordinates
from elastivid.losses.masked import cubes, masked_regression, standardised
from elastivid.models.videomae import (
    PRESETS,
    PRETRAINING,
    MaskedAutoencoder,
    PretrainingConfig,
    VideoMAEConfig,
    as_mask,
    convert_pretraining,
    convert_reference,
)
from elastivid.select.masks import RandomTubes, RunningCell
from elastivid.video.transforms import IMAGENET_MEAN, IMAGENET_STD

MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
Run = Callable[[], object]


def peers() -> tuple[nn.Module, nn.Module]:
    """transformers' classifier of the base size, and ours with its weights."""
    config = transformers.VideoMAEConfig(num_labels=400, architectures=["VideoMAEForVideoClassification"])
    theirs = transformers.VideoMAEForVideoClassification(config).eval()
    ours = VideoMAEConfig.from_reference(config.to_dict()).build().eval()
    ours.load_state_dict(convert_reference(theirs.state_dict()))
    return theirs, ours


def in_turns(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Median seconds of each, all of them once a round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def rows_of(seconds: dict[str, float], gmacs: dict[str, float], base: str) -> list[list[str]]:
    """Name, GMACs, milliseconds, share of the base row's time, GMACs per second."""
    return [
        [name, f"{gmacs[name]:.1f}", f"{1e3 * took:.0f}", f"{seconds[base] / took:.2f}x", f"{gmacs[name] / took:.0f}"]
        for name, took in seconds.items()
    ]


@torch.inference_mode()
def inference(rounds: int) -> tuple[str, str]:
    """The table of one clip, and the differences of its rows to transformers in float32."""
    theirs, ours = peers()
    video = torch.randn(1, 16, 3, 224, 224)
    theirs16, ours16 = copy.deepcopy(theirs).to(torch.bfloat16), copy.deepcopy(ours).cast("bfloat16")
    half, quarter, narrow = (
        OperatingPoint(tokens=784),
        OperatingPoint(tokens=392),
        OperatingPoint(tokens=784, width=384),
    )
    runs: dict[str, Run] = {
        "transformers, float32": lambda: theirs(video).logits,
        "elastivid, float32": lambda: ours(video).logits,
        "transformers, bfloat16 weights": lambda: theirs16(video.to(torch.bfloat16)).logits,
        "elastivid, bfloat16 weights": lambda: ours16(video).logits,
        "elastivid, bfloat16, 784 of 1568 tokens": lambda: ours16(video, point=half).logits,
        "elastivid, bfloat16, 392 of 1568 tokens": lambda: ours16(video, point=quarter).logits,
        "elastivid, bfloat16, 784 tokens, half width": lambda: ours16(video, point=narrow).logits,
    }
    sizes = {"784 of": (784, None), "392 of": (392, None), "half width": (784, 384)}
    gmacs = {}
    for name in runs:
        tokens, width = next((size for part, size in sizes.items() if part in name), (None, None))
        gmacs[name] = ours.config.cost(frames=16, size=224, tokens=tokens, width=width).gmacs
    exact = runs["transformers, float32"]()
    scale = exact.abs().max()
    apart = [[name, f"{(runs[name]() - exact).abs().max() / scale:.1e}"] for name in list(runs)[1:4]]
    seconds = in_turns(runs, rounds)
    head = ["one clip of 16 x 224 px", "GMACs", "ms", "speed", "GMACs/s"]
    return (
        table(head, rows_of(seconds, gmacs, "transformers, float32")),
        table(["largest difference of logits to transformers in float32, over the largest logit", ""], apart),
    )


def training(rounds: int) -> str:
    """A step of pre-training, forward and backward, of one clip in float32."""
    config = transformers.VideoMAEConfig(use_mean_pooling=False, architectures=["VideoMAEForPreTraining"])
    theirs = transformers.VideoMAEForPreTraining(config).train()
    sizes = PretrainingConfig.from_reference(config.to_dict())
    ours = sizes.build().train()
    ours.load_state_dict(convert_pretraining(theirs.state_dict()))
    coords = patch_coordinates(sizes.encoder.table_grid)[None]
    tokens = Tokens(x=coords, coords=coords, grid=sizes.encoder.table_grid)
    video, visible = torch.randn(1, 16, 3, 224, 224), RandomTubes(0).select(tokens, 160)
    hidden, half = ~as_mask(visible, 1568), RunningCell(0).select(tokens, 784)

    def step(model: nn.Module, loss: Callable[[], Tensor]) -> None:
        loss().backward()
        model.zero_grad(set_to_none=True)

    runs: dict[str, Run] = {
        "transformers, VideoMAE": lambda: step(theirs, lambda: theirs(video, bool_masked_pos=hidden).loss),
        "elastivid, VideoMAE": lambda: step(ours, lambda: rebuilt(ours, video, visible, None)),
        "elastivid, V2: half of the places predicted": lambda: step(ours, lambda: rebuilt(ours, video, visible, half)),
    }
    whole = PRETRAINING["base"].cost(visible=160, predicted=1408).gmacs
    gmacs = dict.fromkeys(runs, whole)
    gmacs["elastivid, V2: half of the places predicted"] = sizes.cost(visible=160, predicted=784).gmacs
    seconds = in_turns(runs, rounds)
    head = ["forward and backward, one clip, float32", "GMACs forward", "ms", "speed", "GMACs/s"]
    return table(head, rows_of(seconds, gmacs, "transformers, VideoMAE"))


def rebuilt(model: MaskedAutoencoder, video: Tensor, visible: Tensor, predicted: Tensor | None) -> Tensor:
    """The loss of a masked autoencoder."""
    out = model(video, visible, predicted)
    sizes = model.config.encoder
    target = standardised(cubes(video * STD + MEAN, sizes.tubelet_size, sizes.patch_size)).flatten(2)
    return masked_regression(
        out.prediction, target.gather(1, out.places[..., None].expand_as(out.prediction)), out.counted
    )


def sizes_table() -> str:
    """Published sizes by formula."""
    published = {"small": (57, 22), "base": (180, 87), "large": (597, 305), "huge": (1192, 633), "giant": (2544, 1012)}
    rows = []
    for preset, (gmacs, million) in published.items():
        cost = PRESETS[preset].cost(frames=16, size=224)
        own = cost.parameter_bytes / 4e6
        rows.append([preset, f"{cost.gmacs:.1f}", str(gmacs), f"{own:.1f}", str(million)])
    return table(["videomae/", "GMACs", "published", "M parameters", "published"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    spent, apart = inference(rounds)
    write_page(
        "videomae",
        "# VideoMAE-B beside transformers",
        machine("transformers") + " Same random weights (seed 0), rows in turns, median of "
        f"{rounds - 1} rounds after one to warm up. Speed is that of the first row over that of the row.",
        spent,
        apart,
        "Untrained weights say nothing about what selection costs in accuracy: only what it saves. Parameters are "
        "those without classifier; published numbers round and include one.",
        training(rounds),
        "The published GMACs of pre-training include the projection of hidden cubes, which is left out here.",
        sizes_table(),
        "Command: `python benchmarks/videomae.py`",
    )


if __name__ == "__main__":
    main()
