"""Ctrl-C, and signals that ask a command to end: what is finished is kept, and the exit code says why it ended."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ASKED_TO_END = (signal.SIGTERM, signal.SIGHUP)


class _Asked(BaseException):
    """The process was asked to end by the signal `number`."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def interruptible(advice: str) -> Iterator[None]:
    """Run a block that cleans up when interrupted; then print `advice` and exit with 128 + the signal's number.

    Only for the main thread of a command.
    """

    def ask(number: int, frame: FrameType | None) -> None:
        raise _Asked(number)

    before = {number: signal.signal(number, ask) for number in ASKED_TO_END}
    try:
        yield
    except KeyboardInterrupt:
        _leave(advice, signal.SIGINT)
    except _Asked as asked:
        _leave(advice, asked.number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(advice: str, number: int) -> None:
    print(f"\nelastivid: interrupted; {advice}", file=sys.stderr)
    sys.exit(128 + number)
