"""What the recipes of FluxViT share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from elastivid.core.point import OperatingPoint
from elastivid.layers.block import Block, initialise_mimetic
from elastivid.models.fluxvit import FluxViT
from elastivid.train.checkpoint import LAST, load_checkpoint
from elastivid.train.stages import TrainingError

HEADS = ("pools.", "pool_norm.", "classifiers.")


def point_at(tokens: int, video: Tensor, patch_size: int) -> OperatingPoint:
    """The point that keeps `tokens` of a clip (B, T, 3, H, W); all of them where it has no more."""
    _, frames, _, height, width = video.shape
    available = frames * (height // patch_size) * (width // patch_size)
    return OperatingPoint(tokens=tokens if tokens < available else None)


def require_falling(token_counts: Sequence[int]) -> None:
    """Refuse counts that do not fall.

    Raises:
        ValueError: there are none, or one is not below the one before.
    """
    if list(token_counts) != sorted(set(token_counts), reverse=True) or not token_counts:
        raise ValueError(f"token_counts must fall, as in (2048, 1024, 512), got {tuple(token_counts)}")


def start(model: FluxViT, path: Path | None) -> None:
    """Fill the trunk of `model` with that of a run or checkpoint (see `load_encoder`), or prepare it for scratch."""
    if path is not None:
        load_encoder(model, path)
        return
    for block in model.blocks:
        assert isinstance(block, Block)
        initialise_mimetic(block)


def load_encoder(model: FluxViT, path: Path) -> None:
    """Fill the trunk of `model` (all but pools and classifiers) with that of a run or checkpoint.

    The run's FluxViT may be the model itself or its part `video`. Heads are taken over where they fit.

    Raises:
        TrainingError: parameters of the trunk are missing or have another shape.
    """
    state = load_checkpoint(path / LAST if path.is_dir() else path)
    weights = state.get("average") or state["module"]
    prefix = "video." if any(name.startswith("video.") for name in weights) else ""
    wanted = model.state_dict()
    found = {name: weights[prefix + name] for name in wanted if prefix + name in weights}
    fitting = {name: value for name, value in found.items() if value.shape == wanted[name].shape}
    absent = [name for name in wanted if name not in fitting and not name.startswith(HEADS)]
    if absent:
        raise TrainingError(f"{path} does not fit the video tower; missing or of another shape: {', '.join(absent)}")
    model.load_state_dict({**wanted, **fitting})
