"""How fast folders are indexed, where the time goes, and how much memory it takes.

    python benchmarks/indexing.py [--weights FILE] [--cases CASE,...]    # about 3 minutes on 2 cores

Every case runs in its own process, on files made here: a few seconds of panning texture with sensor noise, encoded once
with H.264 (a keyframe every 2 s) and repeated without encoding until the wanted length is reached. Writes
`docs/benchmarks/indexing.md`. Peak memory is that of the whole process, libraries and model included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

FPS = 30
LOOP_SECONDS = 8
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "indexing.md"


@dataclass(frozen=True)
class Case:
    """One file, or several of the same kind, and how they are read."""

    title: str
    width: int
    height: int
    seconds: float
    bit_rate: int
    decode: str = "exact"
    files: int = 1
    goal: str = ""


CASES = {
    "hour-240p": Case("one hour, 320x240", 320, 240, 3600, 700_000, goal="60x, < 1.2 GB"),
    "1080p-keyframes": Case("15 min, 1920x1080", 1920, 1080, 900, 6_000_000, "keyframes", goal="20x"),
    "1080p-exact": Case("1 min, 1920x1080", 1920, 1080, 60, 6_000_000),
    "short-240p": Case("200 files of 6 s, 320x240", 320, 240, 6, 700_000, files=200),
}


def make_video(path: Path, case: Case) -> None:
    """Encode a loop, then repeat its packets until the video is long enough."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (case.height // 8 + 20, case.width // 8 + 80, 3), dtype=np.uint8)
    texture = coarse.repeat(8, axis=0).repeat(8, axis=1)  # (H + 160, W + 640, 3)
    noise = rng.normal(0, 6, (4, case.height, case.width, 1))
    loop = path.with_name("loop.mp4")
    with av.open(str(loop), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = case.width, case.height, "yuv420p"
        stream.bit_rate, stream.gop_size = case.bit_rate, 2 * FPS
        frames = round(min(LOOP_SECONDS, case.seconds) * FPS)
        for number in range(frames):
            shift = 2 * min(number, frames - number)
            picture = texture[20 : 20 + case.height, shift : shift + case.width] + noise[number % 4]
            frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    repeat_packets(loop, path, case.seconds)
    loop.unlink()


def repeat_packets(loop: Path, path: Path, seconds: float) -> None:
    """Copy the packets of `loop` until `seconds` are full."""
    with av.open(str(loop)) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        length = int(stream.duration)
        packets = [packet for packet in source.demux(stream) if packet.size]
        kept = [(packet.pts, packet.dts, bytes(packet), packet.is_keyframe, packet.duration) for packet in packets]
        for turn in range(round(seconds / float(length * stream.time_base))):
            for pts, dts, content, is_keyframe, duration in kept:
                packet = av.Packet(content)
                packet.stream, packet.time_base, packet.is_keyframe = copy, stream.time_base, is_keyframe
                packet.pts, packet.dts, packet.duration = pts + turn * length, dts + turn * length, duration
                target.mux(packet)


def measure(folder: Path, decode: str, weights: str) -> dict:
    """Index `folder` in this process: the report's numbers, the peak memory, and the cost of a second run."""
    from elastivid import Index, Sampling

    with Index.open(folder / "library.ev", model=weights, sampling=Sampling(decode=decode)) as index:
        report = index.add(folder)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        started = time.perf_counter()
        index.add(folder)
        again_seconds = time.perf_counter() - started
        gmacs = index.settings.gmacs_per_window
        if report.bad:
            raise SystemExit(f"the benchmark's own file cannot be read: {report.bad[0].reason}")
    return {
        **report.to_values(),
        "again_seconds": again_seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_megabytes": usage.ru_maxrss / 1024,
        "gmacs_per_window": gmacs,
    }


def run_case(name: str, weights: str) -> dict:
    """Make the files of a case and measure it in a fresh process."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_video(folder / "0000.mp4", case)
        for number in range(1, case.files):
            (folder / f"{number:04d}.mp4").write_bytes((folder / "0000.mp4").read_bytes())
        command = [sys.executable, __file__, "--measure", str(folder), "--decode", case.decode, "--weights", weights]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def document(results: dict[str, dict], weights: str) -> str:
    """The results as a page."""
    import lancedb
    import torch

    from elastivid import __version__
    from elastivid.core.cost import hardware_key

    gmacs = next(iter(results.values()))["gmacs_per_window"]
    lines = [
        "# Indexing",
        "",
        f"`python benchmarks/indexing.py`, model `{Path(weights).name}`, default windows: 4 s every 2 s, 8 frames of "
        f"168 px, 256 tokens, {gmacs:.2f} GMACs. Videos: {FPS} frames/s, a keyframe every 2 s.",
        "",
        f"{hardware_key().split(' | ')[0]}, {os.cpu_count()} cores; elastivid {__version__}, "
        f"torch {torch.__version__}, PyAV {av.__version__}, lancedb {lancedb.__version__}, "
        f"Python {platform.python_version()}.",
        "",
        "| video | decoding | x realtime | wall | of it loading the model | storing | decoding, all threads "
        "| encoding, all threads | processor time | peak memory | goal |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for name, row in results.items():
        case = CASES[name]
        lines.append(
            f"| {case.title} | {case.decode} | **{row['x_realtime']:.0f}x** | {row['elapsed_seconds']:.1f} s "
            f"| {row['load_seconds']:.1f} s | {row['store_seconds']:.2f} s | {row['decode_seconds']:.1f} s "
            f"| {row['encode_seconds']:.1f} s | {row['cpu_seconds']:.1f} s | {row['peak_megabytes']:.0f} MB "
            f"| {case.goal} |"
        )
    short = results.get("short-240p")
    if short:
        lines += [
            "",
            f"The {short['files']} short files: {short['files'] / short['elapsed_seconds']:.1f} videos/s; running the "
            f"command again when nothing changed takes {short['again_seconds'] * 1000:.0f} ms.",
        ]
    lines += [
        "",
        "Wall time includes loading torch and the model. Decoding and encoding run side by side; their seconds are "
        "summed over threads and include waiting for a core.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure the cases and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="nano")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--decode", default="exact", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.decode, arguments.weights)))
        return
    results = {}
    for name in arguments.cases.split(","):
        results[name] = run_case(name, arguments.weights)
        print(name, json.dumps(results[name]), flush=True)
    page = document(results, arguments.weights)
    print(page)
    if set(results) == set(CASES):
        DOCUMENT.parent.mkdir(parents=True, exist_ok=True)
        DOCUMENT.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
