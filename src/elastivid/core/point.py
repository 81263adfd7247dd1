"""What is read (`Sampling`), what a model spends on it (`OperatingPoint`) and where it runs (`Runtime`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from elastivid.core.errors import PointError

DECODE_MODES = ("exact", "keyframes")
PRECISIONS = ("float32", "bfloat16", "float16")


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise PointError(message)


def _whole(name: str, value: Any) -> int | tuple[int, ...]:
    """`value` as plain numbers, whatever library's whole numbers it holds; a sequence only for width."""
    if isinstance(value, Integral):
        return int(value)
    if name == "width" and isinstance(value, Sequence) and all(isinstance(v, Integral) for v in value):
        return tuple(int(v) for v in value)
    several = ", one per layer" if name == "width" else ""
    raise PointError(f"{name} must be a whole number >= 1{several} or None, got {value!r}")


@dataclass(frozen=True)
class Sampling:
    """Which frames are read from a video, and at what size.

    Args:
        window_seconds: length of one window.
        stride_seconds: distance between the starts of neighbouring windows.
        frames: frames per window, evenly spread over it.
        size: side in pixels of the square that every frame is resized to.
        decode: "exact" shows the frame played at each wanted time; "keyframes" takes the nearest keyframe.

    Raises:
        PointError: a value is out of range.
    """

    window_seconds: float = 4.0
    stride_seconds: float = 2.0
    frames: int = 8
    size: int = 168
    decode: str = "exact"

    def __post_init__(self) -> None:
        _need(self.window_seconds > 0, f"window_seconds must be > 0, got {self.window_seconds}")
        _need(self.stride_seconds > 0, f"stride_seconds must be > 0, got {self.stride_seconds}")
        _need(self.frames >= 1, f"frames must be >= 1, got {self.frames}")
        _need(self.size >= 1, f"size must be >= 1 pixel, got {self.size}")
        _need(self.decode in DECODE_MODES, f"decode must be one of {DECODE_MODES}, got {self.decode!r}")


@dataclass(frozen=True)
class OperatingPoint:
    """What a model spends on the clip it was given. `None` everywhere means: everything the model has.

    Args:
        tokens: patch tokens left after selection; `None` keeps all, or what the selector's own rule keeps.
        selector: object that keeps or merges tokens (see `elastivid.select`); `None` takes the model's own.
        width: active channels, one int for all layers or one per layer; `None` is the full width.
        memory_tokens: tokens of streaming memory kept; `None` is the model's own.

    Raises:
        PointError: a number is not whole or below 1.
    """

    tokens: int | None = None
    selector: Any = None
    width: int | tuple[int, ...] | None = None
    memory_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("tokens", "width", "memory_tokens"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _whole(name, getattr(self, name)))
        _need(self.tokens is None or self.tokens >= 1, f"tokens must be >= 1 or None, got {self.tokens}")
        widths = (self.width,) if isinstance(self.width, int) else (self.width or ())
        _need(all(w >= 1 for w in widths), f"every width must be >= 1, got {self.width}")
        _need(
            self.memory_tokens is None or self.memory_tokens >= 1,
            f"memory_tokens must be >= 1 or None, got {self.memory_tokens}",
        )

    def require_axes(self, supported: frozenset[str], model: str) -> None:
        """Raise `PointError` when the point sets an axis that `model` does not have."""
        asked = {name for name in ("tokens", "selector", "width", "memory_tokens") if getattr(self, name) is not None}
        extra = sorted(asked - supported)
        _need(
            not extra,
            f"{model} has no axis {', '.join(extra)}; it supports {', '.join(sorted(supported)) or 'none'}. "
            f"Leave {'it' if len(extra) == 1 else 'them'} at None.",
        )


@dataclass(frozen=True)
class Runtime:
    """Where and how a model runs.

    Args:
        device: torch's name of it.
        precision: what weights and activations are held in.
        threads: processor threads of one batch; `None` leaves torch's own choice.
        batch: clips that run together.
        compiled: whether torch compiles the model first.
        workers: batches that run at the same time, each on its own threads.

    Raises:
        PointError: a value is out of range.
    """

    device: str = "cpu"
    precision: str = "float32"
    threads: int | None = None
    batch: int = 1
    compiled: bool = False
    workers: int = 1

    def __post_init__(self) -> None:
        _need(self.precision in PRECISIONS, f"precision must be one of {PRECISIONS}, got {self.precision!r}")
        _need(self.batch >= 1, f"batch must be >= 1, got {self.batch}")
        _need(self.workers >= 1, f"workers must be >= 1, got {self.workers}")
        _need(self.threads is None or self.threads >= 1, f"threads must be >= 1 or None, got {self.threads}")
