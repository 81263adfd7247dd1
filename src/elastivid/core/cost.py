"""`Cost`: what a computation spends, and the closed forms that predict it. The one place for cost arithmetic.

A MAC is one multiply-accumulate (papers often print it as one "FLOP"). Closed forms count matrix products and
convolutions; norms, activations and additions are left out, as they are by torch's counter.

Letters: N tokens, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from elastivid.core.budget import Budget
from elastivid.core.point import Runtime


@dataclass(frozen=True)
class Cost:
    """What running something once costs.

    Args:
        macs: multiply-accumulates.
        parameter_bytes: bytes of the weights.
        activation_bytes: peak bytes of intermediate results that are alive at the same time.
        state_bytes: bytes of streaming state kept between calls.
        milliseconds: measured time, or `None` when it was not measured.
        hardware: what the time was measured on (see `hardware_key`); required with `milliseconds`.

    Raises:
        ValueError: a value is negative, or a time comes without the hardware it was measured on.
    """

    macs: int = 0
    parameter_bytes: int = 0
    activation_bytes: int = 0
    state_bytes: int = 0
    milliseconds: float | None = None
    hardware: str | None = None

    def __post_init__(self) -> None:
        for name in ("macs", "parameter_bytes", "activation_bytes", "state_bytes", "milliseconds"):
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"Cost.{name} must be finite and >= 0, got {value}")
        if self.milliseconds is not None and not self.hardware:
            raise ValueError("Cost.milliseconds needs Cost.hardware: a time means nothing without what it ran on")

    def __add__(self, other: Cost) -> Cost:
        """Cost of one thing after the other: both sets of weights stay loaded, activations of the first are freed.

        MACs, bytes of weights and state add up, activations take the larger peak. Times add up when both are
        known, else the sum has none.

        Raises:
            ValueError: the times were measured on different hardware.
        """
        if not isinstance(other, Cost):
            return NotImplemented
        timed = self.milliseconds is not None and other.milliseconds is not None
        if timed and self.hardware != other.hardware:
            raise ValueError(
                f"cannot add times measured on different hardware: {self.hardware!r} and {other.hardware!r}; "
                "measure both on one machine or drop the times"
            )
        return Cost(
            macs=self.macs + other.macs,
            parameter_bytes=self.parameter_bytes + other.parameter_bytes,
            activation_bytes=max(self.activation_bytes, other.activation_bytes),
            state_bytes=self.state_bytes + other.state_bytes,
            milliseconds=self.milliseconds + other.milliseconds if timed else None,  # type: ignore[operator]
            hardware=self.hardware if timed else None,
        )

    def times(self, clips: int) -> Cost:
        """Cost of `clips` clips one after another: MACs and time scale, memory does not.

        Raises:
            ValueError: `clips` is negative.
        """
        if clips < 0:
            raise ValueError(f"clips must be >= 0, got {clips}")
        milliseconds = None if self.milliseconds is None else self.milliseconds * clips
        return replace(self, macs=self.macs * clips, milliseconds=milliseconds)

    @property
    def gmacs(self) -> float:
        """Billions of multiply-accumulates."""
        return self.macs / 1e9

    @property
    def total_bytes(self) -> int:
        """Weights, peak activations and state together."""
        return self.parameter_bytes + self.activation_bytes + self.state_bytes

    def violations(self, budget: Budget, *, video_seconds: float | None = None, tokens: int | None = None) -> list[str]:
        """Limits of `budget` that this cost of one clip breaks, with both numbers; empty when it fits.

        A limit whose quantity is unknown counts as broken: nothing shows that it is kept.

        Args:
            budget: the limits.
            video_seconds: seconds of video that one clip advances, needed for `realtime_factor`.
            tokens: tokens the clip uses, needed for `tokens_per_clip`.
        """
        speed = None
        if video_seconds is not None and self.milliseconds is not None:
            speed = math.inf if self.milliseconds == 0 else video_seconds / (self.milliseconds / 1e3)
        above_weights = (self.activation_bytes + self.state_bytes) / 1e6
        spent: dict[str, tuple[float | None, str, str]] = {
            "gmacs_per_clip": (self.gmacs, "GMACs", ""),
            "milliseconds_per_clip": (self.milliseconds, "ms", "measure the clip on this machine"),
            "realtime_factor": (speed, "x", "measure the clip and pass video_seconds"),
            "state_megabytes": (above_weights, "MB above the weights", ""),
            "total_megabytes": (self.total_bytes / 1e6, "MB in total", ""),
            "tokens_per_clip": (tokens, "tokens", "pass tokens"),
        }
        broken = []
        for name, limit in budget.limits().items():
            value, unit, remedy = spent[name]
            if value is None:
                broken.append(f"{name}: unknown, limit {limit:g} {unit}; {remedy}")
            elif name == "realtime_factor" and value < limit:
                broken.append(f"{name}: {value:.3g} {unit}, at least {limit:g} {unit} wanted")
            elif name != "realtime_factor" and value > limit:
                broken.append(f"{name}: {value:.4g} {unit}, limit {limit:g} {unit}")
        return broken

    def fits(self, budget: Budget, *, video_seconds: float | None = None, tokens: int | None = None) -> bool:
        """Whether every limit of `budget` is shown to be kept; `violations` says which are not."""
        return not self.violations(budget, video_seconds=video_seconds, tokens=tokens)

    def __str__(self) -> str:
        parts = [format_macs(self.macs)]
        if self.parameter_bytes:
            parts.append(f"{self.parameter_bytes / 1e6:.1f} MB weights")
        if self.activation_bytes:
            parts.append(f"{self.activation_bytes / 1e6:.1f} MB activations")
        if self.state_bytes:
            parts.append(f"{self.state_bytes / 1e6:.1f} MB state")
        if self.milliseconds is not None:
            parts.append(f"{self.milliseconds:.3g} ms on {self.hardware}")
        return ", ".join(parts)


def format_macs(macs: float) -> str:
    """MACs with a unit: "13.3 GMACs", "850 MMACs", "1.25 TMACs"."""
    for factor, unit in ((1e12, "TMACs"), (1e9, "GMACs"), (1e6, "MMACs")):
        if macs >= factor:
            return f"{macs / factor:.3g} {unit}"
    return f"{macs:g} MACs"


def linear_macs(tokens: int, in_features: int, out_features: int) -> int:
    """MACs of a linear layer applied to `tokens` rows."""
    return tokens * in_features * out_features


def attention_macs(queries: int, keys: int, dim: int) -> int:
    """MACs of softmax(Q K^T) V over all heads, without projections: 2 * queries * keys * dim."""
    return 2 * queries * keys * dim


def block_macs(tokens: int, embed_dim: int, mlp_ratio: float = 4.0) -> int:
    """MACs of a transformer block: 4 N D^2 projections, 2 N^2 D attention and 2 r N D^2 MLP.

    With `mlp_ratio` 4 this is 12 N D^2 + 2 N^2 D.
    """
    hidden = int(embed_dim * mlp_ratio)
    projections = linear_macs(tokens, embed_dim, 4 * embed_dim)
    mlp = linear_macs(tokens, embed_dim, hidden) + linear_macs(tokens, hidden, embed_dim)
    return projections + attention_macs(tokens, tokens, embed_dim) + mlp


def conv_macs(
    out_size: Sequence[int], kernel_size: Sequence[int], in_channels: int, out_channels: int, groups: int = 1
) -> int:
    """MACs of a convolution in any number of dimensions.

    Args:
        out_size: size of the output per dimension, for example (T, H, W).
        kernel_size: size of the kernel per dimension, of the same length.
        in_channels, out_channels, groups: as in torch.

    Raises:
        ValueError: the lengths differ or the channels do not divide into the groups.
    """
    if len(out_size) != len(kernel_size):
        raise ValueError(f"out_size and kernel_size must have the same length, got {out_size} and {kernel_size}")
    if in_channels % groups or out_channels % groups:
        raise ValueError(f"channels must be divisible by groups {groups}, got {in_channels} and {out_channels}")
    return math.prod(out_size) * out_channels * math.prod(kernel_size) * (in_channels // groups)


def hardware_key(runtime: Runtime | None = None) -> str:
    """What a measured time depends on: processor, threads, torch version, precision, batch. Imports torch."""
    import torch

    runtime = runtime or Runtime()
    threads = runtime.threads or torch.get_num_threads()
    device = cpu_model() if runtime.device == "cpu" else torch.cuda.get_device_name(runtime.device)
    return " | ".join(
        (
            device,
            f"{threads} thread{'s' if threads != 1 else ''}",
            f"torch {torch.__version__}",
            runtime.precision + (" compiled" if runtime.compiled else ""),
            f"batch {runtime.batch}" + (f" x {runtime.workers} workers" if runtime.workers > 1 else ""),
        )
    )


def cpu_model() -> str:
    """Name of the processor; the machine type where the system does not tell."""
    import platform
    from pathlib import Path

    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown cpu"


def measured_macs(run: Callable[[], Any]) -> int:
    """MACs that torch counts while `run()` executes, without gradients.

    Attention runs on the MATH backend meanwhile, because the counter sees fused attention on CPUs as zero.
    Imports torch.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        run()
    return int(counter.get_total_flops()) // 2


class _NoModules(AbstractContextManager["_NoModules"]):
    """Takes the place of the counter's list of modules, whose hooks fail on views of parameters without gradients."""

    parents = frozenset({"Global"})

    def __exit__(self, *raised: object) -> None:
        """Nothing to undo."""
