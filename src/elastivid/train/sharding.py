"""Weights, gradients and moments spread over the processes: torch's fully sharded data parallelism (arXiv 2304.11277).

Each process holds a part of every parameter. A block's parameters are gathered when it runs and let go afterwards, so
the largest model that trains is bounded by the memory of all processes together. Everything else here turns parts into
whole tensors and back: checkpoints, hashes and evaluations are those of a run that is not sharded.

All functions that make something whole must be called by all processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(root: nn.Module, device: torch.device) -> None:
    """Spread the parameters of `root` over the processes, those of every block by themselves, in place.

    Blocks are the members of lists called "blocks". `requires_grad` is fixed from here on. Scalars cannot be spread:
    every process keeps them, and `average_scalars` makes their gradients meet.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for name, module in root.named_modules():
        if name.rpartition(".")[2] == "blocks" and isinstance(module, nn.ModuleList):
            for block in module:
                fully_shard(block, mesh=mesh)
    fully_shard(root, mesh=mesh, ignored_params={p for p in root.parameters() if p.ndim == 0})


def average_scalars(parameters: Iterable[Tensor]) -> None:
    """Average the gradients of parameters that every process keeps, as those of the others were."""
    for parameter in parameters:
        if not isinstance(parameter, DTensor) and parameter.grad is not None:
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= torch.distributed.get_world_size()


def clip_gradients(parameters: Sequence[Tensor], limit: float) -> Tensor:
    """Scale all gradients so that their norm together is at most `limit`; the norm before that.

    Spread and whole tensors do not mix in one operation of torch, so each kind is measured and scaled by itself.
    """
    kinds = [[p for p in parameters if isinstance(p, DTensor) == spread] for spread in (True, False)]
    kinds = [kind for kind in kinds if kind]
    if len(kinds) == 1:
        return whole(torch.nn.utils.clip_grad_norm_(kinds[0], limit))
    norms = [whole(torch.nn.utils.clip_grad_norm_(kind, math.inf)) for kind in kinds]
    total = torch.linalg.vector_norm(torch.stack(norms))
    factor = (limit / (total + 1e-6)).clamp(max=1.0)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(float(factor))
    return total


def whole(value: Tensor) -> Tensor:
    """The whole of a tensor that is spread over the processes; any other tensor itself."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of `module` with whole tensors."""
    return {name: whole(value.detach()) for name, value in module.state_dict().items()}


def spread_like(value: Tensor, other: Tensor) -> Tensor:
    """A whole tensor on the device of `other`, spread as that one is."""
    value = value.to(other.device)
    return distribute_tensor(value, other.device_mesh, other.placements) if isinstance(other, DTensor) else value


@torch.no_grad()
def fill(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict of whole tensors into a module that may be spread."""
    for name, value in module.state_dict().items():
        value.copy_(spread_like(state[name], value))
