"""A seeded toy world: coloured shapes that do things in front of a camera, with complete ground truth.

A `Scene` is a value: it says what is there, what happens when, and how the camera moves. Pixels come from
`elastivid.data.render`, words from `elastivid.data.captions`, scenes from `elastivid.data.staging`.

Units: time in seconds; lengths in frame heights, origin at the top left, x to the right in [0, aspect], y down
in [0, 1]; angles in radians, clockwise on the screen. Intervals of time are half-open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from elastivid.core.errors import UnknownNameError

COLOURS = {
    "red": (218, 34, 36),
    "orange": (244, 130, 22),
    "yellow": (246, 222, 40),
    "green": (40, 160, 52),
    "cyan": (60, 214, 222),
    "blue": (36, 70, 214),
    "purple": (128, 42, 170),
    "pink": (250, 128, 190),
    "white": (246, 246, 246),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "moon", "drop")
ROUND_SHAPES = frozenset({"circle", "ring"})  # nobody can see them spin
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
MOTIONS = (
    *DIRECTIONS,
    *("bounce", "spin", "grow", "shrink", "blink", "orbit", "shake", "still", "appear", "disappear"),
)
PACED_MOTIONS = frozenset({*DIRECTIONS, "grow", "shrink"})  # slow and fast differ visibly at two frames per second
VISIBILITY_MOTIONS = frozenset({"appear", "disappear"})
SPEEDS = ("slow", "fast")
SPLITS = ("train", "all", "held_out")
BACKGROUNDS = ("plain", "gradient", "noise", "clutter")
CAMERAS = ("still", "pan", "zoom", "shake")
CAMERA_MARGIN = 0.08  # world beyond each border that the camera may come to show, in frame heights


def _require_known(colour: str, shape: str, motion: str) -> None:
    for kind, name, known in (("colour", colour, COLOURS), ("shape", shape, SHAPES), ("motion", motion, MOTIONS)):
        if name not in known:
            raise UnknownNameError(kind, name, known)


@dataclass(frozen=True)
class Phrase:
    """One thing doing one motion, as a caption would say it. `speed` is "slow", "fast" or "" (nothing to say).

    Raises:
        UnknownNameError: a value is not in the world's vocabulary.
    """

    colour: str
    shape: str
    motion: str
    speed: str = ""

    def __post_init__(self) -> None:
        _require_known(self.colour, self.shape, self.motion)
        if self.speed not in ("", *SPEEDS):
            raise UnknownNameError("speed", self.speed, SPEEDS)


Content = tuple[Phrase, ...]  # what happens, in order


@dataclass(frozen=True)
class Thing:
    """An object and its state before anything happens; it exists in [from_seconds, to_seconds)."""

    colour: str
    shape: str
    rgb: tuple[int, int, int]
    x: float
    y: float
    radius: float
    angle: float = 0.0
    from_seconds: float = 0.0
    to_seconds: float = math.inf


@dataclass(frozen=True)
class Event:
    """Thing number `actor` performs `motion` in [start_seconds, end_seconds). `rate`: heights, e-folds, turns or
    cycles per second, whichever the motion has."""

    actor: int
    motion: str
    speed: str
    start_seconds: float
    end_seconds: float
    rate: float


@dataclass(frozen=True)
class Background:
    """What is behind everything. `seed` fixes its texture, `shade` its mean colour."""

    kind: str
    seed: int
    shade: tuple[int, int, int]


@dataclass(frozen=True)
class Camera:
    """Camera move: total shift `dx`, `dy` (or amplitude of a shake) and the zoom factors at both ends."""

    kind: str
    dx: float = 0.0
    dy: float = 0.0
    zoom_start: float = 1.0
    zoom_end: float = 1.0


@dataclass(frozen=True)
class Pose:
    """Where and how a thing is seen at one time, in world coordinates."""

    x: float
    y: float
    radius: float
    angle: float
    opacity: float


@dataclass(frozen=True)
class Box:
    """Bounds of thing number `thing`, as fractions of frame width (x) and height (y)."""

    thing: int
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Scene:
    """Everything about one synthetic video.

    Args:
        duration_seconds: length of the video.
        aspect: width / height at which shapes look undistorted.
        background, camera: see there.
        things: objects that captions speak about.
        events: what they do, sorted by start.
        parts: (start, end) seconds of the stretches that have their own caption; one for short scenes.
        distractors: small static objects that captions never mention.
    """

    duration_seconds: float
    aspect: float
    background: Background
    camera: Camera
    things: tuple[Thing, ...]
    events: tuple[Event, ...]
    parts: tuple[tuple[float, float], ...]
    distractors: tuple[Thing, ...] = ()

    @property
    def content(self) -> Content:
        """All that happens, in order."""
        return self.content_for(0.0, self.duration_seconds)

    def content_for(self, start_seconds: float, end_seconds: float) -> Content:
        """What happens in a window: the events of which at least half lies inside it, in order."""
        inside = []
        for event in self.events:
            shared = min(end_seconds, event.end_seconds) - max(start_seconds, event.start_seconds)
            if shared >= 0.5 * (event.end_seconds - event.start_seconds):
                thing = self.things[event.actor]
                inside.append(Phrase(thing.colour, thing.shape, event.motion, event.speed))
        return tuple(inside)

    def pose_at(self, thing: int, seconds: float) -> Pose:
        """State of thing number `thing` at `seconds`, all its events so far applied."""
        return pose_of(self.things[thing], [e for e in self.events if e.actor == thing], seconds, self.aspect)

    def camera_at(self, seconds: float) -> tuple[float, float, float]:
        """Shift in x and y (world units) and zoom factor of the camera."""
        camera, progress = self.camera, seconds / self.duration_seconds
        if camera.kind == "pan":
            return camera.dx * (progress - 0.5), camera.dy * (progress - 0.5), 1.0
        if camera.kind == "shake":
            return camera.dx * math.sin(14.3 * seconds), camera.dy * math.sin(17.9 * seconds + 1.0), 1.0
        if camera.kind == "zoom":
            return 0.0, 0.0, camera.zoom_start * (camera.zoom_end / camera.zoom_start) ** progress
        return 0.0, 0.0, 1.0

    def to_screen(self, x: float, y: float, seconds: float) -> tuple[float, float]:
        """Place on the screen (same units as the world) of a world point, through the camera."""
        dx, dy, zoom = self.camera_at(seconds)
        return (x - dx - self.aspect / 2) * zoom + self.aspect / 2, (y - dy - 0.5) * zoom + 0.5

    def boxes_at(self, seconds: float) -> list[Box]:
        """Boxes around the visible captioned things; they bound each thing in any rotation, clipped to the frame."""
        boxes = []
        zoom = self.camera_at(seconds)[2]
        for index in range(len(self.things)):
            pose = self.pose_at(index, seconds)
            x, y = self.to_screen(pose.x, pose.y, seconds)
            reach = pose.radius * zoom
            left, right = max(0.0, (x - reach) / self.aspect), min(1.0, (x + reach) / self.aspect)
            top, bottom = max(0.0, y - reach), min(1.0, y + reach)
            if pose.opacity > 0.0 and left < right and top < bottom:
                boxes.append(Box(index, left, top, right, bottom))
        return boxes


def is_held_out(colour: str, shape: str, motion: str) -> bool:
    """Whether the composition is kept out of training: one in seven of the (colour, shape) pairs and one in seven of
    the (shape, motion) pairs, spread so that every single colour, shape and motion stays in training.

    Raises:
        UnknownNameError: a value is not in the world's vocabulary.
    """
    _require_known(colour, shape, motion)
    c, s, m = list(COLOURS).index(colour), SHAPES.index(shape), MOTIONS.index(motion)
    return (c + 2 * s) % 7 == 3 or (3 * s + m) % 7 == 5


def is_possible(content: Content) -> bool:
    """Whether the content can be shown so that a viewer can tell it: round shapes do not spin; a thing that does two
    motions does two different ones and neither stands still, appears nor disappears; two things are not look-alikes."""
    if any(p.shape in ROUND_SHAPES and p.motion == "spin" for p in content):
        return False
    if len(content) == 2:
        first, second = content
        if first.motion == "still" or second.motion == "still":
            return False
        if (first.colour, first.shape) == (second.colour, second.shape):
            return first.motion != second.motion and not VISIBILITY_MOTIONS & {first.motion, second.motion}
    return True


def in_split(content: Content, split: str) -> bool:
    """Whether content belongs to `split`: "train" holds no held-out composition, "held_out" at least one,
    "all" is everything.

    Raises:
        ValueError: unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    held_out = any(is_held_out(p.colour, p.shape, p.motion) for p in content)
    return split == "all" or held_out == (split == "held_out")


def pose_of(thing: Thing, events: list[Event], seconds: float, aspect: float) -> Pose:
    """State of a thing at `seconds`: all of its `events` that have begun, folded into its first state."""
    swing = 0.17 * min(1.0, aspect)
    x, y, radius, angle, opacity = thing.x, thing.y, thing.radius, thing.angle, 1.0
    if not thing.from_seconds <= seconds < thing.to_seconds:
        opacity = 0.0
    for event in events:
        lasts = event.end_seconds - event.start_seconds
        passed = min(max(seconds - event.start_seconds, 0.0), lasts)
        fade = min(1.0, max(0.0, (seconds - event.start_seconds - lasts / 2) / 0.3 + 0.5))  # 0 -> 1 in mid event
        if event.motion == "appear":
            opacity *= fade
        elif event.motion == "disappear":
            opacity *= 1.0 - fade
        if passed == 0.0:
            continue
        active = passed < lasts
        ease = min(1.0, (lasts - passed) / 0.15)  # come back to rest at the end
        cycles = event.rate * passed
        if event.motion in DIRECTIONS:
            x += DIRECTIONS[event.motion][0] * cycles * aspect
            y += DIRECTIONS[event.motion][1] * cycles
        elif event.motion == "grow":
            radius *= math.exp(cycles)
        elif event.motion == "shrink":
            radius *= math.exp(-cycles)
        elif event.motion == "spin":
            angle += 2 * math.pi * cycles
        elif event.motion == "bounce":
            y -= 0.26 * ease * abs(math.sin(math.pi * cycles))
        elif event.motion == "orbit":
            x += swing * ease * math.sin(2 * math.pi * cycles)
            y += swing * ease * (1 - math.cos(2 * math.pi * cycles))
        elif event.motion == "shake" and active:
            x += 0.045 * ease * math.sin(2 * math.pi * cycles)
            angle += 0.3 * ease * math.sin(2 * math.pi * 1.3 * cycles)
        elif event.motion == "blink" and active and cycles % 1.0 >= 0.5:
            opacity = 0.0
    return Pose(x, y, radius, angle, opacity)
