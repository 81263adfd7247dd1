"""AdamW with parameter groups in a fixed order: no decay for vectors and tables, layer decay along blocks.

    rate of a parameter = rate of the stage * layer_decay ** (top of its tower - its layer)

A tower is what stands before `blocks.N.` in a name. What it registers before its blocks (patch embedding, positions,
class token) is layer 0, block N is layer N + 1, what follows them (norms, pools, classifiers) is the top, and so is
everything outside of towers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from elastivid.train.sharding import spread_like, whole
from elastivid.train.stages import Stage

_BLOCK = re.compile(r"^(?P<tower>(?:.*\.)?)blocks\.(?P<number>\d+)\.")
NO_DECAY = re.compile(r"(?:^|\.)(?:words|position|positions|cls_token|mask_token|time_positions)$")


def layers_of(names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Layer of every parameter and the top layer of its tower; see the module's text.

    Args:
        names: all parameters of the model, in its order.
    """
    towers: dict[str, list[tuple[int, int]]] = {}  # prefix -> (place in the order, block number)
    for place, name in enumerate(names):
        match = _BLOCK.match(name)
        if match:
            towers.setdefault(match["tower"], []).append((place, int(match["number"])))
    found = {}
    for place, name in enumerate(names):
        tower = max((t for t in towers if name.startswith(t)), key=len, default=None)
        if tower is None:
            found[name] = (0, 0)
            continue
        top = max(number for _, number in towers[tower]) + 2
        match = _BLOCK.match(name)
        if match and match["tower"] == tower:
            found[name] = (int(match["number"]) + 1, top)
        else:
            found[name] = (0 if place < towers[tower][0][0] else top, top)
    return found


def parameter_groups(module: nn.Module, stage: Stage, names: Sequence[str]) -> list[dict]:
    """Groups for AdamW, in the order in which the model first names a member.

    Args:
        module: the model.
        stage: weight decay and layer decay.
        names: the parameters to train.

    Returns:
        Groups with `params`, `names`, `weight_decay` and `scale`, the factor on the stage's rate.
    """
    named = dict(module.named_parameters())
    layers = layers_of(list(named))
    groups: dict[tuple[float, float, bool], dict] = {}
    for name in names:
        parameter = named[name]
        decay = 0.0 if parameter.ndim < 2 or NO_DECAY.search(name) else stage.weight_decay
        layer, top = layers[name]
        scale = stage.layer_decay ** (top - layer)
        key = (scale, decay, isinstance(parameter, DTensor))  # torch takes spread and whole tensors one kind at a time
        group = groups.setdefault(key, {"params": [], "names": [], "weight_decay": decay, "scale": scale})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


class Adam:
    """AdamW over named parameters, whose state is kept by name: it outlives stages and changes of their parameters.

    Args:
        module: the model.
        stage: rates and decays.
        names: the parameters to train.
        state: what `state` of the optimizer before returned; parameters that it names go on with their moments.
    """

    def __init__(
        self, module: nn.Module, stage: Stage, names: Sequence[str], state: Mapping[str, dict] | None = None
    ) -> None:
        self.groups = parameter_groups(module, stage, names)
        self.optimizer = torch.optim.AdamW(self.groups, lr=stage.learning_rate, betas=stage.betas)
        self.parameters = [parameter for group in self.groups for parameter in group["params"]]
        for group in self.groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                if state and name in state:
                    self.optimizer.state[parameter] = {
                        key: value.clone() if key == "step" else spread_like(value.clone(), parameter)
                        for key, value in state[name].items()
                    }

    def step(self, learning_rate: float) -> None:
        """One step at the stage's rate `learning_rate`."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["scale"]
        self.optimizer.step()

    def state(self) -> dict[str, dict]:
        """Moments and step count of every parameter, by name; whole ones, so all processes must ask."""
        return {
            name: {key: whole(value) for key, value in self.optimizer.state[parameter].items()}
            for group in self.groups
            for name, parameter in zip(group["names"], group["params"], strict=True)
            if parameter in self.optimizer.state
        }
