"""What `elastivid ask` reads, does and prints."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastivid.core.errors import QuestionError
from elastivid.search.printing import clock, pace, span

if TYPE_CHECKING:
    from elastivid.core.answer import Answer
    from elastivid.search.watch import Watch

MOST_STRETCHES = 3  # of evidence that are printed
LINE_EVERY_SECONDS = 10.0
KNOWS = (
    "note: nano-ask knows coloured shapes (rendered ones), what they do, how often, in which order and when. "
    "It has seen no other video."
)


def questions_of(question: str | None, listed: Path | None) -> list[str]:
    """The questions of the command line: the one given, then those of the file, one a line; empty lines are skipped.

    Raises:
        QuestionError: there is none, or the file cannot be read.
    """
    questions = [] if question is None else [question]
    if listed is not None:
        try:
            lines = listed.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise QuestionError(f"cannot read questions from {listed}: {error}; give a text file") from error
        questions += [line.strip() for line in lines if line.strip()]
    if not questions:
        raise QuestionError('ask something: a question such as "when does the red star spin?", or -q questions.txt')
    return questions


class WatchingLines:
    """Says every ten seconds on stderr how far watching is."""

    def __init__(self) -> None:
        self.started = self.said = time.perf_counter()

    def __call__(self, seconds: float, length: float | None) -> None:
        now = time.perf_counter()
        if now - self.said < LINE_EVERY_SECONDS:
            return
        self.said = now
        of = f" of {clock(length)}" if length else ""
        fast = pace(seconds / max(now - self.started, 1e-6))
        print(f"elastivid: watched {clock(seconds)}{of}, {fast} realtime", file=sys.stderr, flush=True)


def lines_of_answers(answers: Sequence[Answer], watch: Watch, seconds: float) -> list[str]:
    """Question, answer and evidence of each, then what it took."""
    lines = []
    for answer in answers:
        lines += [answer.question, f"  {answer.text}"]
        shown = answer.evidence[:MOST_STRETCHES]
        if shown:
            places = ", ".join(f"{clock(e.start_seconds)} - {clock(e.end_seconds)}" for e in shown)
            more = len(answer.evidence) - len(shown)
            lines.append(f"  seen at {places}" + (f" and {more} more" if more else ""))
    watched = watch.watched_seconds
    lines.append(
        f"watched {clock(watched)} in {span(seconds)} ({pace(watched / max(seconds, 1e-6))} realtime), "
        f"memory {watch.nbytes / 1e6:.2f} of {watch.plan.memory_bytes / 1e6:.2f} MB"
    )
    return [*lines, KNOWS]


def values_of_answers(answers: Sequence[Answer], watch: Watch, seconds: float) -> dict[str, Any]:
    """The same for `--json`."""
    return {
        "source": watch.source,
        "watched_seconds": watch.watched_seconds,
        "took_seconds": round(seconds, 3),
        "memory_bytes": watch.nbytes,
        "memory_cap_bytes": watch.plan.memory_bytes,
        "tokens_per_question": watch.tokens,
        "answers": [asdict(answer) for answer in answers],
    }


def run_ask(source: str, questions: list[str], memory: str | None, model: str, as_json: bool) -> None:
    """Watch, answer, print."""
    from elastivid.search.watch import DEFAULT_MEMORY_BYTES, Watch, WatchPlan, fastest_precision, memory_bytes_of

    cap = DEFAULT_MEMORY_BYTES if memory is None else memory_bytes_of(memory)
    plan = WatchPlan(model=model, memory_bytes=cap, precision=fastest_precision())
    with Watch(source, questions, plan) as watch:
        started = time.perf_counter()
        watch.run(progress=WatchingLines())
        answers = watch.answers()
        took = time.perf_counter() - started
        if as_json:
            print(json.dumps(values_of_answers(answers, watch, took), indent=2))
        else:
            print("\n".join(lines_of_answers(answers, watch, took)))
