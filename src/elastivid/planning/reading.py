"""What reading video costs on this machine: milliseconds of processor time for decoding and for making frames ready.

    per second of video = frames/s of the stream * (decode(pixels) + kilobits above the reference * kilobit)
                          + frames looked at per second * convert(pixels)
    x realtime          = 1 / max(all work shared by all cores, decoding by as many cores as can take part in it)

Short H.264 clips of three sizes are rendered and read with `VideoReader` as indexing reads them; other sizes are
interpolated in pixels. A small one is rendered a second time with more bits: at 240p a frame of a stream of 700 kbit/s
takes more than twice as long as one of 200. With `decode="keyframes"` only whole pictures are decoded, at most one per
keyframe of the stream. Other codecs cost up to a few times more: what is stated is a typical file, not a bound.
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
from elastivid.video.decoder import INDEXED_THREADED_PIXELS
from elastivid.video.reader import VideoReader

SIZES = ((320, 240), (1280, 720), (1920, 1080))
FPS = 30
CLIP_SECONDS = 4.0
KEYFRAME_SECONDS = 2.0
BITS_PER_PIXEL, MANY_BITS_PER_PIXEL = 0.1, 0.4  # of a frame
LEAST_DECODE = 0.3  # of the cost at the reference's bits: what a frame of few bits takes at least
MODEL_SIZE = 168
REPEATS = 3


@dataclass(frozen=True)
class Source:
    """The video that a plan is for: what decoding costs depends on it.

    Args:
        width, height: of its frames, in pixels.
        fps: frames per second.
        kilobits: of a compressed frame; `None` takes those of the clips that reading was measured with.
        seconds: length of a file; `None` is so long that opening it does not count.
        files: how many there are, of those that are read side by side; `None` is at least one per core.
    """

    width: int = 1280
    height: int = 720
    fps: float = 30.0
    kilobits: float | None = None
    seconds: float | None = None
    files: int | None = None

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
    def typical(cls, videos: list[Source]) -> Source:
        """The typical one of several: medians of what is known of them, the defaults where nothing is."""
        if not videos:
            return cls(files=0)
        middle = sorted(videos, key=lambda video: video.pixels)[len(videos) // 2]

        def median(values: list[float | None]) -> float | None:
            known = [value for value in values if value is not None]
            return float(np.median(known)) if known else None

        return Source(
            middle.width,
            middle.height,
            median([video.fps for video in videos]) or middle.fps,
            median([video.kilobits for video in videos]),
            median([video.seconds for video in videos]),
            len(videos),
        )

    def __str__(self) -> str:
        bits = f", {self.kilobits * self.fps:.0f} kbit/s" if self.kilobits else ""
        return f"{self.width}x{self.height} at {self.fps:g} frames/s{bits}"


@dataclass(frozen=True)
class ReadingRow:
    """Milliseconds of processor time, measured on one size of frames.

    Args:
        width, height: of the frames.
        decode: per frame of the stream, decoding all.
        keyframe: per keyframe, decoding those alone, converting included.
        convert: per frame looked at: colours, resizing, copying.
        opening: per file: opening it, listing its packets, probing whether it can be read at random.
        kilobits: of a frame of the clip that was read.
    """

    width: int
    height: int
    decode: float
    keyframe: float
    convert: float
    opening: float
    kilobits: float


@dataclass(frozen=True)
class Reading:
    """Measured costs of reading. Make one with `measure_reading` or `load_reading`.

    Args:
        machine: where it was measured.
        rows: one per size of frames, ascending.
        transform: milliseconds per frame of the model's input, decoded frames to normalised floats.
        kilobit: milliseconds of decoding per kilobit by which a frame differs from the rows.
        cores: processor threads that share the work.
    """

    machine: str
    rows: tuple[ReadingRow, ...]
    transform: float
    kilobit: float
    cores: int

    def realtime_factor(self, source: Source, sampling: Sampling, milliseconds: float) -> float:
        """Seconds of video read and embedded per second.

        Args:
            source, sampling: what is read, and how.
            milliseconds: of embedding one window, windows embedded side by side.
        """
        decode, transform = self.processor_seconds(source, sampling)
        shared = (decode + transform) / self.cores + milliseconds / 1e3 / sampling.stride_seconds
        files = self.cores if source.pixels >= INDEXED_THREADED_PIXELS else source.files or self.cores
        return 1.0 / max(shared, decode / min(files, self.cores))  # small frames of one file are decoded by one core

    def processor_seconds(self, source: Source, sampling: Sampling) -> tuple[float, float]:
        """Processor time of one second of video: opening, decoding and making pictures; the model's transform."""
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
            read = source.fps * self._decode(source) + looked_at * self._at("convert", source.pixels)
        opening = self._at("opening", source.pixels) / source.seconds if source.seconds else 0.0
        return (read + opening) / 1e3, transformed * self.transform / 1e3

    def _decode(self, source: Source) -> float:
        """Milliseconds of decoding one frame."""
        typical = self._at("decode", source.pixels)
        more = 0.0 if source.kilobits is None else source.kilobits - self._at("kilobits", source.pixels)
        return max(typical + more * self.kilobit, LEAST_DECODE * typical)

    def _at(self, name: str, pixels: int) -> float:
        """Milliseconds at a size: between the measured ones along a line, beyond them in proportion to pixels."""
        sizes, costs = self._lines[name]
        if pixels > sizes[-1]:
            return float(costs[-1] * pixels / sizes[-1])
        return float(np.interp(pixels, sizes, costs))

    @cached_property
    def _lines(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        sizes = np.array([row.width * row.height for row in self.rows])
        names = ("decode", "keyframe", "convert", "opening", "kilobits")
        return {name: (sizes, np.array([getattr(row, name) for row in self.rows])) for name in names}


def _distinct_per_second(sampling: Sampling) -> float:
    """Distinct times per second that overlapping windows look at."""
    step = sampling.window_seconds / sampling.frames
    shifts = sampling.stride_seconds / step
    if abs(shifts - round(shifts)) < 1e-6:  # every window looks at the grid of the one before
        return 1.0 / step
    return sampling.frames / sampling.stride_seconds


def measure_reading(progress: Callable[[float, float, str], None] | None = None) -> Reading:
    """Render the reference clips, read them, time the transform. About ten seconds."""
    report, steps = progress or (lambda done, total, what: None), len(SIZES) + 2
    rows = []
    with tempfile.TemporaryDirectory(prefix="elastivid-") as folder:
        path = Path(folder) / "reference.mp4"
        for number, (width, height) in enumerate(SIZES):
            report(number, steps, f"reading {width}x{height}")
            render_reference(path, width, height)
            rows.append(_measure_file(path, width, height))
        width, height = SIZES[0]
        report(steps - 2, steps, f"reading {width}x{height} with more bits")
        render_reference(path, width, height, bits_per_pixel=MANY_BITS_PER_PIXEL)
        rich = _measure_file(path, width, height)
    kilobit = max(rich.decode - rows[0].decode, 0.0) / (rich.kilobits - rows[0].kilobits)
    report(steps - 1, steps, "transform")
    return Reading(machine_key(), tuple(rows), _measure_transform(), kilobit, os.cpu_count() or 1)


def _measure_file(path: Path, width: int, height: int) -> ReadingRow:
    frames = round(CLIP_SECONDS * FPS)
    every = (np.arange(frames) + 0.5) / FPS
    all_of_them, few, whole = [], [], []
    for _ in range(REPEATS):
        all_of_them.append(_processor_ms(path, every, "exact"))
        few.append(_processor_ms(path, every[[frames // 4, frames - 1]], "exact"))
        whole.append(_processor_ms(path, every[:: round(KEYFRAME_SECONDS * FPS)], "keyframes"))
    (opening, everything), (_, two), (_, keyframes) = (
        (min(times) for times in zip(*found, strict=True)) for found in (all_of_them, few, whole)
    )
    convert = max(everything - two, 0.0) / (frames - 2)
    return ReadingRow(
        width,
        height,
        decode=max(two - 2 * convert, 0.0) / frames,
        keyframe=keyframes / (CLIP_SECONDS / KEYFRAME_SECONDS),
        convert=convert,
        opening=opening,
        kilobits=path.stat().st_size * 8e-3 / frames,
    )


def _processor_ms(path: Path, seconds: np.ndarray, decode: str) -> tuple[float, float]:
    """Processor time of all threads for opening the file, and for the frames at these times."""
    started = time.process_time()
    with VideoReader(path, size=MODEL_SIZE) as reader:
        if not (reader.metadata.num_frames and reader.earns_random_access):
            raise PlanError(f"the reference clip {path} cannot be read back; run `elastivid doctor`")
        opened = time.process_time()
        for _ in reader.iterate_played_at(seconds, decode=decode):
            pass
    return (opened - started) * 1e3, (time.process_time() - opened) * 1e3


def _measure_transform() -> float:
    from elastivid.video.transforms import Transform

    transform, frames = Transform(size=MODEL_SIZE), np.zeros((64, MODEL_SIZE, MODEL_SIZE, 3), dtype=np.uint8)
    times = []
    for _ in range(REPEATS + 1):
        started = time.process_time()
        transform(frames)
        times.append((time.process_time() - started) * 1e3 / len(frames))
    return min(times)


def render_reference(path: Path, width: int, height: int, *, bits_per_pixel: float = BITS_PER_PIXEL) -> None:
    """Write panning texture with sensor noise as H.264, a keyframe every two seconds."""
    import av

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (height // 8 + 1, width // 8 + 40, 3), dtype=np.uint8)
    texture = coarse.repeat(8, axis=0).repeat(8, axis=1)  # (H + 8, W + 320, 3)
    noise = rng.integers(0, 12, (4, height, width, 1), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate, stream.gop_size = round(bits_per_pixel * FPS * width * height), round(KEYFRAME_SECONDS * FPS)
        for number in range(round(CLIP_SECONDS * FPS)):
            shift = 2 * (number % 150)
            picture = texture[:height, shift : shift + width] // 2 + 40 + noise[number % 4]
            frame = av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _path() -> Path:
    import hashlib

    code = [Path(__file__), *(Path(__file__).parents[1] / "video" / name for name in ("decoder.py", "frames.py"))]
    sources = "".join(path.read_text() for path in code)
    name = hashlib.sha256((machine_key() + sources).encode()).hexdigest()[:16]
    return cache_folder() / "profiles" / f"reading-{name}.json"


def load_reading() -> Reading | None:
    """What was measured on this machine before, or `None`."""
    try:
        content = json.loads(_path().read_text(encoding="utf-8"))
        rows = tuple(ReadingRow(**row) for row in content.pop("rows"))
        return Reading(rows=rows, **content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def save_reading(reading: Reading) -> Path:
    """Keep it for the next time."""
    path = _path()
    write_atomically(path, json.dumps(asdict(reading), indent=1))
    return path
