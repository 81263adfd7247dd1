"""Exponential moving average of a model's parameters."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema:
    """Keeps `average = decay * average + (1 - decay) * model` over parameters; buffers are copied.

    The decay is warmed up as min(decay, (1 + steps) / (10 + steps)), so that early steps do not linger.

    Args:
        model: the model to follow; the average starts as its copy.
        decay: weight of the old average, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.steps = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards `model` by one step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for mean, parameter in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(parameter, 1 - decay)
        for kept, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(buffer)
