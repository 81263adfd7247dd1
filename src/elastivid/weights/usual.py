"""What a dual encoder reads and spends where nobody says otherwise. Loads no torch."""

from __future__ import annotations

from typing import Any

from elastivid.core.point import OperatingPoint, Sampling
from elastivid.weights.hub import is_hub

FRAMES_SEEN_ALONE = 4  # of a window, each a picture by itself to a model of the hub, whole
TOKENS = 256


def usual(model: Any) -> tuple[Sampling, OperatingPoint]:
    """Windows, frames and size, and the operating point, for a dual encoder or anything else that embeds.

    Models that select no tokens, and those of the hub, see few frames whole, at the size they were made for.
    """
    if is_hub(model.name) or "tokens" not in getattr(model, "supported_axes", {"tokens"}):
        return Sampling(frames=FRAMES_SEEN_ALONE, size=model.transform.size), OperatingPoint()
    return Sampling(), OperatingPoint(tokens=TOKENS)
