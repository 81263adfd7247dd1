"""`Answer`: what a model says about a video, and where in it the evidence is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Evidence:
    """A stretch of the video that an answer rests on.

    Args:
        start_seconds, end_seconds: since the start of the video; half-open.
        weight: share of the attention that it got, 0 to 1.
    """

    start_seconds: float
    end_seconds: float
    weight: float


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    Args:
        question: as it was asked.
        text: the answer in words.
        found: false where the model says that the video does not show it, or that it cannot tell.
        certainty: product of the probabilities of the answer's words, 0 to 1. It is not calibrated.
        evidence: stretches the answer rests on, the weightiest first; empty where nothing was found.
        watched_seconds: how much of the video the answer knows.
    """

    question: str
    text: str
    found: bool
    certainty: float
    evidence: tuple[Evidence, ...]
    watched_seconds: float
