"""Clips that could not be used, with the reason, in one file that every process of a run appends to.

    {"path": "v/cut.mp4", "reason": "v/cut.mp4: cannot be opened as a video (...)", "replaced_by": "v/next.mp4"}

A line is written with one system call in append mode, so lines of several processes do not mix and a kill loses none
that was reported.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

from elastivid.core.errors import ElastividError

SHOWN = 5


class QuarantineError(ElastividError, RuntimeError):
    """More clips cannot be used than a run accepts."""


class Quarantine:
    """The list of clips that a run left out. Safe to use from several processes, and to pickle.

    Args:
        file: the list, one JSON object a line; lines of an earlier part of the run are kept and count.
        total: clips of the data set.
        limit: share of them that may be left out, in [0, 1]; beyond it `add` raises.

    Raises:
        ValueError: `limit` is no share or `total` is below 1.
    """

    def __init__(self, file: Path, total: int, limit: float = 0.05) -> None:
        if not 0 <= limit <= 1 or total < 1:
            raise ValueError(f"limit must be a share in [0, 1] and total >= 1, got limit={limit}, total={total}")
        self.file, self.total, self.limit = file, total, limit
        self._size, self._names = 0, frozenset[str]()

    def __contains__(self, name: object) -> bool:
        """Whether a clip is listed, by whichever process."""
        try:
            size = self.file.stat().st_size
        except FileNotFoundError:
            size = 0
        if size != self._size:
            self._size, self._names = size, frozenset(row["path"] for row in self.rows())
        return name in self._names

    def add(self, path: Path | str, reason: str, replaced_by: Path | str = "") -> None:
        """Report a clip; one that is listed already for the same reason is not listed again.

        Raises:
            QuarantineError: more clips than `limit` allows are listed now.
        """
        row = {"path": str(path), "reason": reason}
        rows = self.rows()
        if not any(row["path"] == known["path"] and reason == known["reason"] for known in rows):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps({**row, "replaced_by": str(replaced_by)} if replaced_by else row, ensure_ascii=False)
            target = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(target, line.encode("utf-8", errors="surrogateescape") + b"\n")
            finally:
                os.close(target)
            rows.append(row)
        left_out = len({known["path"] for known in rows})
        if left_out > self.limit * self.total:
            raise QuarantineError(
                f"{left_out} of {self.total} clips cannot be used, more than the allowed {100 * self.limit:g} %; "
                f"the last: {reason}. All of them are listed in {self.file}; mend or remove them, or allow more"
            )

    def rows(self) -> list[dict[str, str]]:
        """What is listed; a line that a kill cut off is passed over."""
        try:
            lines = self.file.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        rows = []
        for line in lines:
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows

    def summary(self) -> list[str]:
        """Lines for the end of a run: how many clips were left out, and the most frequent reasons."""
        rows = self.rows()
        if not rows:
            return [f"quarantine: all {self.total} clips could be used"]
        paths = {row["path"] for row in rows}
        lines = [f"quarantine: {len(paths)} of {self.total} clips could not be used; listed in {self.file}"]
        reasons = Counter(row["reason"].replace(row["path"], "FILE") for row in rows)
        lines += [f"  {count} x {reason}" for reason, count in reasons.most_common(SHOWN)]
        if len(reasons) > SHOWN:
            lines.append(f"  and {len(reasons) - SHOWN} other reasons")
        return lines
