"""flux-bench: frozen clips of the synthetic world on which frames, resolution, tokens and width each matter.

    task           classes                              where the evidence is
    static         4 shapes (chance 1/4)                one large thing that stands still: every frame shows all
    direction      4 directions (1/4)                   a thing that moves once: any two frames far apart
    order          6 orders of 3 colours (1/6)          three things shown one after another, two beats each
    counting       1 to 4 times (1/4)                   how often one thing is shown, a beat each time
    speed          fast, medium, slow (1/3)             how long the same way takes; the way itself says nothing
    small object   4 shapes (1/4)                       a drifting thing of a third of the size of `static`
    long silence   4 colours (1/4)                      a thing shown for one beat of 16 s; others stand there always

A beat is a twelfth of a clip, so 12 evenly spread frames see everything that happens, 8 miss a third of the shortest
events, and 2 see next to nothing of them. A clip shows one task and its class is drawn evenly, so the share of right
answers of a model that knows nothing is the chance above.

A clip is a function of (split, index) alone and its pixels of (clip, frames, size); `VERSION` names this rule and
changes with it. The splits draw from disjoint seeds and from disjoint pairs of two attributes of a thing, of which
neither is the answer: colour and shape; colour and place (quarter of the frame, where a move begins) where the shape
is asked for; shape and place where the colour is. So every thing that is tested combines two attributes that training
shows, but never together. (Were the answer one of the two, the other would tell a model which answers training left
out with it, and a model that knows little would do worse than chance.)

Letters: N clips, T frames, H W pixels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Literal

import numpy as np

from elastivid.core.errors import UnknownNameError
from elastivid.data.render import render_frames
from elastivid.data.world import COLOURS, DIRECTIONS, SHAPES, Background, Camera, Event, Scene, Thing

VERSION = "flux-bench-1"
FRAMES, SIZE = 16, 64  # of the cached clips; other counts and sizes are read from these
TEST_CLIPS, VALIDATION_CLIPS = 5040, 1680
BEATS = 12
ORDER_COLOURS = ("red", "green", "blue")
SILENCE_COLOURS = ("red", "green", "blue", "yellow")
TASK_SHAPES = ("circle", "ring", "cross", "triangle")
SPEED_BEATS = {"fast": 1.5, "medium": 4.5, "slow": 9.5}  # how long the way takes
NOISE_LEVELS = 8  # grey levels that the sensor adds or takes at most, evenly distributed
_RESIDUES = {"train": (0, 1, 2, 4, 6), "validation": (5,), "test": (3,)}
SPLITS = tuple(_RESIDUES)
Pair = Literal["colour and shape", "colour and place", "shape and place"]


@dataclass(frozen=True)
class Task:
    """What is asked of a clip: the names of its classes and how long its clips last."""

    name: str
    classes: tuple[str, ...]
    seconds: float = 4.0

    @property
    def chance(self) -> float:
        """Share of right answers of a model that knows nothing."""
        return 1.0 / len(self.classes)


TASKS = (
    Task("static", TASK_SHAPES),
    Task("direction", tuple(DIRECTIONS)),
    Task("order", tuple(" ".join(colours) for colours in permutations(ORDER_COLOURS))),
    Task("counting", ("once", "twice", "three times", "four times")),
    Task("speed", tuple(SPEED_BEATS)),
    Task("small object", TASK_SHAPES),
    Task("long silence", SILENCE_COLOURS, 16.0),
)
NUM_CLASSES = sum(len(task.classes) for task in TASKS)
FIRST_CLASS = tuple(sum(len(task.classes) for task in TASKS[:number]) for number in range(len(TASKS)))


@dataclass(frozen=True)
class BenchClip:
    """One clip: number of its task in `TASKS`, number of its class in that task, and what is to be seen.

    `noise` seeds the sensor noise of its pixels.
    """

    task: int
    label: int
    scene: Scene
    noise: tuple[int, ...]


@dataclass(frozen=True)
class BenchSet:
    """Rendered clips: `frames` uint8 (N, T, H, W, 3) mapped from a file, `tasks` and `labels` int64 (N,)."""

    frames: np.ndarray
    tasks: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.tasks)


def pair_split(thing: Thing, pair: Pair) -> str:
    """The only split that shows the two attributes of `thing` together that `pair` names."""
    colour, shape = list(COLOURS).index(thing.colour), SHAPES.index(thing.shape)
    place = int(thing.x >= 0.5) + 2 * int(thing.y >= 0.5)
    first, second = {
        "colour and shape": (colour, shape), "colour and place": (colour, place), "shape and place": (shape, place)
    }[pair]  # fmt: skip
    residue = (first + 2 * second) % 7
    return next(split for split, residues in _RESIDUES.items() if residue in residues)


def draw_clip(split: str, index: int) -> BenchClip:
    """Clip number `index` of a split. Neighbours show different tasks and every class comes equally often.

    Raises:
        UnknownNameError: there is no such split.
        ValueError: `index` is negative.
    """
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    if index < 0:
        raise ValueError(f"index must be >= 0, got {index}")
    seed = (2025, SPLITS.index(split), index)
    rng = np.random.default_rng(seed)
    number = index % len(TASKS)
    task = TASKS[number]
    label = index // len(TASKS) % len(task.classes)
    things, events = _STAGE[task.name](rng, split, label)
    seconds = task.seconds
    things = tuple(_timed(thing, seconds / BEATS) for thing in things)
    shade = rng.uniform(30, 90) + rng.uniform(-10, 10, 3)
    background = Background(
        str(rng.choice(["plain", "gradient"])), int(rng.integers(2**31)), (int(shade[0]), int(shade[1]), int(shade[2]))
    )
    scene = Scene(seconds, 1.0, background, Camera("still"), things, events, ((0.0, seconds),))
    return BenchClip(number, label, scene, (*seed, 1))


def render_clip(clip: BenchClip, frames: int = FRAMES, size: int = SIZE) -> np.ndarray:
    """Pixels of a clip at `frames` evenly spread times, uint8 (T, H, W, 3): a pure function of its arguments.

    Raises:
        ValueError: there is no frame, or a side is below 8 pixels.
    """
    if frames < 1:
        raise ValueError(f"frames must be >= 1, got {frames}")
    times = (np.arange(frames) + 0.5) * clip.scene.duration_seconds / frames
    pixels = render_frames(clip.scene, times, size)  # (T, H, W, 3)
    rng = np.random.default_rng((*clip.noise, frames, size))
    noise = rng.integers(-NOISE_LEVELS, NOISE_LEVELS + 1, pixels.shape, dtype=np.int16)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def load_clips(folder: Path, split: str, count: int, frames: int = FRAMES, size: int = SIZE) -> BenchSet:
    """The first `count` clips of a split, rendered once into a file under `folder` and mapped from there afterwards.

    Rendering takes about 2 ms a clip. What another process has half written is not used.
    """
    path = folder / f"{VERSION}-{split}-{count}x{frames}x{size}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        stored = np.lib.format.open_memmap(partial, "w+", np.uint8, (count, frames, size, size, 3))
        for index in range(count):
            stored[index] = render_clip(draw_clip(split, index), frames, size)
        stored.flush()
        del stored
        partial.replace(path)
    tasks = np.arange(count) % len(TASKS)
    sizes = np.array([len(task.classes) for task in TASKS])
    labels = np.arange(count) // len(TASKS) % sizes[tasks]
    return BenchSet(np.load(path, mmap_mode="r"), tasks, labels)


def fingerprint(clips: Iterable[BenchClip]) -> str:
    """Hash of what the clips show (not of their pixels, whose last bits may depend on the processor)."""
    digest = hashlib.sha256(VERSION.encode())
    for clip in clips:
        digest.update(repr(clip).encode())
    return digest.hexdigest()[:16]


def frozen_clips() -> Iterator[BenchClip]:
    """The frozen test clips, one after another."""
    return (draw_clip("test", index) for index in range(TEST_CLIPS))


Staged = tuple[tuple[Thing, ...], tuple[Event, ...]]
"""Things with their spans in beats, and events in seconds."""


def _timed(thing: Thing, beat: float) -> Thing:
    """The thing with its span in seconds instead of beats."""
    return Thing(thing.colour, thing.shape, thing.rgb, thing.x, thing.y, thing.radius, thing.angle,
                 thing.from_seconds * beat, thing.to_seconds * beat)  # fmt: skip


def _thing(
    rng: np.random.Generator,
    split: str,
    radius: tuple[float, float],
    *,
    pair: Pair = "colour and shape",
    colours: Sequence[str] = tuple(COLOURS),
    shapes: Sequence[str] = SHAPES,
    way: tuple[float, float] = (0.0, 0.0),
) -> Thing:
    """A thing of the split that is always there and stays in the frame on its `way`."""
    while True:
        colour, shape = colours[int(rng.integers(len(colours)))], shapes[int(rng.integers(len(shapes)))]
        red, green, blue = np.clip(np.array(COLOURS[colour]) + rng.integers(-10, 11, 3), 0, 255).tolist()
        reach = float(rng.uniform(*radius))
        low_x, low_y = (reach + 0.02 + max(0.0, -step) for step in way)
        high_x, high_y = (1 - reach - 0.02 - max(0.0, step) for step in way)
        x, y = float(rng.uniform(low_x, high_x)), float(rng.uniform(low_y, high_y))
        thing = Thing(colour, shape, (red, green, blue), x, y, reach, float(rng.uniform(-0.2, 0.2)))
        if pair_split(thing, pair) == split:
            return thing


def _shown(thing: Thing, from_beat: float, to_beat: float) -> Thing:
    return Thing(thing.colour, thing.shape, thing.rgb, thing.x, thing.y, thing.radius, thing.angle, from_beat, to_beat)


def _move(
    rng: np.random.Generator,
    split: str,
    direction: str,
    span: tuple[float, float],
    length: tuple[float, float],
    radius: tuple[float, float],
    *,
    pair: Pair = "colour and shape",
    shapes: Sequence[str] = SHAPES,
) -> Staged:
    """A thing that goes `length` heights in a `direction` during a `span` in beats of 4 seconds."""
    distance = float(rng.uniform(*length))
    across, down = DIRECTIONS[direction]
    thing = _thing(rng, split, radius, pair=pair, shapes=shapes, way=(across * distance, down * distance))
    start, end = (4.0 / BEATS * beat for beat in span)
    return (thing,), (Event(0, direction, "", start, end, distance / (end - start)),)


def _static(rng: np.random.Generator, split: str, label: int) -> Staged:
    return (_thing(rng, split, (0.18, 0.28), pair="colour and place", shapes=(TASK_SHAPES[label],)),), ()


def _direction(rng: np.random.Generator, split: str, label: int) -> Staged:
    span = float(rng.uniform(0, 2)), float(rng.uniform(10, 12))
    return _move(rng, split, tuple(DIRECTIONS)[label], span, (0.35, 0.6), (0.11, 0.16))


def _order(rng: np.random.Generator, split: str, label: int) -> Staged:
    colours = list(permutations(ORDER_COLOURS))[label]
    gaps = rng.dirichlet(np.ones(4)) * (BEATS - 6)  # idle beats before, between and behind
    starts = np.cumsum(gaps[:3]) + 2 * np.arange(3)
    things = [_thing(rng, split, (0.12, 0.17), pair="shape and place", colours=(colour,)) for colour in colours]
    return tuple(_shown(t, float(s), float(s) + 2) for t, s in zip(things, starts, strict=True)), ()


def _counting(rng: np.random.Generator, split: str, label: int) -> Staged:
    times = label + 1
    thing = _thing(rng, split, (0.12, 0.18))
    spare = BEATS - times - (times - 1)  # a beat each, a beat at least between two
    gaps = rng.dirichlet(np.ones(times + 1)) * spare
    starts = np.cumsum(gaps[:times]) + 2 * np.arange(times)
    return tuple(_shown(thing, float(s), float(s) + 1) for s in starts), ()


def _speed(rng: np.random.Generator, split: str, label: int) -> Staged:
    lasts = SPEED_BEATS[TASKS[4].classes[label]]
    start = float(rng.uniform(0.5, BEATS - 0.5 - lasts))
    direction = str(rng.choice(list(DIRECTIONS)))
    return _move(rng, split, direction, (start, start + lasts), (0.4, 0.6), (0.11, 0.16))


def _small_object(rng: np.random.Generator, split: str, label: int) -> Staged:
    direction = str(rng.choice(list(DIRECTIONS)))
    span, length, radius = (0.0, float(BEATS)), (0.15, 0.4), (0.07, 0.09)
    return _move(rng, split, direction, span, length, radius, pair="colour and place", shapes=(TASK_SHAPES[label],))


def _long_silence(rng: np.random.Generator, split: str, label: int) -> Staged:
    shown = _thing(rng, split, (0.12, 0.18), pair="shape and place", colours=(SILENCE_COLOURS[label],))
    start = float(rng.uniform(0, BEATS - 1))
    others = [colour for colour in COLOURS if colour not in SILENCE_COLOURS]
    number = int(rng.integers(1, 3))
    always = [_thing(rng, split, (0.08, 0.12), pair="shape and place", colours=others) for _ in range(number)]
    return (*always, _shown(shown, start, start + 1)), ()


_STAGE = {
    "static": _static,
    "direction": _direction,
    "order": _order,
    "counting": _counting,
    "speed": _speed,
    "small object": _small_object,
    "long silence": _long_silence,
}
