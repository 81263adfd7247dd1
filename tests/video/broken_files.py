"""What becomes of every file in `broken/`: run as a program, because a file may hang or kill the process that reads it.

    python tests/video/broken_files.py FOLDER              prints one line `file,result` per file
    python tests/video/broken_files.py FOLDER --write      writes broken_files.csv beside this program

Results: "ok", "partial" (frames came, `Clip.problem` says what is missing), the name of the error, "hang", "crash".
"""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
from pathlib import Path

TABLE = Path(__file__).with_name("broken_files.csv")
SECONDS_PER_FILE = 15


def outcome(path: Path) -> str:
    """Read a file in every way that there is."""
    from elastivid.video import Limits, VideoError, VideoReader

    try:
        with VideoReader(path, size=32, limits=Limits(stall_seconds=SECONDS_PER_FILE)) as reader:
            _ = reader.metadata
            clips = list(reader.iterate())
            spread = [clips[i].indices[0] for i in range(0, len(clips), max(len(clips) // 8, 1))]
            some = reader.frames_at(spread)
            played = reader.frames_played_at([0.0, clips[-1].times_seconds[0]])
            keyframes = reader.frames_played_at([0.0], decode="keyframes")
            problems = [clips[-1].problem, some.problem, played.problem, keyframes.problem]
    except VideoError as error:
        return type(error).__name__
    return "partial" if any(problems) else "ok"


def outcomes(folder: Path) -> dict[str, str]:
    """Result of every file below `folder`. Files are read in child processes; a new one follows one that died."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix != ".csv")
    results: dict[str, str] = {}
    while len(results) < len(names):
        rest = names[len(results) :]
        done = subprocess.run(
            [sys.executable, __file__, str(folder), "--child"], input="\n".join(rest), capture_output=True, text=True
        )
        results.update(line.split("\t") for line in done.stdout.splitlines())
        if done.returncode:
            died = "hang" if done.returncode == -signal.SIGALRM else "crash"
            results[names[len(results)]] = died
    return results


def _child(folder: Path) -> None:
    for name in sys.stdin.read().splitlines():
        signal.alarm(SECONDS_PER_FILE)
        print(name, outcome(folder / name), sep="\t", flush=True)


def main() -> None:
    folder = Path(sys.argv[1])
    if "--child" in sys.argv:
        _child(folder)
    elif "--write" in sys.argv:
        with TABLE.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("file", "result"), *sorted(outcomes(folder).items())])
    else:
        for name, result in outcomes(folder).items():
            print(name, result, sep=",")


if __name__ == "__main__":
    main()
