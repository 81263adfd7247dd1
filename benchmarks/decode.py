"""Decoding side by side: elastivid's `VideoReader`, plain sequential PyAV and OpenCV, on every clip of `clips/`.

    python benchmarks/decode.py [--repeats 5] [--only SUBSTRING] [--dry]

For 8, 16 and 64 evenly spread frames and for all frames, each reader opens the file, finds the frames and hands them
over as RGB arrays; index building is part of it. The three take turns, and the fastest of `--repeats` turns counts.
Sequential PyAV converts only wanted frames and stops after the last one; OpenCV grabs every frame and retrieves only
wanted ones: the fastest exact way that each offers. Both keep their own default threads. Frames that OpenCV counts or
orders differently are still timed. Writes docs/benchmarks/decode.md.

The data lies in `$ELASTIVID_SHARED/data/clips` (default `../shared`).
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # OpenCV reads it on loading; its FFmpeg is quiet then

import av
import cv2
import numpy as np

from elastivid.video import VideoReader
from elastivid.video.samplers import uniform

ROOT = Path(__file__).resolve().parent.parent
CLIPS = Path(os.environ.get("ELASTIVID_SHARED", ROOT.parent / "shared")) / "data" / "clips"
TABLE = ROOT / "docs" / "benchmarks" / "decode.md"
SETTINGS = ("8", "16", "64", "all")
READERS = ("elastivid", "pyav", "opencv")
CRASHES_OPENCV = {"andrewssobral+bgslibrary__demo.avi"}  # heap corruption in OpenCV 5.0 on 48x48 raw video
SLOW = 1 / 1.15  # cells below this ratio are listed
MIN_SECONDS = 0.15  # short clips are repeated until a setting has run for this long per reader


@dataclass(frozen=True)
class Row:
    """Milliseconds of one clip and setting, by reader; NaN where a reader cannot read the file."""

    clip: str
    setting: str
    milliseconds: dict[str, float]

    @property
    def ratio(self) -> float:
        """How many times faster elastivid is than the better of the two others."""
        return min(self.milliseconds["pyav"], self.milliseconds["opencv"]) / self.milliseconds["elastivid"]


def read_elastivid(path: str, wanted: np.ndarray | None) -> int:
    with VideoReader(path) as reader:
        if wanted is None:
            return sum(len(clip) for clip in reader.iterate())
        return len(reader.frames_at(wanted))


def read_pyav(path: str, wanted: np.ndarray | None) -> int:
    count = 0
    with av.open(path, metadata_errors="replace") as container:
        if wanted is None:
            for frame in container.decode(video=0):
                count += len(frame.to_ndarray(format="rgb24")) > 0
            return count
        targets, last = set(wanted.tolist()), int(wanted[-1])
        frames = []
        for i, frame in enumerate(container.decode(video=0)):
            if i in targets:
                frames.append(frame.to_ndarray(format="rgb24"))
            if i == last:
                break
        return len(_stack(frames))


def read_opencv(path: str, wanted: np.ndarray | None) -> int:
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
    try:
        if wanted is None:
            count = 0
            while True:
                good, frame = capture.read()
                if not good:
                    return count
                count += len(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)) > 0
        targets, last = set(wanted.tolist()), int(wanted[-1])
        frames = []
        for i in range(last + 1):
            if not capture.grab():
                break
            if i in targets:
                frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
        return len(_stack(frames))
    finally:
        capture.release()


def _stack(frames: list[np.ndarray]) -> np.ndarray:
    shape = frames[0].shape if frames else (0, 0, 3)
    clip = np.empty((len(frames), *shape), dtype=np.uint8)  # (T, H, W, 3)
    for i, frame in enumerate(frames):
        clip[i] = frame if frame.shape == shape else cv2.resize(frame, (shape[1], shape[0]))
    return clip


FUNCTIONS: dict[str, Callable[[str, np.ndarray | None], int]] = {
    "elastivid": read_elastivid,
    "pyav": read_pyav,
    "opencv": read_opencv,
}


def measure(path: Path, setting: str, num_frames: int, repeats: int) -> Row:
    """Fastest of `repeats` turns (more for short clips), the readers taking turns."""
    wanted = None if setting == "all" else np.unique(uniform(num_frames, int(setting)))
    best = dict.fromkeys(READERS, math.inf)
    readers = [name for name in READERS if name != "opencv" or path.name not in CRASHES_OPENCV]
    spent, turn = 0.0, 0
    while turn < repeats or (spent < len(READERS) * MIN_SECONDS and turn < 10 * repeats):
        for shift in range(len(readers)):
            name = readers[(turn + shift) % len(readers)]
            start = time.perf_counter()
            count = FUNCTIONS[name](str(path), wanted)
            elapsed = time.perf_counter() - start
            spent += elapsed
            if count == 0:
                elapsed = math.inf
            best[name] = min(best[name], elapsed)
        turn += 1
    return Row(path.relative_to(CLIPS).as_posix(), setting, {k: 1e3 * v for k, v in best.items()})


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(math.log(v) for v in values) / len(values))


def report(rows: list[Row], repeats: int) -> str:
    """The table as Markdown."""
    lines = [
        "# Decoding, side by side",
        "",
        "Written by `python benchmarks/decode.py`; how it is measured stands at the top of that file.",
        f"Fastest of at least {repeats} turns. Ratio: time of the better of PyAV and OpenCV over time of elastivid;",
        "above 1 elastivid is faster. Opening and index building included.",
        "",
        f"Machine: {_cpu()}, {os.cpu_count()} cores, {platform.system()}. Python {platform.python_version()}, "
        f"PyAV {av.__version__}, OpenCV {cv2.__version__}, NumPy {np.__version__}.",
        "",
        "| frames | geometric mean | worst | clip of the worst | slower than 1/1.15 |",
        "|---|---|---|---|---|",
    ]
    for setting in (*SETTINGS, "together"):
        some = [r for r in rows if setting in (r.setting, "together")]
        worst = min(some, key=lambda r: r.ratio)
        count = sum(r.ratio < SLOW for r in some)
        mean = geometric_mean([r.ratio for r in some])
        lines.append(f"| {setting} | {mean:.2f} | {worst.ratio:.2f} | `{worst.clip}` | {count} of {len(some)} |")
    lines += ["", "Long files, 8 frames:", ""]
    lines += [f"- `{r.clip}`: {r.ratio:.1f}x" for r in rows if r.clip.startswith("long/") and r.setting == "8"]
    lines += ["", "Slower than 1/1.15 of the better peer:", ""]
    slow = sorted((r for r in rows if r.ratio < SLOW), key=lambda r: r.ratio)
    lines += [f"- `{r.clip}`, {r.setting} frames: {r.ratio:.2f}" for r in slow] or ["- none"]
    lines += ["", "Milliseconds: elastivid / PyAV / OpenCV (ratio)", ""]
    lines += ["| clip | 8 | 16 | 64 | all |", "|---|---|---|---|---|"]
    for clip in dict.fromkeys(r.clip for r in rows):
        cells = [_cell(r) for r in rows if r.clip == clip]
        lines.append(f"| `{clip}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: Row) -> str:
    times = " / ".join("-" if math.isinf(v) else f"{v:.1f}" for v in (row.milliseconds[n] for n in READERS))
    return f"{times} ({row.ratio:.2f})"


def _cpu() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].split(":", 1)[1].strip() if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="clips whose name contains this")
    parser.add_argument("--dry", action="store_true", help="print, do not write the table")
    args = parser.parse_args()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    with (CLIPS / "index.csv").open(newline="") as file:
        clips = [(CLIPS.parent / r["file"], int(r["frames"])) for r in csv.DictReader(file)]
    rows = []
    for path, num_frames in clips:
        if args.only not in path.name:
            continue
        for setting in SETTINGS:
            rows.append(measure(path, setting, num_frames, args.repeats))
        print(f"{path.name[:48]:48}  " + "   ".join(_cell(r) for r in rows[-len(SETTINGS) :]), flush=True)
    text = report(rows, args.repeats)
    print(text.split("Milliseconds:")[0])
    if not args.dry:
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        TABLE.write_text(text)


if __name__ == "__main__":
    main()
