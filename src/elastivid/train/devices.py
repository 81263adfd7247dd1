"""Where training runs: accelerate's view of devices, precision and processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from elastivid.core.errors import ElastividError, MissingExtraError, PointError

if TYPE_CHECKING:
    from accelerate import Accelerator

DEVICES = ("auto", "cpu", "cuda")
EVALUATION_HOURS = 6  # processes wait so long for the one that evaluates


def accelerator_for(device: str, precision: str) -> Accelerator:
    """An `Accelerator`, one of all processes where a launcher such as torchrun started several.

    Args:
        device: "cpu", "cuda", or "auto": a GPU where there is one. Of several GPUs the launcher, or the variable
            CUDA_VISIBLE_DEVICES, chooses.
        precision: "float32", "bfloat16", or "auto": bfloat16 on GPUs that have it, else float32.

    Raises:
        MissingExtraError: accelerate is not installed.
        PointError: no such device or precision, or no GPU where one is asked for.
    """
    try:
        from accelerate import Accelerator, InitProcessGroupKwargs
        from accelerate.state import AcceleratorState, PartialState
    except ImportError as error:
        raise MissingExtraError("accelerate", "train") from error
    if device not in DEVICES:
        raise PointError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    gpu = torch.cuda.is_available()
    if device == "cuda" and not gpu:
        raise PointError("device cuda was asked for, but torch sees no GPU here; use --device cpu")
    on_gpu = gpu and device != "cpu"
    if precision == "auto":
        precision = "bfloat16" if on_gpu and torch.cuda.is_bf16_supported() else "float32"
    AcceleratorState._reset_state()  # one process may train several times, each with its own precision and device
    if not torch.distributed.is_initialized():
        PartialState._reset_state()
    return Accelerator(
        cpu=not on_gpu,
        mixed_precision="bf16" if precision == "bfloat16" else "no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=EVALUATION_HOURS))],
    )


def moved(batch: Any, device: torch.device) -> Any:
    """`batch` with every tensor in its dicts, lists and tuples on `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple) and not hasattr(batch, "_fields"):
        return type(batch)(moved(value, device) for value in batch)
    return batch


def mean_over(accelerator: Accelerator, values: Tensor) -> Tensor:
    """Mean of `values` over the processes, on the CPU."""
    if accelerator.num_processes == 1:
        return values
    reduced: Tensor = accelerator.reduce(values.to(accelerator.device), reduction="mean")
    return reduced.cpu()


def largest_over(accelerator: Accelerator, value: float) -> float:
    """Largest `value` of the processes."""
    if accelerator.num_processes == 1:
        return value
    gathered: Tensor = accelerator.gather(torch.tensor([value], dtype=torch.float64, device=accelerator.device))
    return float(gathered.max())


def told_by_main(accelerator: Accelerator, ask: Callable[[], bool]) -> bool:
    """What `ask` returns in the main process, told to all; an error of ours that it raises there is raised by all."""
    from accelerate.utils import broadcast_object_list

    told: list[Any] = [False, None]
    if accelerator.is_main_process:
        try:
            told[0] = ask()
        except ElastividError as error:
            told[1] = error
    broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    return bool(told[0])
