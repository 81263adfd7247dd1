"""What reading video costs on this machine: milliseconds of processor time for decoding and for making frames ready.

    per second of video = frames/s of the stream * decode(pixels) + frames looked at per second * convert(pixels)

Short H.264 clips of three sizes are rendered and read with `VideoReader` as indexing reads them; other sizes are
interpolated in pixels. With `decode="keyframes"` only whole pictures are decoded, at most one per keyframe of the
stream. Other codecs cost up to a few times more: what is stated is a typical file, not a bound.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from elastivid.core.errors import BudgetError, PlanError
from elastivid.core.point import Sampling
from elastivid.planning.profile import cache_folder, machine_key, write_atomically
from elastivid.video.reader import VideoReader

SIZES = ((320, 240), (1280, 720), (1920, 1080))
FPS = 30
CLIP_SECONDS = 4.0
KEYFRAME_SECONDS = 2.0
MODEL_SIZE = 168
REPEATS = 3


@dataclass(frozen=True)
class Source:
    """The video that a plan is for: what decoding costs depends on it.

    Args:
        width, height: of its frames, in pixels.
        fps: frames per second.
    """

    width: int = 1280
    height: int = 720
    fps: float = 30.0

    @property
    def pixels(self) -> int:
        """Pixels of one frame."""
        return self.width * self.height

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read "1920x1080" or "1280x720@25".

        Raises:
            BudgetError: the text says something else.
        """
        sides, _, rate = text.lower().partition("@")
        try:
            width, height = (int(side) for side in sides.split("x"))
            source = cls(width, height, float(rate or 30.0))
        except ValueError:
            source = cls(0, 0, 0.0)
        if not (source.width > 0 and source.height > 0 and 0 < source.fps < 1e4):
            raise BudgetError(f"cannot read the video {text!r}; write width x height @ frames per second: 1280x720@30")
        return source

    @classmethod
    def typical(cls, videos: list[tuple[int, int, float | None]]) -> Source:
        """The typical one of several (width, height, frames per second): medians; the default for none."""
        if not videos:
            return cls()
        width, height, _ = sorted(videos, key=lambda video: video[0] * video[1])[len(videos) // 2]
        rates = [rate for *_, rate in videos if rate]
        return cls(width, height, float(np.median(rates)) if rates else 30.0)

    def __str__(self) -> str:
        return f"{self.width}x{self.height} at {self.fps:g} frames/s"


@dataclass(frozen=True)
class ReadingRow:
    """Milliseconds of processor time, measured on one size of frames.

    Args:
        width, height: of the frames.
        decode: per frame of the stream, decoding all.
        keyframe: per keyframe, decoding those alone, converting included.
        convert: per frame looked at: colours, resizing, copying.
    """

    width: int
    height: int
    decode: float
    keyframe: float
    convert: float


@dataclass(frozen=True)
class Reading:
    """Measured costs of reading. Make one with `measure_reading` or `load_reading`.

    Args:
        machine: where it was measured.
        rows: one per size of frames, ascending.
        transform: milliseconds per frame of the model's input, decoded frames to normalised floats.
        cores: processor threads that share the work.
    """

    machine: str
    rows: tuple[ReadingRow, ...]
    transform: float
    cores: int

    def seconds_per_second(self, source: Source, sampling: Sampling) -> float:
        """Time to read one second of video on all cores, transform included."""
        looked_at = sampling.frames / min(
            sampling.window_seconds, sampling.stride_seconds
        )  # distinct frames per second
        if sampling.stride_seconds < sampling.window_seconds:  # windows share frames where their times agree
            looked_at = _distinct_per_second(sampling)
        transformed = sampling.frames / sampling.stride_seconds * (sampling.size / MODEL_SIZE) ** 2
        if sampling.decode == "keyframes":
            whole = min(looked_at, 1.0 / KEYFRAME_SECONDS)
            read = whole * self._at("keyframe", source.pixels)
        else:
            read = source.fps * self._at("decode", source.pixels) + looked_at * self._at("convert", source.pixels)
        return (read + transformed * self.transform) / 1e3 / self.cores

    def _at(self, name: str, pixels: int) -> float:
        """Milliseconds at a size: between the measured ones along a line, beyond them in proportion to pixels."""
        sizes, costs = self._lines[name]
        if pixels > sizes[-1]:
            return float(costs[-1] * pixels / sizes[-1])
        return float(np.interp(pixels, sizes, costs))

    @cached_property
    def _lines(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        sizes = np.array([row.width * row.height for row in self.rows])
        return {n: (sizes, np.array([getattr(r, n) for r in self.rows])) for n in ("decode", "keyframe", "convert")}


def _distinct_per_second(sampling: Sampling) -> float:
    """Distinct times per second that overlapping windows look at."""
    step = sampling.window_seconds / sampling.frames
    shifts = sampling.stride_seconds / step
    if abs(shifts - round(shifts)) < 1e-6:  # every window looks at the grid of the one before
        return 1.0 / step
    return sampling.frames / sampling.stride_seconds


def measure_reading(progress: Callable[[float, float, str], None] | None = None) -> Reading:
    """Render the reference clips, read them, time the transform. About ten seconds."""
    report = progress or (lambda done, total, what: None)
    rows = []
    with tempfile.TemporaryDirectory(prefix="elastivid-") as folder:
        for number, (width, height) in enumerate(SIZES):
            report(number, len(SIZES) + 1, f"reading {width}x{height}")
            path = Path(folder) / f"{height}.mp4"
            render_reference(path, width, height)
            rows.append(_measure_file(path, width, height))
    report(len(SIZES), len(SIZES) + 1, "transform")
    return Reading(machine_key(), tuple(rows), _measure_transform(), os.cpu_count() or 1)


def _measure_file(path: Path, width: int, height: int) -> ReadingRow:
    frames = round(CLIP_SECONDS * FPS)
    every = (np.arange(frames) + 0.5) / FPS
    all_of_them, few, whole = [], [], []
    for _ in range(REPEATS):
        all_of_them.append(_processor_ms(path, every, "exact"))
        few.append(_processor_ms(path, every[[frames // 4, frames - 1]], "exact"))
        whole.append(_processor_ms(path, every[:: round(KEYFRAME_SECONDS * FPS)], "keyframes"))
    convert = max(min(all_of_them) - min(few), 0.0) / (frames - 2)
    decode = max(min(few) - 2 * convert, 0.0) / frames
    return ReadingRow(width, height, decode, min(whole) / (CLIP_SECONDS / KEYFRAME_SECONDS), convert)


def _processor_ms(path: Path, seconds: np.ndarray, decode: str) -> float:
    """Processor time of all threads for the frames at these times, opening the file left out."""
    with VideoReader(path, size=MODEL_SIZE) as reader:
        if not (reader.metadata.num_frames and reader.earns_random_access):  # opens the file before the clock starts
            raise PlanError(f"the reference clip {path} cannot be read back; run `elastivid doctor`")
        started = time.process_time()
        for _ in reader.iterate_played_at(seconds, decode=decode):
            pass
        return (time.process_time() - started) * 1e3


def _measure_transform() -> float:
    from elastivid.video.transforms import Transform

    transform, frames = Transform(size=MODEL_SIZE), np.zeros((64, MODEL_SIZE, MODEL_SIZE, 3), dtype=np.uint8)
    times = []
    for _ in range(REPEATS + 1):
        started = time.process_time()
        transform(frames)
        times.append((time.process_time() - started) * 1e3 / len(frames))
    return min(times)


def render_reference(path: Path, width: int, height: int, seconds: float = CLIP_SECONDS) -> None:
    """Write panning texture with sensor noise as H.264, a keyframe every two seconds."""
    import av

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (height // 8 + 1, width // 8 + 40, 3), dtype=np.uint8)
    texture = coarse.repeat(8, axis=0).repeat(8, axis=1)  # (H + 8, W + 320, 3)
    noise = rng.integers(0, 12, (4, height, width, 1), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate, stream.gop_size = round(3.0 * width * height), round(KEYFRAME_SECONDS * FPS)
        for number in range(round(seconds * FPS)):
            shift = 2 * (number % 150)
            picture = texture[:height, shift : shift + width] // 2 + 40 + noise[number % 4]
            frame = av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _path() -> Path:
    import hashlib

    sources = "".join((Path(__file__).parents[1] / "video" / n).read_text() for n in ("decoder.py", "frames.py"))
    name = hashlib.sha256((machine_key() + sources).encode()).hexdigest()[:16]
    return cache_folder() / "profiles" / f"reading-{name}.json"


def load_reading() -> Reading | None:
    """What was measured on this machine before, or `None`."""
    try:
        content = json.loads(_path().read_text(encoding="utf-8"))
        rows = tuple(ReadingRow(**row) for row in content.pop("rows"))
        return Reading(rows=rows, **content)
    except (FileNotFoundError, ValueError, TypeError, KeyError, PlanError):
        return None


def save_reading(reading: Reading) -> Path:
    """Keep it for the next time."""
    path = _path()
    write_atomically(path, json.dumps(asdict(reading), indent=1))
    return path
