"""Tiny coloured videos, and an encoder that knows colours: what the search tests look for."""

from __future__ import annotations

import zlib
from pathlib import Path

import av
import numpy as np

from elastivid.search.records import FileRecord, Place

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "grey": (128, 128, 128)}
FPS = 10


def render(path: Path, *scenes: tuple[str, float], size: tuple[int, int] = (64, 48)) -> Path:
    """A video of flat colours: `render(path, ("red", 4.0), ("blue", 2.0))`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.gop_size = FPS
        for colour, seconds in scenes:
            picture = np.empty((size[1], size[0], 3), np.uint8)
            picture[:] = COLOURS[colour]
            for _ in range(round(seconds * FPS)):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def a_record(number: int, path: str, windows: int = 0, **changes) -> FileRecord:
    """A record of a file at one place, whose content is its path."""
    values = {"content": path, "size_bytes": 10, "places": (Place(path, 20),), "status": "indexed", **changes}
    return FileRecord(number, windows=windows, **values)


def _colour_of(text: str) -> list[float]:
    return np.random.default_rng(zlib.crc32(text.encode())).uniform(0, 255, 3).tolist()


class ColourEncoder:
    """A window is its mean colour; a text is the colour it names, any other text a random one. Counts the windows."""

    dim = 3

    def __init__(self, space_id: str = "colours") -> None:
        self.name = "colour-encoder"
        self.space_id = space_id
        self.windows_seen = 0
        self.batches: list[int] = []

    def transform(self, frames):
        import torch

        return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255

    def embed_clips(self, video, *, point=None):
        import torch

        self.windows_seen += len(video)
        self.batches.append(len(video))
        return torch.nn.functional.normalize(video.mean(dim=(1, 3, 4)), dim=-1)  # (B, T, 3, H, W) -> (B, 3)

    def embed_texts(self, texts):
        rows = np.array([COLOURS.get(text) or _colour_of(text) for text in texts], dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def cost(self, *, frames, size, point=None):
        from elastivid.core.cost import Cost

        return Cost(macs=frames * size * size)
