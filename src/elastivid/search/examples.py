"""Queries by example: pictures and stretches of videos to vectors of the index's space.

photo.jpg           a picture (jpg, png, webp, bmp, tiff)
clip.mp4            the window in the middle of a video
clip.mp4@12.5s      the window around a time; also 12.5, 1:02 or 1:02:03
clip.mp4@3s-5s      a stretch: its frames, or the mean of its windows where it is longer than one
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from elastivid.core.errors import MissingExtraError
from elastivid.core.point import OperatingPoint, Sampling
from elastivid.search.printing import printable
from elastivid.search.records import QueryError
from elastivid.video.transforms import Transform

if TYPE_CHECKING:
    from elastivid.search.index import Encoder
    from elastivid.search.reading import Reading

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
MOST_WINDOWS = 32  # of a long stretch, evenly spread
_HOW = "write photo.jpg, clip.mp4@12.5s, clip.mp4@1:02 or clip.mp4@3s-5s"


@dataclass(frozen=True)
class Example:
    """A picture or a place in a video. Without times: the middle; without an end: the window around the start."""

    path: str
    start_seconds: float | None = None
    end_seconds: float | None = None

    @property
    def is_image(self) -> bool:
        """Whether it is a picture, by its suffix."""
        return os.path.splitext(self.path)[1].lower() in IMAGE_SUFFIXES


def parse_example(like: str) -> Example:
    """Read an example as users write it.

    Raises:
        QueryError: the file does not exist, the times cannot be read, or a picture was given a time.
    """
    path, separator, text = like.rpartition("@")
    if not separator or os.path.exists(os.path.expanduser(like)):
        path, text = like, ""
    path = os.path.abspath(os.path.expanduser(path))
    if not os.path.exists(path):
        raise QueryError(f"no such file: {printable(path)}; {_HOW}")
    if os.path.isdir(path):
        raise QueryError(f"{printable(path)} is a folder; {_HOW}")
    if not text:
        return Example(path)
    example = Example(path, *_times_of(text, like))
    if example.is_image:
        raise QueryError(f"{printable(path)} is a picture and has no time; leave out @{text}")
    return example


def parse_seconds(text: str) -> float | None:
    """Seconds of `12.5`, `12.5s`, `1:02` or `1:02:03`; None where the text is no such time."""
    parts = text.strip().removesuffix("s").split(":")
    try:
        seconds = sum(float(part) * 60**power for power, part in enumerate(reversed(parts)))
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf and len(parts) <= 3 else None


def _times_of(text: str, like: str) -> list[float]:
    """One time, or start and end."""
    times = [parse_seconds(part) for part in text.split("-")]
    known = [seconds for seconds in times if seconds is not None]
    if len(known) < len(times) or len(times) > 2:
        raise QueryError(f"cannot read the time {text!r} of {printable(like)}; {_HOW}")
    if len(known) == 2 and known[0] >= known[1]:
        raise QueryError(f"the stretch {text!r} ends before it begins; write the earlier time first")
    return known


def embed_example(encoder: Encoder, example: Example, sampling: Sampling, point: OperatingPoint) -> np.ndarray:
    """Unit vector (D,) of an example.

    Raises:
        QueryError: it lies beyond the end of the video, or shows nothing.
        VideoError: the video cannot be read.
        MissingExtraError: it is a picture and pillow is not installed.
    """
    from elastivid.search.indexing import embed_windows
    from elastivid.search.reading import Reading

    if example.is_image:
        frames = read_image(example.path, transform_of(encoder).squared(sampling.size))
        return embed_windows(encoder, frames[None, None], point)[0]  # (S, S, 3) -> (1, 1, S, S, 3)
    reading = Reading(sampling, transform=transform_of(encoder))
    vectors = [embed_windows(encoder, frames[None], point)[0] for frames in _read_stretch(example, reading)]
    return unit_mean(vectors)


def transform_of(encoder: Encoder) -> Transform:
    """What the model does to pictures; of an encoder object that does something else, nothing is known."""
    return encoder.transform if isinstance(encoder.transform, Transform) else Transform()


def unit_mean(vectors: list[np.ndarray]) -> np.ndarray:
    """Unit vector (D,) in the direction of the mean of unit vectors (D,)."""
    mean = np.stack(vectors).mean(axis=0)  # (n, D) -> (D,)
    out: np.ndarray = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return out


def read_image(path: str, transform: Transform) -> np.ndarray:
    """A picture as the index sees frames: upright, on white where it is transparent, resized and cropped by the model.

    Args:
        path: the file.
        transform: gives squares (see `Transform.squared`).

    Returns:
        uint8 (S, S, 3), RGB.

    Raises:
        QueryError: the file is no picture, is damaged, or is too large to be safe.
        MissingExtraError: pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingExtraError("pillow", "search") from error
    try:
        with Image.open(path) as opened:
            opened.draft("RGB", (2 * transform.size,) * 2)  # large JPEGs are decoded no larger than needed
            image = ImageOps.exif_transpose(opened)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            height, width = transform.frame_size(image.height, image.width)
            resized = image.convert("RGB").resize((width, height), Image.Resampling[transform.filter.upper()])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).replace(repr(path), "it").replace(path, "it")
        raise QueryError(f"cannot read the picture {printable(path)}: {printable(reason)}") from error
    return np.array(transform.crop(np.asarray(resized)))


def _read_stretch(example: Example, reading: Reading) -> list[np.ndarray]:
    """Windows uint8 (T, S, S, 3) that show the example."""
    from elastivid.search.reading import decode_mode

    sampling = reading.sampling
    with reading.open(example.path) as reader:
        duration = reader.metadata.duration_seconds or 0.0
        for seconds in (example.start_seconds, example.end_seconds):
            if seconds is not None and seconds > duration > 0:
                raise QueryError(
                    f"{printable(example.path)} lasts {duration:.1f} s, but the example is at {seconds:.1f} s"
                )
        mode = decode_mode(reader, sampling)
        spans = _spans(example, duration, sampling)
        clips = [reader.frames_played_at(_times(start, end, sampling), decode=mode) for start, end in spans]
    shown = [clip for clip in clips if len(clip)]
    if not shown:
        where, problem = sum(spans[0]) / 2, clips[0].problem
        raise QueryError(f"{printable(example.path)} shows nothing at {where:.1f} s: {problem}; take an earlier time")
    held = np.arange(sampling.frames)  # where frames end, the last one stays
    return [reading.crop(clip.frames[np.minimum(held, len(clip) - 1)]) for clip in shown]


def _spans(example: Example, duration: float, sampling: Sampling) -> list[tuple[float, float]]:
    """Start and end of the windows to look at."""
    length = sampling.window_seconds
    if example.end_seconds is not None and example.start_seconds is not None:
        lasts = example.end_seconds - example.start_seconds
        count = max(1, round(lasts / length))
        borders = example.start_seconds + lasts * np.arange(count + 1) / count
        picked = np.unique(np.linspace(0, count - 1, min(count, MOST_WINDOWS)).astype(int))
        return [(float(borders[k]), float(borders[k + 1])) for k in picked]
    middle = duration / 2 if example.start_seconds is None else example.start_seconds
    start = max(0.0, min(middle - length / 2, duration - length))
    return [(start, start + (min(length, duration) if duration else length))]


def _times(start: float, end: float, sampling: Sampling) -> np.ndarray:
    return start + (np.arange(sampling.frames) + 0.5) * (end - start) / sampling.frames
