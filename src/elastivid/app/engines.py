"""What the options of `elastivid index` about limits and engines stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from elastivid.core.errors import UnknownNameError

if TYPE_CHECKING:
    from elastivid.search.indexing import Engine
    from elastivid.video.source import Limits

ENGINES = ("local", "ray")


def engine_named(name: str) -> Engine:
    """What turns files into vectors: on this machine, or on Ray.

    Raises:
        UnknownNameError: there is no such engine.
    """
    if name not in ENGINES:
        raise UnknownNameError("engine", name, ENGINES)
    if name == "ray":
        from elastivid.search.ray_engine import RayPipeline

        return RayPipeline
    from elastivid.search.indexing import Pipeline

    return Pipeline


def limits_of(seconds: float | None, memory_megabytes: int | None) -> Limits:
    """The usual limits with those that were asked for."""
    from elastivid.video.source import Limits

    asked: dict[str, Any] = {"seconds": seconds, "memory_megabytes": memory_megabytes}
    return Limits(**{name: value for name, value in asked.items() if value is not None})
