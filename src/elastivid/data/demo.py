"""The demo library: more than a hundred rendered video files, and twenty queries fixed before any model was trained.

Every query has one target video and three distractor videos that differ from it in exactly one attribute. Colour,
shape and motion distractors are staged like the target: same background, camera and clutter, and as far as the content
lets them the same places and times. Order distractors show the same two motions the other way round, one of them on the
target's own stage. No other video in the library fulfils a query. Beside these there are long videos of several parts,
random fillers, some files in other containers and codecs, and two files that cannot be indexed, so that the reporting
of bad files has something to report.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from elastivid.data.captions import canonical_caption
from elastivid.data.processes import in_processes
from elastivid.data.staging import compose_scene, sample_scene
from elastivid.data.synthetic import VideoFormat, write_video
from elastivid.data.world import Content, Phrase, Scene, is_held_out

DEMO_SEED = 2
_LONG_VIDEOS = 12
_TRUNCATED = "truncated: the file ends before its index"
_NO_PICTURES = "not a video: an audio track only"


@dataclass(frozen=True)
class DemoQuery:
    """A query in words with the content that answers it.

    Args:
        text: what the user types.
        attribute: in what the distractors differ: "colour", "shape", "motion" or "order".
        content: what the target shows.
        instead: for colour, shape and motion, the three values the distractors have.
    """

    text: str
    attribute: str
    content: Content
    instead: tuple[str, ...] = ()

    @property
    def is_held_out(self) -> bool:
        """Whether the query contains a composition that training never shows."""
        return any(is_held_out(p.colour, p.shape, p.motion) for p in self.content)

    def is_answered_by(self, scene: Scene) -> bool:
        """Whether some part of the scene shows the query's phrases, in their order."""
        wanted = [(p.colour, p.shape, p.motion) for p in self.content]
        for start, end in scene.parts:
            shown = iter([(p.colour, p.shape, p.motion) for p in scene.content_for(start, end)])
            if all(phrase in shown for phrase in wanted):  # a subsequence
                return True
        return False


def _one(text: str, attribute: str, phrase: str, instead: str) -> DemoQuery:
    return DemoQuery(text, attribute, (Phrase(*phrase.split()),), tuple(instead.split()))


def _two(text: str, first: str, second: str) -> DemoQuery:
    return DemoQuery(text, "order", (Phrase(*first.split()), Phrase(*second.split())))


# Frozen: these were written before the first model was trained. A test holds their fingerprint.
DEMO_QUERIES = (
    _one("a red circle bounces", "colour", "red circle bounce", "blue green yellow"),
    _one("a yellow star moving to the left", "colour", "yellow star left", "red purple white"),
    _one("video of a purple heart getting bigger", "colour", "purple heart grow", "red cyan orange"),
    _one("a green moon moves down", "colour", "green moon down", "red blue orange"),  # held out
    _one("a cyan star spins", "colour", "cyan star spin", "yellow pink white"),  # held out
    _one("a blue triangle moves right", "shape", "blue triangle right", "square cross drop"),
    _one("white ring rising", "shape", "white ring up", "circle star moon"),
    _one("an orange moon trembles", "shape", "orange moon shake", "heart star cross"),
    _one("a red cross moves up", "shape", "red cross up", "triangle star ring"),  # held out
    _one("blue heart moving down", "shape", "blue heart down", "circle drop square"),  # held out
    _one("a green square rotates", "motion", "green square spin", "blink left grow"),
    _one("a pink circle moves up", "motion", "pink circle up", "down bounce still"),
    _one("an orange triangle blinks", "motion", "orange triangle blink", "spin shake disappear"),
    _one("a cyan ring slides to the left", "motion", "cyan ring left", "right up orbit"),  # held out
    _one("a yellow heart moves right", "motion", "yellow heart right", "left bounce shrink"),  # held out
    _two("a blue circle moves left, then grows", "blue circle left", "blue circle grow"),
    _two("a red star blinks and then moves up", "red star blink", "red star up"),
    _two("a pink cross spins after moving left", "pink cross left", "pink cross spin"),  # held out
    _two(
        "first a yellow square bounces, then a purple star moves right",
        *("yellow square bounce", "purple star right"),
    ),
    _two("a white square moves up before it shakes", "white square up", "white square shake"),  # held out
)


@dataclass(frozen=True)
class DemoVideo:
    """One file of the library and everything that is true about it.

    Args:
        file: neutral name inside the folder.
        scene: what it shows; `None` where it shows nothing.
        video_format: how it is encoded.
        target_of, distractor_of: position in `DEMO_QUERIES`, or -1.
        times_seconds: times of its frames where the rate varies, else empty.
        problem: why it cannot be indexed; empty for good files.
    """

    file: str
    scene: Scene | None
    video_format: VideoFormat = field(default_factory=VideoFormat)
    target_of: int = -1
    distractor_of: int = -1
    times_seconds: tuple[float, ...] = ()
    problem: str = ""


def distractor_contents(query: DemoQuery) -> list[Content]:
    """The three contents that differ from the query's in its attribute alone."""
    if query.attribute == "order":
        return [query.content[::-1]] * 3
    (phrase,) = query.content
    if query.attribute == "colour":
        return [(replace(phrase, colour=value),) for value in query.instead]
    if query.attribute == "shape":
        return [(replace(phrase, shape=value),) for value in query.instead]
    return [(replace(phrase, motion=value),) for value in query.instead]


def plan_demo(count: int = 108, seed: int = DEMO_SEED) -> list[DemoVideo]:
    """What the library will hold, in file order; nothing is rendered.

    Args:
        count: number of files, at least 100.
        seed: fixes everything but the queries.

    Raises:
        ValueError: `count` is below 100.
    """
    if count < 100:
        raise ValueError(f"count must be >= 100 to hold all queries, distractors and long videos, got {count}")
    rng = np.random.default_rng(seed)
    videos = [video for number in range(len(DEMO_QUERIES)) for video in _plan_query(number, seed)]
    for _ in range(_LONG_VIDEOS):
        videos.append(DemoVideo(".mp4", _unasked_scene(rng, "long", 4 / 3)))
    videos += _plan_oddities(rng)
    while len(videos) < count:
        videos.append(DemoVideo(".mp4", _unasked_scene(rng, str(rng.choice(["single", "sequence", "pair"])), 4 / 3)))
    places = rng.permutation(len(videos))
    named = [replace(videos[place], file=f"video_{k:03d}{videos[place].file}") for k, place in enumerate(places)]
    return named


def demo_library(folder: str | Path, *, count: int = 108, seed: int = DEMO_SEED, processes: int = 2) -> list[DemoVideo]:
    """Render the library into `folder` and write `ground_truth.json` beside the videos.

    The JSON holds `queries` (text, attribute, held_out, target file, distractor files) and `videos` (file, duration,
    caption, parts and events with times in seconds, boxes twice a second as fractions of the frame).

    Args:
        folder: made if missing; files of the same names are replaced.
        count, seed: see `plan_demo`.
        processes: how many files are rendered at the same time; 1 stays in this process.

    Returns:
        The videos in file order.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    videos = plan_demo(count, seed)
    jobs = [(str(folder), video) for video in videos]
    in_processes(_render, jobs, processes, chunk=4)
    partial = folder / "ground_truth.json.new"
    partial.write_text(json.dumps(ground_truth(videos), indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / "ground_truth.json")
    return videos


def ground_truth(videos: list[DemoVideo]) -> dict:
    """All that is true about the library, as JSON values."""
    queries = []
    for number, query in enumerate(DEMO_QUERIES):
        queries.append(
            {
                "text": query.text,
                "attribute": query.attribute,
                "held_out": query.is_held_out,
                "target": next(v.file for v in videos if v.target_of == number),
                "distractors": [v.file for v in videos if v.distractor_of == number],
            }
        )
    return {"queries": queries, "videos": [_describe(video) for video in videos]}


def _describe(video: DemoVideo) -> dict:
    scene = video.scene
    if scene is None:
        return {"file": video.file, "problem": video.problem}
    events = [
        {**asdict(event), "colour": scene.things[event.actor].colour, "shape": scene.things[event.actor].shape}
        for event in scene.events
    ]
    parts = [
        {"start_seconds": start, "end_seconds": end, "caption": canonical_caption(scene.content_for(start, end))}
        for start, end in scene.parts
    ]
    boxes = [
        {"seconds": float(seconds), "boxes": [asdict(box) for box in scene.boxes_at(float(seconds))]}
        for seconds in np.arange(0.25, scene.duration_seconds, 0.5)
    ]
    return {
        "file": video.file,
        "problem": video.problem,
        "duration_seconds": scene.duration_seconds,
        "caption": canonical_caption(scene),
        "format": asdict(video.video_format),
        "camera": scene.camera.kind,
        "parts": parts,
        "events": events,
        "boxes": boxes,
    }


def _plan_query(number: int, seed: int) -> list[DemoVideo]:
    """Target and distractors of one query, on the same stage."""
    query = DEMO_QUERIES[number]
    target = DemoVideo(".mp4", _stage(query.content, [seed, number, 0]), target_of=number)
    videos = [target]
    for place, content in enumerate(distractor_contents(query)):
        stage = place if query.attribute == "order" else 0  # there is only one other order: show it on other stages
        videos.append(DemoVideo(".mp4", _stage(content, [seed, number, stage]), distractor_of=number))
    return videos


def _stage(content: Content, seed: list[int]) -> Scene:
    return compose_scene(content, np.random.default_rng(seed), duration_seconds=6.0)


def _unasked_scene(rng: np.random.Generator, kind: str, aspect: float) -> Scene:
    """A random scene that answers none of the queries."""
    while True:
        scene = sample_scene(rng, "all", kind, aspect)
        if not any(query.is_answered_by(scene) for query in DEMO_QUERIES):
            return scene


def _plan_oddities(rng: np.random.Generator) -> list[DemoVideo]:
    """One file each of other containers, codecs, sizes and rates, and two that cannot be read."""
    wide, tall = _unasked_scene(rng, "sequence", 16 / 9), _unasked_scene(rng, "pair", 9 / 16)
    uneven = np.cumsum(rng.uniform(0.02, 0.09, 70)) - 0.02
    cut = _unasked_scene(rng, "single", 4 / 3)
    return [
        DemoVideo(".avi", _unasked_scene(rng, "pair", 319 / 241), VideoFormat(241, 319, 25, "mpeg4")),
        DemoVideo(".webm", _unasked_scene(rng, "long", 241 / 181), VideoFormat(181, 241, 30, "libvpx-vp9")),
        DemoVideo(".mov", _unasked_scene(rng, "single", 163 / 121), VideoFormat(121, 163, 15, "mjpeg")),
        DemoVideo(".mp4", wide, VideoFormat(360, 640, 30)),
        DemoVideo(".mp4", tall, VideoFormat(480, 270, 30)),
        DemoVideo(".mp4", _unasked_scene(rng, "single", 4 / 3), times_seconds=tuple(uneven[uneven < 4.0].tolist())),
        DemoVideo(".mp4", cut, problem=_TRUNCATED),
        DemoVideo(".mp4", None, problem=_NO_PICTURES),
    ]


def _render(job: tuple[str, DemoVideo]) -> None:
    folder, video = job
    path = Path(folder) / video.file
    if video.scene is None:
        _write_audio(path)
        return
    write_video(video.scene, path, video.video_format, times_seconds=video.times_seconds or None)
    if video.problem == _TRUNCATED:
        content = path.read_bytes()
        path.write_bytes(content[: int(0.6 * len(content))])


def _write_audio(path: Path) -> None:
    """Two seconds of a 440 Hz tone and no picture."""
    rate = 16_000
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=rate, layout="mono")
        tone = 0.2 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)
        for start in range(0, len(tone), 1024):
            frame = av.AudioFrame.from_ndarray(tone[None, start : start + 1024].astype(np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
