"""Words for synthetic scenes: one canonical caption, many paraphrases, and captions that are wrong in one attribute.

A caption is made from `Content`, the phrases that say which thing does what, in order. A hard negative is the caption
of a content that differs from the true one in exactly one attribute: the colour, shape, motion or speed of one phrase
(colour and shape: of one thing), or the order of two phrases.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from elastivid.data.world import (
    COLOURS,
    MOTIONS,
    PACED_MOTIONS,
    SHAPES,
    Content,
    Phrase,
    Scene,
    in_split,
    is_possible,
)

ATTRIBUTES = ("colour", "shape", "motion", "order", "speed")

# the first word of each row is the canonical one
COLOUR_WORDS = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "golden", "lemon yellow"),
    "green": ("green", "emerald", "grass green"),
    "cyan": ("cyan", "turquoise", "aqua"),
    "blue": ("blue", "royal blue", "cobalt"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rose", "rosy"),
    "white": ("white", "snow white", "ivory"),
}
SHAPE_WORDS = {
    "circle": ("circle", "disc", "disk", "ball"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "three-sided shape", "pyramid"),
    "star": ("star", "five-pointed star"),
    "ring": ("ring", "hoop", "donut"),
    "cross": ("cross", "plus", "plus sign"),
    "heart": ("heart", "heart shape"),
    "moon": ("moon", "crescent", "half moon"),
    "drop": ("drop", "teardrop", "droplet"),
}
# (third person, -ing form) of each way to say a motion
MOTION_WORDS = {
    "left": (
        ("moves left", "moving left"),
        ("moves to the left", "moving to the left"),
        ("slides to the left", "sliding to the left"),
        ("travels left", "travelling left"),
        ("goes left", "going left"),
    ),
    "right": (
        ("moves right", "moving right"),
        ("moves to the right", "moving to the right"),
        ("slides to the right", "sliding to the right"),
        ("travels right", "travelling right"),
        ("goes right", "going right"),
    ),
    "up": (
        ("moves up", "moving up"),
        ("rises", "rising"),
        ("goes up", "going up"),
        ("moves upwards", "moving upwards"),
        ("climbs to the top", "climbing to the top"),
    ),
    "down": (
        ("moves down", "moving down"),
        ("sinks", "sinking"),
        ("goes down", "going down"),
        ("moves downwards", "moving downwards"),
        ("falls", "falling"),
    ),
    "bounce": (
        ("bounces", "bouncing"),
        ("jumps up and down", "jumping up and down"),
        ("hops", "hopping"),
        ("bounces up and down", "bouncing up and down"),
    ),
    "spin": (
        ("spins", "spinning"),
        ("rotates", "rotating"),
        ("turns around itself", "turning around itself"),
        ("twirls", "twirling"),
    ),
    "grow": (
        ("grows", "growing"),
        ("gets bigger", "getting bigger"),
        ("becomes larger", "becoming larger"),
        ("expands", "expanding"),
    ),
    "shrink": (
        ("shrinks", "shrinking"),
        ("gets smaller", "getting smaller"),
        ("becomes smaller", "becoming smaller"),
        ("contracts", "contracting"),
    ),
    "blink": (
        ("blinks", "blinking"),
        ("flashes", "flashing"),
        ("flashes on and off", "flashing on and off"),
        ("flickers", "flickering"),
    ),
    "orbit": (
        ("moves in a circle", "moving in a circle"),
        ("circles around", "circling around"),
        ("goes round and round", "going round and round"),
        ("loops around", "looping around"),
    ),
    "shake": (
        ("shakes", "shaking"),
        ("trembles", "trembling"),
        ("wobbles", "wobbling"),
        ("jitters", "jittering"),
    ),
    "still": (
        ("stays still", "staying still"),
        ("does not move", "not moving"),
        ("stands still", "standing still"),
        ("rests in place", "resting in place"),
    ),
    "appear": (
        ("appears", "appearing"),
        ("shows up", "showing up"),
        ("fades in", "fading in"),
        ("comes into view", "coming into view"),
    ),
    "disappear": (
        ("disappears", "disappearing"),
        ("vanishes", "vanishing"),
        ("fades out", "fading out"),
        ("fades away", "fading away"),
    ),
}
SPEED_WORDS = {"slow": ("slowly", "gently", "at a slow pace"), "fast": ("quickly", "fast", "rapidly")}
_IDLE = ("nothing happens", "nothing moves", "an empty scene", "just the background")

# {n} thing, {v} verb, {g} -ing form
_SINGLE = (
    *("a {n} {v}", "{n} {v}", "the {n} {v}"),
    *("a {n} {g}", "{n} {g}", "a {n} is {g}", "a {n} that {v}"),
    *("video of a {n} {g}", "a clip of a {n} {g}", "there is a {n} {g}", "we see a {n} {g}", "a scene where a {n} {v}"),
)
# one thing, two motions: {v1} {g1} first, {v2} {g2} second
_SEQUENCE = (
    *("a {n} {v1}, then {v2}", "a {n} {v1} and then {v2}", "{n} {v1} then {v2}", "first a {n} {v1}, then it {v2}"),
    *("the {n} first {v1} and afterwards {v2}", "a {n} {g1}, then {g2}", "{n} {g1} before {g2}"),
    *("a {n} {v1} before it {v2}", "a {n} {v2} after {g1}", "after {g1}, a {n} {v2}", "a {n} {v2} after it {v1}"),
    *("video of a {n} {g1} and then {g2}", "before {g2}, a {n} {v1}", "a {n} {v1}, followed by {g2}"),
)
# two things
_PAIR = (
    *("a {n1} {v1}, then a {n2} {v2}", "{n1} {v1} then {n2} {v2}", "first a {n1} {v1}, then a {n2} {v2}"),
    *("a {n1} {v1} before a {n2} {v2}", "a {n2} {v2} after a {n1} {v1}", "after a {n1} {v1}, a {n2} {v2}"),
    *("a {n1} {g1}, then a {n2} {g2}", "video of a {n1} {g1}, followed by a {n2} {g2}"),
    *("a {n1} {v1} and afterwards a {n2} {v2}", "before a {n2} {v2}, a {n1} {v1}"),
)


def canonical_caption(what: Scene | Content) -> str:
    """The plainest caption: first synonyms, "then" between phrases, no speeds. `what`: a scene or its content."""
    return _join(_content(what), None, 0.0)


def captions(what: Scene | Content, rng: np.random.Generator, *, speed_probability: float = 0.4) -> str:
    """A random paraphrase; a speed is said with the given probability where there is one to say."""
    return _join(_content(what), rng, speed_probability)


def hard_negatives(
    what: Scene | Content, rng: np.random.Generator, count: int, *, split: str = "train"
) -> list[tuple[str, str]]:
    """Captions that are false for `what` in exactly one attribute, paraphrased like true ones.

    Args:
        what: a scene or a content of one or two phrases.
        count: how many; the attributes that apply take turns in random order.
        split: where the compositions may come from, so that training never reads a held-out one as a negative.

    Returns:
        `count` pairs (attribute, caption), attributes as in `ATTRIBUTES`.

    Raises:
        ValueError: the content is empty or longer than two phrases.
    """
    pairs = negative_contents(what, rng, count, split=split)
    return [
        (name, captions(content, rng, speed_probability=1.0 if name == "speed" else 0.4)) for name, content in pairs
    ]


def negative_contents(
    what: Scene | Content, rng: np.random.Generator, count: int, *, split: str = "train"
) -> list[tuple[str, Content]]:
    """What `hard_negatives` puts into words: (attribute, content) pairs."""
    content = _content(what)
    if not 1 <= len(content) <= 2:
        raise ValueError(
            f"hard negatives need a content of one or two phrases, got {len(content)}; "
            "for a long scene pass scene.content_for(start, end) of one of its parts"
        )
    usable = ["colour", "shape", "motion"]
    usable += ["order"] if swapped(content) is not None else []
    usable += ["speed"] if any(p.speed for p in content) else []
    turns: list[str] = []
    while len(turns) < count:
        turns += [str(name) for name in rng.permutation(usable)]
    return [(name, _alter(content, name, rng, split)) for name in turns[:count]]


def swapped(content: Content) -> Content | None:
    """The content with its two phrases in the other order; `None` where there are not two."""
    return (content[1], content[0]) if len(content) == 2 else None


def _content(what: Scene | Content) -> Content:
    return what.content if isinstance(what, Scene) else what


def _alter(content: Content, attribute: str, rng: np.random.Generator, split: str) -> Content:
    """Change one attribute to a random other value that can be shown and is in the split."""
    if attribute == "order":
        return content[::-1]
    options = []
    if attribute == "speed":
        paced = [number for number, phrase in enumerate(content) if phrase.speed]
        number = int(rng.choice(paced))
        other = "fast" if content[number].speed == "slow" else "slow"
        # the speed that is wrong has to be said, the other one may be left out
        return tuple(replace(p, speed=other if k == number else "") for k, p in enumerate(content))
    number = int(rng.integers(len(content)))
    chosen = content[number]
    if attribute == "motion":
        for motion in MOTIONS:
            speed = chosen.speed if motion in PACED_MOTIONS else ""
            options.append(tuple(
                replace(p, motion=motion, speed=speed) if k == number else p for k, p in enumerate(content)
            ))  # fmt: skip
    else:
        values = list(COLOURS) if attribute == "colour" else SHAPES
        same = [(p.colour, p.shape) == (chosen.colour, chosen.shape) for p in content]
        for value in values:
            changed = {attribute: value}
            options.append(tuple(replace(p, **changed) if hit else p for p, hit in zip(content, same, strict=True)))
    one_thing = len({(p.colour, p.shape) for p in content})
    fitting = [
        option
        for option in options
        if option != content
        and is_possible(option)
        and len({(p.colour, p.shape) for p in option}) == one_thing
        and in_split(option, split)
    ]
    if not fitting:
        raise ValueError(f"no other {attribute} for {content!r} in split {split!r}; use split='all'")
    return fitting[int(rng.integers(len(fitting)))]


def _pick(words: tuple, rng: np.random.Generator | None):
    """The first entry half of the time and without a generator, else any."""
    return words[0] if rng is None or rng.random() < 0.4 else words[int(rng.integers(len(words)))]


def _noun(phrase: Phrase, rng: np.random.Generator | None) -> str:
    return f"{_pick(COLOUR_WORDS[phrase.colour], rng)} {_pick(SHAPE_WORDS[phrase.shape], rng)}"


def _verbs(phrase: Phrase, rng: np.random.Generator | None, speed_probability: float) -> tuple[str, str]:
    """(third person, -ing form) of the motion, with the speed if it is to be said."""
    verb, gerund = _pick(MOTION_WORDS[phrase.motion], rng)
    if phrase.speed and rng is not None and rng.random() < speed_probability:
        adverb = _pick(SPEED_WORDS[phrase.speed], rng)
        if adverb.endswith("ly") and rng.random() < 0.4:
            return f"{adverb} {verb}", f"{adverb} {gerund}"
        return f"{verb} {adverb}", f"{gerund} {adverb}"
    return verb, gerund


def _join(content: Content, rng: np.random.Generator | None, speed_probability: float) -> str:
    if not content:
        return _pick(_IDLE, rng)
    verbs = [_verbs(phrase, rng, speed_probability) for phrase in content]
    if len(content) == 1:
        text = _pick(_SINGLE, rng).format(n=_noun(content[0], rng), v=verbs[0][0], g=verbs[0][1])
    elif len(content) == 2 and (content[0].colour, content[0].shape) == (content[1].colour, content[1].shape):
        (v1, g1), (v2, g2) = verbs
        text = _pick(_SEQUENCE, rng).format(n=_noun(content[0], rng), v1=v1, g1=g1, v2=v2, g2=g2)
    elif len(content) == 2:
        (v1, g1), (v2, g2) = verbs
        n1, n2 = _noun(content[0], rng), _noun(content[1], rng)
        text = _pick(_PAIR, rng).format(n1=n1, v1=v1, g1=g1, n2=n2, v2=v2, g2=g2)
    else:
        steps = [f"a {_noun(p, rng)} {verb}" for p, (verb, _) in zip(content, verbs, strict=True)]
        text = ", then ".join(steps)
    return _articles(text)


def _articles(text: str) -> str:
    """ "a orange" -> "an orange"."""
    words = text.split(" ")
    for place, word in enumerate(words[:-1]):
        if word == "a" and words[place + 1][0] in "aeiou":
            words[place] = "an"
    return " ".join(words)
