"""Long videos made of encoded pieces: a stock of events, and videos with questions put together from it.

Rendering and encoding a video of 10,000 frames for every question would take hours. Here each event is rendered and
encoded once, with a still background before and after it, and a video is a sequence of such pieces: what a model sees
is what it would see of a rendered file, at the price of a copy.

A video has slots of `SLOT_CHUNKS` chunks. A slot holds one event or the bare background. What a question asks about is
in chosen slots; everything else is drawn so that the answer is unique, and so that near misses abound.

Letters: E events, G backgrounds, T chunks, P tokens of a chunk, C channels, S slots, K queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from elastivid.data.questions import KINDS, OTHER, SHOWN_MOTIONS, answer_to, question_text
from elastivid.data.render import render_frames
from elastivid.data.staging import compose_scene
from elastivid.data.world import COLOURS, SHAPES, Camera, Phrase, Scene, in_split, is_possible
from elastivid.models.dual import FluxDual
from elastivid.models.tiny_vlm import ABSENT, TinyVLMConfig, chunk_tokens

ASPECT = 4 / 3
SLOT_CHUNKS = 3
SLOT_SECONDS = 12.0
LOOP_SECONDS = 4.0
MOST_EVENTS = 4  # that a question may ask about
MARGIN_SECONDS = 0.5  # of background at both ends of a slot
COUNTED_APART = 2  # slots between two events that are counted


@dataclass(frozen=True)
class Stock:
    """Encoded events.

    Args:
        phrases: what each event shows (E,).
        background: number of its background (E,).
        tokens: its slot, float16 (E, SLOT_CHUNKS, P, C).
        starts, ends: when it is seen, in seconds since the start of the slot (E,).
        bare: a chunk of each background, float16 (G, P, C).
    """

    phrases: tuple[Phrase, ...]
    background: np.ndarray
    tokens: Tensor
    starts: np.ndarray
    ends: np.ndarray
    bare: Tensor

    @cached_property
    def colours(self) -> np.ndarray:
        """Number of each event's colour (E,)."""
        return np.array([list(COLOURS).index(p.colour) for p in self.phrases])

    @cached_property
    def shapes(self) -> np.ndarray:
        """Number of each event's shape (E,)."""
        return np.array([SHAPES.index(p.shape) for p in self.phrases])

    def save(self, path: Path) -> None:
        """Write to one file."""
        torch.save(
            {
                "phrases": [[p.colour, p.shape, p.motion] for p in self.phrases],
                **{n: torch.from_numpy(getattr(self, n)) for n in ("background", "starts", "ends")},
                "tokens": self.tokens,
                "bare": self.bare,
            },
            path,
        )

    @classmethod
    def load(cls, path: Path) -> Stock:
        """Read what `save` wrote."""
        held = torch.load(path, weights_only=True)
        arrays = {n: held[n].numpy() for n in ("background", "starts", "ends")}
        return cls(
            tuple(Phrase(*values) for values in held["phrases"]), tokens=held["tokens"], bare=held["bare"], **arrays
        )

    @classmethod
    def joined(cls, stocks: Sequence[Stock]) -> Stock:
        """Several stocks as one."""
        first = np.cumsum([0, *(len(s.bare) for s in stocks)])
        return cls(
            tuple(p for s in stocks for p in s.phrases),
            np.concatenate([s.background + n for s, n in zip(stocks, first, strict=False)]),
            torch.cat([s.tokens for s in stocks]),
            np.concatenate([s.starts for s in stocks]),
            np.concatenate([s.ends for s in stocks]),
            torch.cat([s.bare for s in stocks]),
        )


def draw_phrase(rng: np.random.Generator, split: str) -> Phrase:
    """A thing and what it does, of a split of compositions."""
    while True:
        colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
        phrase = Phrase(colour, shape, str(rng.choice(SHOWN_MOTIONS)))
        if is_possible((phrase,)) and in_split((phrase,), split):
            return phrase


def bare_stage(seed: int) -> Scene:
    """A background with grey clutter and nothing on it."""
    scene = compose_scene((Phrase("red", "star", "still"),), np.random.default_rng(seed), aspect=ASPECT)
    grey = tuple(d for d in scene.distractors if d.colour == "grey")
    return replace(scene, camera=Camera("still"), things=(), events=(), distractors=grey)


def pictures(
    stage: Scene, empty: np.ndarray, phrase: Phrase, seed: int, times: np.ndarray, span: tuple[float, float]
) -> np.ndarray:
    """Frames uint8 (T, H, W, 3) at `times`: the event loops while `span` lasts; before and after that `empty`.

    Args:
        stage, empty: the background, and its picture (H, W, 3).
        phrase, seed: what is shown, and where and how large.
        times: in seconds (T,).
        span: (start, end) seconds of the event.
    """
    acted = compose_scene((phrase,), np.random.default_rng(seed), aspect=ASPECT, start_seconds=0.0)
    scene = replace(stage, things=acted.things, events=acted.events)
    on = (times >= span[0]) & (times < span[1])
    frames = np.broadcast_to(empty, (len(times), *empty.shape)).copy()
    if on.any():
        frames[on] = render_frames(scene, (times[on] - span[0]) % LOOP_SECONDS, *empty.shape[:2])
    return frames


def frame_times(config: TinyVLMConfig, chunks: int) -> np.ndarray:
    """Times of the frames of `chunks` chunks, each in the middle of its share of the time."""
    step = config.chunk_seconds / config.chunk_frames
    return (np.arange(chunks * config.chunk_frames) + 0.5) * step


def encode(encoder: FluxDual, config: TinyVLMConfig, frames: np.ndarray) -> Tensor:
    """Tokens (T, P, C) of frames uint8 (T * chunk_frames, H, W, 3) that have the model's size."""
    video = encoder.transform(frames).unflatten(0, (-1, config.chunk_frames))  # (T, F, 3, H, W)
    return chunk_tokens(encoder, video, config.chunk_patches)


def make_stock(
    encoder: FluxDual,
    config: TinyVLMConfig,
    seed: int,
    *,
    backgrounds: int,
    events: int,
    split: str = "train",
    progress: Callable[[int, int], None] | None = None,
) -> Stock:
    """Render and encode a stock: `events` events on each of `backgrounds` backgrounds. About 0.1 s an event.

    Args:
        encoder, config: what encodes and how.
        seed: stocks of different seeds share no background and no event.
        split: which compositions, see `elastivid.data.world.in_split`.
        progress: hears how many backgrounds are done, and of how many.
    """
    times = frame_times(config, SLOT_CHUNKS)
    last = SLOT_SECONDS - MARGIN_SECONDS
    phrases: list[Phrase] = []
    tokens, bare, starts, ends = [], [], [], []
    with torch.inference_mode():
        for number in range(backgrounds):
            rng = np.random.default_rng([seed, number])
            stage = bare_stage(int(rng.integers(2**31)))
            (empty,) = render_frames(stage, [0.0], config.size)
            still = np.broadcast_to(empty, (config.chunk_frames, *empty.shape))
            bare.append(encode(encoder, config, still)[0].half())
            for _ in range(events):
                phrase, length = draw_phrase(rng, split), float(np.exp(rng.uniform(np.log(2.5), np.log(9.0))))
                start = float(rng.uniform(MARGIN_SECONDS, last - length))
                shown = pictures(stage, empty, phrase, int(rng.integers(2**31)), times, (start, start + length))
                tokens.append(encode(encoder, config, shown).half())
                phrases.append(phrase)
                starts.append(start)
                ends.append(start + length)
            if progress is not None:
                progress(number + 1, backgrounds)
    return Stock(
        tuple(phrases),
        np.repeat(np.arange(backgrounds), events),
        torch.stack(tokens),
        np.array(starts),
        np.array(ends),
        torch.stack(bare),
    )


@dataclass(frozen=True)
class Asked:
    """A video with a question.

    Args:
        kind, text, answer: see `elastivid.data.questions`; the answer is "not in the video" where it is not.
        phrases: what the question is about.
        slots: event of each slot, -1 for bare background (S,).
        backdrop: background of each slot (S,).
        evidence: slots of the events asked about, in order of asking.
        spans: (start, end) seconds of each of them.
    """

    kind: str
    text: str
    answer: str
    phrases: tuple[Phrase, ...]
    slots: np.ndarray
    backdrop: np.ndarray
    evidence: tuple[int, ...]
    spans: tuple[tuple[float, float], ...]

    @property
    def present(self) -> bool:
        """Whether the video answers the question."""
        return self.answer != ABSENT and self.kind != OTHER


@dataclass(frozen=True)
class Drawing:
    """How videos and questions are drawn.

    Args:
        chunks: length T of the video; a multiple of `SLOT_CHUNKS` is used.
        absent: share of questions whose evidence is not there.
        other: share of questions about what the world does not have.
        busy: share of slots that hold something; `None` draws it for each video.
        one_camera: share of videos with a single background.
        held_out: wordings that training does not use, where there are such.
        near: share of the other slots that hold a near miss for certain: colour or shape of what is asked about.
    """

    chunks: int
    absent: float = 0.25
    other: float = 0.03
    busy: float | None = None
    one_camera: float = 0.4
    held_out: bool = False
    near: float = 0.0


def draw_asked(stock: Stock, rng: np.random.Generator, drawing: Drawing, kind: str | None = None) -> Asked:
    """One video and one question about it; `kind` fixes what is asked.

    Raises:
        ValueError: the video has fewer than two slots.
    """
    count = drawing.chunks // SLOT_CHUNKS
    if count < 2:
        raise ValueError(f"a video needs at least {2 * SLOT_CHUNKS} chunks, got {drawing.chunks}")
    if kind is None:
        kind = OTHER if rng.random() < drawing.other else str(rng.choice(KINDS))
    usable = np.ones(len(stock.phrases), dtype=bool)
    if rng.random() < drawing.one_camera:
        usable = stock.background == rng.integers(len(stock.bare))
    keys, forbidden = _draw_keys(stock, rng, kind, usable, count)
    asked = [stock.phrases[k] for k in dict.fromkeys(keys)]
    text = question_text(kind, asked, rng, held_out=drawing.held_out)
    absent = kind != OTHER and rng.random() < drawing.absent
    placed = [] if absent or kind == OTHER else list(range(len(keys)))
    if absent and kind == "order":
        placed = [[], [0], [1]][int(rng.integers(3))]
    places = _places(rng, count, len(placed), COUNTED_APART if kind == "count" else 1)
    slots = _fill(stock, rng, count, usable & ~forbidden, drawing.busy)
    if drawing.near and keys:
        alike = np.isin(stock.colours, stock.colours[keys]) | np.isin(stock.shapes, stock.shapes[keys])
        misses = _fill(stock, rng, count, usable & ~forbidden & alike, drawing.near)
        slots = np.where((slots >= 0) & (misses >= 0), misses, slots)
    slots[places] = [keys[k] for k in placed]
    spans = tuple(
        (SLOT_SECONDS * p + float(stock.starts[slots[p]]), SLOT_SECONDS * p + float(stock.ends[slots[p]]))
        for p in places
    )
    if kind == OTHER:
        answer = answer_to(kind, ())
    elif absent:
        answer = ABSENT
    else:
        first = int(np.argmin(places)) if kind == "order" else 0
        answer = answer_to(kind, [asked[first]])
    evidence = [-1] * len(keys)
    for key, place in zip(placed, places, strict=True):
        evidence[key] = int(place)
    backdrop = _backdrop(stock, rng, slots, usable)
    return Asked(kind, text, answer, tuple(asked), slots, backdrop, tuple(evidence), spans)


def _draw_keys(
    stock: Stock, rng: np.random.Generator, kind: str, usable: np.ndarray, count: int
) -> tuple[list[int], np.ndarray]:
    """Events asked about, and which events may not occur beside them."""
    colours, shapes = stock.colours, stock.shapes
    first = int(rng.choice(np.flatnonzero(usable)))
    pair = (colours == colours[first]) & (shapes == shapes[first])
    if kind == OTHER:
        return [], np.zeros(len(usable), dtype=bool)
    if kind == "colour":
        return [first], shapes == shapes[first]
    if kind == "shape":
        return [first], colours == colours[first]
    if kind == "count":
        most = min(MOST_EVENTS, (count + COUNTED_APART - 1) // COUNTED_APART)
        number = int(rng.integers(1, most + 1))
        same = np.flatnonzero(pair & usable)
        return [first, *(int(rng.choice(same)) for _ in range(number - 1))], pair
    if kind == "order":
        others = np.flatnonzero(usable & ~pair)
        second = int(rng.choice(others))
        return [first, second], pair | ((colours == colours[second]) & (shapes == shapes[second]))
    return [first], pair


def _places(rng: np.random.Generator, count: int, number: int, apart: int) -> list[int]:
    """`number` slots at least `apart` from each other, in random order."""
    free = count - (number - 1) * (apart - 1)
    chosen = np.sort(rng.choice(free, number, replace=False)) + np.arange(number) * (apart - 1)
    return [int(p) for p in rng.permutation(chosen)]


def _fill(stock: Stock, rng: np.random.Generator, count: int, allowed: np.ndarray, busy: float | None) -> np.ndarray:
    share = float(rng.uniform(0.05, 1.0)) if busy is None else busy
    pool = np.flatnonzero(allowed)
    if not len(pool):
        return np.full(count, -1)
    return np.where(rng.random(count) < share, rng.choice(pool, count), -1)


def _backdrop(stock: Stock, rng: np.random.Generator, slots: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """An empty slot shows the background of the event before it."""
    backdrop = np.empty(len(slots), dtype=np.int64)
    now = int(stock.background[rng.choice(np.flatnonzero(usable))])
    for place, event in enumerate(slots.tolist()):
        now = now if event < 0 else int(stock.background[event])
        backdrop[place] = now
    return backdrop


def tokens_of(stock: Stock, asked: Asked) -> Tensor:
    """What the encoder gives of the whole video: float32 (T, P, C)."""
    slots = torch.from_numpy(asked.slots)
    bare = stock.bare[torch.from_numpy(asked.backdrop)][:, None].expand(-1, SLOT_CHUNKS, -1, -1)  # (S, 3, P, C)
    shown = torch.where((slots >= 0)[:, None, None, None], stock.tokens[slots.clamp(min=0)], bare)
    return shown.flatten(0, 1).float()  # (S, 3, P, C) -> (T, P, C)


def owners_of(stock: Stock, asked: Asked, config: TinyVLMConfig) -> Tensor:
    """Which event asked about each token shows, int64 (T, P): 0 for none, 1 for the first, and so on.

    A token belongs to an event that fills at least half of the time it spans.
    """
    owner = torch.zeros(len(asked.slots), SLOT_CHUNKS, config.chunk_tokens, dtype=torch.int64)
    width = config.chunk_seconds / (config.chunk_tokens - 1)
    begin = torch.tensor([0.0, *(width * g for g in range(config.chunk_tokens - 1))])
    end = torch.tensor([config.chunk_seconds, *(width * (g + 1) for g in range(config.chunk_tokens - 1))])
    chunk = config.chunk_seconds * torch.arange(SLOT_CHUNKS)[:, None]
    for number, place in enumerate(asked.evidence, start=1):
        if place < 0:
            continue
        event = asked.slots[place]
        shared = (end + chunk).clamp(max=float(stock.ends[event])) - (begin + chunk).clamp(
            min=float(stock.starts[event])
        )
        owner[place][shared >= 0.5 * (end - begin)] = number
    return owner.flatten(0, 1)  # (S, 3, P) -> (T, P)


def wanted_of(asked: Asked, queries: int) -> Tensor:
    """Where each query should look: shares of the events 1 to MOST_EVENTS and, last, of nothing: (K, E + 1).

    Of a question about two things the first half of the queries looks for the first, the other for the second.
    """
    wanted = torch.zeros(queries, MOST_EVENTS + 1)
    there = [number for number, place in enumerate(asked.evidence) if place >= 0]
    if asked.kind == "order":
        for half, rows in enumerate((slice(0, queries // 2), slice(queries // 2, queries))):
            wanted[rows, half if half in there else MOST_EVENTS] = 1
    elif there:
        wanted[:, there] = 1 / len(there)
    else:
        wanted[:, MOST_EVENTS] = 1
    return wanted
