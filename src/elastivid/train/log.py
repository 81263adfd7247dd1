"""The log of a run: JSON lines that are the same whenever the run is repeated, times beside them, and tensorboard.

metrics.jsonl       a line per `log_every` steps and per skipped step; equal after a crash and a resume
timing.jsonl        seconds per step, share of waiting for batches, samples per second
evaluation.jsonl    rows per operating point
tensorboard/        the same numbers as curves, where tensorboard is installed
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
from pathlib import Path
from typing import Any

from elastivid.train.checkpoint import write_atomically

METRICS, TIMING, EVALUATION = "metrics.jsonl", "timing.jsonl", "evaluation.jsonl"


class JsonLines:
    """A file of JSON objects, one per line, each with a `step`; every line reaches the file as it is written.

    Args:
        path: the file.
        step: lines of later steps are cut off, as is a line that a crash left half written.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = [line for line in read_lines(path) if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(path, lambda file: file.write(text.encode()))
        self._file = path.open("a", encoding="utf-8")

    def write(self, **values: Any) -> None:
        """Append a line."""
        self._file.write(json.dumps({name: _plain(value) for name, value in values.items()}) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Return when all lines are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, without one that was not written to its end; none where there is no file."""
    if not path.exists():
        return []
    complete = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in complete.splitlines()]


def _plain(value: Any) -> Any:
    """JSON has no infinities."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class Log:
    """All logs of a run; see the module's text.

    Args:
        folder: the folder of the run.
        step: the step that the run starts or goes on from.
        evaluated: the step of the last evaluation that the run knows of.
    """

    def __init__(self, folder: Path, step: int, evaluated: int) -> None:
        self.metrics, self.timing = (JsonLines(folder / name, step) for name in (METRICS, TIMING))
        self.evaluation = JsonLines(folder / EVALUATION, evaluated)
        self._board = None
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def curves(self, group: str, step: int, values: dict[str, Any]) -> None:
        """Draw the numbers among `values`."""
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    self._board.add_scalar(f"{group}/{name}", value, step)

    def sync(self) -> None:
        """Return when all lines are on the disk."""
        for lines in (self.metrics, self.timing, self.evaluation):
            lines.sync()

    def close(self) -> None:
        """Close all files."""
        for lines in (self.metrics, self.timing, self.evaluation):
            lines.close()
        if self._board is not None:
            self._board.close()
