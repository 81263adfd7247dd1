"""Questions about the synthetic world, in many wordings, and what their answers are made of.

A question is about things by colour and shape, what they do, how often, in which order and when. `OTHER` questions are
about what this world does not have; their answer is that the model cannot tell.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from elastivid.data.captions import COLOUR_WORDS, MOTION_WORDS, SHAPE_WORDS
from elastivid.data.world import COLOURS, MOTIONS, SHAPES, VISIBILITY_MOTIONS, Phrase
from elastivid.models.tiny_vlm import ABSENT, BEGIN, CANNOT_TELL, COUNT, END, WHEN

KINDS = ("colour", "shape", "motion", "exists", "count", "order", "when")
OTHER = "other"
SHOWN_MOTIONS = tuple(m for m in MOTIONS if m not in VISIBILITY_MOTIONS)

# {n} a thing by colour and shape, {c} colour, {s} shape, {g} -ing form of what it does
_TEMPLATES = {
    "colour": (
        *("what colour is the {s}?", "what color is the {s}?", "which colour does the {s} have?"),
        *("what is the colour of the {s}?", "the {s} has what color?"),
    ),
    "shape": (
        *("what shape is the {c} thing?", "which shape is {c}?", "what is the {c} thing?"),
        *("what {c} shape is there?", "what shape does the {c} object have?"),
    ),
    "motion": (
        *("what does the {n} do?", "what is the {n} doing?", "how does the {n} move?"),
        *("what happens to the {n}?", "what does a {n} do in the video?"),
    ),
    "exists": (
        *("is there a {n}?", "do we see a {n}?", "does the video show a {n}?", "is a {n} in the video?"),
        *("can you see a {n}?",),
    ),
    "count": (
        *("how many times does a {n} show up?", "how often is there a {n}?", "how often do we see a {n}?"),
        *("how many times is there a {n}?", "how often does the {n} appear?"),
    ),
    "order": (
        *("which comes first, the {n} or the {o}?", "what is seen first, a {n} or a {o}?"),
        *("which is earlier, the {n} or the {o}?", "do we see the {n} or the {o} first?"),
    ),
    "when": (
        *(
            "when is there a {n}?",
            "when does the {n} show up?",
            "when do we see a {n}?",
            "at what time is there a {n}?",
        ),
        *("when is the {n} {g}?", "when is a {n} {g}?", "at what time is the {n} {g}?"),
    ),
    OTHER: (
        *("what is the {x} doing?", "what colour is the {x}?", "is there a {x}?", "how many {x}s are there?"),
        *("who is the {x}?", "why does the {x} leave?", "where is the {x}?", "when does the {x} come?"),
        *("what does the {x} say?", "what is in the {x}?", "which {x} comes first?", "is the {x} happy?"),
    ),
}
_TRAINED_NOUNS = (
    *("person", "man", "woman", "child", "dog", "cat", "horse", "bird", "car", "bus", "train", "bicycle", "boat"),
    *("plane", "house", "tree", "flower", "table", "chair", "cup", "bottle", "phone", "book", "computer", "player"),
    *("goalkeeper", "teacher", "doctor", "shirt", "hat", "shoe", "street", "city", "beach", "mountain", "river"),
    *("kitchen", "apple", "cake", "guitar", "piano", "camera", "window", "door", "clock", "news", "weather"),
    *("president", "driver", "dancer", "swimmer", "boxer"),
)
_HELD_OUT_NOUNS = (
    *("girl", "sheep", "truck", "airplane", "bridge", "sofa", "spoon", "laptop", "skier", "chef", "jacket"),
    *("garden", "banana", "violin", "king"),
)


def answer_words() -> tuple[str, ...]:
    """All words that answers are made of, begin and end first."""
    words = [BEGIN, END, WHEN, COUNT, "yes", "the", "a", "it"]
    words += [*ABSENT.split(), *CANNOT_TELL.split(), *COLOURS, *SHAPES]
    words += [word for motion in SHOWN_MOTIONS for word in MOTION_WORDS[motion][0][0].split()]
    return tuple(dict.fromkeys(words))


def answer_to(kind: str, phrases: Sequence[Phrase]) -> str:
    """The answer where the evidence is there; the first phrase is what comes first."""
    first = phrases[0] if phrases else None
    if kind == OTHER or first is None:
        return CANNOT_TELL
    return {
        "colour": first.colour,
        "shape": f"a {first.shape}",
        "motion": f"it {MOTION_WORDS[first.motion][0][0]}",
        "exists": "yes",
        "count": COUNT,
        "order": f"the {first.colour} {first.shape}",
        "when": WHEN,
    }[kind]


def question_text(kind: str, phrases: Sequence[Phrase], rng: np.random.Generator, *, held_out: bool = False) -> str:
    """A wording of a question about `phrases` (two for order), with synonyms.

    Args:
        kind: one of `KINDS`, or `OTHER`.
        phrases: what is asked about.
        rng: draws the wording.
        held_out: nouns of `OTHER` questions that training does not use.
    """
    template = str(rng.choice(_TEMPLATES[kind]))
    if kind == OTHER:
        nouns = _HELD_OUT_NOUNS if held_out else _TRAINED_NOUNS
        return template.format(x=str(rng.choice(nouns)))
    first = phrases[0]
    colour, shape = _word(COLOUR_WORDS[first.colour], rng), _word(SHAPE_WORDS[first.shape], rng)
    other = phrases[-1]
    return template.format(
        n=f"{colour} {shape}",
        c=colour,
        s=shape,
        o=f"{_word(COLOUR_WORDS[other.colour], rng)} {_word(SHAPE_WORDS[other.shape], rng)}",
        g=_word(tuple(pair[1] for pair in MOTION_WORDS[first.motion]), rng),
    )


def _word(words: tuple[str, ...], rng: np.random.Generator) -> str:
    """The canonical word more often than any other."""
    return words[0] if rng.random() < 0.5 else words[int(rng.integers(len(words)))]
