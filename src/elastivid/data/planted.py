"""Long videos with planted events: what moment search is measured on, with exact starts and ends.

A file shows one still background for minutes. Now and then a coloured shape is there for a while and does one motion
over and over: that is an event, and its caption is a query. Events are anywhere in time, not on the grid of windows.
No content occurs twice in a library, and one third of all pairs of colour and shape never occurs at all, so that there
are queries with nothing to find.

Frames that show no event are encoded from one picture, so that hours are rendered in seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from elastivid.data.captions import canonical_caption
from elastivid.data.processes import in_processes
from elastivid.data.render import render_frames
from elastivid.data.staging import compose_scene
from elastivid.data.world import COLOURS, MOTIONS, SHAPES, VISIBILITY_MOTIONS, Camera, Phrase, is_possible

LOOP_SECONDS = 4.0
BORDER_SECONDS = 2.0  # of background before the first event, after the last one and between two


@dataclass(frozen=True)
class PlantedFormat:
    """How the files are made.

    Args:
        height, width: size in pixels, even.
        fps: frames per second.
        shortest_seconds, longest_seconds: bounds of an event's length, which is log-uniform between them.
        seconds_per_event: of video, on average.
    """

    height: int = 168
    width: int = 224
    fps: int = 8
    shortest_seconds: float = 2.0
    longest_seconds: float = 24.0
    seconds_per_event: float = 64.0


@dataclass(frozen=True)
class PlantedEvent:
    """One event: what is seen, from when to when (exclusive), and the words for it."""

    phrase: Phrase
    start_seconds: float
    end_seconds: float

    @property
    def caption(self) -> str:
        """The plainest words for the event."""
        return canonical_caption((self.phrase,))


@dataclass(frozen=True)
class PlantedVideo:
    """One file and everything that is true about it. `seed` fixes background, clutter and places."""

    file: str
    duration_seconds: float
    seed: int
    events: tuple[PlantedEvent, ...]


@dataclass(frozen=True)
class PlantedLibrary:
    """Files with their events, and captions that nothing in them fulfils.

    Args:
        videos: the files.
        absent: captions of pairs of colour and shape that never occur; each word by itself does.
        absent_motions: captions of pairs that occur, doing what they never do.
    """

    videos: tuple[PlantedVideo, ...]
    absent: tuple[str, ...]
    absent_motions: tuple[str, ...]


def plan_planted(
    minutes: tuple[float, ...], seed: int, planted_format: PlantedFormat | None = None, absent: int = 100
) -> PlantedLibrary:
    """What a library will hold; nothing is rendered.

    Args:
        minutes: duration of each file.
        seed: fixes everything.
        planted_format: sizes and lengths.
        absent: how many captions of each kind with nothing to find.

    Raises:
        ValueError: more events or captions were asked for than there are contents.
    """
    form = planted_format or PlantedFormat()
    rng = np.random.default_rng(seed)
    there: list[Phrase] = []
    nowhere: list[Phrase] = []
    for c, colour in enumerate(COLOURS):
        for s, shape in enumerate(SHAPES):
            for motion in MOTIONS:
                phrase = Phrase(colour, shape, motion)
                if motion not in VISIBILITY_MOTIONS and is_possible((phrase,)):
                    (nowhere if (c + s + seed) % 3 == 0 else there).append(phrase)
    counts = [max(1, round(60 * m / form.seconds_per_event)) for m in minutes]
    total = sum(counts)
    if total > 0.9 * len(there) or absent > len(nowhere):
        raise ValueError(
            f"there are {len(there)} contents to plant and {len(nowhere)} to leave out, asked for {total} and "
            f"{absent}; ask for fewer minutes or captions"
        )
    drawn = [there[k] for k in rng.permutation(len(there))]
    pairs = {(p.colour, p.shape) for p in drawn[:total]}
    other_motions = [p for p in drawn[total:] if (p.colour, p.shape) in pairs][:absent]
    left_out = [nowhere[k] for k in rng.permutation(len(nowhere))[:absent]]
    videos = []
    for number, (duration, count) in enumerate(zip(minutes, counts, strict=True)):
        phrases = [drawn.pop(0) for _ in range(count)]
        events = _spread(phrases, 60.0 * duration, form, rng)
        videos.append(PlantedVideo(f"long_{number:02d}.mp4", 60.0 * duration, int(rng.integers(2**31)), events))
    return PlantedLibrary(
        tuple(videos),
        tuple(canonical_caption((p,)) for p in left_out),
        tuple(canonical_caption((p,)) for p in other_motions),
    )


def _spread(
    phrases: list[Phrase], duration: float, form: PlantedFormat, rng: np.random.Generator
) -> tuple[PlantedEvent, ...]:
    """Events of log-uniform length at random places, at least `BORDER_SECONDS` apart; times are whole frames."""
    low, high = np.log(form.shortest_seconds), np.log(form.longest_seconds)
    lengths = np.exp(rng.uniform(low, high, len(phrases)))
    free = duration - lengths.sum() - BORDER_SECONDS * (len(phrases) + 1)
    if free < 0:
        raise ValueError(f"{len(phrases)} events do not fit into {duration:.0f} s; plan fewer or shorter ones")
    gaps = BORDER_SECONDS + free * np.diff(np.sort(rng.random(len(phrases))), prepend=0.0)
    starts = np.cumsum(gaps) + np.cumsum(lengths) - lengths
    frames = np.round(np.stack([starts, starts + lengths]) * form.fps).astype(int)  # (2, events)
    return tuple(
        PlantedEvent(phrase, start / form.fps, end / form.fps)
        for phrase, (start, end) in zip(phrases, frames.T.tolist(), strict=True)
    )


def planted_library(
    folder: str | Path,
    minutes: tuple[float, ...],
    seed: int,
    *,
    planted_format: PlantedFormat | None = None,
    processes: int = 2,
) -> PlantedLibrary:
    """Render the library into `folder` and write `truth.json` beside the videos. One that is there already is kept.

    Args:
        folder: made if missing.
        minutes, seed, planted_format: see `plan_planted`.
        processes: how many files are rendered at the same time; 1 stays in this process.
    """
    folder, form = Path(folder), planted_format or PlantedFormat()
    library = plan_planted(minutes, seed, form)
    truth = json.dumps({"format": asdict(form), **asdict(library)}, indent=1) + "\n"
    path = folder / "truth.json"
    if path.exists() and path.read_text(encoding="utf-8") == truth:
        return library
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(folder, video, form) for video in sorted(library.videos, key=lambda v: -v.duration_seconds)]
    in_processes(_render, jobs, processes)
    path.write_text(truth, encoding="utf-8")
    return library


def iterate_pictures(video: PlantedVideo, form: PlantedFormat) -> Iterator[tuple[int, np.ndarray]]:
    """Number of each frame and its picture uint8 (H, W, 3), in order; equal arrays are the same object."""
    aspect = form.width / form.height
    stage = compose_scene((video.events[0].phrase,), np.random.default_rng(video.seed), aspect=aspect)
    stage = replace(stage, camera=Camera("still"), things=(), events=())
    (empty,) = render_frames(stage, [0.0], form.height, form.width)
    shown = 0
    for place, event in enumerate(video.events):
        first, last = round(event.start_seconds * form.fps), round(event.end_seconds * form.fps)
        yield from ((number, empty) for number in range(shown, first))
        rng = np.random.default_rng([video.seed, place])
        acted = compose_scene((event.phrase,), rng, aspect=aspect, start_seconds=0.0)
        scene = replace(stage, things=acted.things, events=acted.events)
        count = min(last - first, round(LOOP_SECONDS * form.fps))
        frames = render_frames(scene, np.arange(count) / form.fps, form.height, form.width)
        for number in range(first, last):
            yield number, frames[(number - first) % count]
        shown = last
    yield from ((number, empty) for number in range(shown, round(video.duration_seconds * form.fps)))


def _render(job: tuple[Path, PlantedVideo, PlantedFormat]) -> None:
    folder, video, form = job
    temporary = folder / f"{video.file}.new.mp4"
    with av.open(str(temporary), "w", options={"fflags": "+bitexact"}) as container:
        options = {"preset": "ultrafast", "crf": "23", "tune": "zerolatency"}
        stream = container.add_stream("libx264", rate=form.fps, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = form.width, form.height, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = 10 * form.fps
        shown, frame = None, None
        for number, picture in iterate_pictures(video, form):
            if picture is not shown:
                frame, shown = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p"), picture
            assert frame is not None
            frame.pts, frame.time_base = number, Fraction(1, form.fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    temporary.replace(folder / video.file)
