"""How fast folders are indexed, where the time goes, and how much memory it takes.

    python benchmarks/indexing.py [--weights FILE] [--cases CASE,...]    # about 3 minutes on 2 cores
    python benchmarks/indexing.py --beside ../before/src --repeats 2 --keep FILE

Every case runs in its own process, on files made here: a few seconds of panning texture with sensor noise, encoded once
with H.264 (a keyframe every 2 s) and repeated without encoding until the wanted length is reached. Writes
`docs/benchmarks/indexing.md` when all cases were measured. Peak memory is that of the main process, libraries and model
included, together with its reading processes, looked at ten times a second.

With `--beside`, the `src` folder of another version is measured too, in turns with this one, and the page says how they
compare. `--keep` adds to the results of earlier calls, so that the cases can be measured one by one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import psutil

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


class Memory:
    """Watches how much memory this process and those below it hold."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.1):
            held = 0
            for process in (me, *me.children()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    held += process.memory_info().rss
            self.peak_bytes = max(self.peak_bytes, held)


def measure(folder: Path, decode: str, weights: str) -> dict:
    """Index `folder` in this process: the report's numbers, the peak memory, and the cost of a second run."""
    from elastivid import Index, Sampling

    with Index.open(folder / "library.ev", model=weights, sampling=Sampling(decode=decode)) as index:
        with Memory() as memory:
            report = index.add(folder)
        usage, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        index.add(folder)
        again_seconds = time.perf_counter() - started
        gmacs = index.settings.gmacs_per_window
        if report.bad:
            raise SystemExit(f"the benchmark's own file cannot be read: {report.bad[0].reason}")
    return {
        **report.to_values(),
        "again_seconds": again_seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime + children.ru_utime + children.ru_stime,
        "peak_megabytes": memory.peak_bytes / 2**20,
        "gmacs_per_window": gmacs,
    }


def run_case(name: str, weights: str, sources: dict[str, str], repeats: int) -> dict[str, list[dict]]:
    """Make the files of a case and measure every version in fresh processes, in turns.

    Args:
        name: the case.
        weights: the model.
        sources: `src` folder of every version.
        repeats: runs of each.
    """
    case = CASES[name]
    results: dict[str, list[dict]] = {version: [] for version in sources}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_video(folder / "0000.mp4", case)
        content = (folder / "0000.mp4").read_bytes() if case.files > 1 else b""
        for number in range(1, case.files):  # copies with another last byte, or they would be recognised as copies
            (folder / f"{number:04d}.mp4").write_bytes(content + b"\0\0\0\x0cfree" + number.to_bytes(4, "big"))
        command = [sys.executable, __file__, "--measure", str(folder), "--decode", case.decode, "--weights", weights]
        for _ in range(repeats):
            for version, source in sources.items():
                shutil.rmtree(folder / "library.ev", ignore_errors=True)
                environment = {**os.environ, "PYTHONPATH": source}
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
                results[version].append(json.loads(done.stdout))
                print(name, version, done.stdout, flush=True)
    return results


def median_run(runs: list[dict]) -> dict:
    """The run whose wall time lies in the middle (of two the slower one)."""
    return sorted(runs, key=lambda run: run["elapsed_seconds"])[len(runs) // 2]


def document(measured: dict[str, dict[str, list[dict]]], weights: str, versions: list[str]) -> str:
    """The results as a page."""
    import lancedb
    import torch

    from elastivid import __version__
    from elastivid.core.cost import hardware_key

    results = {name: median_run(versions_of["this"]) for name, versions_of in measured.items()}
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
        "Wall time includes loading torch and the model. Files are read in processes of their own, beside encoding; "
        "seconds of both are summed over processes and threads and include waiting for a core. Peak memory: the main "
        "process plus its reading processes. Of several runs the middle one is shown.",
        "",
    ]
    for version in versions:
        lines += [f"## Beside {version}", "", *compared(measured, version), ""]
    return "\n".join(lines)


def compared(measured: dict[str, dict[str, list[dict]]], version: str) -> list[str]:
    """A table of this version beside another: x realtime of every run, in the order in which they took turns."""
    lines = [
        "Measured in turns in the same call, x realtime of every run.",
        "",
        f"| video | decoding | this | {version} | this / {version}, middle runs | processor time | peak memory |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, runs in measured.items():
        if version not in runs:
            continue
        mine, other = median_run(runs["this"]), median_run(runs[version])
        speeds = ["; ".join(f"{run['x_realtime']:.1f}" for run in runs[which]) for which in ("this", version)]
        lines.append(
            f"| {CASES[name].title} | {CASES[name].decode} | {speeds[0]} | {speeds[1]} "
            f"| **{mine['x_realtime'] / other['x_realtime']:.2f}** "
            f"| {mine['cpu_seconds']:.0f} s against {other['cpu_seconds']:.0f} s "
            f"| {mine['peak_megabytes']:.0f} MB against {other['peak_megabytes']:.0f} MB |"
        )
    return lines


def main() -> None:
    """Measure the cases and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="nano")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--beside", type=Path, help="src folder of another version, measured in turns")
    parser.add_argument("--name", default="before", help="what the other version is called on the page")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="file that collects results of several calls")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--decode", default="exact", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.decode, arguments.weights)))
        return
    sources = {"this": str(Path(__file__).resolve().parent.parent / "src")}
    if arguments.beside:
        sources[arguments.name] = str(arguments.beside.resolve())
    measured = json.loads(arguments.keep.read_text()) if arguments.keep and arguments.keep.exists() else {}
    for name in arguments.cases.split(","):
        measured[name] = run_case(name, arguments.weights, sources, arguments.repeats)
        if arguments.keep:
            arguments.keep.write_text(json.dumps(measured))
    if set(measured) == set(CASES):
        ordered = {name: measured[name] for name in CASES}
        page = document(ordered, arguments.weights, [version for version in sources if version != "this"])
        print(page)
        DOCUMENT.parent.mkdir(parents=True, exist_ok=True)
        DOCUMENT.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
