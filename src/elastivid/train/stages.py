"""`Stage`: a stretch of training, declared: which parameters, how many steps, at what rate. And the proof that it held.

A stage names its parameters by patterns. After its first step the loop asserts that each of them got a gradient and
that all others are bit for bit what they were; at its end, that each of them changed and no other did. A frozen tower
that trains, or an unfrozen one that does not, is the commonest silent failure of staged training.
"""

from __future__ import annotations

import fnmatch
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from elastivid.core.errors import ElastividError, UnknownNameError
from elastivid.train.sharding import whole


class TrainingError(ElastividError, RuntimeError):
    """Training cannot go on, or did not do what its stage says."""


@dataclass(frozen=True)
class Stage:
    """A stretch of training.

    Args:
        name: for logs and for the recipe's `dataset` and `step`, which are given the stage.
        steps: optimizer steps; with `RecipeConfig.minutes`, the share of the time instead.
        learning_rate: peak, reached after the warm-up.
        warmup_steps: steps over which the rate rises linearly to the peak.
        final_share: the rate at the end as a share of the peak; a cosine leads there.
        weight_decay: of matrices; vectors, position tables and class tokens have none.
        layer_decay: the rate of a block is this times the rate of the block above it; 1 for equal rates.
        betas: of AdamW.
        trained: patterns of parameter names (`*` matches anything); one that starts with `!` takes names out again.
        ema_decay: of the moving average of the weights; `None` leaves the average where it is.
        clip_norm: largest norm of all gradients together; `None` for no limit.

    Raises:
        ValueError: a value is out of range.
    """

    name: str
    steps: int
    learning_rate: float
    warmup_steps: int = 0
    final_share: float = 0.0
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    trained: tuple[str, ...] = ("*",)
    ema_decay: float | None = None
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        wanted = {
            "steps must be >= 1": self.steps >= 1,
            "learning_rate must be > 0": self.learning_rate > 0,
            "warmup_steps must be >= 0": self.warmup_steps >= 0,
            "final_share must be in [0, 1]": 0 <= self.final_share <= 1,
            "weight_decay must be >= 0": self.weight_decay >= 0,
            "layer_decay must be in (0, 1]": 0 < self.layer_decay <= 1,
            "ema_decay must be in [0, 1)": self.ema_decay is None or 0 <= self.ema_decay < 1,
            "clip_norm must be > 0": self.clip_norm is None or self.clip_norm > 0,
        }
        for text, fulfilled in wanted.items():
            if not fulfilled:
                raise ValueError(f"stage {self.name!r}: {text}, got {getattr(self, text.split()[0])}")

    def learning_rate_at(self, progress: float) -> float:
        """The rate at `progress` in [0, 1]: linear warm-up, then a half cosine to the final share.

        With s steps and w of warm-up, step k of the stage (from 0) runs at progress (k + 1) / s, so the last step of
        the warm-up runs at the peak.
        """
        warm = min(self.warmup_steps / self.steps, 1.0)
        if progress < warm:
            return self.learning_rate * progress / warm
        along = 0.0 if warm >= 1.0 else (min(progress, 1.0) - warm) / (1.0 - warm)
        share = self.final_share + (1.0 - self.final_share) * 0.5 * (1.0 + math.cos(math.pi * along))
        return self.learning_rate * share


def trained_names(stage: Stage, trainable: Sequence[str], fixed: Iterable[str] = ()) -> list[str]:
    """Names of the parameters that `stage` trains, in the order of the model.

    Args:
        stage: its `trained` patterns; one that only takes out starts from everything.
        trainable: names of the parameters that the model lets train.
        fixed: names of those it never trains, such as fixed position tables; for the message.

    Raises:
        UnknownNameError: a pattern matches no trainable parameter.
        TrainingError: nothing is left to train.
    """
    kept: set[str] = set(trainable) if all(p.startswith("!") for p in stage.trained) else set()
    for pattern in stage.trained:
        plain = pattern.removeprefix("!")
        hits = set(fnmatch.filter(trainable, plain))
        if not hits:
            if fnmatch.filter(list(fixed), plain):
                raise TrainingError(
                    f"stage {stage.name!r} trains {plain!r}, but the model holds these parameters fixed"
                )
            raise UnknownNameError(f"parameter pattern of stage {stage.name!r}", plain, trainable)
        kept = kept - hits if pattern.startswith("!") else kept | hits
    if not kept:
        raise TrainingError(f"stage {stage.name!r} trains nothing: its patterns {stage.trained} take out what they add")
    return [name for name in trainable if name in kept]


def hashes(parameters: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Hash of the bytes of every tensor, whole: equal hashes mean bit for bit equal tensors."""
    found = {}
    for name, value in parameters.items():
        raw = whole(value.detach()).contiguous().reshape(-1).view(torch.uint8).cpu().numpy()  # (bytes,)
        found[name] = hashlib.blake2b(raw.tobytes(), digest_size=16).digest()
    return found


def check_gradients(stage: Stage, module: nn.Module, names: Sequence[str]) -> None:
    """Raise `TrainingError` where a parameter that the stage trains got no gradient in its first step."""
    named = dict(module.named_parameters())
    without = [name for name in names if named[name].grad is None]
    if without:
        raise TrainingError(
            f"stage {stage.name!r} trains {len(without)} parameters that the loss does not depend on: "
            f"{_listed(without)}. Use them in the recipe's step, or take them out of the stage's `trained`."
        )


def check_frozen(stage: Stage, before: Mapping[str, bytes], now: Mapping[str, bytes], names: Sequence[str]) -> None:
    """Raise `TrainingError` where a parameter that is not among `names` changed."""
    moved = [name for name in before if name not in set(names) and now[name] != before[name]]
    if moved:
        raise TrainingError(
            f"stage {stage.name!r} changed {len(moved)} parameters that it does not train: {_listed(moved)}. "
            "Something writes to them in the recipe's step or in the model's forward."
        )


def check_trained(stage: Stage, before: Mapping[str, bytes], now: Mapping[str, bytes], names: Sequence[str]) -> None:
    """Raise `TrainingError` where a parameter among `names` is what it was before the stage."""
    same = [name for name in names if now[name] == before[name]]
    if same:
        raise TrainingError(
            f"stage {stage.name!r} trained {len(same)} parameters that did not change: {_listed(same)}. "
            "Their gradient was zero in every step; take them out of the stage's `trained` or mend the loss."
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def set_modes(module: nn.Module, names: Sequence[str]) -> None:
    """Training mode for what trains, evaluation mode (no dropout) for the parts whose parameters are all frozen."""
    module.train()
    _freeze_modes(module, set(names), "")


def _freeze_modes(module: nn.Module, names: set[str], prefix: str) -> None:
    own = [prefix + name for name, _ in module.named_parameters()]
    if own and names.isdisjoint(own):
        module.eval()
        return
    for name, child in module.named_children():
        _freeze_modes(child, names, f"{prefix}{name}.")
