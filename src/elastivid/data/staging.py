"""Drawing scenes of the synthetic world: what happens (content), where, when, and in front of what.

Equal generators give equal scenes. Look, clutter and staging each have a generator of their own, so that variants of a
content staged from equal generators share everything that the content does not fix.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from elastivid.data.world import (
    BACKGROUNDS,
    CAMERAS,
    COLOURS,
    DIRECTIONS,
    MOTIONS,
    PACED_MOTIONS,
    SHAPES,
    SPEEDS,
    VISIBILITY_MOTIONS,
    Background,
    Camera,
    Content,
    Event,
    Phrase,
    Scene,
    Thing,
    in_split,
    is_held_out,
    is_possible,
    pose_of,
)

KINDS = ("single", "sequence", "pair", "long")
ASPECTS = (1.0, 4 / 3, 4 / 3, 16 / 9)


def sample_content(rng: np.random.Generator, split: str = "train", kind: str = "single") -> Content:
    """Draw what happens: "single" one motion; "sequence" one thing, two motions; "pair" two things one after another.

    Raises:
        ValueError: unknown split or kind.
    """
    if kind not in ("single", "sequence", "pair"):
        raise ValueError(f"kind of content must be 'single', 'sequence' or 'pair', got {kind!r}")
    while True:
        phrases = [_sample_phrase(rng) for _ in range(1 if kind == "single" else 2)]
        if kind == "sequence":
            phrases[1] = replace(phrases[1], colour=phrases[0].colour, shape=phrases[0].shape)
        elif kind == "pair" and (phrases[0].colour, phrases[0].shape) == (phrases[1].colour, phrases[1].shape):
            continue
        content = tuple(phrases)
        if is_possible(content) and in_split(content, split):
            return content


def sample_scene(
    rng: np.random.Generator, split: str = "train", kind: str | None = None, aspect: float | None = None
) -> Scene:
    """Draw a scene.

    Args:
        rng: the only source of randomness; equal generators give equal scenes.
        split: "train" (no held-out composition), "held_out" (at least one) or "all".
        kind: "single", "sequence", "pair" (each 4 s) or "long" (8-16 s, several parts); `None` draws one of the
            first three.
        aspect: width / height in [0.5, 3]; `None` draws one of the common ones.

    Raises:
        ValueError: unknown split or kind.
    """
    if kind is None:
        kind = str(rng.choice(["single", "sequence", "pair"], p=[0.4, 0.35, 0.25]))
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS} or None, got {kind!r}")
    if aspect is None:
        aspect = float(rng.choice(ASPECTS))
    if kind != "long":
        return compose_scene(sample_content(rng, split, kind), rng, aspect=aspect)
    contents: list[Content] = []
    for _ in range(int(rng.integers(2, 4))):
        contents.append(sample_content(rng, split, str(rng.choice(["single", "sequence", "pair"]))))
        split = "all" if split == "held_out" else split  # one held-out composition is enough
    contents.insert(int(rng.integers(len(contents) + 1)), ())  # an idle stretch
    return compose_parts(tuple(contents), rng, aspect=aspect)


def compose_scene(
    content: Content,
    rng: np.random.Generator,
    *,
    aspect: float = 4 / 3,
    duration_seconds: float = 4.0,
    start_seconds: float | None = None,
) -> Scene:
    """Stage one content. Equal generators give the same background, camera, clutter and places as far as the content
    lets them, so variants of a content differ in nothing else.

    Args:
        content: one or two phrases; an empty speed means any.
        duration_seconds: length of the video, at least 4 s.
        start_seconds: when the part of 4 s begins; `None` draws it.

    Raises:
        ValueError: the content is impossible, the video too short or the aspect outside [0.5, 3].
    """
    if not content or not is_possible(content):
        raise ValueError(f"content must be one or two phrases that can be shown (see is_possible), got {content!r}")
    _check_aspect(aspect)
    if duration_seconds < 4.0:
        raise ValueError(f"duration_seconds must be >= 4, got {duration_seconds}")
    look, clutter, stage = _generators(rng)
    if start_seconds is None:
        start_seconds = float(stage.uniform(0.0, duration_seconds - 4.0))
    things, events = _stage_part(content, stage, start_seconds, aspect)
    return Scene(
        duration_seconds,
        aspect,
        *_sample_look(look),
        things,
        events,
        ((start_seconds, start_seconds + 4.0),),
        _sample_distractors(clutter, content, aspect),
    )


def compose_parts(contents: tuple[Content, ...], rng: np.random.Generator, *, aspect: float = 4 / 3) -> Scene:
    """Stage several contents one after another, 4 s each, each with its own things; an empty one is an idle stretch."""
    _check_aspect(aspect)
    look, clutter, stage = _generators(rng)
    things: list[Thing] = []
    events: list[Event] = []
    parts = []
    for number, content in enumerate(contents):
        start = 4.0 * number
        parts.append((start, start + 4.0))
        new_things, new_events = _stage_part(content, stage, start, aspect)
        events += [replace(e, actor=e.actor + len(things)) for e in new_events]
        things += [replace(t, from_seconds=start, to_seconds=start + 4.0) for t in new_things]
    everything = tuple(phrase for content in contents for phrase in content)
    return Scene(
        4.0 * len(contents),
        aspect,
        *_sample_look(look),
        tuple(things),
        tuple(events),
        tuple(parts),
        _sample_distractors(clutter, everything, aspect),
    )


def _check_aspect(aspect: float) -> None:
    if not 0.5 <= aspect <= 3.0:
        raise ValueError(f"aspect (width / height) must lie in [0.5, 3], got {aspect}; motions need that much room")


def _generators(rng: np.random.Generator) -> list[np.random.Generator]:
    """Independent generators for look, clutter and staging, so that drawing more of one leaves the others alone."""
    seed = int(rng.integers(2**62))
    return [np.random.default_rng([seed, number]) for number in range(3)]


def _sample_phrase(rng: np.random.Generator) -> Phrase:
    motion = str(rng.choice(MOTIONS))
    speed = str(rng.choice(SPEEDS)) if motion in PACED_MOTIONS else ""
    return Phrase(str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES)), motion, speed)


def _sample_look(rng: np.random.Generator) -> tuple[Background, Camera]:
    shade = rng.uniform(45, 165) + rng.uniform(-16, 16, 3)
    background = Background(
        str(rng.choice(BACKGROUNDS, p=[0.15, 0.2, 0.3, 0.35])),
        int(rng.integers(2**31)),
        (int(shade[0]), int(shade[1]), int(shade[2])),
    )
    kind = str(rng.choice(CAMERAS, p=[0.55, 0.15, 0.15, 0.15]))
    if kind == "pan":
        angle = rng.uniform(0, 2 * math.pi)
        return background, Camera(kind, 0.08 * math.cos(angle), 0.08 * math.sin(angle))
    if kind == "shake":
        return background, Camera(kind, float(rng.uniform(0.006, 0.014)), float(rng.uniform(0.006, 0.014)))
    if kind == "zoom":
        ends = (1.0, 1.1) if rng.random() < 0.5 else (1.1, 1.0)
        return background, Camera(kind, zoom_start=ends[0], zoom_end=ends[1])
    return background, Camera(kind)


def _sample_distractors(rng: np.random.Generator, content: Content, aspect: float) -> tuple[Thing, ...]:
    used = {p.colour for p in content}
    distractors = []
    for _ in range(int(rng.choice(5, p=[0.3, 0.2, 0.2, 0.2, 0.1]))):
        colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
        grey, x, y, radius = (
            rng.random() < 0.5,
            rng.uniform(0.05, 0.95),
            rng.uniform(0.05, 0.95),
            rng.uniform(0.025, 0.045),
        )
        level = int(rng.integers(70, 190))
        if grey or colour in used or is_held_out(colour, shape, "still"):
            distractors.append(Thing("grey", shape, (level, level, level), x * aspect, y, radius))
        else:
            distractors.append(Thing(colour, shape, COLOURS[colour], x * aspect, y, radius))
    return tuple(distractors)


def _stage_part(
    content: Content, rng: np.random.Generator, start: float, aspect: float
) -> tuple[tuple[Thing, ...], tuple[Event, ...]]:
    """Things and events of a part of 4 s beginning at `start`; every path stays inside the frame."""
    looks = list(dict.fromkeys((p.colour, p.shape) for p in content))
    spans = _sample_spans(content, rng, start)
    things: list[Thing] = []
    events: list[Event] = []
    taken: list[tuple[float, float, float, float]] = []
    for actor, (colour, shape) in enumerate(looks):
        own = []
        for phrase, (begin, end) in zip(content, spans, strict=True):
            if (phrase.colour, phrase.shape) == (colour, shape):
                speed = phrase.speed or (str(rng.choice(SPEEDS)) if phrase.motion in PACED_MOTIONS else "")
                own.append(Event(actor, phrase.motion, speed, begin, end, _sample_rate(phrase.motion, speed, rng)))
        jitter = rng.integers(-10, 11, 3)
        red, green, blue = np.clip(np.array(COLOURS[colour]) + jitter, 0, 255).tolist()
        angle = float(rng.uniform(-0.2, 0.2))
        thing = Thing(colour, shape, (red, green, blue), 0.0, 0.0, _sample_radius(own, rng), angle)
        thing, own, box = _place(thing, own, taken, rng, aspect)
        things.append(thing)
        events += own
        taken.append(box)
    return tuple(things), tuple(sorted(events, key=lambda e: e.start_seconds))


def _sample_spans(content: Content, rng: np.random.Generator, start: float) -> list[tuple[float, float]]:
    """When each phrase happens inside the 4 s after `start`."""
    if len(content) == 1:
        lasts = (
            rng.uniform(2.0, 2.7) if content[0].motion in PACED_MOTIONS | VISIBILITY_MOTIONS else rng.uniform(2.6, 4.0)
        )
        begin = start + rng.uniform(0.0, 4.0 - lasts)
        return [(begin, begin + lasts)]
    first, second = rng.uniform(1.6, 1.95, 2)
    begin = start + rng.uniform(0.0, 4.0 - first - second)
    return [(begin, begin + first), (begin + first, begin + first + second)][: len(content)]


def _sample_rate(motion: str, speed: str, rng: np.random.Generator) -> float:
    wobble = float(rng.uniform(0.92, 1.08))
    if motion in DIRECTIONS:
        return wobble * (0.14 if speed == "slow" else 0.31)
    if motion in ("grow", "shrink"):
        return wobble * (0.24 if speed == "slow" else 0.55)
    return wobble * {"bounce": 0.7, "spin": 0.22, "blink": 1.3, "orbit": 0.38, "shake": 2.7}.get(motion, 1.0)


def _sample_radius(events: list[Event], rng: np.random.Generator) -> float:
    """Starting radius from which growing and shrinking stay between 0.06 and 0.26 heights."""
    growth = [e.rate * (e.end_seconds - e.start_seconds) * (1 if e.motion == "grow" else -1)
              for e in events if e.motion in ("grow", "shrink")]  # fmt: skip
    if not growth:
        return float(rng.uniform(0.12, 0.17))
    path = np.cumsum([0.0, *growth])
    low, high = 0.06 / math.exp(path.min()), 0.26 / math.exp(path.max())
    return float(rng.uniform(min(low, high), high) if "grow" not in {e.motion for e in events} else min(0.15, high))


def _place(
    thing: Thing,
    events: list[Event],
    taken: list[tuple[float, float, float, float]],
    rng: np.random.Generator,
    aspect: float,
) -> tuple[Thing, list[Event], tuple[float, float, float, float]]:
    """Put the thing where its whole path stays in the frame, away from `taken` boxes if there is room."""
    border, first_radius = 0.05, thing.radius
    while True:
        left, top, right, bottom = _path_box(thing, events, aspect)
        free_x, free_y = aspect - 2 * border - (right - left), 1 - 2 * border - (bottom - top)
        if free_x >= 0 and free_y >= 0:
            break
        if thing.radius > 0.75 * first_radius:
            events = [replace(e, rate=0.97 * e.rate) if e.motion in DIRECTIONS else e for e in events]
        thing = replace(thing, radius=0.97 * thing.radius)
    best: tuple[float, float, float] | None = None
    for _ in range(40):
        x, y = border - left + rng.uniform(0, free_x), border - top + rng.uniform(0, free_y)
        overlap = sum(
            max(0.0, min(x + right, b[2]) - max(x + left, b[0])) * max(0.0, min(y + bottom, b[3]) - max(y + top, b[1]))
            for b in taken
        )
        if best is None or overlap < best[0]:
            best = (overlap, float(x), float(y))
        if overlap == 0:
            break
    assert best is not None
    _, x, y = best
    return replace(thing, x=x, y=y), events, (x + left, y + top, x + right, y + bottom)


def _path_box(thing: Thing, events: list[Event], aspect: float) -> tuple[float, float, float, float]:
    """Bounds (left, top, right, bottom) of everything the thing covers, relative to its starting place."""
    start, end = min(e.start_seconds for e in events), max(e.end_seconds for e in events)
    poses = [pose_of(thing, events, t, aspect) for t in np.linspace(start, end, 41)]
    return (
        min(p.x - p.radius for p in poses) - thing.x,
        min(p.y - p.radius for p in poses) - thing.y,
        max(p.x + p.radius for p in poses) - thing.x,
        max(p.y + p.radius for p in poses) - thing.y,
    )
