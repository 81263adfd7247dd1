"""Small encoded files whose every frame tells its own number."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def picture(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """RGB (H, W, 3): a grey level and a bright column that depend on the number."""
    image = np.full((height, width, 3), 40 + (number * 7) % 150, dtype=np.uint8)
    image[:, (number * 5) % width] = 255
    return image


def encode(
    path: Path,
    count: int = 60,
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    size: tuple[int, int] = (48, 64),
    options: dict[str, str] | None = None,
    times: list[int] | None = None,
) -> Path:
    """Write `count` pictures at 25 frames per second, or at `times` in milliseconds."""
    height, width = size
    options = dict(options or {})
    container_options = {"movflags": options.pop("movflags")} if "movflags" in options else {}
    with av.open(str(path), "w", container_options=container_options) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        base = Fraction(1, 1000) if times else Fraction(1, 25)
        stream.codec_context.time_base = base
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number, height, width), format="rgb24")
            frame.pts = times[number] if times else number
            frame.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def sequential(path: Path) -> list[av.VideoFrame]:
    """All frames as plain PyAV gives them."""
    with av.open(str(path), metadata_errors="replace") as container:
        return list(container.decode(video=0))


def planes(frame: av.VideoFrame) -> tuple[str, bytes]:
    """Native samples of a frame without the padding of its rows, and what they mean."""
    data = []
    for place, plane in enumerate(frame.planes):
        rows = np.frombuffer(plane, dtype=np.uint8).reshape(plane.height, -1)
        parts = frame.format.components
        if frame.format.is_planar:
            used = plane.width * (2 if parts[min(place, len(parts) - 1)].bits > 8 else 1)
        else:
            used = rows.shape[1] if frame.format.name == "pal8" and place else plane.width * len(parts)
        data.append(rows[:, : min(used, rows.shape[1])].tobytes())
    return f"{frame.format.name} {frame.width}x{frame.height} {frame.pts}", b"".join(data)
